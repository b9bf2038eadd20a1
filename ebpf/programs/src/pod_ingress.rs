//! tc ingress of a pod's veth, host side: everything the pod sends.

use core::ptr;

use kumiko_abi::{
    Config, Endpoint, Flow, FlowState, MARK_TRANSIT, Reason, Stage, Stat, Verdict, Workload,
    flow::{
        TCP,
        flags::{DELIVERED, LEARNED, LEGACY, TURNED},
    },
    judge::{self, Action, Asker, Decision, Stray, enforces},
    map::workload_flags,
    segment::bits::{ACK, RST, SYN},
};

use crate::{
    begin, capture,
    counters::{self, Pair, coarse_now, count},
    datagram,
    ends::{self, Ends, Hook, learns, stage},
    judge::{About, Entered, deny, enter, forged, unjudged},
    maps::{Scratch, WORKLOADS, forget},
    packet::{Kind, itself, parse},
    policy,
    redirect::{into_agent, into_pod, learn_macs},
    service,
    skb::{DROP, PASS, Skb},
    table::{self, Entry, get, set},
    track::track,
};

pub(crate) fn run(skb: Skb, s: &mut Scratch, config: &Config) -> i32 {
    if skb.mark() == MARK_TRANSIT {
        // Made by the agent's namespace in the pod's name; a pod cannot set marks that survive its veth.
        skb.set_mark(0);
        return PASS;
    }
    count(Stat::PodPackets);
    let ifindex = skb.ifindex();
    let Some(endpoint) = ends::here(ifindex) else { return DROP };
    let hook = Hook { skb, config, endpoint, ifindex };
    s.epoch = policy::epoch(config);
    s.not_after = 0;
    let kind = parse(skb, s);
    match kind {
        Kind::NotIp => return PASS,
        Kind::Tagged | Kind::Bad => return unjudged(kind, endpoint),
        _ => learn_macs(s, ifindex),
    }
    match kind {
        Kind::Tcp => return tcp(hook, s),
        Kind::Link if ends::stays_on_link(&s.packet) => return unasked(&hook, s),
        Kind::Link => itself(s),
        Kind::Error => match error(&hook, s) {
            About::Nothing => itself(s),
            About::Flow => return unasked(&hook, s),
            About::Done(action) => return action,
        },
        _ => {}
    }
    datagram::sent(&hook, s, matches!(kind, Kind::Rest))
}

/// An ICMP error about a flow: about one of this pod that the agent carries, it is for the agent; about one between two
/// others it is forged, since nothing of theirs comes by this pod.
#[inline(always)]
fn error(hook: &Hook<'_>, s: &mut Scratch) -> About {
    let Some(entry) = table::find(&s.key) else { return About::Nothing };
    let (src, dst) = (get!(entry, src_ifindex), get!(entry, dst_ifindex));
    if src != hook.ifindex && dst != hook.ifindex {
        return match src != 0 && dst != 0 {
            true => About::Done(forged(hook)),
            false if datagram::is_live(&s.key, entry) => About::Flow,
            false => About::Nothing,
        };
    }
    let tcp = s.key.proto == TCP;
    if tcp && matches!(entry.state(), FlowState::Pending | FlowState::Captured | FlowState::Cut) {
        return About::Done(into_agent(hook.skb, hook.config));
    }
    if datagram::is_live(&s.key, entry) { About::Flow } else { About::Nothing }
}

/// Of the link itself, or an error about a flow that passes: no rule is asked; counted.
#[inline(never)]
fn unasked(hook: &Hook<'_>, s: &mut Scratch) -> i32 {
    let stage = stage(hook.endpoint);
    if matches!(stage, Stage::Off) {
        return PASS;
    }
    if !ends::source_is_own(&s.packet, hook.endpoint) && !ends::datagram_allowed(&s.packet) {
        return spoofed(stage);
    }
    count(Stat::NotTcp);
    let p = &s.packet;
    let of = Pair {
        src: hook.endpoint.handle,
        dst: ends::handle(p.dst),
        // The lower port is the service's nearly always; an ephemeral one would fill the table.
        port: p.sport.min(p.dport),
        proto: p.proto,
        verdict: Verdict::Allow,
        reason: Reason::Allowed,
        bytes: u64::from(p.payload),
    };
    counters::pair(s, hook.config, of);
    PASS
}

#[inline(always)]
pub(crate) fn spoofed(stage: Stage) -> i32 {
    count(Stat::Spoofed);
    counters::reason(Reason::Spoofed);
    if enforces(stage) { DROP } else { PASS }
}

