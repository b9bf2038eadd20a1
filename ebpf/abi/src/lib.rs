//! Every type, constant and reason that the kernel programs and the agent share.
//!
//! `no_std`, no dependencies, compiled for the BPF target and for the host. Rules that hold for all of it:
//!
//! - every struct is `repr(C)` without implicit padding (asserted below), so any value is plain bytes;
//! - addresses are 16 bytes in network order, IPv4 as `::ffff:a.b.c.d` ([`Addr`]);
//! - ports and counters are numbers in the machine's byte order; times are nanoseconds of
//!   `bpf_ktime_get_ns`, which is `CLOCK_MONOTONIC`;
//! - handles, service ids and set numbers are node-local and never on the wire; 0 means "none".
//!
//! A change of any layout here raises [`LAYOUT`]: pinned maps live in a directory named after it.
#![no_std]

pub mod command;
pub mod config;
pub mod element;
pub mod exchange;
pub mod flow;
pub mod judge;
pub mod map;
pub mod policy;
pub mod reason;
pub mod record;
pub mod segment;

pub use command::{Command, CommandOp, CommandResult};
pub use config::Config;
pub use flow::{Addr, Direction, Flow, FlowId, FlowKey, FlowState};
pub use map::{
    AddrEntry, AddrKind, Backend, BackendKey, Endpoint, EndpointUse, PairCount, PairKey, ProbePort, ServiceEntry,
    ServiceKey, Stage, Stat, Workload,
};
pub use reason::{Reason, Verdict};
pub use record::{Event, EventKind, SynRecord};

/// Version of every layout in this crate; part of the pin directory's name.
pub const LAYOUT: u32 = 5;
/// TCP port of the tunnel on a node's InternalIP.
pub const TUNNEL_PORT: u16 = 15008;
/// Highest number of shards an agent may run: one SYN ring and two listener slots each.
pub const MAX_SHARDS: u32 = 16;
/// Mark of an RST that goes back into a pod's veth ingress on its way to a peer outside (see the `kumiko0` program).
/// Never leaves the host side of that veth: the ingress program clears it.
pub const MARK_TRANSIT: u32 = 0x6b75_6d69;

/// Names of the maps as they stand in the object and in the pin directory.
pub mod names {
    /// `hash FlowKey -> Flow`, not preallocated, 262,144 entries.
    pub const FLOWS: &str = "FLOWS";
    /// `hash ifindex u32 -> Endpoint`.
    pub const ENDPOINTS: &str = "ENDPOINTS";
    /// `hash ifindex u32 -> EndpointUse`; made by the agent with the endpoint, then written by the kernel only.
    pub const ENDPOINT_USE: &str = "ENDPOINT_USE";
    /// `array handle u32 -> Workload`, 65,536 entries.
    pub const WORKLOADS: &str = "WORKLOADS";
    /// `hash Addr -> AddrEntry`, not preallocated, 131,072 entries.
    pub const ADDRS: &str = "ADDRS";
    /// `hash ServiceKey -> ServiceEntry`, not preallocated, 65,536 entries.
    pub const SERVICES: &str = "SERVICES";
    /// `hash BackendKey -> Backend`, not preallocated, 65,536 entries: ready endpoints of Services that the programs choose.
    pub const BACKENDS: &str = "BACKENDS";
    /// `hash FlowKey -> Backend`, not preallocated, 131,072 entries: (client, Service) to the chosen endpoint, and (client,
    /// endpoint) to the Service.
    pub const TRANSLATIONS: &str = "TRANSLATIONS";
    /// `array[1] Config`.
    pub const CONFIG: &str = "CONFIG";
    /// `sockmap shard * 2 + (0 IPv4 | 1 IPv6) -> listener`.
    pub const LISTENERS: &str = "LISTENERS";
    /// `array of ring buffers shard u32 -> ring of SynRecord`.
    pub const SYNS: &str = "SYNS";
    /// Ring buffer of `Event`.
    pub const EVENTS: &str = "EVENTS";
    /// `per-CPU array Stat -> u64`.
    pub const STATS: &str = "STATS";
    /// `per-CPU array Reason -> u64`: packets or flows that met this reason.
    pub const REASONS: &str = "REASONS";
    /// `per-CPU hash PairKey -> PairCount`.
    pub const PAIRS: &str = "PAIRS";
    /// `hash ProbePort -> u8`: ports that a local workload declares for probes.
    pub const PROBE_PORTS: &str = "PROBE_PORTS";
    /// `LPM trie NetKey -> [class u32; 2]`, by epoch parity: what rules ask about addresses that `ADDRS` has not got.
    pub const NETS: &str = "NETS";
    /// `array set u32 -> Set`.
    pub const SETS: &str = "SETS";
    /// `array u32 -> Row`.
    pub const ROWS: &str = "ROWS";
    /// `array u32 -> index into COLUMNS u32`.
    pub const CHUNKS: &str = "CHUNKS";
    /// `array u32 -> Chunk`.
    pub const COLUMNS: &str = "COLUMNS";
    /// `array u32 -> Cell`.
    pub const CELLS: &str = "CELLS";
}

/// Names of the programs as they stand in the object.
pub mod programs {
    /// tc ingress of a pod's veth: what the pod sends.
    pub const POD_INGRESS: &str = "pod_ingress";
    /// tc egress of a pod's veth: what the host's stack sends the pod.
    pub const POD_EGRESS: &str = "pod_egress";
    /// tc ingress of `kumiko0`: what the agent's sockets send.
    pub const AGENT_INGRESS: &str = "agent_ingress";
    /// `sk_lookup` in the agent's namespace.
    pub const AGENT_LOOKUP: &str = "agent_lookup";
    /// Run by `BPF_PROG_TEST_RUN` only: the one way for user space to change a flow entry.
    pub const FLOW_COMMAND: &str = "flow_command";
}
