//! The flow table: key, value and states.

use core::mem::size_of;

/// An address, 16 bytes in network order; IPv4 as `::ffff:a.b.c.d`.
pub type Addr = [u8; 16];

/// Identity of a flow on every node that sees it: node hash (6 bytes), start in ns (8, big-endian), sequence (2,
/// big-endian). Made by the source's kernel program and carried in `OPEN`.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct FlowId(pub [u8; 16]);

/// IP protocol number of TCP.
pub const TCP: u8 = 6;
/// IP protocol number of UDP.
pub const UDP: u8 = 17;
/// IP protocol number of SCTP.
pub const SCTP: u8 = 132;
/// IP protocol number of ICMP.
pub const ICMP: u8 = 1;
/// IP protocol number of ICMPv6.
pub const ICMPV6: u8 = 58;

/// Whether packets of a protocol have the ports of their ends in their first four bytes.
#[inline(always)]
pub const fn has_ports(proto: u8) -> bool {
    matches!(proto, TCP | UDP | SCTP)
}

/// Key of a flow, canonical: the end with the lower (address, port) comes first, so that both directions find one
/// entry.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct FlowKey {
    /// Lower end's address.
    pub lo: Addr,
    /// Higher end's address.
    pub hi: Addr,
    /// Lower end's port.
    pub lo_port: u16,
    /// Higher end's port.
    pub hi_port: u16,
    /// IP protocol.
    pub proto: u8,
    /// Zero.
    pub _pad: [u8; 3],
}

impl FlowKey {
    /// Builds the key of a packet and says whether its source is the lower end.
    #[inline(always)]
    pub fn of_packet(src: &Addr, src_port: u16, dst: &Addr, dst_port: u16, proto: u8) -> (Self, bool) {
        let src_is_lo = match cmp_addr(src, dst) {
            core::cmp::Ordering::Less => true,
            core::cmp::Ordering::Greater => false,
            core::cmp::Ordering::Equal => src_port <= dst_port,
        };
        let key = if src_is_lo {
            Self { lo: *src, hi: *dst, lo_port: src_port, hi_port: dst_port, proto, _pad: [0; 3] }
        } else {
            Self { lo: *dst, hi: *src, lo_port: dst_port, hi_port: src_port, proto, _pad: [0; 3] }
        };
        (key, src_is_lo)
    }
}

/// Compares two addresses as numbers in four steps: a byte loop costs the verifier sixteen branches a packet.
#[inline(always)]
fn cmp_addr(a: &Addr, b: &Addr) -> core::cmp::Ordering {
    let (a0, a1) = halves(a);
    let (b0, b1) = halves(b);
    if a0 != b0 {
        return if a0 < b0 { core::cmp::Ordering::Less } else { core::cmp::Ordering::Greater };
    }
    if a1 == b1 {
        core::cmp::Ordering::Equal
    } else if a1 < b1 {
        core::cmp::Ordering::Less
    } else {
        core::cmp::Ordering::Greater
    }
}

#[inline(always)]
fn halves(a: &Addr) -> (u64, u64) {
    let [b0, b1, b2, b3, b4, b5, b6, b7, b8, b9, b10, b11, b12, b13, b14, b15] = *a;
    (u64::from_be_bytes([b0, b1, b2, b3, b4, b5, b6, b7]), u64::from_be_bytes([b8, b9, b10, b11, b12, b13, b14, b15]))
}

/// What happens to a flow's packets.
#[repr(u8)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum FlowState {
    /// The SYN is with the agent, which dials; SYN retransmissions are dropped, anything else goes to the agent's
    /// namespace.
    Pending = 1,
    /// Packets go between the pod and the agent's namespace, both ways.
    Captured = 2,
    /// Packets pass as they are: in the clear, and marked so.
    Direct = 3,
    /// Same node: packets go straight into the other pod with `bpf_redirect_peer`.
    Fast = 4,
    /// Refused or cut: every packet goes to the agent's namespace, whose kernel resets it; RSTs pass to the pod.
    Cut = 5,
}

impl FlowState {
    /// The state of a stored byte, if it is one.
    #[inline(always)]
    pub const fn from_u8(v: u8) -> Option<Self> {
        match v {
            1 => Some(Self::Pending),
            2 => Some(Self::Captured),
            3 => Some(Self::Direct),
            4 => Some(Self::Fast),
            5 => Some(Self::Cut),
            _ => None,
        }
    }
}

