//! What a pod sends.

use kumiko_abi::{
    AddrEntry, AddrKind, Config, Endpoint, EventKind, Flow, FlowState, Reason, ServiceEntry, ServiceKey, Stage, Stat,
    Verdict,
    config::config_flags,
    flow::{TCP, flags},
    map::{endpoint_flags, service_flags},
    segment::bits::{ACK, RST, SYN},
};

use crate::{
    fixture::{addr, alone, config, endpoint},
    frames::{self, Extra, Tcp, ethernet, ip_frame},
    node::*,
};

#[test]
fn off_and_unknown_pods_are_untouched() {
    alone("off_and_unknown_pods_are_untouched", |dir| {
        let mut node = node(dir, Stage::Off);
        for dst in [REMOTE_4, LOCAL_4, OUTSIDE_4, DETACHED] {
            let syn = Tcp::syn(POD_4, dst);
            assert_eq!(node.sends(&syn.frame()), PASS);
            assert_eq!(node.gets(&reply(&syn, SYN).frame()), PASS);
            assert!(node.flow(&syn).is_none());
        }
        // What stands under its key goes: it is another flow's.
        let syn = Tcp::syn(POD_4, REMOTE_4);
        node.datapath.commands().create(&key(&syn), &Flow { isn: 7, src_ifindex: HERE, ..fake(&syn) }).unwrap();
        assert_eq!(node.sends(&syn.frame()), PASS);
        assert!(node.flow(&syn).is_none());
        assert_eq!(node.event().unwrap().0, EventKind::Replaced);
        node.maps.remove_endpoint(HERE).unwrap();
        assert_eq!(node.sends(&Tcp::syn(POD_4, REMOTE_4).frame()), PASS);
        assert!(node.event().is_none());
    });
}

#[test]
fn observe_counts_and_stops_nothing() {
    alone("observe_counts_and_stops_nothing", |dir| {
        let mut node = node(dir, Stage::Observe);
        for dst in [REMOTE_4, LOCAL_4, OUTSIDE_4, DETACHED] {
            let syn = Tcp::syn(POD_4, dst);
            assert_eq!(node.sends(&syn.frame()), PASS);
            let flow = node.flow(&syn).unwrap();
            assert!(flow.flags & flags::OBSERVED != 0);
            assert_eq!(flow.flags & flags::VETH_PROVED != 0, dst == LOCAL_4);
            assert_eq!(node.event().unwrap().0, EventKind::New);
        }
        assert_eq!(node.sends(&Tcp::syn("10.9.9.9", OUTSIDE_4).frame()), PASS, "spoofed");
        assert_eq!(node.stat(Stat::Spoofed), 1);
        let fragment = Extra { fragment: 0x2000, ..Extra::default() };
        assert_eq!(node.sends(&Tcp::syn(POD_4, REMOTE_4).frame_with(&fragment)), PASS);
        assert_eq!(node.stat(Stat::Unparsable), 1);
        assert_eq!(node.gets(&Tcp::syn(OUTSIDE_4, POD_4).frame()), PASS);
        let stray = Tcp::syn(POD_4, REMOTE_4).with(|t| (t.flags, t.sport) = (ACK, 9));
        assert_eq!(node.sends(&stray.frame()), PASS);
        assert!(node.flow(&stray).is_none());
        // A full quota stops nothing either.
        node.endpoint(|e| e.max_flows = 1, Stage::Observe);
        let more = Tcp::syn(POD_4, REMOTE_4).with(|t| t.sport = 10);
        assert_eq!(node.sends(&more.frame()), PASS);
        assert!(node.flow(&more).is_none());
    });
}

