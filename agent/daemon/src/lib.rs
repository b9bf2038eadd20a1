//! The parts of `kumiko-agent`.

pub mod options;
pub mod telemetry;
