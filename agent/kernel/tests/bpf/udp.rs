//! Exchanges of datagrams: who answers belongs to them, who is late does not, and who is refused is told.

use kumiko_abi::{
    CommandResult, EventKind, Flow, FlowId, FlowState, Reason, Stage, Stat, Verdict, exchange,
    flow::flags,
    policy::{
        CELLS_LEN, CHUNKS_LEN, COLUMNS_LEN, Cell, Chunk, DENY_SET, REVOKE_CUT, REVOKE_KEEP, ROWS_LEN, Row, SETS_LEN,
        Set, TABLE_CHUNKS,
    },
};
use kumiko_kernel::bpf::Verdicts;

use crate::{
    fixture::{alone, config},
    frames::{Extra, Tcp, Udp},
    node::*,
};

pub(crate) fn flow(node: &Node, of: &Udp<'_>) -> Option<Flow> {
    node.datapath.flows().get(&of.key())
}

pub(crate) fn reason(node: &Node, reason: Reason) -> u64 {
    node.maps.reasons().unwrap()[reason as usize]
}

#[test]
fn what_answers_belongs_to_the_exchange() {
    alone("what_answers_belongs_to_the_exchange", |dir| {
        let mut node = node(dir, Stage::Strict);
        for (src, dst) in [(POD_4, REMOTE_4), (POD_6, REMOTE_6), (POD_4, OUTSIDE_4), (POD_6, OUTSIDE_6)] {
            let asks = Udp::new(src, dst);
            for packets in 1..3 {
                assert_eq!((node.sends(&asks.frame()), node.gets(&asks.answer().frame())), (PASS, PASS), "{dst}");
                let flow = flow(&node, &asks).unwrap();
                assert_eq!(
                    flow.dir.map(|dir| (dir.packets, dir.bytes)),
                    [(packets, packets * 4), (packets, packets * 7)]
                );
                assert_eq!((flow.state, flow.src, flow.src_ifindex), (FlowState::Direct as u8, 1, HERE));
            }
            assert_eq!(node.event().unwrap().0, EventKind::New);
            assert!(node.event().is_none(), "one event for an exchange");
        }
        // What comes in begins one too.
        let asks = Udp::new(REMOTE_4, POD_4).answer().answer();
        assert_eq!((node.gets(&asks.frame()), node.sends(&asks.answer().frame())), (PASS, PASS));
        let flow = flow(&node, &asks).unwrap();
        assert_eq!((flow.src, flow.dst, flow.dst_ifindex, flow.src_ifindex), (2, 1, HERE, 0));
        assert_eq!(flow.flags & flags::PLAINTEXT, flags::PLAINTEXT);
    });
}

/// Puts an exchange that the pod began into the table, with its last datagram as long ago.
fn long_ago(node: &Node, of: &Udp<'_>, replied: bool, ago_ns: u64) -> FlowId {
    assert_eq!(node.sends(&of.frame()), PASS);
    let mut old = flow(node, of).unwrap();
    let commands = node.datapath.commands();
    assert_eq!(commands.reap(&of.key(), &old.id).unwrap(), CommandResult::Done);
    old.last_ns = old.last_ns.checked_sub(ago_ns).unwrap();
    old.dir[1].packets = u64::from(replied);
    assert_eq!(commands.create(&of.key(), &old).unwrap(), CommandResult::Done);
    old.id
}

