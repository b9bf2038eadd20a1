//! Who the two ends of a packet are.

use core::mem::transmute;

use kumiko_abi::{
    Addr, AddrEntry, AddrKind, Config, Endpoint, ServiceEntry, ServiceKey, Stage, Workload,
    config::config_flags,
    flow::{TCP, UDP},
    judge::{self, Asker, Peer},
    map::{ProbePort, endpoint_flags, workload_flags},
};

use crate::{
    maps::{ADDRS, CONFIG, ENDPOINTS, HERE, PROBE_PORTS, SERVICES, Scratch, WORKLOADS, forget, read},
    packet::{Packet, is_group},
    skb::Skb,
};

/// Where a packet is judged.
#[derive(Clone, Copy)]
pub(crate) struct Hook<'a> {
    pub(crate) skb: Skb,
    pub(crate) config: &'a Config,
    pub(crate) endpoint: &'a Endpoint,
    pub(crate) ifindex: u32,
}

/// The endpoint of this hook, copied once; absent is the same as off.
#[inline(always)]
pub(crate) fn here(ifindex: u32) -> Option<&'static Endpoint> {
    let slot = HERE.get_ptr_mut(0)?;
    // SAFETY: a per-CPU slot that only this function writes, once a packet.
    unsafe {
        if read(|| ENDPOINTS.get_ptr(ifindex), |endpoint| *slot = *endpoint).is_none() {
            *slot = Endpoint::default();
        }
        forget(&mut *slot);
        Some(&*slot)
    }
}

#[inline(always)]
pub(crate) fn stage(of: &Endpoint) -> Stage {
    Stage::from_u8(of.stage)
}

#[inline(always)]
pub(crate) fn learns(of: &Endpoint) -> bool {
    of.flags & endpoint_flags::LEARN != 0
}

/// The node's configuration.
#[inline(always)]
pub(crate) fn config() -> Option<&'static Config> {
    CONFIG.get(0)
}

#[inline(always)]
pub(crate) fn bytes(addr: [u64; 2]) -> Addr {
    // SAFETY: two words in memory order are sixteen bytes.
    unsafe { transmute::<[u64; 2], Addr>(addr) }
}

/// Whose an address is.
#[derive(Clone, Copy)]
struct Named {
    /// An [`AddrKind`].
    kind: u8,
    /// Workload, or 0.
    handle: u32,
}

/// What the map says about an address.
#[inline(always)]
fn addr([first, second]: [u64; 2]) -> Option<Named> {
    let packed = packed_addr(first, second);
    if packed == 0 { None } else { Some(Named { kind: (packed >> 32) as u8, handle: packed as u32 }) }
}

/// The same in one register: 0, or a bit, the kind, the handle.
#[inline(never)]
fn packed_addr(first: u64, second: u64) -> u64 {
    let key = bytes([first, second]);
    let pack = |entry: &AddrEntry| 1 << 40 | u64::from(entry.kind) << 32 | u64::from(entry.handle);
    read(|| ADDRS.get_ptr(key), pack).unwrap_or(0)
}

/// Class of an address, if the map has it.
#[inline(always)]
pub(crate) fn class([first, second]: [u64; 2], epoch: u32) -> Option<u32> {
    let packed = packed_class(first, second, epoch);
    if packed == 0 { None } else { Some(packed as u32) }
}

/// The same in one register: 0, or a bit and the class.
#[inline(never)]
fn packed_class(first: u64, second: u64, epoch: u32) -> u64 {
    let key = bytes([first, second]);
    let pack = |entry: &AddrEntry| 1 << 40 | u64::from(by_epoch(entry.class, epoch));
    read(|| ADDRS.get_ptr(key), pack).unwrap_or(0)
}

/// Of two values, that of the epoch.
#[inline(always)]
pub(crate) fn by_epoch([even, odd]: [u32; 2], epoch: u32) -> u32 {
    if epoch & 1 == 0 { even } else { odd }
}

/// Handle of the workload that has this address, or 0.
#[inline(always)]
pub(crate) fn handle(of: [u64; 2]) -> u32 {
    match addr(of) {
        Some(entry) if entry.kind == AddrKind::Workload as u8 => entry.handle,
        _ => 0,
    }
}

