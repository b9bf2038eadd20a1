//! The agent's side: what its sockets send (tc ingress of `kumiko0`), and which listener takes a SYN (`sk_lookup`).

use core::ptr;

use aya_ebpf::{bindings::bpf_sk_lookup, programs::SkLookupContext};
use kumiko_abi::{
    Config, FlowKey, FlowState, Stat,
    flow::{
        TCP, UDP, dir_flags,
        flags::{DELIVERED, OVER_RST},
    },
    segment::bits::{ACK, RST, SYN},
};

use crate::{
    capture::{alive, slot},
    counters::{coarse_now, count, now},
    ends,
    maps::{LISTENERS, Scratch, TRANSLATED},
    packet::{Kind, fill_key, mapped, parse, words_of},
    policy,
    redirect::{as_if_from_pod, into_pod},
    skb::{DROP, Skb},
    table::{self, Entry, get, set},
    track::{finish, track},
};

/// `SK_DROP`: no socket is found, so the kernel answers RST.
pub(crate) const SK_DROP: u32 = 0;
/// `SK_PASS`.
pub(crate) const SK_PASS: u32 = 1;
const AF_INET6: u32 = 10;

pub(crate) fn ingress(skb: Skb, s: &mut Scratch, config: &Config) -> i32 {
    let action = match parse(skb, s) {
        Kind::Tcp => tcp(skb, s, config),
        Kind::Error => error(skb, s),
        _ => None,
    };
    action.unwrap_or_else(|| {
        count(Stat::AgentStray);
        DROP
    })
}

#[inline(always)]
fn tcp(skb: Skb, s: &mut Scratch, config: &Config) -> Option<i32> {
    let reset = s.packet.flags & RST != 0;
    let Some(entry) = table::find(&s.key) else { return if reset { refusal(skb, s) } else { None } };
    match entry.state() {
        FlowState::Captured => carried(skb, s, config, entry),
        FlowState::Cut if reset => {
            // The kernel's answer to a packet of a cut flow is what ends it.
            finish(s, entry, OVER_RST, now());
            refusal(skb, s)
        }
        _ => None,
    }
}

/// A segment of one of the agent's sockets.
#[inline(always)]
fn carried(skb: Skb, s: &mut Scratch, config: &Config, entry: Entry) -> Option<i32> {
    let from = entry.by_initiator(s.packet.src_is_lo);
    if entry.sender(from) != skb.ifindex() {
        return None;
    }
    let pod = entry.sender(!from);
    if pod == 0 {
        return None;
    }
    if from && s.packet.is(SYN, SYN | ACK | RST) && entry.flags() & DELIVERED != 0 {
        set!(entry, isn = s.packet.seq);
        set!(entry, last_syn_ns = coarse_now());
        if !policy::delivered(s, config, entry) {
            return Some(DROP);
        }
    }
    if !from && is_early(s, config, entry) {
        count(Stat::EarlyResets);
        return Some(DROP);
    }
    track(s, entry, from);
    count(Stat::FromAgent);
    Some(into_pod(skb, pod))
}

/// Whether the segment resets a client whose connection is only now leaving its handshake. While the kernel puts the new
/// socket into its table in the place of the request (`inet_ehash_insert` in net/ipv4/inet_hashtables.c, seen on Linux 6.18),
/// another CPU finds neither there, takes the listener for the target, and resets. Without the mesh both segments come by
/// one CPU nearly always; with it, the handshake ends on the agent's CPU and the data come from the client's. So of an end
/// that has said nothing but its SYN-ACK, and whose listener lives, a reset without ACK is held back: what it answers is sent
/// again. The agent's own resets have an ACK.
#[inline(always)]
fn is_early(s: &Scratch, config: &Config, entry: Entry) -> bool {
    if s.packet.flags & (RST | ACK) != RST || entry.is_over() || !is_taken(entry, config) {
        return false;
    }
    let [client, agent] = &entry.value().dir;
    let unsaid = agent.bytes == 0 && agent.flags & dir_flags::FIN == 0 && agent.seq == s.packet.seq;
    let sent_again = client.bytes != 0 || client.flags & dir_flags::FIN != 0;
    unsaid && sent_again && alive(slot(u32::from(get!(entry, shard)), s.packet.v6))
}

/// Whether a listener of this agent's takes the connection.
#[inline(always)]
fn is_taken(entry: Entry, config: &Config) -> bool {
    matches!(entry.state(), FlowState::Captured)
        && get!(entry, generation) == config.generation
        && entry.flags() & DELIVERED == 0
}

/// What answers a refused, stray or cut packet: to the pod that sent it, or out in the name of the pod that was
/// meant. A pod whose packets the host translates knows that one by another address, which the host writes on the way back.
#[inline(always)]
fn refusal(skb: Skb, s: &Scratch) -> Option<i32> {
    let to = ends::attached(s.packet.dst);
    // SAFETY: only asked whether it is there.
    let translated = to != 0 && unsafe { TRANSLATED.get(s.key) }.is_some();
    if to != 0 && !translated {
        count(Stat::FromAgent);
        return Some(into_pod(skb, to));
    }
    let of = ends::attached(s.packet.src);
    if of == 0 {
        return None;
    }
    count(Stat::FromAgent);
    Some(as_if_from_pod(skb, of))
}

