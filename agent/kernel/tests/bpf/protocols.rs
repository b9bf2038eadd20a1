//! ICMP and protocols that are neither TCP nor UDP: exchanges like those of UDP, but for what the link itself needs.

use kumiko_abi::{
    CommandResult, EventKind, FlowState, Reason, Stage, Stat,
    exchange::UNREPLIED_NS,
    policy::{DENY_SET, REVOKE_CUT},
};

use crate::{
    fixture::alone,
    frames::{Extra, Other, Tcp, Udp, ip_frame},
    node::*,
    udp::{reason, tables},
};

#[test]
fn an_echo_is_an_exchange_of_its_identifier() {
    alone("an_echo_is_an_exchange_of_its_identifier", |dir| {
        let mut node = node(dir, Stage::Strict);
        for (src, dst) in [(POD_4, REMOTE_4), (POD_6, OUTSIDE_6)] {
            let asks = Other::ping(src, dst, 7);
            assert_eq!((node.sends(&asks.frame()), node.gets(&asks.answer().frame())), (PASS, PASS));
            assert_eq!((node.sends(&asks.frame()), node.gets(&asks.answer().frame())), (PASS, PASS));
            let flow = node.datapath.flows().get(&asks.key()).unwrap();
            assert_eq!(flow.dir.map(|dir| (dir.packets, dir.bytes)), [(2, 8), (2, 8)]);
            assert_eq!(node.event().unwrap().0, EventKind::New);
            assert!(node.event().is_none(), "one event for an exchange");
        }
        node.endpoint(|e| e.set = [DENY_SET; 2], Stage::Strict);
        let (asks, known) = (Other::ping(POD_4, REMOTE_4, 8), Other::ping(POD_4, REMOTE_4, 7));
        assert_eq!(node.sends(&asks.frame()), DROP, "nobody answers in its name");
        assert_eq!(node.datapath.flows().get(&asks.key()).unwrap().state, FlowState::Cut as u8);
        assert_eq!(node.gets(&known.answer().frame()), PASS, "an answer to what was let");
        assert_eq!(node.gets(&asks.answer().frame()), DROP, "one to nothing is a beginning");
    });
}

#[test]
fn what_has_no_ports_is_an_exchange_of_its_addresses() {
    alone("what_has_no_ports_is_an_exchange_of_its_addresses", |dir| {
        let node = node(dir, Stage::Strict);
        tables(&node, true, REVOKE_CUT, 1);
        let (gre, sctp) = (Other::gre(POD_4, OUTSIDE_4), Other::sctp(POD_4, OUTSIDE_4, 1_000, 2_000));
        for packet in [gre, sctp] {
            assert_eq!((node.sends(&packet.frame()), node.gets(&packet.answer().frame())), (PASS, PASS));
        }
        tables(&node, false, REVOKE_CUT, 2);
        for packet in [gre, sctp] {
            assert_eq!((node.gets(&packet.answer().frame()), node.sends(&packet.frame())), (DROP, DROP));
        }
        // Let again, and silent for long: either end may begin anew, since nobody can tell.
        tables(&node, true, REVOKE_CUT, 3);
        assert_eq!(node.sends(&gre.frame()), PASS);
        let commands = node.datapath.commands();
        let mut old = node.datapath.flows().get(&gre.key()).unwrap();
        assert_eq!(commands.reap(&gre.key(), &old.id).unwrap(), CommandResult::Done);
        old.last_ns -= UNREPLIED_NS + 1_000_000_000;
        assert_eq!(commands.create(&gre.key(), &old).unwrap(), CommandResult::Done);
        assert_eq!(node.gets(&gre.answer().frame()), PASS);
        assert_ne!(node.datapath.flows().get(&gre.key()).unwrap().id, old.id);
    });
}

#[test]
fn fragments_of_an_echo_go_the_way_of_the_first() {
    alone("fragments_of_an_echo_go_the_way_of_the_first", |dir| {
        let node = node(dir, Stage::Strict);
        let fragment = |of: &Other<'_>, fragment| of.frame_with(&Extra { fragment, ..Extra::default() });
        let (asks, more) = (Other::ping(POD_4, OUTSIDE_4, 7), 0x2000);
        assert_eq!(node.sends(&fragment(&asks, 3)), DROP, "before the first one nobody knows whose it is");
        assert_eq!((node.sends(&fragment(&asks, more)), node.sends(&fragment(&asks, 3))), (PASS, PASS));
        let datagram = Udp::new(POD_4, OUTSIDE_4).frame_with(&Extra { fragment: 3, ..Extra::default() });
        assert_eq!(node.sends(&datagram), DROP, "its number is one of another protocol");
        let gre = Other::gre(POD_4, OUTSIDE_4);
        assert_eq!(node.sends(&fragment(&gre, 3)), PASS, "of what has no ports each is enough");
        node.endpoint(|e| e.set = [DENY_SET; 2], Stage::Strict);
        let other = Other::ping(POD_4, OUTSIDE_4, 8);
        assert_eq!((node.sends(&fragment(&other, more)), node.sends(&fragment(&other, 3))), (DROP, DROP));
    });
}