/// Interface of the local endpoint that has this address, or 0.
#[inline(always)]
pub(crate) fn attached(of: [u64; 2]) -> u32 {
    let handle = handle(of);
    if handle == 0 {
        return 0;
    }
    let Some(workload) = WORKLOADS.get(handle) else { return 0 };
    if workload.flags & workload_flags::ATTACHED != 0 { workload.ifindex } else { 0 }
}

/// The two ends of a flow to be entered.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct Ends {
    /// Initiator's handle.
    pub(crate) src: u32,
    /// Target's handle.
    pub(crate) dst: u32,
    /// Service, or 0.
    pub(crate) service: u32,
    /// Interface that the initiator's packets come from; 0: the host's stack.
    pub(crate) src_ifindex: u32,
    /// The same of the target.
    pub(crate) dst_ifindex: u32,
    /// The packet in hand is the target's answer, so the initiator is its destination.
    pub(crate) answer: bool,
    pub(crate) _pad: [u8; 3],
}

impl Ends {
    /// Both ends of the packet in hand, without a Service.
    #[inline(always)]
    pub(crate) fn new((src, src_ifindex): (u32, u32), (dst, dst_ifindex): (u32, u32), answer: bool) -> Self {
        Self { src, dst, service: 0, src_ifindex, dst_ifindex, answer, _pad: [0; 3] }
    }
}

/// The far end of a SYN that a pod sends.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct Target {
    /// Workload, or 0.
    pub(crate) handle: u32,
    /// Service, or 0.
    pub(crate) service: u32,
    /// Its interface when it is attached here, else 0.
    pub(crate) ifindex: u32,
    pub(crate) peer: Peer,
    /// It may take the fast path.
    pub(crate) fast: bool,
    pub(crate) _pad: [u8; 2],
}

/// In place of an address: the port of any node.
const NODE_PORT: [u64; 2] = [0; 2];

#[inline(always)]
pub(crate) fn service(addr: [u64; 2], port: u16, proto: u8) -> Option<ServiceEntry> {
    let key = ServiceKey { addr: bytes(addr), port, proto, _pad: 0 };
    read(|| SERVICES.get_ptr(key), |service| *service)
}

/// Looks up the destination of a SYN or datagram into `s.target`.
#[inline(never)]
pub(crate) fn find_target(s: &mut Scratch, config: &Config) {
    let p = &s.packet;
    let entry = addr(p.dst);
    let service = match service(p.dst, p.dport, p.proto) {
        None if entry.is_some_and(|e| e.kind == AddrKind::Node as u8 || e.kind == AddrKind::ThisNode as u8) => {
            service(NODE_PORT, p.dport, p.proto)
        }
        service => service,
    };
    if let Some(service) = service {
        let peer = judge::peer(Some(&service), None, None, p.dport);
        s.target = Target { handle: 0, service: service.id, ifindex: 0, peer, fast: false, _pad: [0; 2] };
        return;
    }
    let handle = match &entry {
        Some(entry) if entry.kind == AddrKind::Workload as u8 => entry.handle,
        _ => 0,
    };
    let workload: Option<&Workload> = if handle == 0 { None } else { WORKLOADS.get(handle) };
    let peer = judge::peer(None, entry.map(|entry| entry.kind), workload, p.dport);
    let ifindex = match workload {
        Some(w) if w.flags & workload_flags::ATTACHED != 0 => w.ifindex,
        _ => 0,
    };
    let theirs = read(|| ENDPOINTS.get_ptr(ifindex), |e| e.flags).unwrap_or(0);
    let fast = config.flags & config_flags::FAST_PATH != 0 && theirs & endpoint_flags::FAST != 0;
    s.target = Target { handle, service: 0, ifindex, peer, fast, _pad: [0; 2] };
}

/// `169.254.0.0/16` and `fe80::/10`.
#[inline(always)]
fn link_local(addr: [u64; 2]) -> bool {
    let (first, second) = (u64::from_be(addr[0]), u64::from_be(addr[1]));
    first >> 54 == 0xfe80 >> 6 || (first == 0 && second >> 16 == 0xffff_a9fe)
}