#[test]
fn a_syn_is_parked_whole() {
    alone("a_syn_is_parked_whole", |dir| {
        let mut node = node(dir, Stage::Strict);
        let hop = |n| (n, vec![0u8, 0, 1, 4, 0, 0, 0, 0]);
        let cases = [
            (POD_4, REMOTE_4, Extra::default()),
            (POD_4, REMOTE_4, Extra { options: vec![1; 40], ..Extra::default() }),
            (POD_4, REMOTE_4, Extra { padding: 6, ..Extra::default() }),
            (POD_6, REMOTE_6, Extra::default()),
            (POD_6, REMOTE_6, Extra { extensions: vec![hop(0), hop(60), hop(43)], ..Extra::default() }),
            (POD_6, REMOTE_6, Extra { extensions: vec![(44, vec![0; 8])], ..Extra::default() }),
        ];
        for (at, (src, dst, extra)) in cases.into_iter().enumerate() {
            let syn = Tcp::syn(src, dst).with(|t| {
                t.sport += at as u16;
                t.options = vec![2, 4, 5, 0xb4, 1, 3, 3, 7];
                t.payload = b"early".to_vec();
            });
            assert_eq!(node.sends(&syn.frame_with(&extra)), DROP);
            let record = node.syns.next().unwrap();
            let flow = node.flow(&syn).unwrap();
            assert_eq!(flow.state, FlowState::Pending as u8);
            assert_eq!((flow.src, flow.dst, flow.isn), (1, 2, 1000));
            assert_eq!((flow.src_ifindex, flow.dst_ifindex, flow.generation), (HERE, AGENT, 1));
            assert_eq!((record.key, record.id, record.ifindex), (key(&syn), flow.id, HERE));
            assert_eq!((record.src, record.dst, record.generation), (1, 2, 1));
            // The same frame without its payload and padding.
            let bare = Extra { padding: 0, ..extra };
            let expected = syn.clone().with(|t| t.payload.clear()).frame_with(&bare);
            assert_eq!(&record.frame[..usize::from(record.len)], expected, "case {at}");
            assert_eq!(usize::from(record.l4), expected.len() - 28);
            // Sent again: noted and dropped, no second record.
            assert_eq!(node.sends(&syn.frame_with(&bare)), DROP);
            assert!(node.syns.next().is_none());
            let again = node.flow(&syn).unwrap();
            assert_eq!(again.dir[0].packets, 2);
            assert_eq!(again.id, flow.id);
            assert_ne!(again.last_syn_ns, flow.last_syn_ns, "the dialler sees that it still tries");
        }
        let used = node.maps.endpoint_use(HERE).unwrap().unwrap();
        assert_eq!((used.pending, used.flows), (6, 6));
        assert_eq!((used.pod_mac, used.gateway_mac), (frames::POD, frames::GATEWAY), "learned");
    });
}

#[test]
fn another_syn_takes_the_place_of_a_pending_one() {
    alone("another_syn_takes_the_place_of_a_pending_one", |dir| {
        let mut node = node(dir, Stage::Strict);
        let syn = Tcp::syn(POD_4, REMOTE_4);
        assert_eq!(node.sends(&syn.frame()), DROP);
        let first = node.syns.next().unwrap();
        let other = syn.clone().with(|t| t.seq = 5000);
        assert_eq!(node.sends(&other.frame()), DROP);
        let second = node.syns.next().unwrap();
        assert_ne!(first.id, second.id);
        assert_eq!(node.event().map(|(kind, _, e)| (kind, e.flow.id)), Some((EventKind::Replaced, first.id)));
        let used = node.maps.endpoint_use(HERE).unwrap().unwrap();
        assert_eq!((used.pending, used.flows), (1, 1));
        // Captured now: data goes to the agent, the pending place is free again.
        node.set_state(&syn, FlowState::Captured);
        assert_eq!(node.maps.endpoint_use(HERE).unwrap().unwrap().pending, 0);
        assert_eq!(node.sends(&other.clone().with(|t| t.flags = ACK).frame()), REDIRECT);
        // An agent of another generation: the old one's flow is an orphan, a SYN begins anew.
        node.maps.set_config(&Config { generation: 2, ..config(AGENT) }).unwrap();
        assert_eq!(node.sends(&other.frame()), DROP);
        assert_eq!(node.syns.next().unwrap().generation, 2);
        // Its other packets still go where they are reset.
        assert_eq!(node.sends(&other.clone().with(|t| t.flags = ACK).frame()), REDIRECT);
    });
}