#[test]
fn errors_pass_if_they_are_about_a_flow_that_lives() {
    alone("errors_pass_if_they_are_about_a_flow_that_lives", |dir| {
        let node = node(dir, Stage::Strict);
        tables(&node, true, REVOKE_CUT, 1);
        for (src, dst, router) in [(POD_4, OUTSIDE_4, "192.0.2.254"), (POD_6, OUTSIDE_6, "2001:db8:ffff::1")] {
            let (ping, gre) = (Other::ping(src, dst, 7), Other::gre(src, dst));
            let datagram = Udp::new(src, dst);
            for frame in [ping.frame(), gre.frame(), datagram.frame()] {
                assert_eq!(node.sends(&frame), PASS);
            }
            // No rule lets the router.
            node.endpoint(|e| e.set = [DENY_SET; 2], Stage::Strict);
            let denied = reason(&node, Reason::PolicyMissing);
            for about in [ping.exceeded(router), gre.exceeded(router), datagram.unreachable(router)] {
                assert_eq!(node.gets(&about), PASS);
            }
            assert_eq!(reason(&node, Reason::PolicyMissing), denied);
            for about in [Other::ping(src, dst, 8).exceeded(router), Other::sctp(src, dst, 1, 2).exceeded(router)] {
                assert_eq!(node.gets(&about), DROP, "about nothing");
            }
            // Nor are others told of it, by whom it is quoted to.
            let others = if src == POD_4 { [OUTSIDE_4, REMOTE_4] } else { [OUTSIDE_6, REMOTE_6] };
            for other in others {
                for about in [ping.exceeded_told(src, other), gre.exceeded_told(src, other)] {
                    assert_eq!(node.sends(&about), DROP, "told to somebody else");
                }
            }
            tables(&node, true, REVOKE_CUT, 1);
        }
        // A flow that was refused is none that anybody has to be told about.
        node.endpoint(|e| e.set = [DENY_SET; 2], Stage::Strict);
        let asks = Udp::new(OUTSIDE_4, POD_4);
        assert_eq!(node.gets(&asks.frame()), REDIRECT);
        let denied = reason(&node, Reason::PolicyMissing);
        assert_eq!(node.gets(&asks.answer().unreachable(OUTSIDE_4)), DROP);
        assert_eq!(reason(&node, Reason::PolicyMissing), denied + 1, "a refusal of any protocol is counted");
        tables(&node, true, REVOKE_CUT, 1);
        // What the agent carries is its own business.
        let syn = Tcp::syn(POD_4, REMOTE_4);
        assert_eq!(node.sends(&syn.frame()), DROP);
        assert_eq!(node.flow(&syn).unwrap().state, FlowState::Pending as u8);
    });
}

#[test]
fn what_the_link_needs_is_never_refused() {
    alone("what_the_link_needs_is_never_refused", |dir| {
        let node = node(dir, Stage::Strict);
        node.endpoint(|e| e.set = [DENY_SET; 2], Stage::Strict);
        let far = |src, dst, kind: u8, hops| {
            let hops = Extra { hops: Some(hops), ..Extra::default() };
            ip_frame(src, dst, 58, &[kind, 0, 0, 0, 0, 0, 0, 0], &hops)
        };
        let icmp = |src, dst, kind: u8| far(src, dst, kind, if matches!(kind, 133..=137) { 255 } else { 1 });
        // Solicitation and advertisement of a neighbour, of a router.
        for kind in [133, 134, 135, 136, 137] {
            assert_eq!(
                (node.sends(&icmp(POD_6, "ff02::16", kind)), node.gets(&icmp("fe80::1", POD_6, kind))),
                (PASS, PASS)
            );
        }
        // One neighbour asks after another. Membership of a group.
        assert_eq!((node.sends(&icmp(POD_6, LOCAL_6, 135)), node.gets(&icmp(LOCAL_6, POD_6, 136))), (PASS, PASS));
        for kind in [130, 131, 132, 143] {
            assert_eq!(node.sends(&icmp(POD_6, "ff02::16", kind)), PASS);
            let mut group = icmp("fe80::1", "ff02::16", kind);
            group[0] |= 1;
            assert_eq!(node.gets(&group), PASS);
        }
        let igmp = |dst| ip_frame(POD_4, dst, 2, &[0x22, 0, 0, 0, 0, 0, 0, 0], &Extra::default());
        assert_eq!(node.sends(&igmp("224.0.0.22")), PASS);
        // What leaves the link, or has come from elsewhere, is none of its business, whatever it calls itself.
        assert_eq!(node.sends(&igmp(OUTSIDE_4)), DROP);
        for (kind, hops) in [(135, 255), (136, 255), (143, 1), (135, 64)] {
            assert_eq!(node.sends(&far(POD_6, OUTSIDE_6, kind, hops)), DROP, "{kind}, {hops}");
        }
        for (kind, hops) in [(135, 254), (136, 64), (143, 1), (130, 64)] {
            assert_eq!(node.gets(&far(OUTSIDE_6, POD_6, kind, hops)), DROP, "{kind}, {hops}");
        }
        assert_eq!(node.sends(&icmp(REMOTE_6, "ff02::16", 135)), DROP, "in another pod's name");
        assert_eq!(node.stat(Stat::Spoofed), 1);
        let router = ip_frame(OUTSIDE_4, POD_4, 1, &[9, 0, 0, 0, 0, 0, 0, 0], &Extra::default());
        assert_eq!(node.gets(&router), DROP, "any other message is asked about");
        assert_eq!(node.gets(&ip_frame(OUTSIDE_4, POD_4, 1, &[8, 0], &Extra::default())), DROP, "cut short");
    });
}
