//! tc egress of a pod's veth, host side: what the host's stack sends the pod. The agent's frames do not come by here.

use core::ptr;

use kumiko_abi::{
    Config, Flow, FlowState, Reason, Stage, Stat, Verdict,
    flow::flags::{JUDGED_BOTH, LEARNED, LEGACY},
    judge::{self, Action, Stray},
    segment::bits::{ACK, RST, SYN},
};

use crate::{
    counters::{self, Pair, count},
    ends::{self, Ends, Hook, learns, stage},
    judge::{Entered, deny, enter, unjudged},
    maps::{Scratch, forget},
    packet::{Kind, parse},
    pod_ingress::LEARNED_FLOW,
    redirect::out_to_agent,
    skb::{DROP, PASS, Skb},
    table::{self, Entry, get},
    track::track,
};

pub(crate) fn run(skb: Skb, s: &mut Scratch, config: &Config) -> i32 {
    let ifindex = skb.ifindex();
    let Some(endpoint) = ends::here(ifindex) else { return PASS };
    let hook = Hook { skb, config, endpoint, ifindex };
    match parse(skb, s) {
        Kind::NotIp => PASS,
        kind @ (Kind::Tagged | Kind::Bad) => unjudged(kind, endpoint),
        Kind::Other => other(&hook, s),
        Kind::Error => {
            if captured(s) {
                count(Stat::EgressCaptured);
                return DROP;
            }
            other(&hook, s)
        }
        Kind::Tcp => tcp(hook, s),
    }
}

/// Whether an ICMP error of the host's side is about a flow that the agent carries: only the agent's own count.
#[inline(always)]
fn captured(s: &Scratch) -> bool {
    table::find(&s.key).is_some_and(|e| matches!(e.state(), FlowState::Pending | FlowState::Captured))
}

/// Not TCP: counted, unless the sender's own hook did.
#[inline(never)]
fn other(hook: &Hook<'_>, s: &mut Scratch) -> i32 {
    if matches!(stage(hook.endpoint), Stage::Off) || ends::attached(s.packet.src) != 0 {
        return PASS;
    }
    count(Stat::NotTcp);
    let p = &s.packet;
    let of = Pair {
        src: ends::handle(p.src),
        dst: hook.endpoint.handle,
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
fn tcp(hook: Hook<'_>, s: &mut Scratch) -> i32 {
    let mut old: *mut Flow = ptr::null_mut();
    if let Some(entry) = table::find(&s.key) {
        let p = &s.packet;
        let from = entry.by_initiator(p.src_is_lo);
        let syn = p.is(SYN, SYN | ACK | RST);
        let by_host = entry.sender(from) == 0;
        let gone = entry.is_over() || entry.is_orphan(hook.config);
        let state = entry.state();
        let another = syn && by_host && from && matches!(state, FlowState::Direct) && another(s, entry);
        if syn && gone || another {
            old = entry.0;
        } else {
            match state {
                FlowState::Pending | FlowState::Captured => {
                    count(Stat::EgressCaptured);
                    return DROP;
                }
                FlowState::Cut => return out_to_agent(hook.skb, hook.config),
                FlowState::Fast => return PASS,
                FlowState::Direct => {}
            }
            if by_host {
                track(s, entry, from);
            }
            if !syn || by_host || entry.flags() & JUDGED_BOTH != 0 {
                return PASS;
            }
            // Judged for its sender's side only: now for this one.
            inbound(&hook, s);
            if matches!(s.decision.action, Action::Untouched | Action::Direct) {
                entry.raise(JUDGED_BOTH);
                return PASS;
            }
            return settle(&hook, s, entry.0, false);
        }
    }
    if matches!(stage(hook.endpoint), Stage::Off) {
        table::overtake(s, hook.config, old);
        return PASS;
    }
    if s.packet.is(SYN, SYN | ACK | RST) {
        inbound(&hook, s);
        return settle(&hook, s, old, false);
    }
    match judge::stray(stage(hook.endpoint), learns(hook.endpoint)) {
        Stray::Pass => PASS,
        Stray::Learn if s.packet.flags & RST != 0 => PASS,
        Stray::Learn => {
            let answer = s.packet.sport < s.packet.dport;
            s.decision = LEARNED_FLOW;
            settle(&hook, s, old, answer)
        }
        Stray::Reset => {
            count(Stat::Stray);
            counters::reason(Reason::StrayPacket);
            out_to_agent(hook.skb, hook.config)
        }
    }
}

/// A SYN that is not a retransmission of the entry's.
#[inline(always)]
fn another(s: &Scratch, entry: Entry) -> bool {
    let isn = get!(entry, isn);
    // A flow that was entered without its SYN cannot tell.
    isn != s.packet.seq && !(isn == 0 && entry.flags() & (LEARNED | LEGACY) != 0)
}

/// Judges the SYN in hand into `s.decision`.
#[inline(never)]
fn inbound(hook: &Hook<'_>, s: &mut Scratch) {
    let asker = ends::asker(hook.skb, &s.packet, hook.endpoint, hook.config);
    s.decision = judge::inbound(stage(hook.endpoint), learns(hook.endpoint), asker);
    forget(&mut s.decision);
}

/// Carries out `s.decision` about a flow that the packet in hand begins, or answers.
#[inline(never)]
fn settle(hook: &Hook<'_>, s: &mut Scratch, old: *mut Flow, answer: bool) -> i32 {
    let Hook { skb, config, endpoint, ifindex } = *hook;
    let (here, far) = ((endpoint.handle, ifindex), (ends::handle(s.packet.src), 0));
    s.ends = if answer { Ends::new(here, far, true) } else { Ends::new(far, here, false) };
    forget(&mut s.decision);
    match s.decision.action {
        Action::Direct => {}
        Action::Drop => {
            counters::reason(s.decision.reason);
            return DROP;
        }
        _ => {
            deny(s, config, old);
            return out_to_agent(skb, config);
        }
    }
    match enter(s, hook, old) {
        Entered::Done | Entered::Skip => PASS,
        Entered::Again => DROP,
        Entered::Refuse => {
            deny(s, config, old);
            out_to_agent(skb, config)
        }
    }
}