#[test]
fn a_late_answer_is_dropped_and_never_judged_in_reverse() {
    alone("a_late_answer_is_dropped_and_never_judged_in_reverse", |dir| {
        let node = node(dir, Stage::Strict);
        let lives = [(false, exchange::UNREPLIED_NS), (true, exchange::REPLIED_NS)];
        for (port, (replied, life)) in (50_000..).zip(lives) {
            let asks = Udp { sport: port, ..Udp::new(POD_4, OUTSIDE_4) };
            let id = long_ago(&node, &asks, replied, life - 10_000_000_000);
            assert_eq!(node.gets(&asks.answer().frame()), PASS, "in time");
            assert_eq!(flow(&node, &asks).unwrap().id, id);
        }
        for (number, (port, (replied, life))) in (0..).zip((51_000..).zip(lives)) {
            let asks = Udp { sport: port, ..Udp::new(POD_4, OUTSIDE_4) };
            let id = long_ago(&node, &asks, replied, life + 1_000_000_000);
            assert_eq!(reason(&node, Reason::UdpIdle), number);
            assert_eq!(node.gets(&asks.answer().frame()), DROP, "late");
            assert_eq!(reason(&node, Reason::UdpIdle), number + 1);
            assert_eq!(flow(&node, &asks).unwrap().id, id, "nothing was begun");
            // The client itself begins anew, and is answered.
            assert_eq!((node.sends(&asks.frame()), node.gets(&asks.answer().frame())), (PASS, PASS));
            assert_ne!(flow(&node, &asks).unwrap().id, id);
        }
        node.endpoint(|_| (), Stage::Observe);
        let asks = Udp { sport: 52_000, ..Udp::new(POD_4, OUTSIDE_4) };
        long_ago(&node, &asks, false, exchange::UNREPLIED_NS + 1_000_000_000);
        assert_eq!(node.gets(&asks.answer().frame()), PASS, "observe drops nothing");
    });
}

#[test]
fn a_refused_exchange_is_told_once_and_says_nothing_of_the_other_direction() {
    alone("a_refused_exchange_is_told_once", |dir| {
        let mut node = node(dir, Stage::Strict);
        node.endpoint(|e| e.set = [DENY_SET; 2], Stage::Strict);
        let asks = Udp::new(POD_4, OUTSIDE_4);
        for packets in 1..4 {
            assert_eq!(node.sends(&asks.frame()), REDIRECT);
            let flow = flow(&node, &asks).unwrap();
            assert_eq!((flow.state, flow.verdict), (FlowState::Cut as u8, Verdict::Deny as u8));
            assert_eq!((flow.reason, flow.dir[0].packets), (Reason::PolicyMissing as u16, packets));
        }
        assert_eq!(node.event().unwrap().0, EventKind::New);
        assert!(node.event().is_none());
        assert_eq!(reason(&node, Reason::PolicyMissing), 1);
        // What comes from there was never asked.
        node.endpoint(|_| (), Stage::Strict);
        assert_eq!(node.gets(&asks.answer().frame()), PASS);
        assert_eq!(flow(&node, &asks).unwrap().src_ifindex, 0);
        node.endpoint(|e| e.set = [DENY_SET; 2], Stage::Observe);
        let asks = Udp { sport: 41_000, ..asks };
        assert_eq!(node.sends(&asks.frame()), PASS);
        assert_eq!(flow(&node, &asks).unwrap().verdict, Verdict::Audit as u8);
        // Another hook sees a refusal that comes in.
        node.endpoint(|e| e.set = [DENY_SET; 2], Stage::Permissive);
        let asks = Udp { sport: 42_000, ..Udp::new(REMOTE_4, POD_4) };
        assert_eq!(node.gets(&asks.frame()), REDIRECT);
    });
}

#[test]
fn a_full_quota_refuses_datagrams() {
    alone("a_full_quota_refuses_datagrams", |dir| {
        let node = node(dir, Stage::Strict);
        node.endpoint(|e| e.max_flows = 1, Stage::Strict);
        let asks = Udp::new(POD_4, OUTSIDE_4);
        assert_eq!(node.sends(&asks.frame()), PASS);
        let other = Udp { sport: 41_000, ..asks };
        assert_eq!(node.sends(&other.frame()), REDIRECT);
        assert!(flow(&node, &other).is_none());
        assert_eq!((node.stat(Stat::QuotaFull), reason(&node, Reason::FlowQuota)), (1, 1));
        assert_eq!((node.sends(&asks.frame()), node.gets(&asks.answer().frame())), (PASS, PASS));
    });
}

