#![allow(clippy::disallowed_methods, reason = "servers run in threads here, and openssl makes certificates")]
#![allow(clippy::unwrap_used, reason = "what fails here fails the test")]
#![allow(missing_docs)]
//! The link against real servers on loopback: slow, silent, broken and hostile ones too.

mod certs;
mod connected;
mod deadlines;
mod dialling;
mod peers;
mod registering;
mod rig;
mod secured;
