//! What a person runs. Each command writes to what it is given and returns whether all is well; a reader that has gone
//! (a closed pipe) is no error.

pub mod check;
pub mod info;
pub mod remarks;
pub mod status;
pub mod vfio;
