//! What the programs hand to the agent through ring buffers.

use core::mem::size_of;

use crate::{Flow, FlowId, FlowKey};

/// Longest kept SYN: Ethernet (14), IPv4 with options (60) or IPv6 with short extension headers, TCP with options (60).
pub const SYN_MAX: usize = 192;

/// A parked SYN, for the shard that will dial. Its payload is cut off (the client sends it again), lengths rewritten;
/// the TCP checksum is whatever the veth carried and has to be computed before the frame is used.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct SynRecord {
    /// Key of the pending entry.
    pub key: FlowKey,
    /// Its id.
    pub id: FlowId,
    /// Its first SYN's time.
    pub first_ns: u64,
    /// Agent generation it was judged under: another one's records are thrown away.
    pub generation: u32,
    /// The pod's host-side interface.
    pub ifindex: u32,
    /// Client's handle.
    pub src: u32,
    /// Target workload's handle, 0 when a Service was asked for.
    pub dst: u32,
    /// Service id, or 0.
    pub service: u32,
    /// See [`crate::flow::flags`]; tells which end of the key is the client.
    pub flags: u32,
    /// Shard.
    pub shard: u16,
    /// Bytes of `frame` in use.
    pub len: u16,
    /// Offset of the IP header in `frame`.
    pub l3: u16,
    /// Offset of the TCP header in `frame`.
    pub l4: u16,
    /// Ethernet, IP and TCP headers.
    pub frame: [u8; SYN_MAX],
}

/// What an [`Event`] tells.
#[repr(u8)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum EventKind {
    /// A flow was judged and let in.
    New = 1,
    /// A flow was refused; no entry stays behind.
    Denied = 2,
    /// A flow is over: both FINs acknowledged, or an RST.
    Over = 3,
    /// A SYN took the place of an entry that was over, or aborted a live one; carries the old entry.
    Replaced = 4,
}

/// A flow event with the whole entry as it stood.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Event {
    /// `CLOCK_MONOTONIC` ns.
    pub at_ns: u64,
    /// The flow.
    pub key: FlowKey,
    /// See [`EventKind`].
    pub kind: u8,
    /// Zero.
    pub _pad: [u8; 7],
    /// The entry.
    pub flow: Flow,
}

const _: () = assert!(size_of::<SynRecord>() == 40 + 16 + 8 + 6 * 4 + 4 * 2 + SYN_MAX);
const _: () = assert!(size_of::<Event>() == 8 + 40 + 8 + size_of::<Flow>());
