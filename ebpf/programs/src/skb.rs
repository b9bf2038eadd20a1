//! The socket buffer: what the programs read from it and do with it.

use aya_ebpf::{
    bindings::{__sk_buff, TC_ACT_SHOT, TC_ACT_UNSPEC},
    helpers::generated as helpers,
    programs::TcContext,
};
use core::ptr;

/// On to the next program of the hook (a CNI's), then to the stack; `TC_ACT_OK` would skip the others.
pub(crate) const PASS: i32 = TC_ACT_UNSPEC;
/// Drops.
pub(crate) const DROP: i32 = TC_ACT_SHOT;
/// `PACKET_HOST` of linux/if_packet.h.
const PACKET_HOST: u32 = 0;
/// `BPF_F_MARK_MANGLED_0`: a UDP checksum of zero means that there is none, and none becomes zero.
const UDP_ZERO: u64 = 1 << 5;
/// `BPF_F_PSEUDO_HDR`: the checksum covers addresses, as a part of its pseudo header.
const PSEUDO_HEADER: u64 = 1 << 4;
/// `BPF_F_INGRESS`.
const INGRESS: u64 = 1;

/// A context that can be handed to functions by value.
#[derive(Clone, Copy)]
pub(crate) struct Skb(*mut __sk_buff);

/// Reads one field. Volatile, because LLVM merges neighbouring reads into wider ones that the verifier refuses.
macro_rules! field {
    ($skb:expr, $name:ident) => {
        // SAFETY: the context is valid while the program runs, and the field is one that classifiers may read.
        unsafe { ptr::read_volatile(&raw const (*$skb.0).$name) }
    };
}

/// Where an address and port are to be written.
#[derive(Clone, Copy)]
pub(crate) struct Part {
    /// The source's, not the destination's.
    pub(crate) source: bool,
    pub(crate) v6: bool,
    pub(crate) tcp: bool,
    /// Offset of the TCP or UDP header; 0: a later fragment, which has none.
    pub(crate) l4: u32,
}

impl Skb {
    #[inline(always)]
    pub(crate) fn new(ctx: &TcContext) -> Self {
        Self(ctx.skb.skb)
    }

    /// Length with all headers, bytes.
    #[inline(always)]
    pub(crate) fn len(self) -> u32 {
        field!(self, len)
    }

    /// Interface whose hook this is.
    #[inline(always)]
    pub(crate) fn ifindex(self) -> u32 {
        field!(self, ifindex)
    }

    /// Interface that the packet came in by; 0: this host made it.
    #[inline(always)]
    pub(crate) fn came_by(self) -> u32 {
        field!(self, ingress_ifindex)
    }

    /// EtherType in host order.
    #[inline(always)]
    pub(crate) fn ethertype(self) -> u16 {
        u16::from_be(field!(self, protocol) as u16)
    }

    /// Whether an accelerated VLAN tag hides beside the data.
    #[inline(always)]
    pub(crate) fn tagged(self) -> bool {
        field!(self, vlan_present) != 0
    }

    #[inline(always)]
    pub(crate) fn mark(self) -> u32 {
        field!(self, mark)
    }

    #[inline(always)]
    pub(crate) fn set_mark(self, mark: u32) {
        // SAFETY: as for reading; classifiers may write this field.
        unsafe { ptr::write_volatile(&raw mut (*self.0).mark, mark) }
    }

    /// Copies `LEN` bytes at `offset` to `to`; false when the packet ends before.
    ///
    /// # Safety
    /// `to` must be valid for `LEN` bytes of writes.
    #[inline(always)]
    pub(crate) unsafe fn load<const LEN: u32>(self, offset: u32, to: *mut u8) -> bool {
        // SAFETY: the helper checks the packet's end, the verifier checks `to`.
        unsafe { helpers::bpf_skb_load_bytes(self.0.cast(), offset, to.cast(), LEN) == 0 }
    }