/// `0.0.0.0` and `::`: what DHCP and duplicate address detection send from.
#[inline(always)]
fn unspecified(addr: [u64; 2]) -> bool {
    addr[0] == 0 && matches!(u64::from_be(addr[1]), 0 | 0xffff_0000_0000)
}

/// Whether the source address is the endpoint's own, proved by the veth that the packet came from.
#[inline(always)]
pub(crate) fn source_is_own(p: &Packet, endpoint: &Endpoint) -> bool {
    let handle = handle(p.src);
    handle != 0 && handle == endpoint.handle
}

/// Whether the endpoint may send from this address.
#[inline(always)]
pub(crate) fn source_allowed(p: &Packet, endpoint: &Endpoint) -> bool {
    if source_is_own(p, endpoint) {
        return true;
    }
    if p.proto == TCP {
        // Within the link only: from a link-local address to a mesh address, TCP would go round the judgement.
        return link_local(p.src) && link_local(p.dst);
    }
    link_local(p.src) || unspecified(p.src)
}

/// Whether a datagram may come from an address that is not the endpoint's own: within the link, or to find an address.
#[inline(always)]
pub(crate) fn datagram_allowed(p: &Packet) -> bool {
    let broadcast = !p.v6 && u64::from_be(p.dst[1]) as u32 == u32::MAX;
    (link_local(p.src) || unspecified(p.src)) && (link_local(p.dst) || is_group(p.dst) || broadcast)
}

/// Whether such a datagram finds an address, or a name on the link: what DHCP (RFC 2131), DHCPv6 (RFC 8415) and multicast DNS
/// (RFC 6762) send. Nobody judges it.
#[inline(always)]
pub(crate) fn finds(p: &Packet) -> bool {
    let dhcp = if p.v6 { (546, 547) } else { (68, 67) };
    p.proto == UDP && ((p.sport, p.dport) == dhcp || (p.dport == 5353 && is_group(p.dst)))
}

/// Whether it stays within the link, and is judged as what the pod sends from its own address.
#[inline(always)]
pub(crate) fn within_link(p: &Packet) -> bool {
    link_local(p.src) && (link_local(p.dst) || is_group(p.dst))
}

/// Whether the address is this node's.
#[inline(always)]
pub(crate) fn is_this_node(of: [u64; 2]) -> bool {
    addr(of).is_some_and(|entry| entry.kind == AddrKind::ThisNode as u8)
}

/// Whether what a pod sends stays on its link: to a group, to a link-local address, or to one of the source's own network, as
/// neighbours ask after each other.
#[inline(always)]
pub(crate) fn stays_on_link(p: &Packet) -> bool {
    is_group(p.dst) || link_local(p.dst) || (p.v6 && p.src[0] == p.dst[0])
}

/// Who sends a packet that the host's stack hands to a pod.
#[inline(always)]
pub(crate) fn asker(skb: Skb, p: &Packet, endpoint: &Endpoint, config: &Config) -> Asker {
    let source = addr(p.src);
    if source.is_some_and(|entry| entry.kind == AddrKind::Disputed as u8) {
        return Asker::Disputed;
    }
    let by = skb.came_by();
    if by != 0 {
        // Forwarded. A bridge hands on a pod's packet with that pod's socket still on it, which would look like ours. What
        // came by the very veth that its address is behind is that pod's own.
        return if attached(p.src) == by { Asker::Neighbour } else { Asker::Unknown };
    }
    let workload = match source {
        Some(entry) if entry.kind == AddrKind::ThisNode as u8 => return host_asker(skb, p, endpoint, config),
        Some(entry) => entry.kind == AddrKind::Workload as u8,
        None => false,
    };
    if workload || skb.cgroup() == 0 { Asker::Unknown } else { host_asker(skb, p, endpoint, config) }
}

#[inline(always)]
fn host_asker(skb: Skb, p: &Packet, endpoint: &Endpoint, config: &Config) -> Asker {
    if config.kubelet_cgroup != 0 && skb.cgroup_ancestor(config.kubelet_level) == config.kubelet_cgroup {
        let port = ProbePort { handle: endpoint.handle, port: p.dport, _pad: 0 };
        if PROBE_PORTS.get_ptr(port).is_some() {
            return Asker::Probe;
        }
    }
    Asker::Host
}
