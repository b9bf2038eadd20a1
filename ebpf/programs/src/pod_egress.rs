//! tc egress of a pod's veth, host side: what the host's stack sends the pod. The agent's frames do not come by here.

use core::ptr;

use kumiko_abi::{
    Config, Flow, FlowState, Reason, Stage, Stat, Verdict,
    flow::flags::{JUDGED_BOTH, LEARNED, LEGACY, TURNED},
    judge::{self, Action, Stray},
    segment::bits::{ACK, RST, SYN},
};

use crate::{
    counters::{self, Pair, count},
    datagram,
    ends::{self, Ends, Hook, learns, stage},
    judge::{About, Entered, by_another, deny, enter, forged, unjudged},
    maps::{Scratch, TRANSLATED, forget},
    packet::{Kind, itself, parse},
    pod_ingress::LEARNED_FLOW,
    policy,
    redirect::{is_pod_mac, out_to_agent},
    service,
    skb::{DROP, PASS, Skb},
    table::{self, Entry, get},
    track::track,
};

pub(crate) fn run(skb: Skb, s: &mut Scratch, config: &Config) -> i32 {
    let ifindex = skb.ifindex();
    let Some(endpoint) = ends::here(ifindex) else { return PASS };
    let hook = Hook { skb, config, endpoint, ifindex };
    s.epoch = policy::epoch(config);
    s.not_after = 0;
    let kind = parse(skb, s);
    if !matches!(kind, Kind::NotIp | Kind::Tagged | Kind::Bad) && elsewhere(&hook, s) {
        // The pod's kernel throws it away; behind a bridge in the pod it would be plaintext that nobody judged.
        return if matches!(stage(endpoint), Stage::Strict) { DROP } else { PASS };
    }
    match kind {
        Kind::NotIp => return PASS,
        Kind::Tagged | Kind::Bad => return unjudged(kind, endpoint),
        Kind::Tcp => return tcp(hook, s),
        Kind::Link => return unasked(&hook, s),
        Kind::Error => match error(&hook, s) {
            About::Nothing => itself(s),
            About::Flow => return unasked(&hook, s),
            About::Done(action) => return action,
        },
        _ => {}
    }
    datagram::came(&hook, s, matches!(kind, Kind::Rest))
}

/// Whether the frame is meant for another port of the pod's bridge: a bridge that does not know a MAC floods all of them.
/// Judged here, the flow of another pod would be entered as this one's, or reset in the other's name.
#[inline(always)]
fn elsewhere(hook: &Hook<'_>, s: &Scratch) -> bool {
    let p = &s.packet;
    p.unicast() && !is_pod_mac(p.head.dst_mac, hook) && ends::handle(p.dst) != hook.endpoint.handle
}

/// An ICMP error about a flow. About one that the agent carries, only the agent's own count; about one between two
/// pods of this node, those of the other pod and of the host between them.
#[inline(always)]
fn error(hook: &Hook<'_>, s: &mut Scratch) -> About {
    let Some(entry) = table::find(&s.key) else { return About::Nothing };
    let (src, dst) = (get!(entry, src_ifindex), get!(entry, dst_ifindex));
    match entry.state() {
        FlowState::Pending | FlowState::Captured => {
            count(Stat::EgressCaptured);
            return About::Done(DROP);
        }
        FlowState::Direct | FlowState::Fast if src != 0 && dst != 0 => {
            let other = if src == hook.ifindex { dst } else { src };
            if by_another(hook.skb, other) {
                return About::Done(forged(hook));
            }
        }
        _ => {}
    }
    if !datagram::is_live(&s.key, entry) {
        return About::Nothing;
    }
    if entry.flags() & TURNED != 0
        && src == hook.ifindex
        && entry.by_initiator(s.packet.src_is_lo)
        && service::asked(s)
        && !service::write_error(hook.skb, s)
    {
        return About::Done(DROP);
    }
    About::Flow
}

/// Of the link itself, or an error about a flow that passes: no rule is asked; counted, unless the sender's own hook did.
#[inline(never)]
fn unasked(hook: &Hook<'_>, s: &mut Scratch) -> i32 {
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
        let sender = entry.sender(from);
        let by_host = sender == 0;
        let gone = entry.is_over() || entry.is_orphan(hook.config);
        let state = entry.state();
        // A target that begins anew after it has answered began another flow, which this pod takes or not.
        let another = syn
            && by_host
            && matches!(state, FlowState::Direct)
            && if from { another(s, entry) } else { entry.target_spoke() };
        if syn && gone || another {
            old = entry.0;
        } else {
            match state {
                FlowState::Pending | FlowState::Captured => {
                    count(Stat::EgressCaptured);
                    return DROP;
                }
                FlowState::Cut => {
                    return if by_host { refuse(&hook, s) } else { out_to_agent(hook.skb, hook.config) };
                }
                // What one pod sends another on the fast path never comes by the host's stack.
                FlowState::Fast => return forged(&hook),
                FlowState::Direct if !by_host && by_another(hook.skb, sender) => return forged(&hook),
                FlowState::Direct => {}
            }
            if policy::is_old(s, entry) && !policy::again(s, hook.config, entry, from) {
                return if by_host { refuse(&hook, s) } else { out_to_agent(hook.skb, hook.config) };
            }
            if by_host {
                track(s, entry, from);
            }
            if !syn && service::answers(&hook, s, entry) && !service::write_source(hook.skb, s) {
                return DROP;
            }
            if !syn || by_host || entry.flags() & JUDGED_BOTH != 0 {
                return PASS;
            }
            // Judged for its sender's side only: now for this one.
            inbound(&hook, s);
            if matches!(s.decision.action, Action::Untouched | Action::Direct) {
                policy::take_end(s, entry);
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
            refuse(&hook, s)
        }
    }
}

/// Has a segment that no hook of its sender let reset. A pod of this node that it comes from nevertheless was translated.
#[inline(never)]
fn refuse(hook: &Hook<'_>, s: &Scratch) -> i32 {
    if ends::attached(s.packet.src) != 0 {
        let _ = TRANSLATED.insert(s.key, 1, 0);
    }
    out_to_agent(hook.skb, hook.config)
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
    policy::inbound(hook, s, asker);
}

/// Carries out `s.decision` about a flow that the packet in hand begins, or answers.
#[inline(never)]
fn settle(hook: &Hook<'_>, s: &mut Scratch, old: *mut Flow, answer: bool) -> i32 {
    let Hook { config, endpoint, ifindex, .. } = *hook;
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
            return refuse(hook, s);
        }
    }
    match enter(s, hook, old) {
        Entered::Done | Entered::Skip => PASS,
        Entered::Again => DROP,
        Entered::Refuse => {
            deny(s, config, old);
            refuse(hook, s)
        }
    }
}