#[test]
fn services() {
    alone("services", |dir| {
        let mut node = node(dir, Stage::Strict);
        let service = |port| ServiceKey { addr: addr("10.96.0.1"), port, proto: TCP, _pad: 0 };
        let captured = ServiceEntry { id: 31, flags: service_flags::CAPTURE, backends: 0 };
        node.maps.set_service(&service(80), &captured).unwrap();
        node.maps.set_service(&service(81), &ServiceEntry { id: 32, flags: 0, backends: 0 }).unwrap();
        let syn = Tcp::syn(POD_4, "10.96.0.1");
        assert_eq!(node.sends(&syn.frame()), DROP);
        let record = node.syns.next().unwrap();
        assert_eq!((record.service, record.dst), (31, 0));
        let open = syn.clone().with(|t| t.dport = 81);
        assert_eq!(node.sends(&open.frame()), PASS);
        assert_eq!(node.flow(&open).unwrap().reason, Reason::ServiceNotMeshed as u16);
    });
}

#[test]
fn node_ports_and_load_balancers() {
    alone("node_ports_and_load_balancers", |dir| {
        let mut node = node(dir, Stage::Strict);
        let outer = ServiceEntry { id: 33, flags: service_flags::OUTER, backends: 0 };
        let balancer = ServiceKey { addr: addr(OUTSIDE_6), port: 80, proto: TCP, _pad: 0 };
        node.maps.set_service(&balancer, &outer).unwrap();
        node.maps.set_service(&ServiceKey { addr: [0; 16], port: 30_080, ..balancer }, &outer).unwrap();
        let nodes = [("172.31.0.1", AddrKind::ThisNode), ("172.31.0.2", AddrKind::Node)];
        for (ip, kind) in nodes {
            node.maps
                .set_addr(&addr(ip), &AddrEntry { handle: 0, kind: kind as u8, _pad: [0; 3], class: [0; 2] })
                .unwrap();
        }
        let asked = [(POD_4, "172.31.0.1", 30_080), (POD_4, "172.31.0.2", 30_080), (POD_6, OUTSIDE_6, 80)];
        let syns = asked.map(|(from, to, port)| Tcp::syn(from, to).with(|t| t.dport = port));
        for syn in &syns {
            assert_eq!(node.sends(&syn.frame()), REDIRECT, "{} in strict", syn.dst);
            let (kind, reason, event) = node.event().unwrap();
            assert_eq!((kind, reason), (EventKind::Denied, Reason::OuterAddressRefused));
            assert_eq!(event.flow.service, 33);
        }
        // Other ports of a node, and the number of a node port elsewhere, are outside as ever.
        for (to, port) in [("172.31.0.2", 22), (OUTSIDE_4, 30_080)] {
            assert_eq!(node.sends(&Tcp::syn(POD_4, to).with(|t| t.dport = port).frame()), PASS);
            assert_eq!(node.event().unwrap().1, Reason::PeerOutsideMesh);
        }
        node.endpoint(|_| (), Stage::Permissive);
        for syn in &syns {
            assert_eq!(node.sends(&syn.frame()), PASS);
            let flow = node.flow(syn).unwrap();
            assert_eq!((flow.reason, flow.service), (Reason::OuterAddress as u16, 33));
        }
    });
}