#[test]
fn fragments_go_the_way_of_the_first() {
    alone("fragments_go_the_way_of_the_first", |dir| {
        let node = node(dir, Stage::Strict);
        let (asks, more) = (Udp::new(POD_4, OUTSIDE_4), 0x2000);
        let fragment = |of: &Udp<'_>, fragment| of.frame_with(&Extra { fragment, ..Extra::default() });
        let header = |offset: u16, more: u16| {
            let [a, b] = (offset << 3 | more).to_be_bytes();
            Extra { extensions: vec![(44, vec![0, 0, a, b, 0, 0, 0, 7])], ..Extra::default() }
        };
        assert_eq!(node.sends(&fragment(&asks, 3)), DROP, "before the first one nobody knows whose it is");
        assert_eq!(node.stat(Stat::Unparsable), 1);
        assert_eq!(node.sends(&fragment(&asks, more)), PASS);
        assert_eq!((node.sends(&fragment(&asks, more | 3)), node.sends(&fragment(&asks, 9))), (PASS, PASS));
        assert_eq!(node.gets(&fragment(&asks.answer(), 9)), DROP, "another datagram");
        assert_eq!(node.gets(&fragment(&asks.answer(), more)), PASS);
        assert_eq!(node.gets(&fragment(&asks.answer(), 9)), PASS);
        let asks = Udp::new(POD_6, OUTSIDE_6);
        assert_eq!(node.sends(&asks.frame_with(&header(3, 0))), DROP);
        assert_eq!(node.sends(&asks.frame_with(&header(0, 1))), PASS);
        assert!(flow(&node, &asks).is_some());
        assert_eq!(node.sends(&asks.frame_with(&header(3, 0))), PASS);
        // Refused as a whole.
        node.endpoint(|e| e.set = [DENY_SET; 2], Stage::Strict);
        let asks = Udp { sport: 9, ..Udp::new(POD_4, REMOTE_4) };
        assert_eq!((node.sends(&fragment(&asks, more)), node.sends(&fragment(&asks, 9))), (REDIRECT, REDIRECT));
    });
}

#[test]
fn what_a_pod_may_send_from_addresses_that_are_not_its_own() {
    alone("what_a_pod_may_send_from_addresses_that_are_not_its_own", |dir| {
        let node = node(dir, Stage::Strict);
        // Nothing that has rules is let by them.
        tables(&node, false, REVOKE_CUT, 1);
        let discover = [
            ("0.0.0.0", "255.255.255.255", 68, 67),
            ("fe80::5", "ff02::1:2", 546, 547),
            ("169.254.1.1", "224.0.0.251", 5353, 5353),
        ];
        for (src, dst, sport, dport) in discover {
            assert_eq!(node.sends(&Udp { sport, dport, ..Udp::new(src, dst) }.frame()), PASS, "{src} to {dst}");
        }
        let within_the_link = [("fe80::5", "fe80::1"), ("fe80::5", "ff02::1"), ("169.254.1.1", "169.254.7.7")];
        for (src, dst) in within_the_link {
            assert_eq!(node.sends(&Udp::new(src, dst).frame()), REDIRECT, "{src} to {dst} is refused");
        }
        tables(&node, true, REVOKE_CUT, 2);
        for (src, dst) in within_the_link {
            assert_eq!(node.sends(&Udp::new(src, dst).frame()), PASS, "{src} to {dst} is let");
        }
        let nowhere = Udp::new("0.0.0.0", "255.255.255.255");
        assert_eq!(node.sends(&nowhere.frame()), DROP, "without an address there is DHCP only");
        let spoofed_before = node.stat(Stat::Spoofed);
        let spoofed = [("169.254.1.1", REMOTE_4), ("fe80::5", REMOTE_6), ("0.0.0.0", LOCAL_4), (LOCAL_4, REMOTE_4)];
        for (number, (src, dst)) in (1..).zip(spoofed) {
            assert_eq!(node.sends(&Udp::new(src, dst).frame()), DROP, "{src} to {dst}");
            assert_eq!(node.stat(Stat::Spoofed), spoofed_before + number);
        }
    });
}

/// Tables of an epoch with one set, the pod's, that lets everything or nothing.
pub(crate) fn tables(node: &Node, allows: bool, revoke: u32, epoch: u32) {
    tables_of(node, allows, revoke, epoch, Reason::TeamDefault);
}