#[inline(always)]
fn tcp(hook: Hook<'_>, s: &mut Scratch) -> i32 {
    s.service = 0;
    let mut found = table::find(&s.key);
    if found.is_none() && service::follow(s) {
        // From the same port the client may have asked the endpoint itself since.
        found = table::find(&s.key).filter(|entry| entry.flags() & TURNED != 0);
        if found.is_none() {
            service::back(s);
        }
    }
    let found = found.map_or(ptr::null_mut(), |entry| entry.0);
    let action = judged(&hook, s, found);
    if action == PASS && s.service != 0 && !service::write_target(hook.skb, s) {
        return DROP;
    }
    action
}

#[inline(never)]
fn judged(hook: &Hook<'_>, s: &mut Scratch, found: *mut Flow) -> i32 {
    let mut old: *mut Flow = ptr::null_mut();
    if !found.is_null() {
        let entry = Entry(found);
        match known(*hook, s, entry) {
            Known::Done(action) => return action,
            Known::Fresh => old = entry.0,
        }
    }
    if matches!(stage(hook.endpoint), Stage::Off) {
        table::overtake(s, hook.config, old);
        return PASS;
    }
    if s.packet.is(SYN, SYN | ACK | RST) {
        begin::begin(hook, s, old)
    } else if s.packet.is(SYN | ACK, SYN | ACK | RST) {
        answer(hook, s)
    } else {
        stray(hook, s)
    }
}

enum Known {
    /// The packet is dealt with.
    Done(i32),
    /// A SYN that begins another flow under the same key.
    Fresh,
}

/// A packet whose key is in the table.
#[inline(always)]
fn known(hook: Hook<'_>, s: &mut Scratch, entry: Entry) -> Known {
    let p = &s.packet;
    let from = entry.by_initiator(p.src_is_lo);
    let syn = p.is(SYN, SYN | ACK | RST);
    let gone = entry.is_over() || entry.is_orphan(hook.config);
    if syn && gone {
        return Known::Fresh;
    }
    let sender = entry.sender(from);
    if sender != hook.ifindex {
        // An entry from before this pod was attached names the host's stack instead.
        let own = sender == 0 && ends::source_is_own(p, hook.endpoint);
        if !own || !table::adopt(entry, from, hook.ifindex, hook.config) {
            return Known::Done(forged(&hook));
        }
    }
    let mut state = entry.state();
    if syn {
        if from {
            if p.seq != get!(entry, isn) && !first_syn(entry, p.seq) {
                // From one port, to the Service and to the endpoint itself: the open one goes on, the other waits for its end.
                let other = s.service == 0 && entry.flags() & TURNED != 0;
                return if other && enforces(stage(hook.endpoint)) { Known::Done(forged(&hook)) } else { Known::Fresh };
            }
            if matches!(state, FlowState::Pending) {
                return again(s, entry);
            }
        } else if entry.target_spoke() {
            // The target's end begins anew. Before it said anything, this is a simultaneous open and goes on.
            return Known::Fresh;
        }
    }
    track(s, entry, from);
    if matches!(state, FlowState::Direct | FlowState::Fast)
        && policy::is_old(s, entry)
        && !policy::again(s, hook.config, entry, from)
    {
        state = FlowState::Cut;
    }
    Known::Done(match state {
        FlowState::Pending | FlowState::Captured | FlowState::Cut => into_agent(hook.skb, hook.config),
        FlowState::Direct => clear(s, hook.endpoint, entry.flags()),
        FlowState::Fast => {
            let other = entry.sender(!from);
            if other == 0 {
                clear(s, hook.endpoint, entry.flags())
            } else {
                count(Stat::Fast);
                into_pod(hook.skb, other)
            }
        }
    })
}

/// A flow that was entered without its SYN (older than the enrolment) shows it now, sent again: it is not another flow.
#[inline(always)]
fn first_syn(entry: Entry, seq: u32) -> bool {
    if entry.flags() & (LEGACY | LEARNED | DELIVERED) == 0 {
        return false;
    }
    // SAFETY: as above.
    if unsafe { ptr::read_volatile(&raw const (*entry.0).dir[0].packets) } != 0 {
        return false;
    }
    set!(entry, isn = seq);
    true
}

/// The SYN of a pending flow, sent again: noted, so that the dialler knows that the client still waits.
#[inline(always)]
fn again(s: &Scratch, entry: Entry) -> Known {
    let slot = capture::slot(u32::from(get!(entry, shard)), s.packet.v6);
    if !capture::alive(slot) {
        // The agent died while it dialled: judged afresh, so refused or passed by the stage, not stuck.
        return Known::Fresh;
    }
    let now = coarse_now();
    set!(entry, last_syn_ns = now);
    set!(entry, last_ns = now);
    // SAFETY: an aligned field of a live element.
    table::add(unsafe { &raw mut (*entry.0).dir[0].packets });
    Known::Done(DROP)
}

