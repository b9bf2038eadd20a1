//! From bytes to a [`Packet`]: Ethernet, IPv4 with options, IPv6 with extension headers, ports, ICMP.
//!
//! Everything is copied with `bpf_skb_load_bytes`, which reads paged data too and spares the verifier the bounds of
//! every pointer.

use kumiko_abi::{
    FlowKey,
    flow::{ICMP, ICMPV6, SCTP, TCP, UDP},
};

use crate::{maps::Scratch, skb::Skb};

const ETH: u32 = 14;
const TYPE_IPV4: u16 = 0x0800;
const TYPE_IPV6: u16 = 0x86dd;
const TYPE_VLAN: u16 = 0x8100;
const TYPE_QINQ: u16 = 0x88a8;
const IGMP: u8 = 2;
const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const AUTHENTICATION: u8 = 51;
const DESTINATION: u8 = 60;
/// Extension headers that are followed; a packet with more counts as unparsable.
const MAX_EXTENSIONS: u32 = 8;
const ECHO_REPLY: u8 = 0;
const ECHO: u8 = 8;
/// ICMPv6's errors have lower numbers.
const ECHO_V6: u8 = 128;
const ECHO_REPLY_V6: u8 = 129;
/// Multicast listeners (RFC 2710), and from 133 neighbour discovery (RFC 4861).
const LISTENER_QUERY: u8 = 130;
const ROUTER_SOLICITATION: u8 = 133;
const REDIRECT: u8 = 137;
/// RFC 3810.
const LISTENER_REPORT: u8 = 143;

/// `::ffff:0:0/96`, where IPv4 addresses live, second half's upper part as it stands in memory.
const V4_PREFIX: u32 = 0x0000_ffff_u32.to_be();

/// Ethernet and IP header, placed so that every field of both is aligned.
#[repr(C, align(8))]
pub(crate) struct Head {
    _pad: u16,
    pub(crate) dst_mac: [u16; 3],
    pub(crate) src_mac: [u16; 3],
    ethertype: u16,
    ip: [u32; 10],
}

/// What a packet is.
#[repr(u8)]
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// No IP: ARP and the like.
    NotIp = 0,
    /// VLAN-tagged: not looked into.
    Tagged = 1,
    /// A TCP fragment, or headers that cannot be read.
    Bad = 2,
    /// Of the link itself, by what it is and how far it goes: neighbour discovery that nobody has forwarded (RFC 4861, 7.1),
    /// membership of groups.
    Link = 3,
    /// An ICMP error about a packet; the scratch key names that packet's flow.
    Error = 4,
    /// TCP; the scratch key names its flow.
    Tcp = 5,
    /// Anything else, or its first fragment; the scratch key names its exchange. An echo's identifier stands for the port
    /// of who asks; what has no ports has 0.
    Datagram = 6,
    /// A later fragment of what has ports.
    Rest = 7,
}

/// A parsed packet. Addresses as two halves in memory order; ports and numbers in host order.
#[repr(C, align(8))]
pub(crate) struct Packet {
    pub(crate) head: Head,
    pub(crate) src: [u64; 2],
    pub(crate) dst: [u64; 2],
    tcp: [u32; 5],
    pub(crate) seq: u32,
    pub(crate) ack: u32,
    /// Transport payload, bytes.
    pub(crate) payload: u32,
    /// Offset of the transport header.
    pub(crate) l4: u32,
    /// Of an ICMP error, offset of the transport header in the packet that it carries.
    pub(crate) inner: u32,
    /// Length of the TCP header.
    pub(crate) header: u32,
    /// Where the IP header says the packet ends; 0: it does not say.
    end: u32,
    pub(crate) sport: u16,
    pub(crate) dport: u16,
    /// IP protocol, after extension headers.
    pub(crate) proto: u8,
    /// TCP flags.
    pub(crate) flags: u8,
    /// ICMP type.
    pub(crate) icmp: u8,
    pub(crate) v6: bool,
    /// Whether the source is the key's lower end.
    pub(crate) src_is_lo: bool,
    /// A fragment (never TCP).
    pub(crate) fragment: bool,
    /// Not the first one.
    rest: bool,
    _pad: u8,
    /// What its fragments have in common.
    pub(crate) fragment_id: u32,
    extension: [u8; 8],
}

impl Packet {
    #[inline(always)]
    pub(crate) fn unicast(&self) -> bool {
        // The group bit is the lowest of the first byte on the wire.
        self.head.dst_mac[0] & u16::from_ne_bytes([1, 0]) == 0
    }