/// The same, with the reason why not.
fn tables_of(node: &Node, allows: bool, revoke: u32, epoch: u32, reason: Reason) {
    let allows = if allows { 7 } else { 0 };
    tables_with(node, Cell { allows, reasons: [reason as u8; 3], revoke, ..Cell::default() }, epoch);
}

/// The same, all of one cell.
fn tables_with(node: &Node, cell: Cell, epoch: u32) {
    let half = |len: u32| if epoch.is_multiple_of(2) { 0 } else { len / 2 };
    let begin = half(SETS_LEN);
    let set = Set { rows: half(ROWS_LEN), classes: 1, tables: [half(CHUNKS_LEN); 6], portless: [0; 4] };
    let row = Row { ingress: half(CELLS_LEN), egress: half(CELLS_LEN) };
    let columns = half(COLUMNS_LEN);
    let (sets, rows, cells) = ([Set::default(), set], [row], [cell; 2]);
    let (chunks, blank) = (vec![columns; TABLE_CHUNKS as usize], [Chunk([0; 64])]);
    let verdicts = Verdicts {
        sets: (begin, &sets),
        rows: (set.rows, &rows),
        chunks: (half(CHUNKS_LEN), &chunks),
        columns: (columns, &blank),
        cells: (row.ingress, &cells),
    };
    node.maps.set_verdicts(&verdicts).unwrap();
    let mut endpoint = node.maps.endpoints().unwrap().into_iter().find(|(ifindex, _)| *ifindex == HERE).unwrap().1;
    endpoint.set[(epoch % 2) as usize] = begin + 1;
    node.maps.set_endpoint(HERE, &endpoint).unwrap();
    node.maps.set_config(&kumiko_abi::Config { epoch, ..config(AGENT) }).unwrap();
}

#[test]
fn what_was_judged_by_older_rules_is_judged_again() {
    alone("what_was_judged_by_older_rules_is_judged_again", |dir| {
        let node = node(dir, Stage::Strict);
        tables(&node, true, REVOKE_CUT, 1);
        let (asks, keeps) = (Udp::new(POD_4, OUTSIDE_4), Udp { sport: 41_000, ..Udp::new(POD_4, OUTSIDE_4) });
        let syn = Tcp::syn(POD_4, OUTSIDE_4);
        let fast = Tcp::syn(POD_4, LOCAL_4);
        assert_eq!((node.sends(&asks.frame()), node.sends(&syn.frame())), (PASS, PASS));
        assert_eq!(node.gets(&reply(&syn, 1).frame()), PASS);
        assert!(matches!(node.sends(&fast.frame()), PASS | REDIRECT));
        // Allowed again: nothing changes but the epoch.
        tables(&node, true, REVOKE_CUT, 2);
        assert_eq!((node.sends(&asks.frame()), node.gets(&reply(&syn, 1).frame())), (PASS, PASS));
        assert_eq!((flow(&node, &asks).unwrap().epoch, node.flow(&syn).unwrap().epoch), (2, 2));
        tables(&node, false, REVOKE_CUT, 3);
        assert_eq!(node.gets(&asks.answer().frame()), REDIRECT, "an answer is part of what was refused");
        assert_eq!(node.gets(&reply(&syn, 1).frame()), REDIRECT);
        assert_eq!(node.sends(&fast.clone().with(|t| t.flags = 0x10).frame()), REDIRECT);
        for flow in [flow(&node, &asks).unwrap(), node.flow(&syn).unwrap(), node.flow(&fast).unwrap()] {
            assert_eq!((flow.state, flow.verdict), (FlowState::Cut as u8, Verdict::Deny as u8));
            assert_eq!((flow.reason, flow.flags & flags::REVOKED), (Reason::TeamDefault as u16, flags::REVOKED));
        }
        assert_eq!(reason(&node, Reason::TeamDefault), 3);
        // What a stage refuses and not a rule is older than the stage.
        tables(&node, true, REVOKE_CUT, 4);
        let clear = Tcp::syn(OUTSIDE_4, POD_4);
        node.endpoint(|e| e.set = [1; 2], Stage::Permissive);
        tables(&node, true, REVOKE_CUT, 4);
        assert_eq!(node.gets(&clear.frame()), PASS);
        tables_of(&node, false, REVOKE_CUT, 5, Reason::PeerUnproved);
        assert_eq!(node.gets(&clear.clone().with(|t| t.flags = 0x10).frame()), PASS);
        assert_eq!(node.flow(&clear).unwrap().state, FlowState::Direct as u8);
        node.endpoint(|_| (), Stage::Strict);
        tables(&node, false, REVOKE_CUT, 3);
        // A refused exchange is asked anew, and lives.
        tables(&node, true, REVOKE_CUT, 4);
        assert_eq!((node.sends(&asks.frame()), node.gets(&asks.answer().frame())), (PASS, PASS));
        // What may stay is the agent's to follow.
        assert_eq!(node.sends(&keeps.frame()), PASS);
        for (epoch, revoke) in [(5, REVOKE_KEEP), (6, 30)] {
            tables(&node, false, revoke, epoch);
            assert_eq!(node.sends(&keeps.frame()), PASS);
            let flow = flow(&node, &keeps).unwrap();
            assert_eq!((flow.state, flow.epoch), (FlowState::Direct as u8, epoch));
        }
    });
}