#[test]
fn without_an_agent() {
    alone("without_an_agent", |dir| {
        let mut node = node(dir, Stage::Strict);
        let syn = Tcp::syn(POD_4, REMOTE_4);
        assert_eq!(node.sends(&syn.frame()), DROP);
        node.maps.clear_listeners().unwrap();
        // The pending one is not stuck.
        assert_eq!(node.sends(&syn.frame()), REDIRECT);
        assert!(node.flow(&syn).is_none());
        assert_eq!(node.event().unwrap().0, EventKind::Replaced);
        let (kind, reason, event) = node.event().unwrap();
        assert_eq!((kind, reason, event.key), (EventKind::Denied, Reason::AgentDown, key(&syn)));
        let used = node.maps.endpoint_use(HERE).unwrap().unwrap();
        assert_eq!((used.pending, used.flows), (0, 0));
        // Same-node flows and clear ones go on.
        assert_eq!(node.sends(&Tcp::syn(POD_4, LOCAL_4).frame()), REDIRECT);
        assert_eq!(node.sends(&Tcp::syn(POD_4, OUTSIDE_4).frame()), PASS);
        node.endpoint(|_| (), Stage::Permissive);
        assert_eq!(node.sends(&syn.frame()), REDIRECT);
        let clear = Config { flags: config_flags::PERMISSIVE_WITHOUT_AGENT, ..config(AGENT) };
        node.maps.set_config(&clear).unwrap();
        node.endpoint(|e| e.flags |= endpoint_flags::REFUSED_WITHOUT_AGENT, Stage::Permissive);
        assert_eq!(node.sends(&syn.frame()), REDIRECT, "MeshSettings say so");
        node.endpoint(|_| (), Stage::Permissive);
        assert_eq!(node.sends(&syn.frame()), PASS);
        assert!(node.flow(&syn).unwrap().flags & flags::DOWNGRADED != 0);
    });
}

#[test]
fn quotas_and_options() {
    alone("quotas_and_options", |dir| {
        let mut node = node(dir, Stage::Strict);
        node.endpoint(|e| e.max_pending = 2, Stage::Strict);
        let syn = |port| Tcp::syn(POD_4, REMOTE_4).with(|t| t.sport = port);
        for port in 1..=3 {
            assert_eq!(node.sends(&syn(port).frame()), DROP);
        }
        assert!(node.flow(&syn(3)).is_none());
        assert_eq!(node.stat(Stat::PendingFull), 1);
        node.endpoint(|e| e.max_flows = 2, Stage::Strict);
        assert_eq!(node.sends(&syn(4).frame()), REDIRECT, "denied aloud");
        assert_eq!(node.stat(Stat::QuotaFull), 1);
        assert_eq!(node.event().unwrap().1, Reason::FlowQuota);
        assert_eq!(node.maps.endpoint_use(HERE).unwrap().unwrap().pending, 2);
        node.endpoint(|_| (), Stage::Strict);

        for kind in [19, 29] {
            for lead in [0usize, 20] {
                let mut options = vec![1u8; lead];
                options.extend([kind, 18]);
                options.resize(lead + 20, 1);
                let signed = syn(50 + lead as u16).with(|t| t.options = options);
                node.endpoint(|_| (), Stage::Strict);
                // Only the agent can tell the client: its own socket would not believe the kernel's RST.
                assert_eq!(node.sends(&signed.frame()), DROP, "option {kind} behind {lead}");
                let flow = node.flow(&signed).unwrap();
                assert_eq!(flow.state, FlowState::Pending as u8);
                assert!(flow.flags & flags::UNCARRIABLE != 0 && flow.verdict == Verdict::Deny as u8);
                assert_eq!(flow.reason, Reason::MethodRefused as u16);
                let syn = std::iter::from_fn(|| node.syns.next()).find(|syn| syn.id == flow.id).unwrap();
                assert!(syn.flags & flags::UNCARRIABLE != 0);
                node.datapath.commands().reap(&key(&signed), &flow.id).unwrap();
                node.endpoint(|_| (), Stage::Permissive);
                assert_eq!(node.sends(&signed.frame()), PASS);
                let flow = node.flow(&signed).unwrap();
                assert_eq!(flow.state, FlowState::Direct as u8);
                node.datapath.commands().reap(&key(&signed), &flow.id).unwrap();
                node.event().unwrap();
            }
        }
    });
}

