//! Endpoints, workloads, addresses, services and counters.

use core::mem::size_of;

use crate::Addr;

/// How far a namespace or workload has adopted the mesh.
#[repr(u8)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Hash, Default)]
pub enum Stage {
    /// Untouched.
    #[default]
    Off = 0,
    /// Counted and judged; nothing changes.
    Observe = 1,
    /// Tunnels to meshed peers, accepts plaintext and marks it.
    Permissive = 2,
    /// Accepts only tunnel and same-node kernel-attested traffic.
    Strict = 3,
}

impl Stage {
    /// The stage of a stored byte; anything unknown is the safest one, strict.
    #[inline(always)]
    pub const fn from_u8(v: u8) -> Self {
        match v {
            0 => Self::Off,
            1 => Self::Observe,
            2 => Self::Permissive,
            _ => Self::Strict,
        }
    }

    /// Meshed: its traffic with meshed peers travels in tunnels.
    #[inline(always)]
    pub const fn meshed(self) -> bool {
        matches!(self, Self::Permissive | Self::Strict)
    }
}

/// Flags of [`Endpoint::flags`].
pub mod endpoint_flags {
    /// Being raised: unknown packets make legacy entries and pass, new SYNs pass below strict and are dropped in it.
    pub const LEARN: u32 = 1 << 0;
    /// May take the same-node fast path (unset for pods whose veth has a rate limit).
    pub const FAST: u32 = 1 << 1;
    /// Permissive, and refused all the same while the agent is gone, whatever the node's configuration says.
    pub const REFUSED_WITHOUT_AGENT: u32 = 1 << 2;
}

/// A local workload bound to the host side of its veth.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Endpoint {
    /// The workload.
    pub handle: u32,
    /// See [`endpoint_flags`].
    pub flags: u32,
    /// Policy set, by epoch parity.
    pub set: [u32; 2],
    /// Most flows that may be pending at once.
    pub max_pending: u32,
    /// Most flow entries.
    pub max_flows: u32,
    /// See [`Stage`].
    pub stage: u8,
    /// Zero.
    pub _pad: [u8; 3],
    /// MAC of the pod, as netlink tells; used until the pod's own frames told better.
    pub pod_mac: [u8; 6],
    /// MAC of the pod's gateway: the veth's host side, or the bridge it is a port of.
    pub gateway_mac: [u8; 6],
    /// Bridge or VRF (the outermost) of the veth: what the pod sends reaches the host's stack as if this had received it,
    /// or the veth; 0: there is none.
    pub master: u32,
}

/// What the kernel learned and counts about an endpoint; the agent writes zeros once and then only reads.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct EndpointUse {
    /// Flows in state pending.
    pub pending: u64,
    /// Flow entries that this endpoint began or was the clear target of.
    pub flows: u64,
    /// Source MAC of the pod's last IP frame, destination MAC beside it; zero until seen.
    pub pod_mac: [u8; 6],
    /// Where that frame went.
    pub gateway_mac: [u8; 6],
    /// Zero.
    pub _pad: [u8; 4],
}

/// Flags of [`Workload::flags`].
pub mod workload_flags {
    /// The handle is in use.
    pub const LIVE: u8 = 1 << 0;
    /// On this node.
    pub const LOCAL: u8 = 1 << 1;
    /// On this node, and both hooks are on its veth.
    pub const ATTACHED: u8 = 1 << 2;
}

/// A workload as the programs know it; index is its handle.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Workload {
    /// Class (principal and what selects it), by epoch parity.
    pub class: [u32; 2],
    /// Host-side interface when attached here, else 0.
    pub ifindex: u32,
    /// Node number, node-local numbering; 0: unknown.
    pub node: u16,
    /// See [`Stage`].
    pub stage: u8,
    /// See [`workload_flags`].
    pub flags: u8,
}

/// What an address is.
#[repr(u8)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum AddrKind {
    /// A workload's.
    Workload = 1,
    /// Another node's.
    Node = 2,
    /// This node's.
    ThisNode = 3,
    /// Claimed by two workloads, or by one that may not have it: nobody's.
    Disputed = 4,
}

/// Value of `ADDRS`.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct AddrEntry {
    /// Workload's handle, or 0.
    pub handle: u32,
    /// See [`AddrKind`].
    pub kind: u8,
    /// Zero.
    pub _pad: [u8; 3],
    /// What rules ask about it, by epoch parity; see [`crate::policy`].
    pub class: [u32; 2],
}

/// Key of `SERVICES`. A node port has the address zero and counts for every node's address.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct ServiceKey {
    /// Cluster IP, or an address for clients outside the cluster.
    pub addr: Addr,
    /// Service port.
    pub port: u16,
    /// IP protocol.
    pub proto: u8,
    /// Zero.
    pub _pad: u8,
}

/// Flags of [`ServiceEntry::flags`].
pub mod service_flags {
    /// Every ready endpoint is meshed: the agent takes it. Unset: kube-proxy's, in the clear.
    pub const CAPTURE: u32 = 1 << 0;
    /// A node port, an external or a load-balancer's address: made for clients outside, never captured.
    pub const OUTER: u32 = 1 << 1;
    /// A client keeps to one endpoint.
    pub const AFFINITY: u32 = 1 << 2;
}

/// Value of `SERVICES`.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct ServiceEntry {
    /// Service port's number, node-local; never 0.
    pub id: u32,
    /// See [`service_flags`].
    pub flags: u32,
    /// How many of its endpoints in this family `BACKENDS` has.
    pub backends: u32,
}

/// Key of `BACKENDS`.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct BackendKey {
    /// See [`ServiceEntry::id`].
    pub service: u32,
    /// Below [`ServiceEntry::backends`], with [`Self::V6`] added for IPv6's.
    pub index: u32,
}

