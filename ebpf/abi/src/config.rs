//! What the agent tells the programs about the node.

use core::mem::size_of;

/// Flags of [`Config::flags`].
pub mod config_flags {
    /// A permissive pod whose agent is gone connects in the clear (unset: is refused).
    pub const PERMISSIVE_WITHOUT_AGENT: u32 = 1 << 0;
    /// Same-node flows between meshed, attached pods take the fast path.
    pub const FAST_PATH: u32 = 1 << 1;
    /// Clean-up has begun: every new SYN of a capturing endpoint is refused.
    pub const CLOSING: u32 = 1 << 2;
}

/// The one element of the `CONFIG` array.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Config {
    /// cgroup v2 id of the node's kubelet; 0: no probes.
    pub kubelet_cgroup: u64,
    /// That cgroup's depth, for `bpf_skb_ancestor_cgroup_id`.
    pub kubelet_level: u32,
    /// Number of the running agent: pending and captured flows of another one are orphans. Never 0.
    pub generation: u32,
    /// Policy epoch.
    pub epoch: u32,
    /// Shards of the running agent, 1 to [`crate::MAX_SHARDS`].
    pub shards: u32,
    /// Host-side veth into the agent's namespace (`kumiko0`).
    pub agent_ifindex: u32,
    /// See [`config_flags`].
    pub flags: u32,
    /// Class of this node's own processes, by epoch parity, whatever address they speak from; see [`crate::policy`].
    pub host_class: [u32; 2],
    /// First six bytes of SHA-256 of the node's name: the head of every flow id made here.
    pub node_hash: [u8; 6],
    /// MAC of `eth0` in the agent's namespace, for frames that reach it through the egress of `kumiko0`.
    pub agent_mac: [u8; 6],
    /// Zero.
    pub _pad: [u8; 4],
}

const _: () = assert!(size_of::<Config>() == 56);