#[test]
fn the_same_node() {
    alone("the_same_node", |dir| {
        let node = node(dir, Stage::Strict);
        for (src, dst) in [(POD_4, LOCAL_4), (POD_6, LOCAL_6)] {
            let syn = Tcp::syn(src, dst);
            assert_eq!(node.sends(&syn.frame()), REDIRECT);
            let flow = node.flow(&syn).unwrap();
            assert_eq!((flow.state, flow.dst_ifindex), (FlowState::Fast as u8, OTHER_POD));
        }
        assert_eq!(node.stat(Stat::Fast), 2);
        // Without hooks: the agent answers, with the errno that the network would have given.
        assert_eq!(node.sends(&Tcp::syn(POD_4, DETACHED).frame()), DROP);
        assert_eq!(node.flow(&Tcp::syn(POD_4, DETACHED)).unwrap().state, FlowState::Pending as u8);
        // One that may not: the other pod, the whole node, this pod.
        let slow = |port| Tcp::syn(POD_4, LOCAL_4).with(|t| t.sport = port);
        node.maps.set_endpoint(OTHER_POD, &Endpoint { flags: 0, ..endpoint(3, Stage::Strict) }).unwrap();
        assert_eq!(node.sends(&slow(5).frame()), PASS);
        node.maps.set_endpoint(OTHER_POD, &endpoint(3, Stage::Strict)).unwrap();
        node.maps.set_config(&Config { flags: 0, ..config(AGENT) }).unwrap();
        assert_eq!(node.sends(&slow(6).frame()), PASS);
        node.maps.set_config(&config(AGENT)).unwrap();
        // Not to be redirected: through the host's stack, judged all the same, and no leak.
        node.endpoint(|e| e.flags = 0, Stage::Strict);
        let slow = slow(7).with(|t| t.payload = vec![1; 10]);
        assert_eq!(node.sends(&slow.frame()), PASS);
        assert!(node.flow(&slow).unwrap().flags & flags::JUDGED_BOTH != 0);
        assert_eq!(node.stat(Stat::LeakBytes), 0);
    });
}

#[test]
fn what_cannot_be_judged() {
    alone("what_cannot_be_judged", |dir| {
        let node = node(dir, Stage::Strict);
        let syn = Tcp::syn(POD_4, OUTSIDE_4);
        let syn_6 = Tcp::syn(POD_6, OUTSIDE_6);
        let bad = [
            syn.frame_with(&Extra { fragment: 0x2000, ..Extra::default() }),
            syn.frame_with(&Extra { fragment: 5, ..Extra::default() }),
            syn_6.frame_with(&Extra { extensions: vec![(44, vec![0, 0, 0, 1, 0, 0, 0, 1])], ..Extra::default() }),
            syn_6.frame_with(&Extra { extensions: vec![(44, vec![0, 0, 0, 8, 0, 0, 0, 1])], ..Extra::default() }),
            syn_6.frame_with(&Extra { extensions: vec![(60, vec![0; 8]); 9], ..Extra::default() }),
            syn_6.frame_with(&Extra { extensions: vec![(0, vec![0, 200, 0, 0, 0, 0, 0, 0])], ..Extra::default() }),
            // A data offset of 16, and one beyond the packet.
            ip_frame(POD_4, OUTSIDE_4, 6, &[[0; 12].as_slice(), &[0x40], &[2], &[0; 6]].concat(), &Extra::default()),
            ip_frame(POD_4, OUTSIDE_4, 6, &[[0; 12].as_slice(), &[0xf0], &[2], &[0; 6]].concat(), &Extra::default()),
            ip_frame(POD_4, OUTSIDE_4, 6, &[0; 10], &Extra::default()),
        ];
        for (at, frame) in bad.iter().enumerate() {
            assert_eq!(node.sends(frame), DROP, "case {at}");
            assert_eq!(node.gets(frame), DROP, "case {at}, towards the pod");
        }
        assert_eq!(node.stat(Stat::Unparsable), 2 * bad.len() as u64);
        let tagged = ethernet(0x8100, &[&[0, 5, 8, 0], &syn.frame()[14..]].concat());
        assert_eq!(node.sends(&tagged), DROP);
        node.endpoint(|_| (), Stage::Permissive);
        assert_eq!(node.sends(&tagged), PASS);
        assert_eq!(node.sends(&bad[0]), DROP);
        assert_eq!(node.stat(Stat::Vlan), 2);
        // ARP is nobody's business; UDP fragments pass.
        assert_eq!(node.sends(&ethernet(0x0806, &[0; 28])), PASS);
        let fragment = Extra { fragment: 0x2000, ..Extra::default() };
        assert_eq!(node.sends(&ip_frame(POD_4, OUTSIDE_4, 17, &[0; 16], &fragment)), PASS);
    });
}

