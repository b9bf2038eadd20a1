//! The parts of `kumiko-agent`.

pub mod admin;
pub mod clock;
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzzing;
pub mod identity;
pub mod issuer;
pub mod options;
pub mod program;
pub mod quiet;
pub mod reconcile;
pub mod run;
pub mod shard;
pub mod signals;
pub mod source;
pub mod telemetry;