    #[inline(always)]
    pub(crate) fn is(&self, bits: u8, of: u8) -> bool {
        self.flags & of == bits
    }
}

/// Parses the packet into `s.packet` and `s.key`.
#[inline(never)]
pub(crate) fn parse(skb: Skb, s: &mut Scratch) -> Kind {
    if skb.tagged() {
        return Kind::Tagged;
    }
    let p = &mut s.packet;
    p.fragment = false;
    p.rest = false;
    p.sport = 0;
    p.dport = 0;
    match skb.ethertype() {
        TYPE_IPV4 => {
            // SAFETY: 34 bytes from `dst_mac` end inside `head`.
            if !unsafe { skb.load::<34>(0, (&raw mut p.head.dst_mac).cast()) } {
                return Kind::Bad;
            }
            if !ipv4(p) {
                return Kind::Bad;
            }
        }
        TYPE_IPV6 => {
            // SAFETY: 54 bytes from `dst_mac` end with `head`.
            if !unsafe { skb.load::<54>(0, (&raw mut p.head.dst_mac).cast()) } {
                return Kind::Bad;
            }
            if !ipv6(skb, p) {
                return Kind::Bad;
            }
        }
        TYPE_VLAN | TYPE_QINQ => return Kind::Tagged,
        _ => return Kind::NotIp,
    }
    let end = if p.end != 0 && p.end < skb.len() { p.end } else { skb.len() };
    p.payload = end.saturating_sub(p.l4);
    match p.proto {
        TCP if p.fragment => return Kind::Bad,
        TCP => {
            if !tcp(skb, p) {
                return Kind::Bad;
            }
            set_key(&mut s.key, p);
            return Kind::Tcp;
        }
        UDP | SCTP | ICMP | ICMPV6 if p.rest => return Kind::Rest,
        IGMP if !p.v6 && !p.fragment && is_group(p.dst) => return Kind::Link,
        _ => {}
    }
    // What of an entry is TCP's alone stays zero.
    (p.seq, p.ack, p.flags, p.header) = (0, 0, 0, 0);
    if matches!(p.proto, UDP | SCTP | ICMP | ICMPV6) {
        // SAFETY: 8 bytes of scratch.
        if !unsafe { skb.load::<8>(p.l4, (&raw mut p.tcp).cast()) } {
            return Kind::Bad;
        }
        p.header = 8;
        p.payload = p.payload.saturating_sub(8);
        if matches!(p.proto, ICMP | ICMPV6) {
            p.icmp = u32::from_be(p.tcp[0]).to_be_bytes()[0];
            let link = match (p.icmp, u32::from_be(p.head.ip[1]) as u8) {
                (ROUTER_SOLICITATION..=REDIRECT, 255) => true,
                (LISTENER_QUERY..ROUTER_SOLICITATION | LISTENER_REPORT, 1) => is_group(p.dst),
                _ => false,
            };
            if p.v6 && p.proto == ICMPV6 && link {
                return Kind::Link;
            }
            let error = match (p.v6, p.proto) {
                (true, ICMPV6) => p.icmp < ECHO_V6,
                (false, ICMP) => matches!(p.icmp, 3 | 4 | 5 | 11 | 12),
                _ => false,
            };
            if error && inner(skb, s) {
                return Kind::Error;
            }
        }
    }
    itself(s);
    Kind::Datagram
}

/// Fills ports and key of the packet in hand, neither TCP's nor a later fragment.
#[inline(never)]
pub(crate) fn itself(s: &mut Scratch) {
    let p = &mut s.packet;
    (p.sport, p.dport) = (0, 0);
    // Of an error `p.tcp` is of the packet that it carries.
    ports(p, p.icmp);
    set_key(&mut s.key, p);
}

/// Whether an address is a group's.
#[inline(always)]
pub(crate) fn is_group(addr: [u64; 2]) -> bool {
    let (first, second) = (u64::from_be(addr[0]), u64::from_be(addr[1]));
    if is_v4(addr) { second as u32 >> 28 == 0xe } else { first >> 56 == 0xff }
}

/// Ports from the transport header's beginning in `p.tcp`, of ICMP the type is said.
#[inline(always)]
fn ports(p: &mut Packet, icmp: u8) {
    let first = u32::from_be(p.tcp[0]);
    let id = (u32::from_be(p.tcp[1]) >> 16) as u16;
    match (p.proto, icmp) {
        (TCP | UDP | SCTP, _) => (p.sport, p.dport) = ((first >> 16) as u16, first as u16),
        (ICMP, ECHO) | (ICMPV6, ECHO_V6) => (p.sport, p.dport) = (id, 0),
        (ICMP, ECHO_REPLY) | (ICMPV6, ECHO_REPLY_V6) => (p.sport, p.dport) = (0, id),
        _ => {}
    }
}