#[test]
fn strays_and_learning() {
    alone("strays_and_learning", |dir| {
        let node = node(dir, Stage::Strict);
        let data = Tcp::syn(POD_4, REMOTE_4).with(|t| (t.flags, t.payload) = (ACK, vec![7; 100]));
        assert_eq!(node.sends(&data.frame()), REDIRECT);
        assert_eq!(node.gets(&reply(&data, ACK).frame()), REDIRECT);
        assert_eq!(node.stat(Stat::Stray), 2);
        assert!(node.flow(&data).is_none());

        node.endpoint(|e| e.flags = endpoint_flags::LEARN, Stage::Strict);
        assert_eq!(node.sends(&Tcp::syn(POD_4, REMOTE_4).frame()), DROP, "a new one comes again");
        assert!(node.flow(&data).is_none());
        assert_eq!(node.sends(&data.clone().with(|t| t.flags = RST).frame()), PASS);
        assert!(node.flow(&data).is_none(), "what ends begins nothing");
        assert_eq!(node.sends(&data.frame()), PASS);
        let flow = node.flow(&data).unwrap();
        assert!(flow.flags & flags::LEGACY != 0);
        node.endpoint(|_| (), Stage::Strict);
        assert_eq!(node.sends(&data.frame()), PASS, "goes on after the raise");
        assert_eq!(node.gets(&reply(&data, ACK).frame()), PASS);
        assert_eq!(node.flow(&data).unwrap().dir[0].bytes, 200);
        assert_eq!(node.stat(Stat::LeakBytes), 0, "legacy is no leak");

        // The dump found a socket in SYN_SENT: its SYN, sent again, is no new flow.
        let sent = Tcp::syn(POD_4, REMOTE_4).with(|t| t.sport = 5);
        let old = Flow { isn: 0, flags: fake(&sent).flags | flags::LEGACY, src_ifindex: HERE, ..fake(&sent) };
        node.datapath.commands().create(&key(&sent), &old).unwrap();
        assert_eq!(node.sends(&sent.frame()), PASS);
        assert_eq!(node.sends(&sent.frame()), PASS);
        // Below strict, new ones pass as legacy while learning.
        node.endpoint(|e| e.flags = endpoint_flags::LEARN, Stage::Permissive);
        let fresh = Tcp::syn(POD_4, REMOTE_4).with(|t| t.sport = 6);
        assert_eq!(node.sends(&fresh.frame()), PASS);
        assert!(node.flow(&fresh).unwrap().flags & flags::LEGACY != 0);
    });
}

#[test]
fn leaks_are_counted_whatever_was_decided() {
    alone("leaks_are_counted_whatever_was_decided", |dir| {
        let node = node(dir, Stage::Strict);
        // An entry that should never be: direct, from a strict pod to a meshed peer elsewhere.
        let data = Tcp::syn(POD_4, REMOTE_4).with(|t| (t.flags, t.payload) = (ACK, vec![7; 100]));
        let wrong = Flow { src_ifindex: HERE, ..fake(&data) };
        node.datapath.commands().create(&key(&data), &wrong).unwrap();
        assert_eq!(node.sends(&data.frame()), PASS);
        assert_eq!(node.stat(Stat::LeakBytes), 100);
        let fine = Tcp::syn(POD_4, OBSERVED).with(|t| t.payload = vec![7; 100]);
        assert_eq!(node.sends(&fine.frame()), PASS);
        assert_eq!(node.stat(Stat::LeakBytes), 100);
    });
}
