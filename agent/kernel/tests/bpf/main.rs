//! The kernel programs on the running kernel: loading and take-over, verdicts on handmade packets, real packets through
//! the hooks. Each test has namespaces and a bpf file system of its own, so they run side by side. Needs root; every
//! test says so and passes without it.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    reason = "tests"
)]

mod commands;
mod fixture;
mod frames;
mod inbound;
mod limits;
mod load;
mod node;
mod others;
mod outbound;
mod path;
mod policy;
mod protocols;
mod services;
mod udp;
mod world;
