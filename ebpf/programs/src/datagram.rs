//! All but TCP: the first datagram of an exchange is judged, whatever follows either way belongs to it
//! ([`kumiko_abi::exchange`]).
//!
//! A refused exchange has an entry too, so that a flood of datagrams is judged and told once. Those of UDP go into the agent's
//! namespace, where nobody listens and whose kernel answers port unreachable, at its own pace; others are dropped.

use core::ptr;

use kumiko_abi::{
    Flow, FlowKey, FlowState, Reason, Stage, Stat, exchange,
    flow::{
        TCP, UDP,
        flags::{JUDGED_BOTH, TURNED},
    },
    judge::{Action, enforces},
};

use crate::{
    atomic,
    counters::{self, coarse_now, count},
    ends::{self, Ends, Hook, learns, stage},
    judge::{Entered, by_another, enter, forged},
    maps::{FRAGMENTS, Fragment, FragmentKey, Scratch, forget, read},
    packet::{Packet, words_of},
    policy,
    redirect::{into_agent, out_to_agent},
    service::{self, Choice},
    skb::{DROP, PASS, Part},
    table::{self, Entry, get, set},
};

/// What becomes of a datagram.
#[repr(u8)]
#[derive(Clone, Copy, PartialEq, Eq)]
enum Fate {
    Pass = 1,
    /// To the agent's namespace, whose kernel says that nobody is there.
    Refuse = 2,
    Drop = 3,
    /// It begins another exchange under the same key.
    Fresh = 4,
}

/// A datagram that the pod sends, `rest`: a later fragment of one.
#[inline(never)]
pub(crate) fn sent(hook: &Hook<'_>, s: &mut Scratch, rest: bool) -> i32 {
    let stage = stage(hook.endpoint);
    if matches!(stage, Stage::Off) {
        return PASS;
    }
    if !ends::source_is_own(&s.packet, hook.endpoint) {
        if ends::datagram_allowed(&s.packet) && ends::finds(&s.packet) {
            return PASS;
        }
        if !ends::within_link(&s.packet) {
            count(Stat::Spoofed);
            counters::reason(Reason::Spoofed);
            return if enforces(stage) { DROP } else { PASS };
        }
    }
    let fate = if rest { later(hook, s) } else { leave(hook, s) };
    match fate {
        Fate::Pass => {
            count(Stat::Clear);
            PASS
        }
        Fate::Refuse if s.packet.proto == UDP => into_agent(hook.skb, hook.config),
        _ => DROP,
    }
}

/// A datagram that reaches the pod; `rest`: a later fragment of one.
#[inline(never)]
pub(crate) fn came(hook: &Hook<'_>, s: &mut Scratch, rest: bool) -> i32 {
    if matches!(stage(hook.endpoint), Stage::Off) {
        return PASS;
    }
    let fate = if rest { later(hook, s) } else { arrive(hook, s) };
    match fate {
        Fate::Pass => PASS,
        Fate::Refuse if s.packet.proto == UDP => out_to_agent(hook.skb, hook.config),
        _ => DROP,
    }
}

/// A datagram that the pod sends, not a later fragment.
#[inline(always)]
fn leave(hook: &Hook<'_>, s: &mut Scratch) -> Fate {
    s.service = 0;
    // Nothing is changed for who only observes, nor while an older exchange may be on its way. Only the checksum of UDP can be
    // mended.
    let turns = s.packet.proto == UDP && stage(hook.endpoint).meshed() && !learns(hook.endpoint);
    let choice = if !turns || table::find(&s.key).is_some() { Choice::None } else { service::choose(s) };
    let mut fate = match choice {
        Choice::Refuse => {
            counters::reason(Reason::NoReadyEndpoint);
            Fate::Refuse
        }
        _ => first(hook, s, true),
    };
    let turned = matches!(choice, Choice::Known | Choice::New) && fate == Fate::Pass;
    if turned {
        if choice == Choice::New && !service::remember(s) {
            count(Stat::TableFull);
            counters::reason(Reason::TableFull);
            fate = Fate::Refuse;
        } else if !service::write_target(hook.skb, s) {
            fate = Fate::Drop;
        }
    }
    if s.packet.fragment {
        if s.service != 0 {
            // Fragments are known by the address that they are sent to.
            s.packet.dst = words_of(&s.asked.addr);
        }
        remember(hook, s, fate, if turned { DESTINATION } else { 0 });
    }
    fate
}

