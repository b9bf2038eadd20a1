//! Tables: stage x peer x proof.

use super::*;
use crate::flow::flags::{DOWNGRADED, HOST, JUDGED_BOTH, LEGACY, OBSERVED, PLAINTEXT, PROBE, UNCARRIABLE, VETH_PROVED};

const STAGES: [Stage; 4] = [Stage::Off, Stage::Observe, Stage::Permissive, Stage::Strict];
const PEERS: [Peer; 9] = [
    Peer::Outside,
    Peer::Tunnel,
    Peer::Disputed,
    Peer::Service,
    Peer::OpenService,
    Peer::Remote,
    Peer::Local,
    Peer::LocalDetached,
    Peer::Outer,
];
const BOTH: u32 = JUDGED_BOTH | VETH_PROVED;

fn ask(stage: Stage, peer: Peer) -> Outbound {
    Outbound { stage, learn: false, closing: false, fast: true, peer }
}

#[test]
fn outbound_by_stage_and_peer() {
    use Action::{Capture, Direct, Fast, Refuse};
    let rows = [
        (Peer::Outside, (Direct, PLAINTEXT), (Direct, PLAINTEXT)),
        (Peer::Tunnel, (Refuse, 0), (Refuse, 0)),
        (Peer::Disputed, (Refuse, 0), (Refuse, 0)),
        (Peer::Service, (Capture, 0), (Capture, 0)),
        (Peer::OpenService, (Direct, PLAINTEXT), (Direct, PLAINTEXT)),
        (Peer::Remote, (Capture, 0), (Capture, 0)),
        (Peer::Local, (Fast, BOTH), (Fast, BOTH)),
        (Peer::LocalDetached, (Capture, 0), (Capture, 0)),
        (Peer::Outer, (Direct, PLAINTEXT), (Refuse, 0)),
    ];
    for (peer, permissive, strict) in rows {
        let p = outbound(ask(Stage::Permissive, peer));
        assert_eq!((p.action, p.flags), permissive, "permissive to {peer:?}");
        let s = outbound(ask(Stage::Strict, peer));
        assert_eq!((s.action, s.flags), strict, "strict to {peer:?}");
    }
}

#[test]
fn off_leaves_no_trace_and_observe_never_stops_anything() {
    for peer in PEERS {
        for (learn, closing, fast) in [(false, false, false), (true, false, true), (false, true, true)] {
            let off = outbound(Outbound { learn, closing, fast, ..ask(Stage::Off, peer) });
            assert_eq!(off, Decision::UNTOUCHED);
            let seen = outbound(Outbound { learn, closing, fast, ..ask(Stage::Observe, peer) });
            assert_eq!((seen.action, seen.verdict), (Action::Direct, Verdict::Allow));
            assert!(seen.flags & OBSERVED != 0);
            assert_eq!(seen.flags & BOTH != 0, peer == Peer::Local);
        }
    }
    for asker in [Asker::Unknown, Asker::Host, Asker::Probe] {
        for learn in [false, true] {
            assert_eq!(inbound(Stage::Off, learn, asker).action, Action::Untouched);
            assert_eq!(inbound(Stage::Observe, learn, asker).action, Action::Direct);
        }
    }
}

#[test]
fn refusals_carry_deny_and_passes_carry_allow() {
    for stage in STAGES {
        for peer in PEERS {
            for learn in [false, true] {
                for closing in [false, true] {
                    let d = outbound(Outbound { learn, closing, ..ask(stage, peer) });
                    let stops = matches!(d.action, Action::Refuse | Action::Drop);
                    assert_eq!(stops, d.verdict == Verdict::Deny, "{stage:?} {peer:?}");
                    // Nothing meshed is ever reached in the clear by a strict endpoint, but for a node's own pods.
                    if stage == Stage::Strict && matches!(peer, Peer::Remote | Peer::Service) {
                        assert_ne!(d.action, Action::Direct);
                    }
                }
            }
        }
    }
}

#[test]
fn slow_path_keeps_both_verdicts() {
    let d = outbound(Outbound { fast: false, ..ask(Stage::Strict, Peer::Local) });
    assert_eq!((d.action, d.flags), (Action::Direct, BOTH));
}

#[test]
fn raising_lets_new_flows_wait_in_strict_only() {
    for peer in PEERS {
        let strict = outbound(Outbound { learn: true, ..ask(Stage::Strict, peer) });
        assert_eq!((strict.action, strict.reason), (Action::Drop, Reason::Learning));
        let below = outbound(Outbound { learn: true, ..ask(Stage::Permissive, peer) });
        assert_eq!((below.action, below.flags), (Action::Direct, LEGACY));
    }
    assert_eq!(inbound(Stage::Strict, true, Asker::Unknown).action, Action::Drop);
    assert_eq!(inbound(Stage::Strict, true, Asker::Probe).action, Action::Direct);
    assert_eq!(inbound(Stage::Permissive, true, Asker::Unknown).flags, LEGACY);
}

#[test]
fn closing_refuses_what_enforces() {
    for peer in PEERS {
        for stage in [Stage::Permissive, Stage::Strict] {
            let d = outbound(Outbound { closing: true, ..ask(stage, peer) });
            assert_eq!((d.action, d.reason), (Action::Refuse, Reason::AgentClosing));
        }
    }
}