impl BackendKey {
    /// The bit that tells endpoints with an IPv6 address from those with an IPv4 one.
    pub const V6: u32 = 1 << 31;
}

/// Value of `BACKENDS` and `TRANSLATIONS`: an address and port.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct Backend {
    /// Address.
    pub addr: Addr,
    /// Port.
    pub port: u16,
    /// Zero.
    pub _pad: [u8; 6],
}

/// Key of `PAIRS`. The bucket with all numbers zero takes what no longer fits.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct PairKey {
    /// Source class; 0: outside the mesh.
    pub src_class: u32,
    /// Destination class; 0: outside the mesh.
    pub dst_class: u32,
    /// Destination port.
    pub port: u16,
    /// See [`crate::Reason`].
    pub reason: u16,
    /// IP protocol.
    pub proto: u8,
    /// See [`crate::Verdict`].
    pub verdict: u8,
    /// Zero.
    pub _pad: [u8; 2],
}

/// Value of `PAIRS`.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct PairCount {
    /// TCP and UDP: flows judged. Others: packets.
    pub events: u64,
    /// TCP and UDP: payload of the judged packet. Others: payload bytes.
    pub bytes: u64,
}

/// Key of `PROBE_PORTS`: the kubelet may reach this port of a strict workload.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct ProbePort {
    /// The workload.
    pub handle: u32,
    /// Its TCP port.
    pub port: u16,
    /// Zero.
    pub _pad: u16,
}

/// Index into `STATS`.
#[repr(u32)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Stat {
    /// TCP payload bytes of a strict endpoint to a meshed peer, outside a tunnel and not legacy. Must read zero.
    LeakBytes = 0,
    /// Packets seen from pods.
    PodPackets = 1,
    /// Packets redirected into the agent's namespace.
    ToAgent = 2,
    /// Packets redirected from the agent's namespace into a pod.
    FromAgent = 3,
    /// Packets that took the fast path.
    Fast = 4,
    /// Packets that passed in the clear.
    Clear = 5,
    /// Packets whose source address is not the endpoint's (counted in observe, dropped from permissive on).
    Spoofed = 6,
    /// TCP fragments and headers that could not be parsed.
    Unparsable = 7,
    /// VLAN-tagged frames.
    Vlan = 8,
    /// Packets of a known flow from an interface that is not its own.
    WrongInterface = 9,
    /// Packets without a flow entry that went to the agent's namespace to be reset.
    Stray = 10,
    /// SYNs dropped because the shard's ring was full.
    RingFull = 11,
    /// Flows denied because the flow table was full.
    TableFull = 12,
    /// SYNs dropped because the endpoint's pending quota was full.
    PendingFull = 13,
    /// Flows denied because the endpoint's entry quota was full.
    QuotaFull = 14,
    /// Events lost because the event ring was full.
    EventsLost = 15,
    /// Pair counts that went to the overflow bucket.
    PairsOverflow = 16,
    /// Packets dropped at a pod's egress because their flow is captured.
    EgressCaptured = 17,
    /// Frames from the agent's namespace that belong to no flow.
    AgentStray = 18,
    /// What no rule is asked about: of the link itself, and ICMP errors about flows that live.
    NotTcp = 19,
    /// RSTs of the agent's kernel held back, since what they answer came while a connection left its handshake.
    EarlyResets = 20,
}

impl Stat {
    /// All counters.
    pub const ALL: &'static [Stat] = &[
        Self::LeakBytes,
        Self::PodPackets,
        Self::ToAgent,
        Self::FromAgent,
        Self::Fast,
        Self::Clear,
        Self::Spoofed,
        Self::Unparsable,
        Self::Vlan,
        Self::WrongInterface,
        Self::Stray,
        Self::RingFull,
        Self::TableFull,
        Self::PendingFull,
        Self::QuotaFull,
        Self::EventsLost,
        Self::PairsOverflow,
        Self::EgressCaptured,
        Self::AgentStray,
        Self::NotTcp,
        Self::EarlyResets,
    ];

    /// Name for people and metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Self::LeakBytes => "leak_bytes",
            Self::PodPackets => "pod_packets",
            Self::ToAgent => "to_agent",
            Self::FromAgent => "from_agent",
            Self::Fast => "fast",
            Self::Clear => "clear",
            Self::Spoofed => "spoofed",
            Self::Unparsable => "unparsable",
            Self::Vlan => "vlan",
            Self::WrongInterface => "wrong_interface",
            Self::Stray => "stray",
            Self::RingFull => "ring_full",
            Self::TableFull => "table_full",
            Self::PendingFull => "pending_full",
            Self::QuotaFull => "quota_full",
            Self::EventsLost => "events_lost",
            Self::PairsOverflow => "pairs_overflow",
            Self::EgressCaptured => "egress_captured",
            Self::AgentStray => "agent_stray",
            Self::NotTcp => "not_tcp",
            Self::EarlyResets => "early_resets",
        }
    }
}

/// Length of the `STATS` array.
pub const STATS_LEN: u32 = 64;

const _: () = assert!(size_of::<Endpoint>() == 44);
const _: () = assert!(size_of::<EndpointUse>() == 32);
const _: () = assert!(size_of::<Workload>() == 16);
const _: () = assert!(size_of::<AddrEntry>() == 16);
const _: () = assert!(size_of::<ServiceKey>() == 20);
const _: () = assert!(size_of::<ServiceEntry>() == 12);
const _: () = assert!(size_of::<BackendKey>() == 8);
const _: () = assert!(size_of::<Backend>() == 24);
const _: () = assert!(size_of::<PairKey>() == 16);
const _: () = assert!(size_of::<ProbePort>() == 8);
const _: () = assert!(size_of::<PairCount>() == 16);