    /// Copies `len` bytes at `offset`, `len` having been bounded by the caller.
    ///
    /// # Safety
    /// `to` must be valid for `len` bytes of writes.
    #[inline(always)]
    pub(crate) unsafe fn load_at(self, offset: u32, to: *mut u8, len: u32) -> bool {
        // SAFETY: as above.
        unsafe { helpers::bpf_skb_load_bytes(self.0.cast(), offset, to.cast(), len) == 0 }
    }

    /// Writes both MAC addresses, destination first.
    #[inline(always)]
    pub(crate) fn set_macs(self, macs: &[u16; 6]) -> bool {
        // SAFETY: 12 bytes of stack; the helper checks the packet.
        unsafe { helpers::bpf_skb_store_bytes(self.0.cast(), 0, macs.as_ptr().cast(), 12, 0) == 0 }
    }

    /// Writes the destination MAC address.
    #[inline(always)]
    pub(crate) fn set_destination(self, mac: &[u16; 3]) -> bool {
        // SAFETY: 6 bytes of stack; the helper checks the packet.
        unsafe { helpers::bpf_skb_store_bytes(self.0.cast(), 0, mac.as_ptr().cast(), 6, 0) == 0 }
    }

    /// Writes an IPv6 source address over `old`, and into the checksum at `sum`, which covers it.
    #[inline(always)]
    pub(crate) fn set_source_v6(self, old: &[u64; 2], new: &[u64; 2], sum: u32) -> bool {
        // SAFETY: sixteen bytes each; the helpers check the packet.
        unsafe {
            let (from, to) = (ptr::from_ref(old).cast_mut().cast(), ptr::from_ref(new).cast_mut().cast());
            let change = helpers::bpf_csum_diff(from, 16, to, 16, 0);
            change >= 0
                && helpers::bpf_l4_csum_replace(self.0, sum, 0, change as u64, PSEUDO_HEADER) == 0
                && helpers::bpf_skb_store_bytes(self.0.cast(), 22, to.cast(), 16, 0) == 0
        }
    }

    /// Writes another address and port into a packet, and into its checksums. False: the packet is as it was, or useless.
    #[inline(always)]
    pub(crate) fn turn(self, part: Part, (old, old_port): (&[u64; 2], u16), (new, new_port): (&[u64; 2], u16)) -> bool {
        let Part { source, v6, tcp, l4 } = part;
        let at = match (v6, source) {
            (false, true) => 26,
            (false, false) => 30,
            (true, true) => 22,
            (true, false) => 38,
        };
        // SAFETY: the helpers check the packet; what they read is sixteen bytes, or the last four of them.
        unsafe {
            let (from, to) = (ptr::from_ref(old).cast::<u32>(), ptr::from_ref(new).cast::<u32>());
            if l4 != 0 {
                let (sum, zero) = if tcp { (l4 + 16, 0) } else { (l4 + 6, UDP_ZERO) };
                let done = if v6 {
                    let change = helpers::bpf_csum_diff(from.cast_mut(), 16, to.cast_mut(), 16, 0);
                    let flags = PSEUDO_HEADER | zero;
                    change >= 0 && helpers::bpf_l4_csum_replace(self.0, sum, 0, change as u64, flags) == 0
                } else {
                    let (old, new) = (u64::from(*from.add(3)), u64::from(*to.add(3)));
                    helpers::bpf_l4_csum_replace(self.0, sum, old, new, PSEUDO_HEADER | zero | 4) == 0
                };
                let (old, new) = (u64::from(old_port.to_be()), new_port.to_be());
                let port = l4 + if source { 0 } else { 2 };
                if !done
                    || helpers::bpf_l4_csum_replace(self.0, sum, old, u64::from(new), zero | 2) != 0
                    || helpers::bpf_skb_store_bytes(self.0.cast(), port, (&raw const new).cast(), 2, 0) != 0
                {
                    return false;
                }
            }
            if v6 {
                return helpers::bpf_skb_store_bytes(self.0.cast(), at, to.cast(), 16, 0) == 0;
            }
            let (old, new) = (u64::from(*from.add(3)), u64::from(*to.add(3)));
            helpers::bpf_l3_csum_replace(self.0, 24, old, new, 4) == 0
                && helpers::bpf_skb_store_bytes(self.0.cast(), at, to.add(3).cast(), 4, 0) == 0
        }
    }