/// A datagram that reaches the pod, not a later fragment.
#[inline(always)]
fn arrive(hook: &Hook<'_>, s: &mut Scratch) -> Fate {
    s.service = 0;
    let mut fate = first(hook, s, false);
    let turned = fate == Fate::Pass && table::find(&s.key).is_some_and(|entry| service::answers(hook, s, entry));
    if turned && !service::write_source(hook.skb, s) {
        fate = Fate::Drop;
    }
    if s.packet.fragment {
        remember(hook, s, fate, if turned { SOURCE } else { 0 });
    }
    fate
}

/// A datagram, not a later fragment.
#[inline(always)]
fn first(hook: &Hook<'_>, s: &mut Scratch, sent: bool) -> Fate {
    let mut old: *mut Flow = ptr::null_mut();
    if let Some(entry) = table::find(&s.key) {
        match known(hook, s, entry, sent) {
            Fate::Fresh => old = entry.0,
            fate => return fate,
        }
    }
    if sent {
        begin(hook, s)
    } else {
        inbound(hook, s)
    }
    settle(hook, s, old)
}

/// A datagram whose key is in the table.
#[inline(always)]
fn known(hook: &Hook<'_>, s: &mut Scratch, entry: Entry, sent: bool) -> Fate {
    let from = entry.by_initiator(s.packet.src_is_lo);
    let sender = entry.sender(from);
    let own = if sent {
        // An entry from before this pod was attached names the host's stack instead.
        sender == hook.ifindex || (sender == 0 && table::adopt(entry, from, hook.ifindex, hook.config))
    } else {
        sender == 0 || !by_another(hook.skb, sender)
    };
    if !own {
        return if forged(hook) == DROP { Fate::Drop } else { Fate::Pass };
    }
    if entry.is_over() || exchange::idle(entry.target_spoke(), get!(entry, last_ns), coarse_now()) {
        // Without ports an answer looks like a beginning.
        if from || (s.packet.sport == 0 && s.packet.dport == 0) {
            return Fate::Fresh;
        }
        counters::reason(Reason::UdpIdle);
        return if enforces(stage(hook.endpoint)) { Fate::Drop } else { Fate::Pass };
    }
    if sent && from && (entry.flags() & TURNED != 0) != (s.service != 0) {
        // Once to a Service and once to its endpoint itself, from one port: what answers has another name from now on.
        return Fate::Fresh;
    }
    let mut refused = matches!(entry.state(), FlowState::Cut);
    if refused && (!from || get!(entry, epoch) != s.epoch) {
        // What the other end may send was never asked; what this one may, by other rules.
        return Fate::Fresh;
    }
    if !refused {
        refused = policy::is_old(s, entry) && !policy::again(s, hook.config, entry, from);
    }
    if sent || sender == 0 {
        track(s, entry, from);
    }
    if refused {
        return Fate::Refuse;
    }
    if !sent && from && sender != 0 && entry.flags() & JUDGED_BOTH == 0 {
        // Judged for its sender's side only: now for this one.
        inbound(hook, s);
        if !matches!(s.decision.action, Action::Untouched | Action::Direct) {
            return settle(hook, s, entry.0);
        }
        policy::take_end(s, entry);
        entry.raise(JUDGED_BOTH);
    }
    Fate::Pass
}

/// Whether a flow that an error is about lives, and passes: about one that is refused or over nobody has to be told.
#[inline(never)]
pub(crate) fn is_live(key: &FlowKey, entry: Entry) -> bool {
    let idle = key.proto != TCP && exchange::idle(entry.target_spoke(), get!(entry, last_ns), coarse_now());
    !matches!(entry.state(), FlowState::Cut) && !entry.is_over() && !idle
}

/// Counts a datagram.
#[inline(always)]
fn track(s: &Scratch, entry: Entry, from: bool) {
    let now = coarse_now();
    set!(entry, last_ns = now);
    let at = if from {
        // SAFETY: a pointer to a field of a live element.
        unsafe { &raw mut (*entry.0).dir[0] }
    } else {
        // SAFETY: as above.
        unsafe { &raw mut (*entry.0).dir[1] }
    };
    // SAFETY: aligned counters of a live element.
    unsafe {
        atomic::fetch_add(&raw mut (*at).packets, 1);
        atomic::fetch_add(&raw mut (*at).bytes, u64::from(s.packet.payload));
    }
}