/// An ICMP error: about a flow of the pod that it goes to, or a refused datagram, or nothing.
#[inline(always)]
fn error(skb: Skb, s: &mut Scratch) -> Option<i32> {
    if s.key.proto == UDP {
        return unreachable(skb, s);
    }
    let entry = table::find(&s.key)?;
    if matches!(entry.state(), FlowState::Direct | FlowState::Fast) {
        return None;
    }
    let to = ends::attached(s.packet.dst);
    if to == 0 || (get!(entry, src_ifindex) != to && get!(entry, dst_ifindex) != to) {
        return None;
    }
    count(Stat::FromAgent);
    Some(into_pod(skb, to))
}

/// Port unreachable, for a datagram that was refused: no socket of the agent's speaks UDP. To the pod that sent it, or out in
/// the name of the pod that was meant.
#[inline(always)]
fn unreachable(skb: Skb, s: &mut Scratch) -> Option<i32> {
    let meant = words_of(if s.packet.src_is_lo { &s.key.hi } else { &s.key.lo });
    let p = &s.packet;
    if p.v6 && p.src != meant {
        // The kernel takes an address of its own for the source when the one that was asked is on no interface.
        s.peer = meant;
        if !skb.set_source_v6(&p.src, &s.peer, p.l4 + 2) {
            return None;
        }
    }
    let to = ends::attached(p.dst);
    // Of who came by way of the host, which may have translated it, the entry knows no interface.
    let translated = table::find(&s.key).is_some_and(|entry| {
        let from = entry.by_initiator(s.packet.src_is_lo);
        entry.sender(from) == 0
    });
    if to != 0 && !translated {
        count(Stat::FromAgent);
        return Some(into_pod(skb, to));
    }
    let of = ends::attached(meant);
    if of == 0 {
        return None;
    }
    count(Stat::FromAgent);
    Some(as_if_from_pod(skb, of))
}

/// Reads one field of the context.
macro_rules! field {
    ($ctx:expr, $name:ident) => {
        // SAFETY: the context is valid while the program runs. Volatile: LLVM would merge reads into refused widths.
        unsafe { ptr::read_volatile(&raw const (*$ctx).$name) }
    };
}

/// Reads an address of four words.
macro_rules! words {
    ($ctx:expr, $name:ident) => {{
        // SAFETY: as above; constant offsets.
        unsafe {
            let at = (&raw const (*$ctx).$name).cast::<u32>();
            let (a, b) = (ptr::read_volatile(at), ptr::read_volatile(at.add(1)));
            let (c, d) = (ptr::read_volatile(at.add(2)), ptr::read_volatile(at.add(3)));
            [u64::from(a) | u64::from(b) << 32, u64::from(c) | u64::from(d) << 32]
        }
    }};
}

/// Both addresses of a lookup.
struct Addresses {
    remote: [u64; 2],
    local: [u64; 2],
}

/// Of its own, like [`addresses_v6`]: side by side, LLVM would merge their reads into one through a changed context
/// pointer, which the verifier refuses.
#[inline(never)]
fn addresses_v4(ctx: *mut bpf_sk_lookup, out: &mut Addresses) {
    out.remote = mapped(field!(ctx, remote_ip4));
    out.local = mapped(field!(ctx, local_ip4));
}

#[inline(never)]
fn addresses_v6(ctx: *mut bpf_sk_lookup, out: &mut Addresses) {
    out.remote = words!(ctx, remote_ip6);
    out.local = words!(ctx, local_ip6);
}

/// A key whose addresses can be written as words.
#[repr(C, align(8))]
struct Key(FlowKey);

/// Gives a SYN to the listener of the shard that parked it. Without a captured entry nothing is found: RST.
pub(crate) fn lookup(ctx: &SkLookupContext, config: &Config) -> u32 {
    let raw: *mut bpf_sk_lookup = ctx.lookup;
    if field!(raw, protocol) != u32::from(TCP) {
        return SK_PASS;
    }
    let v6 = field!(raw, family) == AF_INET6;
    let mut of = Addresses { remote: [0; 2], local: [0; 2] };
    if v6 {
        addresses_v6(raw, &mut of);
    } else {
        addresses_v4(raw, &mut of);
    }
    let remote_port = u16::from_be(field!(raw, remote_port));
    let local_port = field!(raw, local_port) as u16;
    let mut key = Key(FlowKey { lo: [0; 16], hi: [0; 16], lo_port: 0, hi_port: 0, proto: 0, _pad: [0; 3] });
    fill_key(&mut key.0, (of.remote, remote_port), (of.local, local_port), TCP);
    let Some(entry) = table::find(&key.0) else { return SK_DROP };
    if !is_taken(entry, config) {
        return SK_DROP;
    }
    let slot = slot(u32::from(get!(entry, shard)), v6);
    if LISTENERS.redirect_sk_lookup(ctx, slot, 0).is_ok() { SK_PASS } else { SK_DROP }
}
