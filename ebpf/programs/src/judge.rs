//! Carries out verdicts: makes the entry, counts, tells the agent.

use kumiko_abi::{
    Config, Endpoint, EventKind, Flow, FlowState, Reason, Stage, Stat,
    flow::{dir_flags, flags, has_ports},
    judge::{Action, Decision, drops_tagged, enforces},
    segment::{bits, next_seq},
};

use crate::{
    counters::{self, Pair, count, emit},
    ends::{Hook, stage},
    maps::{ENDPOINTS, Scratch, read},
    packet::Kind,
    skb::{DROP, PASS, Skb},
    table::{self, Inserted},
};

/// Fills `s.flow` for the packet in hand, from `s.ends` and `s.decision`. Times and id are stamped too. Field by field: a literal would be built on the
/// stack, which is short.
#[inline(never)]
pub(crate) fn compose(s: &mut Scratch, config: &Config, state: FlowState) {
    let (p, ends, decision) = (&s.packet, &s.ends, &s.decision);
    let f = &mut s.flow;
    f.over_ns = 0;
    f.src = ends.src;
    f.dst = ends.dst;
    f.service = ends.service;
    f.src_ifindex = ends.src_ifindex;
    f.dst_ifindex = ends.dst_ifindex;
    f.generation = config.generation;
    f.epoch = s.epoch;
    f.isn = if ends.answer { p.ack.wrapping_sub(1) } else { p.seq };
    f.flags = decision.flags | if p.src_is_lo != ends.answer { flags::INITIATOR_IS_LO } else { 0 };
    f.shard = 0;
    f.reason = decision.reason as u16;
    f.state = state as u8;
    f.verdict = decision.verdict as u8;
    f._pad = [0; 2];
    f.not_after = s.not_after;
    let [initiator, target] = &mut f.dir;
    let (own, unseen) = if ends.answer { (target, initiator) } else { (initiator, target) };
    own.packets = 1;
    own.bytes = u64::from(p.payload);
    own.seq = next_seq(p.seq, p.payload, p.flags);
    own.ack = p.ack;
    own.fin_seq = 0;
    own.flags = if p.flags & bits::SYN != 0 { dir_flags::SYN } else { 0 };
    unseen.packets = 0;
    unseen.bytes = 0;
    unseen.seq = p.ack;
    unseen.ack = 0;
    unseen.fin_seq = 0;
    unseen.flags = 0;
    let now = counters::now();
    table::stamp(s, config, now);
}

/// Counts the judged flow.
#[inline(always)]
pub(crate) fn count_judged(s: &mut Scratch, config: &Config) {
    let (p, ends) = (&s.packet, s.ends);
    let Decision { verdict, reason, .. } = s.decision;
    // What stands for a port in an echo is another one each time.
    let port = match (has_ports(p.proto), ends.answer) {
        (false, _) => 0,
        (true, true) => p.sport,
        (true, false) => p.dport,
    };
    let bytes = u64::from(p.payload);
    counters::reason(reason);
    counters::pair(s, config, Pair { src: ends.src, dst: ends.dst, port, proto: p.proto, verdict, reason, bytes });
}

/// What came of entering a flow. Without payload, as [`crate::capture::Parked`].
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Entered {
    /// It stands in the table.
    Done,
    /// No room, and the stage never stops anything: pass without an entry.
    Skip,
    /// No room: refuse, for the reason that `s.decision` has now.
    Refuse,
    /// Another CPU is at it: drop, the packet comes again.
    Again,
}

/// What an ICMP error is about.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum About {
    /// No flow that is known: it is judged as any other packet.
    Nothing,
    /// One that passes.
    Flow,
    /// It was dealt with.
    Done(i32),
}

/// Enters a `Direct` or `Fast` flow, or a refused one as `Cut`, counts it, tells the agent.
#[inline(never)]
pub(crate) fn enter(s: &mut Scratch, hook: &Hook<'_>, old: *mut Flow) -> Entered {
    let config = hook.config;
    let enforces = enforces(stage(hook.endpoint));
    let state = match s.decision.action {
        Action::Fast => FlowState::Fast,
        Action::Refuse => FlowState::Cut,
        _ => FlowState::Direct,
    };
    compose(s, config, state);
    match table::insert(s, config, old) {
        Inserted::Done => {
            count_judged(s, config);
            emit(EventKind::New, &s.key, &s.flow);
            return Entered::Done;
        }
        Inserted::Busy => return if enforces { Entered::Again } else { Entered::Skip },
        Inserted::Full => {
            count(Stat::TableFull);
            s.decision = Decision::refuse(Reason::TableFull);
        }
        Inserted::Quota => {
            count(Stat::QuotaFull);
            s.decision = Decision::refuse(Reason::FlowQuota);
        }
    }
    if enforces { Entered::Refuse } else { Entered::Skip }
}

/// Counts and tells the flow that `s.decision` refuses; the caller sends the packet to the agent's namespace.
#[inline(never)]
pub(crate) fn deny(s: &mut Scratch, config: &Config, old: *mut Flow) {
    compose(s, config, FlowState::Cut);
    table::overtake(s, config, old);
    count_judged(s, config);
    emit(EventKind::Denied, &s.key, &s.flow);
}

/// A packet that cannot be judged: tagged, or unreadable. Counted; dropped where the stage says so.
#[inline(always)]
pub(crate) fn unjudged(kind: Kind, endpoint: &Endpoint) -> i32 {
    let stage = stage(endpoint);
    if matches!(stage, Stage::Off) {
        return PASS;
    }
    let (stat, reason, drops) = if matches!(kind, Kind::Tagged) {
        (Stat::Vlan, Reason::TaggedFrame, drops_tagged(stage))
    } else {
        (Stat::Unparsable, Reason::Unparsable, enforces(stage))
    };
    count(stat);
    counters::reason(reason);
    if drops { DROP } else { PASS }
}

/// A packet of a known flow, or an ICMP error about one, that came from neither of its ends. Counted; dropped where the
/// stage says so.
#[inline(always)]
pub(crate) fn forged(hook: &Hook<'_>) -> i32 {
    count(Stat::WrongInterface);
    counters::reason(Reason::WrongInterface);
    if enforces(stage(hook.endpoint)) { DROP } else { PASS }
}

/// Whether the packet, which the pod behind `sender` should have sent, came from elsewhere: from another pod, or from the
/// wire. What the pod sends is received by its veth, or (when the stack routes it) by the bridge or VRF above that. The
/// host itself may speak in its name: a firewall that rejects does.
#[inline(always)]
pub(crate) fn by_another(skb: Skb, sender: u32) -> bool {
    let by = skb.came_by();
    if by == 0 || by == sender {
        return false;
    }
    match read(|| ENDPOINTS.get_ptr(sender), |of| of.master) {
        Some(master) => by != master,
        // Enrolled no more: what is above its veth is not known.
        None => ENDPOINTS.get_ptr(by).is_some(),
    }
}
