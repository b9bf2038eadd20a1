//! The scripted peer: a process in a pod that makes exact socket calls and says what each of them gave.
//!
//! The same script runs with the mesh and without; reports are values that can be compared.

mod client;
pub mod process;
mod protocol;
mod script;

pub use client::{Peer, Pending};
pub use protocol::{Action, ConnReport, Reply, Request, Step, StepReport};
