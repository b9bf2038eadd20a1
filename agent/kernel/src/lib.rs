//! The edge to the operating system: namespaces, netlink, sockets' odd options, the kernel programs' loader. The only
//! crate of the agent with `unsafe`.

pub mod agent_ns;
pub mod alive;
pub mod bpf;
pub mod cgroup;
pub mod diag;
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzzing;
pub mod inject;
pub mod lease;
pub mod link;
mod netlink;
pub mod netns;
pub mod privileges;
pub mod qdisc;
pub mod readable;
pub mod sockets;
pub mod veth;
