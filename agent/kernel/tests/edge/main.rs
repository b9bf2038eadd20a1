//! The edge to the operating system, tried on real namespaces. Needs root; without it every test says so and passes.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "tests")]
#![allow(missing_docs, unreachable_pub, reason = "tests")]
#![allow(clippy::needless_range_loop, reason = "one number picks the family in several tables")]

mod agent_ns;
mod cgroup;
mod diag;
mod inject;
mod link;
mod netns;
mod oob;
mod sockets;
mod tunnel;
mod veth;
mod world;
