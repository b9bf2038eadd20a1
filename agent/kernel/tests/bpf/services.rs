//! Services whose endpoints the programs choose: for datagrams, and for connections in the clear.

use kumiko_abi::{
    Backend, BackendKey, CommandResult, FlowState, Reason, ServiceEntry, ServiceKey, Stage, Stat, Verdict,
    flow::{TCP, UDP, flags},
    map::service_flags,
    policy::REVOKE_CUT,
};

use crate::{
    fixture::{addr, alone},
    frames::{Extra, Tcp, Udp},
    node::*,
    udp::{flow, reason, tables},
};

/// Pod 2's Service, with its endpoints.
pub(crate) fn service(node: &Node, vip: &str, backends: &[(&str, u16)], flags: u32) {
    let key = |proto| ServiceKey { addr: addr(vip), port: 53, proto, _pad: 0 };
    let family = if vip.contains(':') { BackendKey::V6 } else { 0 };
    for (index, (ip, port)) in (0..).zip(backends) {
        let backend = Backend { addr: addr(ip), port: *port, _pad: [0; 6] };
        node.maps.set_backend(&BackendKey { service: 40, index: index | family }, &backend).unwrap();
    }
    let count = u32::try_from(backends.len()).unwrap();
    for proto in [TCP, UDP] {
        node.maps.set_service(&key(proto), &ServiceEntry { id: 40, flags, backends: count }).unwrap();
    }
}

#[test]
fn a_services_endpoint_is_chosen_once_and_answers_in_its_name() {
    alone("a_services_endpoint_is_chosen_once", |dir| {
        let node = node(dir, Stage::Strict);
        for (pod, vip, backends) in [
            (POD_4, "10.96.0.10", [(REMOTE_4, 5353), (OUTSIDE_4, 5354)]),
            (POD_6, "fd00:96::10", [(REMOTE_6, 5353), (OUTSIDE_6, 5354)]),
        ] {
            service(&node, vip, &backends, 0);
            let mut chosen = [0, 0];
            for port in 1_000..1_200 {
                let asks = Udp { sport: port, ..Udp::new(pod, vip) };
                let (action, out) = node.sends_and_shows(&asks.frame());
                assert_eq!(action, PASS);
                let at = backends.iter().position(|(ip, port)| {
                    let direct = Udp { dst: ip, dport: *port, ..asks };
                    out == direct.frame()
                });
                let at = at.expect("turned to one of both, with right checksums");
                chosen[at] += 1;
                let (ip, to) = backends[at];
                let direct = Udp { dst: ip, dport: to, ..asks };
                let flow = flow(&node, &direct).unwrap();
                assert_eq!((flow.service, flow.state), (40, FlowState::Direct as u8));
                assert_eq!(node.sends_and_shows(&asks.frame()).1, direct.frame(), "again the same");
                let (action, back) = node.gets_and_shows(&direct.answer().frame());
                assert_eq!((action, back), (PASS, asks.answer().frame()));
                // Somebody else's datagrams from there are left alone.
                let other = Udp { dport: 9, ..direct.answer() };
                assert_eq!(node.gets_and_shows(&other.frame()).1, other.frame());
            }
            assert!(chosen.iter().all(|times| *times > 20), "{chosen:?}");
        }
    });
}

#[test]
fn a_service_without_endpoints_is_refused_and_one_that_loses_its_endpoint_gets_another() {
    alone("a_service_without_endpoints_is_refused", |dir| {
        let node = node(dir, Stage::Permissive);
        let asks = Udp::new(POD_4, "10.96.0.10");
        service(&node, asks.dst, &[], 0);
        assert_eq!(node.sends(&asks.frame()), REDIRECT);
        assert_eq!(reason(&node, Reason::NoReadyEndpoint), 1);
        service(&node, asks.dst, &[(REMOTE_4, 53)], service_flags::AFFINITY);
        assert_eq!(node.sends(&asks.frame()), PASS);
        let first = Udp { dst: REMOTE_4, ..asks };
        assert!(flow(&node, &first).is_some());
        let choices = node.maps.translations().unwrap();
        assert_eq!(choices.len(), 2);
        // The agent forgets the choice of an endpoint that is ready no more.
        service(&node, asks.dst, &[(OUTSIDE_4, 53)], service_flags::AFFINITY);
        assert!(node.maps.remove_translation(&asks.key()).unwrap());
        let second = Udp { dst: OUTSIDE_4, ..asks };
        assert_eq!(node.sends_and_shows(&asks.frame()).1, second.frame());
        // What is reaped takes its choice along, and no other's.
        let commands = node.datapath.commands();
        let reap = |of: &Udp<'_>| commands.reap(&of.key(), &flow(&node, of).unwrap().id).unwrap();
        assert_eq!(reap(&first), CommandResult::Done);
        assert_eq!(node.maps.translations().unwrap().len(), 2);
        assert_eq!(reap(&second), CommandResult::Done);
        assert!(node.maps.translations().unwrap().is_empty());
        // A pod that is its Service's only endpoint is the host's to bring back.
        service(&node, asks.dst, &[(POD_4, 53)], 0);
        let (action, out) = node.sends_and_shows(&asks.frame());
        assert_eq!((action, out), (PASS, asks.frame()));
    });
}

