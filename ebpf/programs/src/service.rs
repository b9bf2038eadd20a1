//! What goes to a Service's cluster IP and not to the agent: datagrams, and connections in the clear. One of the endpoints is
//! chosen here, and stays chosen while the flow lives. Rules are asked about that endpoint; what it answers goes back in the
//! Service's name.
//!
//! `TRANSLATIONS` has two elements for a flow: under (client, Service) the endpoint, under (client, endpoint), which is
//! the flow's key, the Service. They go with the flow's entry.

use aya_ebpf::helpers::generated as helpers;
use kumiko_abi::{
    Backend, BackendKey, FlowKey, ServiceEntry, exchange,
    flow::{TCP, flags::TURNED},
    map::service_flags,
};

use crate::{
    counters::coarse_now,
    ends::{self, Hook, bytes},
    maps::{BACKENDS, Scratch, TRANSLATIONS, forget, read},
    packet::{Packet, fill_key, words_of},
    skb::{Part, Skb},
    table::{self, Entry, get},
};

/// What a Service makes of a packet.
#[repr(u8)]
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Choice {
    /// It goes to no Service, or to its own sender, which is left to the host.
    None = 0,
    /// `s.packet` and `s.key` are those of the endpoint that its flow has.
    Known = 1,
    /// The same of one that was chosen now; `s.service` is the Service.
    New = 2,
    /// There is no endpoint.
    Refuse = 3,
}

/// Chooses the endpoint of a datagram in hand that a pod sends to a Service.
#[inline(never)]
pub(crate) fn choose(s: &mut Scratch) -> Choice {
    s.service = 0;
    let p = &s.packet;
    let Some(service) = ends::service(p.dst, p.dport, p.proto) else { return Choice::None };
    if service.flags & service_flags::OUTER != 0 {
        return Choice::None;
    }
    s.asked = Backend { addr: bytes(p.dst), port: p.dport, _pad: [0; 6] };
    if translation(&s.key, &mut s.chosen) {
        turn(s);
        s.service = service.id;
        if lives(s) {
            return Choice::Known;
        }
    }
    pick(s, service)
}

/// Whether the exchange in hand has an entry that lives, and is the Service's: from the same port the client may have asked
/// the endpoint itself since.
#[inline(always)]
fn lives(s: &Scratch) -> bool {
    let Some(entry) = table::find(&s.key) else { return false };
    entry.flags() & TURNED != 0
        && !entry.is_over()
        && !exchange::idle(entry.target_spoke(), get!(entry, last_ns), coarse_now())
}

/// Turns the packet in hand, of a flow whose key is not in the table, to the endpoint that was chosen for it. False: none was.
#[inline(never)]
pub(crate) fn follow(s: &mut Scratch) -> bool {
    let p = &s.packet;
    let Some(service) = ends::service(p.dst, p.dport, p.proto) else { return false };
    s.asked = Backend { addr: bytes(p.dst), port: p.dport, _pad: [0; 6] };
    if !translation(&s.key, &mut s.chosen) {
        return false;
    }
    s.service = service.id;
    turn(s);
    true
}

/// What is remembered under a key; false: nothing.
#[inline(never)]
fn translation(key: &FlowKey, to: &mut Backend) -> bool {
    read(|| TRANSLATIONS.get_ptr(key), |known| *to = *known).is_some()
}

/// An endpoint of a Service; false: there is none of this number.
#[inline(never)]
fn backend(service: u32, index: u32, to: &mut Backend) -> bool {
    read(|| BACKENDS.get_ptr(BackendKey { service, index }), |backend| *to = *backend).is_some()
}

/// Turns the packet in hand back to the Service that it went to.
#[inline(never)]
pub(crate) fn back(s: &mut Scratch) {
    s.service = 0;
    let p = &mut s.packet;
    p.dst = words_of(&s.asked.addr);
    p.dport = s.asked.port;
    p.src_is_lo = fill_key(&mut s.key, (p.src, p.sport), (p.dst, p.dport), p.proto);
}

/// Chooses an endpoint for a connection that begins, in the clear.
#[inline(never)]
pub(crate) fn open(s: &mut Scratch) -> Choice {
    let p = &s.packet;
    s.asked = Backend { addr: bytes(p.dst), port: p.dport, _pad: [0; 6] };
    match ends::service(p.dst, p.dport, p.proto) {
        Some(service) => pick(s, service),
        None => Choice::None,
    }
}