#[inline(always)]
fn v4(raw: u32) -> u64 {
    u64::from(V4_PREFIX) | u64::from(raw) << 32
}

/// Whether an address is an IPv4 one, mapped.
#[inline(always)]
fn is_v4(addr: [u64; 2]) -> bool {
    addr[0] == 0 && addr[1] as u32 == V4_PREFIX
}

#[inline(always)]
fn ipv4(p: &mut Packet) -> bool {
    let first = u32::from_be(p.head.ip[0]);
    let header = (first >> 24 & 0xf) * 4;
    if first >> 28 != 4 || header < 20 {
        return false;
    }
    let second = u32::from_be(p.head.ip[1]);
    // More-fragments bit and offset.
    p.fragment = second & 0x3fff != 0;
    p.rest = second & 0x1fff != 0;
    p.proto = (u32::from_be(p.head.ip[2]) >> 16) as u8;
    // Its numbers are each protocol's own (RFC 6864).
    p.fragment_id = second >> 16 | u32::from(p.proto) << 16;
    p.src = [0, v4(p.head.ip[3])];
    p.dst = [0, v4(p.head.ip[4])];
    p.v6 = false;
    p.l4 = ETH + header;
    // BIG TCP says 0. Otherwise the length tells padding from payload.
    let total = first & 0xffff;
    p.end = if total == 0 { 0 } else { ETH + total };
    true
}

#[inline(always)]
fn ipv6(skb: Skb, p: &mut Packet) -> bool {
    if u32::from_be(p.head.ip[0]) >> 28 != 6 {
        return false;
    }
    let ip = &p.head.ip;
    p.src = [u64::from(ip[2]) | u64::from(ip[3]) << 32, u64::from(ip[4]) | u64::from(ip[5]) << 32];
    p.dst = [u64::from(ip[6]) | u64::from(ip[7]) << 32, u64::from(ip[8]) | u64::from(ip[9]) << 32];
    if is_v4(p.src) || is_v4(p.dst) {
        // No such address may be on a wire (RFC 4038, 4.2), and it would be taken for the IPv4 flow of the same numbers.
        return false;
    }
    p.v6 = true;
    let second = u32::from_be(ip[1]);
    let length = second >> 16;
    p.end = if length == 0 { 0 } else { ETH + 40 + length };
    p.proto = (second >> 8) as u8;
    p.l4 = ETH + 40;
    extensions(skb, p)
}

/// Walks extension headers from `p.l4`, `p.proto` being the first one's number. False: too many, or cut off.
#[inline(never)]
fn extensions(skb: Skb, p: &mut Packet) -> bool {
    for _ in 0..MAX_EXTENSIONS {
        let kind = p.proto;
        if !matches!(kind, HOP_BY_HOP | ROUTING | FRAGMENT | AUTHENTICATION | DESTINATION) {
            return true;
        }
        // SAFETY: 8 bytes of scratch.
        if !unsafe { skb.load::<8>(p.l4, (&raw mut p.extension).cast()) } {
            return false;
        }
        let [next, length, f0, f1, id @ ..] = p.extension;
        p.proto = next;
        let bytes = match kind {
            FRAGMENT => {
                // An atomic fragment (offset 0, no more to come) is a whole packet (RFC 6946).
                if u16::from_be_bytes([f0, f1]) & 0xfff9 != 0 {
                    p.fragment = true;
                    p.rest = u16::from_be_bytes([f0, f1]) & 0xfff8 != 0;
                    p.fragment_id = u32::from_ne_bytes(id);
                    p.l4 += 8;
                    // Behind the first one, or with further headers, TCP may hide: taken for it.
                    if matches!(next, HOP_BY_HOP | ROUTING | AUTHENTICATION | DESTINATION) {
                        p.proto = TCP;
                    }
                    return true;
                }
                8
            }
            AUTHENTICATION => (u32::from(length) + 2) * 4,
            _ => (u32::from(length) + 1) * 8,
        };
        p.l4 += bytes;
    }
    false
}

#[inline(always)]
fn tcp(skb: Skb, p: &mut Packet) -> bool {
    // SAFETY: 20 bytes of scratch.
    if !unsafe { skb.load::<20>(p.l4, (&raw mut p.tcp).cast()) } {
        return false;
    }
    let ports = u32::from_be(p.tcp[0]);
    p.sport = (ports >> 16) as u16;
    p.dport = ports as u16;
    p.seq = u32::from_be(p.tcp[1]);
    p.ack = u32::from_be(p.tcp[2]);
    let bits = u32::from_be(p.tcp[3]);
    p.flags = (bits >> 16) as u8;
    p.header = (bits >> 28) * 4;
    if p.header < 20 || p.payload < p.header {
        return false;
    }
    p.payload -= p.header;
    true
}