    /// Writes another destination into the packet that an ICMP error carries, and where the error comes from that
    /// destination itself, into its source. `l4`: offsets of the ICMP header, and of the TCP or UDP header that it carries.
    #[inline(always)]
    pub(crate) fn turn_error(
        self,
        (v6, own, l4): (bool, bool, [u32; 2]),
        (old, old_port): (&[u64; 2], u16),
        (new, new_port): (&[u64; 2], u16),
    ) -> bool {
        let [icmp, inner] = l4;
        let (sum, ip) = (icmp + 2, icmp + 8);
        // SAFETY: the helpers check the packet; what they read is sixteen bytes, or the last four of them.
        unsafe {
            let (from, to) = (ptr::from_ref(old).cast::<u32>(), ptr::from_ref(new).cast::<u32>());
            let (before, port) = (u64::from(old_port.to_be()), new_port.to_be());
            if helpers::bpf_l4_csum_replace(self.0, sum, before, u64::from(port), 2) != 0
                || helpers::bpf_skb_store_bytes(self.0.cast(), inner + 2, (&raw const port).cast(), 2, 0) != 0
            {
                return false;
            }
            if v6 {
                let change = helpers::bpf_csum_diff(from.cast_mut(), 16, to.cast_mut(), 16, 0);
                let done = change >= 0
                    && helpers::bpf_l4_csum_replace(self.0, sum, 0, change as u64, 0) == 0
                    && helpers::bpf_skb_store_bytes(self.0.cast(), ip + 24, to.cast(), 16, 0) == 0;
                return done && (!own || self.set_source_v6(old, new, sum));
            }
            // What its header's own checksum takes back leaves the error's as it is.
            let (old, new) = (u64::from(*from.add(3)), u64::from(*to.add(3)));
            let done = helpers::bpf_l3_csum_replace(self.0, ip + 10, old, new, 4) == 0
                && helpers::bpf_skb_store_bytes(self.0.cast(), ip + 16, to.add(3).cast(), 4, 0) == 0;
            let source = || {
                helpers::bpf_l3_csum_replace(self.0, 24, old, new, 4) == 0
                    && helpers::bpf_skb_store_bytes(self.0.cast(), 26, to.add(3).cast(), 4, 0) == 0
            };
            done && (!own || source())
        }
    }

    /// Into the namespace at the other end of veth `ifindex`. Without the change of type, a frame that was not
    /// addressed to this veth's own MAC (every frame of a bridged pod) would be dropped over there.
    #[inline(always)]
    pub(crate) fn into_peer_of(self, ifindex: u32) -> i32 {
        // SAFETY: plain helper calls on a valid context, at tc ingress, where redirect_peer is allowed.
        unsafe {
            helpers::bpf_skb_change_type(self.0, PACKET_HOST);
            helpers::bpf_redirect_peer(ifindex, 0) as i32
        }
    }

    /// Out of interface `ifindex`.
    #[inline(always)]
    pub(crate) fn out_of(self, ifindex: u32) -> i32 {
        // SAFETY: plain helper call.
        unsafe { helpers::bpf_redirect(ifindex, 0) as i32 }
    }

    /// Into this host's stack, as if `ifindex` had received it.
    #[inline(always)]
    pub(crate) fn as_received_by(self, ifindex: u32) -> i32 {
        // SAFETY: plain helper call.
        unsafe { helpers::bpf_redirect(ifindex, INGRESS) as i32 }
    }

    /// cgroup v2 id of the sending socket; 0: none is known.
    #[inline(always)]
    pub(crate) fn cgroup(self) -> u64 {
        // SAFETY: plain helper call; it answers 0 when the packet has no full socket.
        unsafe { helpers::bpf_skb_cgroup_id(self.0) }
    }

    /// Id of that cgroup's ancestor at depth `level`; 0: none.
    #[inline(always)]
    pub(crate) fn cgroup_ancestor(self, level: u32) -> u64 {
        // SAFETY: as above.
        unsafe { helpers::bpf_skb_ancestor_cgroup_id(self.0, level as i32) }
    }
}
