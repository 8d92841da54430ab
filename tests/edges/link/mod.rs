//! The link against real servers on loopback: slow, silent, broken and hostile ones too.

mod certs;
mod connected;
mod deadlines;
mod dialling;
mod leaks;
mod peers;
mod registering;
mod rig;
mod secured;