#[test]
fn rules_are_asked_about_the_endpoint() {
    alone("rules_are_asked_about_the_endpoint", |dir| {
        let node = node(dir, Stage::Strict);
        let asks = Udp::new(POD_4, "10.96.0.10");
        service(&node, asks.dst, &[(OUTSIDE_4, 5353)], 0);
        tables(&node, false, REVOKE_CUT, 1);
        let (action, out) = node.sends_and_shows(&asks.frame());
        assert_eq!((action, out), (REDIRECT, asks.frame()), "the refusal quotes what was sent");
        let refused = flow(&node, &Udp { dst: OUTSIDE_4, dport: 5353, ..asks }).unwrap();
        assert_eq!((refused.verdict, refused.reason), (Verdict::Deny as u8, Reason::TeamDefault as u16));
        // All of a datagram goes where its first fragment goes.
        let fragment = |fragment| asks.frame_with(&Extra { fragment, ..Extra::default() });
        assert_eq!((node.sends(&fragment(0x2000)), node.sends(&fragment(9))), (REDIRECT, REDIRECT));
        tables(&node, true, REVOKE_CUT, 2);
        let (action, first) = node.sends_and_shows(&fragment(0x2000));
        let (then, last) = node.sends_and_shows(&fragment(9));
        let direct = Udp { dst: OUTSIDE_4, dport: 5353, ..asks };
        assert_eq!((action, first), (PASS, direct.frame_with(&Extra { fragment: 0x2000, ..Extra::default() })));
        // Of a later one only the address.
        let expected = direct.frame_with(&Extra { fragment: 9, ..Extra::default() });
        assert_eq!((then, &last[..34]), (PASS, &expected[..34]));
    });
}

#[test]
fn an_error_about_an_endpoint_is_told_as_the_services() {
    alone("an_error_about_an_endpoint_is_told_as_the_services", |dir| {
        let node = node(dir, Stage::Strict);
        for (pod, vip, backend) in [(POD_4, "10.96.0.10", REMOTE_4), (POD_6, "fd00:96::10", REMOTE_6)] {
            service(&node, vip, &[(backend, 5353)], 0);
            let asks = Udp::new(pod, vip);
            assert_eq!(node.sends(&asks.frame()), PASS);
            let direct = Udp { dst: backend, dport: 5353, ..asks };
            let (action, out) = node.gets_and_shows(&direct.unreachable(backend));
            assert_eq!((action, out), (PASS, asks.unreachable(vip)), "{vip}");
            // A router's says the same of another place.
            let router = if pod == POD_4 { "10.9.9.9" } else { "fd00:9::9" };
            let (action, out) = node.gets_and_shows(&direct.unreachable(router));
            assert_eq!((action, out), (PASS, asks.unreachable(router)), "{vip}");
        }
    });
}

