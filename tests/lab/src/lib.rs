//! The lab: nodes and pods as network namespaces of one kernel, with agents and issuer as real processes.
//!
//! Demo, tests and benches build their networks with it. A lab writes its state file before it makes anything, so what
//! a crash leaves behind is found and removed by the guard process, by `cargo xtask lab down`, or by the next lab.

pub mod admin;
pub mod agents;
pub mod command;
pub mod guard;
pub mod lab;
pub mod manifests;
pub mod netns;
pub mod pattern;
pub mod peer;
pub mod services;
pub mod spec;
pub mod state;
pub mod status;
pub mod topology;
pub mod wire;

pub use lab::{Lab, Node, Pod};
pub use netns::Netns;
pub use spec::{Family, LabSpec, Net, PodSpec, ServiceSpec, Stage};