/// A new endpoint for the packet, whose source is the client.
#[inline(always)]
fn pick(s: &mut Scratch, service: ServiceEntry) -> Choice {
    let p = &s.packet;
    let any = if service.flags & service_flags::AFFINITY != 0 {
        let mix = (p.src[0] ^ p.src[1].rotate_left(29)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        (mix >> 32) as u32
    } else {
        // SAFETY: plain helper call.
        unsafe { helpers::bpf_get_prandom_u32() as u32 }
    };
    let index = ((u64::from(any) * u64::from(service.backends)) >> 32) as u32;
    let family = if p.v6 { BackendKey::V6 } else { 0 };
    // The list may have become shorter meanwhile.
    if !backend(service.id, index | family, &mut s.chosen) && !backend(service.id, family, &mut s.chosen) {
        return Choice::Refuse;
    }
    let own = p.src;
    if words_of(&s.chosen.addr) == own {
        let next = if index + 1 < service.backends { index + 1 } else { 0 };
        if !backend(service.id, next | family, &mut s.chosen) || words_of(&s.chosen.addr) == own {
            return Choice::None;
        }
    }
    turn(s);
    s.service = service.id;
    Choice::New
}

/// Turns the packet in hand to the chosen endpoint.
#[inline(always)]
fn turn(s: &mut Scratch) {
    forget(&mut s.chosen);
    let p = &mut s.packet;
    p.dst = words_of(&s.chosen.addr);
    p.dport = s.chosen.port;
    p.src_is_lo = fill_key(&mut s.key, (p.src, p.sport), (p.dst, p.dport), p.proto);
}

/// Remembers what was chosen for the flow in hand, both ways. False: there is no room.
#[inline(never)]
pub(crate) fn remember(s: &mut Scratch) -> bool {
    let (p, asked) = (&s.packet, words_of(&s.asked.addr));
    fill_key(&mut s.other, (p.src, p.sport), (asked, s.asked.port), p.proto);
    TRANSLATIONS.insert(&s.key, &s.asked, 0).is_ok() && TRANSLATIONS.insert(&s.other, &s.chosen, 0).is_ok()
}

/// Forgets what was chosen for a flow whose entry, which said that `client_is_lo`, is gone.
#[inline(never)]
pub(crate) fn forget_choice(s: &mut Scratch, client_is_lo: bool) {
    let FlowKey { lo, hi, lo_port, hi_port, proto, .. } = &s.key;
    let (client, endpoint) = if client_is_lo {
        ((words_of(lo), *lo_port), (words_of(hi), *hi_port))
    } else {
        ((words_of(hi), *hi_port), (words_of(lo), *lo_port))
    };
    let proto = *proto;
    if !translation(&s.key, &mut s.asked) {
        return;
    }
    let _gone = TRANSLATIONS.remove(&s.key);
    fill_key(&mut s.other, client, (words_of(&s.asked.addr), s.asked.port), proto);
    if !translation(&s.other, &mut s.chosen) {
        return;
    }
    if words_of(&s.chosen.addr) == endpoint.0 && s.chosen.port == endpoint.1 {
        let _gone = TRANSLATIONS.remove(&s.other);
    }
}

/// Whether an endpoint answers the pod of the hook, which asked a Service: that is in `s.asked` then.
#[inline(always)]
pub(crate) fn answers(hook: &Hook<'_>, s: &mut Scratch, entry: Entry) -> bool {
    let answer = !entry.by_initiator(s.packet.src_is_lo) && get!(entry, src_ifindex) == hook.ifindex;
    answer && entry.flags() & TURNED != 0 && asked(s)
}

/// The Service in whose name the flow in hand is answered, into `s.asked`.
#[inline(always)]
pub(crate) fn asked(s: &mut Scratch) -> bool {
    translation(&s.key, &mut s.asked)
}

/// Writes the endpoint that was chosen into a packet that a pod sends.
#[inline(never)]
pub(crate) fn write_target(skb: Skb, s: &mut Scratch) -> bool {
    let (old, port) = (words_of(&s.asked.addr), s.asked.port);
    s.peer = words_of(&s.chosen.addr);
    let part = Part { source: false, v6: s.packet.v6, tcp: s.packet.proto == TCP, l4: s.packet.l4 };
    skb.turn(part, (&old, port), (&s.peer, s.chosen.port))
}

/// Writes the Service that was asked into what its endpoint answers.
#[inline(never)]
pub(crate) fn write_source(skb: Skb, s: &mut Scratch) -> bool {
    let Packet { src, sport, v6, l4, proto, .. } = s.packet;
    s.peer = words_of(&s.asked.addr);
    skb.turn(Part { source: true, v6, tcp: proto == TCP, l4 }, (&src, sport), (&s.peer, s.asked.port))
}

/// Writes the Service that was asked into an ICMP error about what went to its endpoint, so that the client knows it for its
/// own. `s.key` is the flow that it is about, of which the endpoint is the destination.
#[inline(never)]
pub(crate) fn write_error(skb: Skb, s: &mut Scratch) -> bool {
    let Packet { src, v6, l4, inner, src_is_lo, .. } = s.packet;
    let FlowKey { lo, hi, lo_port, hi_port, .. } = &s.key;
    let (endpoint, port) = if src_is_lo { (words_of(hi), *hi_port) } else { (words_of(lo), *lo_port) };
    s.peer = words_of(&s.asked.addr);
    skb.turn_error((v6, src == endpoint, [l4, inner]), (&endpoint, port), (&s.peer, s.asked.port))
}