#[test]
fn a_connection_in_the_clear_to_a_service_goes_to_an_endpoint_that_rules_are_asked_about() {
    alone("a_connection_in_the_clear_to_a_service", |dir| {
        let node = node(dir, Stage::Strict);
        for (pod, vip, backend) in [(POD_4, "10.96.0.10", OUTSIDE_4), (POD_6, "fd00:96::10", OUTSIDE_6)] {
            service(&node, vip, &[(backend, 5353)], 0);
            let syn = Tcp::syn(pod, vip).with(|t| t.dport = 53);
            let direct = |of: &Tcp<'static>| Tcp { dst: backend, dport: 5353, ..of.clone() };
            let data = syn.clone().with(|t| (t.flags, t.seq, t.payload) = (0x10, 1001, b"some bytes".to_vec()));
            let clear = node.stat(Stat::LeakBytes);
            for out in [&syn, &syn, &data] {
                assert_eq!(node.sends_and_shows(&out.summed()), (PASS, direct(out).summed()), "{vip}");
                let back = reply(&direct(out), 0x12);
                let told = reply(out, 0x12);
                assert_eq!(node.gets_and_shows(&back.summed()), (PASS, told.summed()), "{vip}");
            }
            let flow = node.flow(&direct(&syn)).unwrap();
            assert_eq!((flow.service, flow.reason), (40, Reason::ServiceNotMeshed as u16));
            assert_eq!(flow.flags & flags::TURNED, flags::TURNED);
            assert_eq!(flow.dir.map(|dir| dir.packets), [3, 3]);
            assert_eq!(node.stat(Stat::LeakBytes), clear);
            // To the endpoint itself from the same port: that waits, and what is open goes on.
            let own = direct(&syn).with(|t| t.seq = 5_000);
            assert_eq!(node.sends(&own.summed()), DROP);
            assert_eq!(node.sends_and_shows(&data.summed()), (PASS, direct(&data).summed()));
            assert_eq!(node.flow(&direct(&syn)).unwrap().id, flow.id);
            // Of a pod that is only observed, or no more at all, nothing ever waits here.
            let waits = |stage| {
                let there = syn.clone().with(|t| t.sport = 38_000);
                node.sends(&there.summed());
                node.endpoint(|_| (), stage);
                let action = node.sends(&own.clone().with(|t| t.sport = 38_000).summed());
                node.endpoint(|_| (), Stage::Strict);
                action
            };
            assert_eq!([Stage::Off, Stage::Observe].map(waits), [PASS; 2]);
            let elsewhere = |of: &Tcp<'static>| of.clone().with(|t| t.sport = 39_000);
            let (own, syn_there) = (elsewhere(&own), elsewhere(&syn));
            assert_eq!(node.sends_and_shows(&own.summed()), (PASS, own.summed()));
            let first = node.flow(&own).unwrap().id;
            assert_eq!(node.sends(&syn_there.summed()), DROP);
            assert_eq!(node.flow(&own).unwrap().id, first);
            // Without an entry it is a stray, and goes as it came.
            let stray = data.clone().with(|t| t.sport = 9);
            assert_eq!(node.sends_and_shows(&stray.summed()), (REDIRECT, stray.summed()));
            // Another connection from the same port.
            let again = syn.clone().with(|t| t.seq = 77);
            assert_eq!(node.sends_and_shows(&again.summed()), (PASS, direct(&again).summed()));
            assert_ne!(node.flow(&direct(&syn)).unwrap().id, flow.id);
        }
        tables(&node, false, REVOKE_CUT, 1);
        let syn = Tcp::syn(POD_4, "10.96.0.10").with(|t| t.dport = 53);
        let data = syn.clone().with(|t| (t.flags, t.seq) = (0x10, 78));
        assert_eq!(node.sends_and_shows(&data.summed()), (REDIRECT, data.summed()), "cut, and told so by the Service");
        let other = syn.clone().with(|t| t.sport = 41_000);
        assert_eq!(node.sends_and_shows(&other.summed()), (REDIRECT, other.summed()));
        // A captured Service, when no agent lives and permissive pods go on without: the same.
        let node_of = |allows| {
            node.endpoint(|_| (), Stage::Permissive);
            tables(&node, allows, REVOKE_CUT, if allows { 2 } else { 3 });
        };
        node.maps.clear_listeners().unwrap();
        let config = node.maps.config().unwrap();
        let clear = kumiko_abi::config::config_flags::PERMISSIVE_WITHOUT_AGENT;
        service(&node, "10.96.0.10", &[(REMOTE_4, 5353)], service_flags::CAPTURE);
        for (port, allows) in [(42_000, true), (42_001, false)] {
            node_of(allows);
            let now = node.maps.config().unwrap();
            node.maps.set_config(&kumiko_abi::Config { flags: config.flags | clear, ..now }).unwrap();
            let syn = syn.clone().with(|t| t.sport = port);
            let direct = Tcp { dst: REMOTE_4, dport: 5353, ..syn.clone() };
            let expected = if allows { (PASS, direct.summed()) } else { (REDIRECT, syn.summed()) };
            assert_eq!(node.sends_and_shows(&syn.summed()), expected);
        }
    });
}

#[test]
fn one_port_to_a_service_and_to_its_endpoint_is_answered_by_whom_it_asked_last() {
    alone("one_port_to_a_service_and_to_its_endpoint", |dir| {
        let node = node(dir, Stage::Strict);
        for (pod, vip, backend) in [(POD_4, "10.96.0.10", REMOTE_4), (POD_6, "fd00:96::10", REMOTE_6)] {
            service(&node, vip, &[(backend, 53)], 0);
            let (asks, direct) = (Udp::new(pod, vip), Udp::new(pod, backend));
            for _ in 0..2 {
                assert_eq!(node.sends_and_shows(&asks.frame()), (PASS, direct.frame()));
                assert_eq!(node.gets_and_shows(&direct.answer().frame()), (PASS, asks.answer().frame()));
                assert_eq!(node.sends_and_shows(&direct.frame()), (PASS, direct.frame()));
                assert_eq!(node.gets_and_shows(&direct.answer().frame()), (PASS, direct.answer().frame()));
            }
        }
    });
}