#[test]
fn nobody_lets_in_whose_address_is_disputed() {
    for (stage, learn) in
        [(Stage::Permissive, false), (Stage::Permissive, true), (Stage::Strict, false), (Stage::Strict, true)]
    {
        assert_eq!(inbound(stage, learn, Asker::Disputed), Decision::refuse(Reason::DisputedAddress));
    }
    assert_eq!(inbound(Stage::Observe, false, Asker::Disputed).action, Action::Direct);
}

#[test]
fn inbound_in_the_clear() {
    let rows = [
        (Stage::Permissive, Asker::Unknown, Action::Direct, Reason::PlaintextAccepted, PLAINTEXT),
        (Stage::Permissive, Asker::Host, Action::Direct, Reason::PlaintextAccepted, PLAINTEXT | HOST),
        (Stage::Permissive, Asker::Probe, Action::Direct, Reason::Probe, PROBE),
        (Stage::Strict, Asker::Unknown, Action::Refuse, Reason::PlaintextRefused, 0),
        (Stage::Strict, Asker::Host, Action::Refuse, Reason::HostRefused, 0),
        (Stage::Permissive, Asker::Neighbour, Action::Direct, Reason::Allowed, VETH_PROVED),
        (Stage::Strict, Asker::Neighbour, Action::Direct, Reason::Allowed, VETH_PROVED),
        (Stage::Strict, Asker::Probe, Action::Direct, Reason::Probe, PROBE),
    ];
    for (stage, asker, action, reason, flags) in rows {
        let d = inbound(stage, false, asker);
        assert_eq!((d.action, d.reason, d.flags), (action, reason, flags), "{stage:?} {asker:?}");
    }
}

#[test]
fn no_agent() {
    assert_eq!(without_agent(Stage::Strict, true).action, Action::Refuse);
    assert_eq!(without_agent(Stage::Strict, false).action, Action::Refuse);
    assert_eq!(without_agent(Stage::Permissive, false).action, Action::Refuse);
    let clear = without_agent(Stage::Permissive, true);
    assert_eq!((clear.action, clear.flags), (Action::Direct, PLAINTEXT | DOWNGRADED));
}

#[test]
fn options_that_cannot_be_carried() {
    let strict = uncarriable(Stage::Strict);
    assert_eq!((strict.action, strict.verdict, strict.flags), (Action::Capture, Verdict::Deny, UNCARRIABLE));
    assert_eq!(uncarriable(Stage::Permissive).action, Action::Direct);
}

#[test]
fn strays() {
    assert_eq!(stray(Stage::Off, false), Stray::Pass);
    assert_eq!(stray(Stage::Observe, true), Stray::Pass);
    assert_eq!(stray(Stage::Permissive, true), Stray::Learn);
    assert_eq!(stray(Stage::Strict, true), Stray::Learn);
    assert_eq!(stray(Stage::Permissive, false), Stray::Reset);
    assert_eq!(stray(Stage::Strict, false), Stray::Reset);
}

#[test]
fn who_is_behind_an_address() {
    use crate::map::{service_flags::CAPTURE, service_flags::OUTER, workload_flags as w};
    let work =
        |stage: Stage, flags: u8, ifindex: u32| Workload { class: [1, 1], ifindex, node: 1, stage: stage as u8, flags };
    let of = |a: AddrKind, w: Option<Workload>, port: u16| peer(None, Some(a as u8), w.as_ref(), port);

    assert_eq!(peer(None, None, None, 80), Peer::Outside);
    assert_eq!(peer(Some(&ServiceEntry { id: 1, flags: CAPTURE, backends: 0 }), None, None, 80), Peer::Service);
    assert_eq!(peer(Some(&ServiceEntry { id: 1, flags: 0, backends: 0 }), None, None, 80), Peer::OpenService);
    assert_eq!(peer(Some(&ServiceEntry { id: 1, flags: OUTER, backends: 0 }), None, None, 80), Peer::Outer);
    assert_eq!(of(AddrKind::Node, None, TUNNEL_PORT), Peer::Tunnel);
    assert_eq!(of(AddrKind::ThisNode, None, 443), Peer::Outside);
    assert_eq!(of(AddrKind::Disputed, None, 80), Peer::Disputed);
    assert_eq!(of(AddrKind::Workload, None, 80), Peer::Outside);
    assert_eq!(of(AddrKind::Workload, Some(work(Stage::Strict, 0, 0)), 80), Peer::Outside, "a dead handle");
    assert_eq!(of(AddrKind::Workload, Some(work(Stage::Observe, w::LIVE, 0)), 80), Peer::Outside);
    // The tunnel port of a pod is a port like any other.
    assert_eq!(of(AddrKind::Workload, Some(work(Stage::Strict, w::LIVE, 0)), TUNNEL_PORT), Peer::Remote);
    let local = w::LIVE | w::LOCAL;
    assert_eq!(of(AddrKind::Workload, Some(work(Stage::Permissive, local | w::ATTACHED, 5)), 80), Peer::Local);
    assert_eq!(of(AddrKind::Workload, Some(work(Stage::Strict, local, 0)), 80), Peer::LocalDetached);
    assert_eq!(of(AddrKind::Workload, Some(work(Stage::Off, local | w::ATTACHED, 5)), 80), Peer::Outside);
}