/// Flags of [`Flow::flags`].
pub mod flags {
    /// The initiator is the key's lower end.
    pub const INITIATOR_IS_LO: u32 = 1 << 0;
    /// Older than its pod's enrolment: passes outside the tunnel, listed until it ends.
    pub const LEGACY: u32 = 1 << 1;
    /// Arrived by a tunnel: the agent's upstream socket is the initiator's end.
    pub const DELIVERED: u32 = 1 << 2;
    /// Accepted in the clear by a permissive endpoint, or sent in the clear to a peer outside the mesh.
    pub const PLAINTEXT: u32 = 1 << 3;
    /// Permissive on both sides and no tunnel to be had: went once in the clear.
    pub const DOWNGRADED: u32 = 1 << 4;
    /// A probe of the node's kubelet to a declared port.
    pub const PROBE: u32 = 1 << 5;
    /// From a process of the node itself.
    pub const HOST: u32 = 1 << 6;
    /// Judged for the destination's side too (a same-node peer): the other veth's hook does not judge again.
    pub const JUDGED_BOTH: u32 = 1 << 7;
    /// The initiator's address was proved by the veth it came from.
    pub const VETH_PROVED: u32 = 1 << 8;
    /// The source port towards the pod is not the client's own (two Services with one backend, one source port).
    pub const OTHER_PORT: u32 = 1 << 9;
    /// A pod that reaches itself through a Service.
    pub const HAIRPIN: u32 = 1 << 10;
    /// The initiator's workload or the target's is judged by `observe`: recorded, not enforced.
    pub const OBSERVED: u32 = 1 << 11;
    /// Both FINs seen and acknowledged.
    pub const OVER_FIN: u32 = 1 << 12;
    /// An RST was seen.
    pub const OVER_RST: u32 = 1 << 13;
    /// An endpoint of the flow is gone.
    pub const OVER_GONE: u32 = 1 << 14;
    /// Any of the three ends.
    pub const OVER: u32 = OVER_FIN | OVER_RST | OVER_GONE;
    /// The flow counts against its endpoint's pending quota.
    pub const COUNTED_PENDING: u32 = 1 << 15;
    /// Learned from packets, not from a SYN: which end began it is a guess.
    pub const LEARNED: u32 = 1 << 16;
    /// Pending only for its refusal: the SYN carries an option that two connections cannot carry.
    pub const UNCARRIABLE: u32 = 1 << 17;
    /// With what is in audit another verdict: what is allowed would be refused, and the other way round.
    pub const AUDIT_DIFFERS: u32 = 1 << 18;
    /// A strict end would refuse it.
    pub const STRICT_REFUSES: u32 = 1 << 19;
    /// In the clear to a strict end, which refuses that by its stage: let in by a rule that takes an address for enough.
    pub const RULED: u32 = 1 << 20;
    /// Judged anew by other rules than those it began under, and refused: who was left open is for the agent to end.
    pub const REVOKED: u32 = 1 << 21;
    /// To a Service whose endpoint the programs chose: the key names that one.
    pub const TURNED: u32 = 1 << 22;
    /// Being replaced or deleted: whoever sets it first may do so. Set by the programs only, for an instant.
    pub const CLAIMED: u32 = 1 << 31;
}

/// Flags of [`Direction::flags`].
pub mod dir_flags {
    /// A SYN (or SYN-ACK) was seen this way.
    pub const SYN: u32 = 1 << 0;
    /// A FIN was seen this way; its sequence number is in `fin_seq`.
    pub const FIN: u32 = 1 << 1;
    /// The other end acknowledged that FIN.
    pub const FIN_ACKED: u32 = 1 << 2;
    /// An RST was seen this way.
    pub const RST: u32 = 1 << 3;
}

/// One direction of a flow.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Direction {
    /// Packets.
    pub packets: u64,
    /// Transport payload bytes, from `skb->len` (BIG TCP has no length in its IP header).
    pub bytes: u64,
    /// Next sequence number after the last segment seen.
    pub seq: u32,
    /// Last acknowledgement number seen.
    pub ack: u32,
    /// Sequence number after the FIN, when [`dir_flags::FIN`] is set.
    pub fin_seq: u32,
    /// See [`dir_flags`].
    pub flags: u32,
}

/// Value of the flow table. Written by kernel code only ([`crate::command`] is user space's way).
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Flow {
    /// See [`FlowId`].
    pub id: FlowId,
    /// First packet, `CLOCK_MONOTONIC` ns.
    pub first_ns: u64,
    /// Last SYN of the initiator; tells the dialler when a client gave up.
    pub last_syn_ns: u64,
    /// Last packet either way.
    pub last_ns: u64,
    /// When it was over; 0 while it lives.
    pub over_ns: u64,
    /// Initiator's handle; 0: no workload.
    pub src: u32,
    /// Target's handle; 0: no workload.
    pub dst: u32,
    /// Service id, when a Service's address was asked for.
    pub service: u32,
    /// Interface that the initiator's packets come from; 0: the host's stack.
    pub src_ifindex: u32,
    /// Interface that the target's packets come from; 0: the host's stack.
    pub dst_ifindex: u32,
    /// Agent generation that owns a pending or captured flow.
    pub generation: u32,
    /// Policy epoch of the verdict.
    pub epoch: u32,
    /// Initial sequence number of the initiator's SYN.
    pub isn: u32,
    /// See [`flags`].
    pub flags: u32,
    /// Shard that owns the flow.
    pub shard: u16,
    /// See [`crate::Reason`].
    pub reason: u16,
    /// See [`FlowState`].
    pub state: u8,
    /// See [`crate::Verdict`].
    pub verdict: u8,
    /// Zero.
    pub _pad: [u8; 2],
    /// Second since the boot (`CLOCK_BOOTTIME`) from which a verdict that let it holds no more; 0: for good.
    pub not_after: u32,
    /// From the initiator, from the target.
    pub dir: [Direction; 2],
}

const _: () = assert!(size_of::<FlowKey>() == 40);
const _: () = assert!(size_of::<Direction>() == 32);
const _: () = assert!(size_of::<Flow>() == 16 + 4 * 8 + 9 * 4 + 2 * 2 + 2 + 2 + 4 + 2 * 32);
