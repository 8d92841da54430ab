#![allow(clippy::unwrap_used, reason = "what fails here fails the test")]
#![allow(missing_docs)]
//! What the sources and the documents say of each other.

#[path = "../support/skip.rs"]
mod skip;

mod dependencies;
mod documents;
mod layers;
mod readme;
mod threat_model;