/// Key of the packet that an ICMP error carries, unless it is a later fragment, or was sent by somebody else than is told of it.
/// Leaves the outer addresses as they are.
#[inline(never)]
fn inner(skb: Skb, s: &mut Scratch) -> bool {
    let p = &mut s.packet;
    let outer = (p.src, p.dst, p.proto, p.l4);
    let at = p.l4 + 8;
    let parsed = if p.v6 {
        // SAFETY: 40 bytes into the ten words of `ip`.
        let loaded = unsafe { skb.load::<40>(at, (&raw mut p.head.ip).cast()) };
        loaded && ipv6_inner(skb, p, at)
    } else {
        // SAFETY: 20 bytes into the ten words of `ip`.
        unsafe { skb.load::<20>(at, (&raw mut p.head.ip).cast()) && ipv4(p) }
    };
    let mut found = false;
    let (_, told, _, _) = outer;
    if parsed && !p.rest && p.src == told {
        let l4 = if p.v6 { p.l4 } else { p.l4 - ETH + at };
        p.inner = l4;
        // SAFETY: 8 bytes of scratch.
        if unsafe { skb.load::<8>(l4, (&raw mut p.tcp).cast()) } {
            ports(p, (u32::from_be(p.tcp[0]) >> 24) as u8);
            set_key(&mut s.key, p);
            found = true;
        }
    }
    (p.src, p.dst, p.proto, p.l4) = outer;
    p.fragment = false;
    p.rest = false;
    found
}

#[inline(always)]
fn ipv6_inner(skb: Skb, p: &mut Packet, at: u32) -> bool {
    let ip = &p.head.ip;
    p.src = [u64::from(ip[2]) | u64::from(ip[3]) << 32, u64::from(ip[4]) | u64::from(ip[5]) << 32];
    p.dst = [u64::from(ip[6]) | u64::from(ip[7]) << 32, u64::from(ip[8]) | u64::from(ip[9]) << 32];
    p.proto = (u32::from_be(ip[1]) >> 8) as u8;
    p.l4 = at + 40;
    extensions(skb, p)
}

#[inline(always)]
fn set_key(key: &mut FlowKey, p: &mut Packet) {
    p.src_is_lo = fill_key(key, (p.src, p.sport), (p.dst, p.dport), p.proto);
}

/// Fills the canonical key of a packet and says whether its source is the lower end: [`FlowKey::of_packet`] with
/// aligned words instead of bytes.
#[inline(always)]
pub(crate) fn fill_key(key: &mut FlowKey, src: ([u64; 2], u16), dst: ([u64; 2], u16), proto: u8) -> bool {
    let ((s, sport), (d, dport)) = (src, dst);
    let (s0, d0) = (u64::from_be(s[0]), u64::from_be(d[0]));
    let (s1, d1) = (u64::from_be(s[1]), u64::from_be(d[1]));
    let src_is_lo = if s0 != d0 {
        s0 < d0
    } else if s1 != d1 {
        s1 < d1
    } else {
        sport <= dport
    };
    let (lo, hi, lo_port, hi_port) = if src_is_lo { (s, d, sport, dport) } else { (d, s, dport, sport) };
    write_addr(&raw mut key.lo, lo);
    write_addr(&raw mut key.hi, hi);
    key.lo_port = lo_port;
    key.hi_port = hi_port;
    key.proto = proto;
    key._pad = [0; 3];
    src_is_lo
}

/// Writes an address into an eight-aligned key.
#[inline(always)]
fn write_addr(to: *mut [u8; 16], addr: [u64; 2]) {
    // SAFETY: every key that is filled is eight-aligned (asserted for `Scratch`, by type in the socket lookup), and both
    // addresses begin at multiples of 16.
    unsafe { to.cast::<[u64; 2]>().write(addr) }
}

/// Reads an address of an eight-aligned key.
#[inline(always)]
pub(crate) fn words_of(addr: &[u8; 16]) -> [u64; 2] {
    // SAFETY: as for writing.
    unsafe { core::ptr::from_ref(addr).cast::<[u64; 2]>().read() }
}

/// An IPv4 address, as it stands in memory, mapped into IPv6.
#[inline(always)]
pub(crate) fn mapped(raw: u32) -> [u64; 2] {
    [0, v4(raw)]
}