/// Carries out `s.decision`, which is not to capture.
#[inline(always)]
pub(crate) fn settle(hook: &Hook<'_>, s: &mut Scratch, old: *mut Flow) -> i32 {
    let Hook { skb, config, endpoint, .. } = *hook;
    forget(&mut s.decision);
    match s.decision.action {
        Action::Direct | Action::Fast => {}
        Action::Drop => {
            counters::reason(s.decision.reason);
            return DROP;
        }
        _ => {
            deny(s, config, old);
            return into_agent(skb, config);
        }
    }
    match enter(s, hook, old) {
        Entered::Done if matches!(s.decision.action, Action::Fast) => {
            count(Stat::Fast);
            into_pod(skb, s.ends.dst_ifindex)
        }
        Entered::Done => clear(s, endpoint, s.decision.flags),
        Entered::Skip => PASS,
        Entered::Again => DROP,
        Entered::Refuse => {
            deny(s, config, old);
            into_agent(skb, config)
        }
    }
}

/// A SYN-ACK whose SYN never passed here: a CNI with host routing brings packets to the pod past the egress hook, so
/// the flow is judged now, as one that comes in.
#[inline(never)]
fn answer(hook: &Hook<'_>, s: &mut Scratch) -> i32 {
    s.decision = judge::inbound(stage(hook.endpoint), learns(hook.endpoint), Asker::Unknown);
    forget(&mut s.decision);
    policy::answered(hook, s);
    unseen(hook, s, true)
}

/// A packet that begins nothing and belongs to nothing.
#[inline(never)]
fn stray(hook: &Hook<'_>, s: &mut Scratch) -> i32 {
    match judge::stray(stage(hook.endpoint), learns(hook.endpoint)) {
        Stray::Pass => {
            counters::reason(Reason::StrayPacket);
            count(Stat::Clear);
            PASS
        }
        Stray::Learn if s.packet.flags & RST != 0 => PASS,
        Stray::Learn => {
            // Who began it is a guess: servers have the lower port nearly always.
            let answer = s.packet.sport < s.packet.dport;
            s.decision = LEARNED_FLOW;
            unseen(hook, s, answer)
        }
        Stray::Reset => {
            if !ends::source_allowed(&s.packet, hook.endpoint) {
                return spoofed(stage(hook.endpoint));
            }
            count(Stat::Stray);
            counters::reason(Reason::StrayPacket);
            into_agent(hook.skb, hook.config)
        }
    }
}

/// How a flow older than its pod's enrolment is entered.
pub(crate) const LEARNED_FLOW: Decision =
    Decision { action: Action::Direct, verdict: Verdict::Allow, reason: Reason::LegacyFlow, flags: LEARNED | LEGACY };

/// Enters a flow whose beginning was not seen, as `s.decision` says.
#[inline(always)]
fn unseen(hook: &Hook<'_>, s: &mut Scratch, answer: bool) -> i32 {
    if !ends::source_allowed(&s.packet, hook.endpoint) {
        return spoofed(stage(hook.endpoint));
    }
    let (here, far) = ((hook.endpoint.handle, hook.ifindex), (ends::handle(s.packet.dst), 0));
    s.ends = if answer { Ends::new(far, here, true) } else { Ends::new(here, far, false) };
    settle(hook, s, ptr::null_mut())
}

/// The one place where TCP of a pod passes in the clear. The leak counter looks at facts, not at how it was decided:
/// payload of a strict endpoint to a meshed peer that is not attached to this node.
#[inline(never)]
fn clear(s: &Scratch, endpoint: &Endpoint, flags: u32) -> i32 {
    count(Stat::Clear);
    let p = &s.packet;
    // A Service that is not meshed as a whole is in the clear, and says so, whichever endpoint is chosen.
    if p.payload != 0 && matches!(stage(endpoint), Stage::Strict) && flags & (LEGACY | TURNED) == 0 {
        let handle = ends::handle(p.dst);
        if handle != 0
            && let Some(Workload { stage, flags, .. }) = WORKLOADS.get(handle)
            && Stage::from_u8(*stage).meshed()
            && flags & (workload_flags::LIVE | workload_flags::ATTACHED) == workload_flags::LIVE
        {
            counters::add(Stat::LeakBytes, u64::from(p.payload));
        }
    }
    PASS
}