#[test]
fn what_an_exception_let_ends_with_it() {
    alone("what_an_exception_let_ends_with_it", |dir| {
        let node = node(dir, Stage::Strict);
        let up = u32::try_from(nix::sys::sysinfo::sysinfo().unwrap().uptime().as_secs()).unwrap();
        let until = |not_after: u32, revoke, epoch| {
            let reasons = [Reason::BaselineDenied as u8; 3];
            tables_with(&node, Cell { allows: 7, reasons, revoke, not_after, ..Cell::default() }, epoch);
        };
        let asks = Udp::new(POD_4, OUTSIDE_4);
        let (syn, fast) = (Tcp::syn(POD_4, OUTSIDE_4), Tcp::syn(POD_4, LOCAL_4));
        let ack = |of: &Tcp<'static>| of.clone().with(|t| t.flags = 0x10).frame();
        let commands = node.datapath.commands();
        for (round, revoke) in [(0, REVOKE_KEEP), (1, REVOKE_CUT)] {
            let (epoch, end) = (1 + 2 * round, up + 10_000);
            until(end, revoke, epoch);
            for frame in [asks.frame(), syn.frame(), fast.frame()] {
                assert!(matches!(node.sends(&frame), PASS | REDIRECT));
            }
            // The end comes: an instant that no test waits for is written instead.
            until(1, revoke, epoch);
            for key in [asks.key(), key(&syn), key(&fast)] {
                let mut flow = node.datapath.flows().get(&key).unwrap();
                assert_eq!(flow.not_after, end);
                assert_eq!(commands.reap(&key, &flow.id).unwrap(), CommandResult::Done);
                flow.not_after = 1;
                assert_eq!(commands.create(&key, &flow).unwrap(), CommandResult::Done);
            }
            let _actions = [node.sends(&asks.frame()), node.sends(&ack(&syn)), node.sends(&ack(&fast))];
            for (key, goes_on) in
                [(asks.key(), FlowState::Direct), (key(&syn), FlowState::Direct), (key(&fast), FlowState::Fast)]
            {
                let flow = node.datapath.flows().get(&key).unwrap();
                let state = if revoke == REVOKE_CUT { FlowState::Cut } else { goes_on };
                assert_eq!(flow.state, state as u8);
                if revoke == REVOKE_CUT {
                    assert_eq!((flow.reason, flow.verdict), (Reason::BaselineDenied as u16, Verdict::Deny as u8));
                } else {
                    assert_eq!(flow.not_after, 0, "it is asked about no more");
                }
                assert_eq!(commands.reap(&key, &flow.id).unwrap(), CommandResult::Done);
            }
        }
        assert_eq!(reason(&node, Reason::BaselineDenied), 3);
    });
}