/// Judges a datagram that the pod sends first into `s.decision`.
#[inline(never)]
fn begin(hook: &Hook<'_>, s: &mut Scratch) {
    ends::find_target(s, hook.config);
    let target = s.target;
    s.decision = exchange::outbound(stage(hook.endpoint), learns(hook.endpoint), target.peer);
    s.ends = Ends::new((hook.endpoint.handle, hook.ifindex), (target.handle, target.ifindex), false);
    s.ends.service = target.service;
    if s.service != 0 {
        s.ends.service = s.service;
        s.decision.flags |= TURNED;
    }
    forget(&mut s.decision);
    policy::outbound(hook, s);
}

/// Judges a datagram that reaches the pod first.
#[inline(never)]
fn inbound(hook: &Hook<'_>, s: &mut Scratch) {
    let asker = ends::asker(hook.skb, &s.packet, hook.endpoint, hook.config);
    s.decision = exchange::inbound(stage(hook.endpoint), learns(hook.endpoint), asker);
    s.ends = Ends::new((ends::handle(s.packet.src), 0), (hook.endpoint.handle, hook.ifindex), false);
    forget(&mut s.decision);
    policy::inbound(hook, s, asker);
}

/// Carries out `s.decision`.
#[inline(never)]
fn settle(hook: &Hook<'_>, s: &mut Scratch, old: *mut Flow) -> Fate {
    forget(&mut s.decision);
    if matches!(s.decision.action, Action::Untouched) {
        return Fate::Pass;
    }
    let refused = !matches!(s.decision.action, Action::Direct);
    match enter(s, hook, old) {
        Entered::Done if refused => Fate::Refuse,
        Entered::Done => Fate::Pass,
        // Another CPU entered it, with the same verdict on the same exchange.
        Entered::Again if refused => Fate::Refuse,
        Entered::Again => Fate::Pass,
        Entered::Skip if refused => Fate::Refuse,
        Entered::Skip => Fate::Pass,
        Entered::Refuse => {
            counters::reason(s.decision.reason);
            Fate::Refuse
        }
    }
}

#[inline(always)]
fn fragment_key(hook: &Hook<'_>, s: &Scratch) -> FragmentKey {
    FragmentKey { src: s.packet.src, dst: s.packet.dst, id: s.packet.fragment_id, ifindex: hook.ifindex }
}

/// [`Fragment::turned`].
const DESTINATION: u32 = 1;
/// [`Fragment::turned`].
const SOURCE: u32 = 2;

/// Keeps what became of a datagram's first fragment, for the others; `turned`: which address was written, `s.peer`.
#[inline(never)]
fn remember(hook: &Hook<'_>, s: &Scratch, fate: Fate, turned: u32) {
    let of = Fragment { to: s.peer, fate: fate as u32, turned };
    let _ = FRAGMENTS.insert(fragment_key(hook, s), of, 0);
}

/// A fragment without ports goes the way of the first one; before that, none.
#[inline(never)]
fn later(hook: &Hook<'_>, s: &mut Scratch) -> Fate {
    let key = fragment_key(hook, s);
    let found = |first: &Fragment| {
        s.peer = first.to;
        (first.fate, first.turned)
    };
    let first = read(|| FRAGMENTS.get_ptr(key), found);
    match first {
        Some((fate, turned)) if fate == Fate::Pass as u32 => {
            let Packet { src, dst, v6, .. } = s.packet;
            let old = if turned == SOURCE { src } else { dst };
            let part = Part { source: turned == SOURCE, v6, tcp: false, l4: 0 };
            if turned == 0 || hook.skb.turn(part, (&old, 0), (&s.peer, 0)) { Fate::Pass } else { Fate::Drop }
        }
        Some((fate, _)) if fate == Fate::Refuse as u32 => Fate::Refuse,
        _ if enforces(stage(hook.endpoint)) => {
            count(Stat::Unparsable);
            counters::reason(Reason::Unparsable);
            Fate::Drop
        }
        _ => Fate::Pass,
    }
}
