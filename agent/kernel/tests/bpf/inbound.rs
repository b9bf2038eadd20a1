//! What reaches a pod, what the agent sends, and how flows end.

use kumiko_abi::{
    Config, Direction, EventKind, Flow, FlowState, Reason, Stage, Stat,
    flow::{dir_flags, flags},
    programs::AGENT_INGRESS,
    segment::bits::{ACK, FIN, RST, SYN},
};

use crate::{
    fixture::{Placed, alone, config, place},
    frames::{self, Extra, Tcp, ip_frame},
    node::*,
};

#[test]
fn coming_in_the_clear() {
    alone("coming_in_the_clear", |dir| {
        let mut node = node(dir, Stage::Strict);
        let syn = Tcp::syn(OBSERVED, POD_4);
        assert_eq!(node.gets(&syn.frame()), REDIRECT);
        let (kind, reason, _) = node.event().unwrap();
        assert_eq!((kind, reason), (EventKind::Denied, Reason::PlaintextRefused));
        assert!(node.flow(&syn).is_none());
        // The same seen from its answer, where a CNI goes past the egress hook.
        assert_eq!(node.sends(&reply(&syn, SYN | ACK).frame()), REDIRECT);

        node.endpoint(|_| (), Stage::Permissive);
        assert_eq!(node.gets(&syn.frame()), PASS);
        let flow = node.flow(&syn).unwrap();
        assert!(flow.flags & flags::PLAINTEXT != 0);
        assert_eq!((flow.src, flow.dst, flow.src_ifindex, flow.dst_ifindex), (5, 1, 0, HERE));
        assert_eq!(node.sends(&reply(&syn, SYN | ACK).frame()), PASS);
        let other = syn.clone().with(|t| t.sport = 9);
        assert_eq!(node.sends(&reply(&other, SYN | ACK).with(|t| t.ack = 1001).frame()), PASS);
        let flow = node.flow(&other).unwrap();
        assert_eq!((flow.isn, flow.dst_ifindex, flow.dir[1].packets), (1000, HERE, 1));

        // Captured: whatever the host's stack brings is dropped, ICMP errors about it too.
        let captured = Tcp::syn(POD_4, REMOTE_4);
        assert_eq!(node.sends(&captured.frame()), DROP);
        assert_eq!(node.gets(&reply(&captured, SYN | ACK).frame()), DROP);
        node.set_state(&captured, FlowState::Captured);
        assert_eq!(node.gets(&reply(&captured, ACK).frame()), DROP);
        assert_eq!(node.gets(&icmp_error(OUTSIDE_4, POD_4, &captured)), DROP);
        assert_eq!(node.stat(Stat::EgressCaptured), 3);
        assert_eq!(node.sends(&icmp_error(POD_4, REMOTE_4, &reply(&captured, ACK))), REDIRECT);
        let clear = Tcp::syn(POD_4, OUTSIDE_4).with(|t| t.sport = 3);
        assert_eq!(node.sends(&icmp_error(POD_4, OUTSIDE_4, &clear)), PASS);
        let captured = Tcp::syn(POD_6, REMOTE_6);
        assert_eq!(node.sends(&captured.frame()), DROP);
        assert_eq!(node.sends(&icmp_error(POD_6, REMOTE_6, &reply(&captured, ACK))), REDIRECT);
    });
}

/// Whatever it is and wherever it comes from: the agent's kernel resets it.
#[test]
fn a_cut_flow_leads_to_the_agent_only() {
    alone("a_cut_flow_leads_to_the_agent_only", |dir| {
        let node = node(dir, Stage::Strict);
        let syn = Tcp::syn(POD_4, REMOTE_4);
        assert_eq!(node.sends(&syn.frame()), DROP);
        node.set_state(&syn, FlowState::Cut);
        for stage in [Stage::Strict, Stage::Permissive, Stage::Observe, Stage::Off] {
            node.endpoint(|_| (), stage);
            for flags in [SYN, ACK, FIN | ACK] {
                let data = syn.clone().with(|t| (t.flags, t.payload) = (flags, vec![1; 10]));
                assert_eq!(node.sends(&data.frame()), REDIRECT, "{stage:?}, {flags}");
            }
            assert_eq!(node.gets(&reply(&syn, ACK).frame()), REDIRECT, "{stage:?}");
            assert_eq!(node.sends(&icmp_error(POD_4, REMOTE_4, &reply(&syn, ACK))), REDIRECT, "{stage:?}");
        }
        assert_eq!(node.flow(&syn).unwrap().state, FlowState::Cut as u8);
    });
}

#[test]
fn processes_of_the_node() {
    alone("processes_of_the_node", |dir| {
        let mut node = node(dir, Stage::Strict);
        // A test run's packets carry a socket of this process, so they are the node's own.
        let syn = Tcp::syn(OUTSIDE_4, POD_4);
        assert_eq!(node.gets(&syn.frame()), REDIRECT);
        assert_eq!(node.event().unwrap().1, Reason::HostRefused);
        // The root of all cgroups, at depth 0, stands for the kubelet's.
        node.maps.set_config(&Config { kubelet_cgroup: 1, kubelet_level: 0, ..config(AGENT) }).unwrap();
        assert_eq!(node.gets(&syn.frame()), REDIRECT, "an undeclared port");
        assert_eq!(node.event().unwrap().1, Reason::HostRefused);
        let port = kumiko_abi::map::ProbePort { handle: 1, port: 80, _pad: 0 };
        node.maps.set_probe_port(&port).unwrap();
        assert_eq!(node.maps.probe_ports().unwrap(), [port]);
        assert_eq!(node.gets(&syn.frame()), PASS);
        assert!(node.flow(&syn).unwrap().flags & flags::PROBE != 0);
        // Another group's process, to the same port.
        node.maps.set_config(&Config { kubelet_cgroup: 1 << 40, kubelet_level: 0, ..config(AGENT) }).unwrap();
        while node.event().is_some() {}
        assert_eq!(node.gets(&syn.clone().with(|t| t.sport = 9).frame()), REDIRECT);
        assert_eq!(node.event().unwrap().1, Reason::HostRefused);
        assert_eq!(node.sends(&reply(&syn, SYN | ACK).frame()), PASS);
    });
}

/// "Port unreachable" about a segment that the sender of the error had got.
pub(crate) fn icmp_error(src: &str, dst: &str, about: &Tcp<'_>) -> Vec<u8> {
    let (kind, inner) = frames::ip_packet(about.src, about.dst, 6, &about.segment(), &Extra::default());
    let (proto, head) = if kind == 0x0800 { (1, [3, 3, 0, 0, 0, 0, 0, 0]) } else { (58, [1, 4, 0, 0, 0, 0, 0, 0]) };
    ip_frame(src, dst, proto, &[&head, inner.as_slice()].concat(), &Extra::default())
}

#[test]
fn the_end_of_a_flow() {
    alone("the_end_of_a_flow", |dir| {
        let mut node = node(dir, Stage::Permissive);
        let syn = Tcp::syn(POD_4, OUTSIDE_4);
        let send = |node: &Node, flags, seq, ack, payload: usize| {
            let t = Tcp { flags, seq, ack, payload: vec![0; payload], ..syn.clone() };
            assert_eq!(node.sends(&t.frame()), PASS);
        };
        let get = |node: &Node, flags, seq, ack, payload: usize| {
            let t = Tcp { seq, ack, payload: vec![0; payload], ..reply(&syn, flags) };
            assert_eq!(node.gets(&t.frame()), PASS);
        };
        send(&node, SYN, 1000, 0, 0);
        get(&node, SYN | ACK, 8000, 1001, 0);
        send(&node, ACK, 1001, 8001, 10);
        get(&node, FIN | ACK, 8001, 1011, 5);
        send(&node, ACK, 1011, 8007, 0);
        assert_eq!(node.flow(&syn).unwrap().flags & flags::OVER, 0, "half closed");
        assert!(node.flow(&syn).unwrap().dir[1].flags & dir_flags::FIN_ACKED != 0);
        send(&node, FIN | ACK, 1011, 8007, 3);
        assert_eq!(node.event().unwrap().0, EventKind::New);
        assert!(node.event().is_none());
        get(&node, ACK, 8007, 1015, 0);
        let flow = node.flow(&syn).unwrap();
        assert!(flow.flags & flags::OVER_FIN != 0 && flow.over_ns != 0);
        assert_eq!((flow.dir[0].bytes, flow.dir[1].bytes), (13, 5));
        assert_eq!((flow.dir[0].packets, flow.dir[1].packets), (4, 3));
        assert_eq!(node.event().unwrap().0, EventKind::Over);
        // A late FIN still passes; a new SYN, even with the old number, begins anew.
        send(&node, FIN | ACK, 1011, 8007, 3);
        send(&node, SYN, 1000, 0, 0);
        assert_ne!(node.flow(&syn).unwrap().id, flow.id);
        assert_eq!(node.event().unwrap().0, EventKind::Replaced);

        // A blind RST ends nothing, the right one does.
        get(&node, SYN | ACK, 8000, 1001, 0);
        send(&node, ACK, 1001, 8001, 0);
        get(&node, RST, 8001 + (1 << 30), 0, 0);
        get(&node, FIN | ACK, 8001 + (1 << 30), 1001, 0);
        assert_eq!(node.flow(&syn).unwrap().dir[1].flags & dir_flags::FIN, 0);
        assert_eq!(node.flow(&syn).unwrap().flags & flags::OVER, 0);
        get(&node, RST, 8001, 0, 0);
        assert!(node.flow(&syn).unwrap().flags & flags::OVER_RST != 0);
    });
}

/// In the clear an RST may be a forgery: an end that talks on some time after it did not take it.
#[test]
fn who_talks_on_was_not_reset() {
    alone("who_talks_on_was_not_reset", |dir| {
        let node = node(dir, Stage::Permissive);
        let syn = Tcp::syn(POD_4, OUTSIDE_4);
        let talking = Direction { packets: 9, seq: 1001, ack: 8001, flags: dir_flags::SYN, ..Direction::default() };
        let reset = Direction { seq: 8001, ack: 1001, flags: dir_flags::SYN | dir_flags::RST, ..talking };
        let flags = fake(&syn).flags | flags::OVER_RST;
        let flow = Flow { src_ifindex: HERE, flags, over_ns: 1, dir: [talking, reset], ..fake(&syn) };
        node.datapath.commands().create(&key(&syn), &flow).unwrap();
        let data = Tcp { flags: ACK, seq: 1001, ack: 8001, payload: vec![1; 10], ..syn.clone() };
        assert_eq!(node.sends(&data.frame()), PASS);
        let flow = node.flow(&syn).unwrap();
        assert_eq!((flow.flags & flags::OVER, flow.over_ns, flow.dir[1].flags), (0, 0, dir_flags::SYN));
    });
}

#[test]
fn payload_is_what_the_frame_holds() {
    alone("payload_is_what_the_frame_holds", |dir| {
        let node = node(dir, Stage::Permissive);
        for (src, dst, length_at) in [(POD_4, OUTSIDE_4, 16), (POD_6, OUTSIDE_6, 18)] {
            let syn = Tcp::syn(src, dst);
            assert_eq!(node.sends(&syn.frame()), PASS);
            let data = syn.clone().with(|t| (t.flags, t.payload) = (ACK, vec![1; 100]));
            assert_eq!(node.sends(&data.frame_with(&Extra { padding: 6, ..Extra::default() })), PASS);
            assert_eq!(node.flow(&syn).unwrap().dir[0].bytes, 100, "without what Ethernet padded");
            // BIG TCP: what does not fit into the field is not in it.
            let mut big = data.frame();
            big[length_at..length_at + 2].fill(0);
            assert_eq!(node.sends(&big), PASS);
            assert_eq!(node.flow(&syn).unwrap().dir[0].bytes, 200);
        }
    });
}

/// What comes while the kernel makes a connection out of its handshake meets the listener, which resets it. The client sends
/// again; any other reset reaches it.
#[test]
fn who_leaves_its_handshake_is_not_reset() {
    alone("who_leaves_its_handshake_is_not_reset", |dir| {
        let node = node(dir, Stage::Strict);
        node.maps.set_config(&config(HERE)).unwrap();
        let mut port = 100;
        // Flags of the reset, its number, what the client's end and the agent's end have sent; whether it is held back.
        let mut holds = |flags, seq, client: Direction, agent: Direction, with: &dyn Fn(&mut Flow), held: bool| {
            for (src, dst) in [(LOCAL_4, REMOTE_4), (LOCAL_6, REMOTE_6)] {
                port += 1;
                let syn = Tcp::syn(src, dst).with(|t| t.sport = port);
                let mut flow = Flow {
                    state: FlowState::Captured as u8,
                    src_ifindex: OTHER_POD,
                    dst_ifindex: HERE,
                    dir: [client, agent],
                    ..fake(&syn)
                };
                with(&mut flow);
                node.datapath.commands().create(&key(&syn), &flow).unwrap();
                let before = node.stat(Stat::EarlyResets);
                let reset = reply(&syn, flags).with(|t| (t.seq, t.ack) = (seq, 0));
                let action = node.run(AGENT_INGRESS, &reset.frame());
                let case = format!("{flags:#x} {seq} {client:?} {agent:?}");
                assert_eq!(action, if held { DROP } else { REDIRECT }, "{case}");
                assert_eq!(node.stat(Stat::EarlyResets) - before, u64::from(held), "{case}");
                let over = node.flow(&syn).unwrap().flags & flags::OVER != 0;
                assert!(!(held && over), "{case}");
            }
        };
        let client =
            Direction { packets: 2, bytes: 9, seq: 1010, ack: 8001, flags: dir_flags::SYN, ..Direction::default() };
        let agent = Direction { packets: 1, bytes: 0, seq: 8001, ack: 1001, ..client };
        let as_it_is = |_: &mut Flow| ();
        holds(RST, 8001, client, agent, &as_it_is, true);
        // An end alone is sent again, too.
        let ended = Direction { bytes: 0, flags: dir_flags::SYN | dir_flags::FIN, ..client };
        holds(RST, 8001, ended, agent, &as_it_is, true);
        // A bare ACK would not come again.
        holds(RST, 8001, Direction { bytes: 0, ..client }, agent, &as_it_is, false);
        // The agent's own.
        holds(RST | ACK, 8001, client, agent, &as_it_is, false);
        // Of an end that has spoken, or ended, or whose number it is not.
        holds(RST, 8002, client, Direction { bytes: 1, seq: 8002, ..agent }, &as_it_is, false);
        holds(RST, 8001, client, Direction { flags: dir_flags::SYN | dir_flags::FIN, ..agent }, &as_it_is, false);
        holds(RST, 8002, client, agent, &as_it_is, false);
        // Of a connection that ended, or that an agent before this one took.
        holds(RST, 8001, client, agent, &|flow| flow.flags |= flags::OVER_RST, false);
        holds(RST, 8001, client, agent, &|flow| flow.generation += 1, false);
        // Without an agent nobody would take what is sent again.
        node.maps.clear_listeners().unwrap();
        holds(RST, 8001, client, agent, &as_it_is, false);
    });
}

#[test]
fn what_the_agent_sends() {
    alone("what_the_agent_sends", |dir| {
        let node = node(dir, Stage::Strict);
        // In a test run the hook's interface is `lo`: let that be kumiko0, and the pod elsewhere.
        node.maps.set_config(&config(HERE)).unwrap();
        let delivered = Tcp::syn(REMOTE_4, LOCAL_4);
        let agent = |frame: &[u8]| node.run(AGENT_INGRESS, frame);
        assert_eq!(agent(&delivered.frame()), DROP, "no entry");
        let entry = Flow {
            state: FlowState::Captured as u8,
            src_ifindex: HERE,
            dst_ifindex: OTHER_POD,
            flags: fake(&delivered).flags | flags::DELIVERED,
            isn: 0,
            ..fake(&delivered)
        };
        node.datapath.commands().create(&key(&delivered), &entry).unwrap();
        assert_eq!(agent(&delivered.frame()), REDIRECT);
        assert_eq!(agent(&reply(&delivered, ACK).frame()), DROP, "the pod's side does not come from here");
        let flow = node.flow(&delivered).unwrap();
        assert_eq!((flow.dir[0].packets, flow.isn), (1, 1000));
        // RSTs of refused flows: to the pod, or out in the pod's name; others end here.
        let refused = Tcp::syn(LOCAL_4, OUTSIDE_4).with(|t| t.sport = 9);
        assert_eq!(agent(&reply(&refused, RST | ACK).frame()), REDIRECT);
        let stranger = Tcp::syn(OUTSIDE_4, LOCAL_4).with(|t| t.sport = 9);
        assert_eq!(agent(&reply(&stranger, RST | ACK).frame()), REDIRECT);
        assert_eq!(agent(&reply(&stranger, ACK).frame()), DROP);
        assert_eq!(agent(&reply(&Tcp::syn(OUTSIDE_4, REMOTE_4), RST).frame()), DROP);
        // Cut: only the RST passes, and ends it.
        node.set_state(&delivered, FlowState::Cut);
        assert_eq!(agent(&delivered.clone().with(|t| t.flags = ACK).frame()), DROP);
        assert_eq!(agent(&delivered.clone().with(|t| t.flags = RST).frame()), REDIRECT);
        let ended = node.flow(&delivered).unwrap();
        assert!(ended.flags & flags::OVER_RST != 0 && ended.over_ns >= ended.first_ns, "{ended:?}");
        assert_eq!(agent(&icmp_error(OUTSIDE_4, LOCAL_4, &reply(&delivered, ACK))), REDIRECT);
        assert_eq!(agent(&icmp_error(OUTSIDE_4, LOCAL_4, &reply(&refused, ACK))), DROP);
        // Nor does it say anything about a flow that it does not carry, or to a pod that it is not about.
        let third = Placed { handle: 6, stage: Stage::Strict, ips: &["10.1.0.6"], ifindex: Some(79), local: true };
        place(&node.maps, &third);
        assert_eq!(agent(&icmp_error(OUTSIDE_4, "10.1.0.6", &reply(&delivered, ACK))), DROP);
        let clear = Flow { src_ifindex: OTHER_POD, ..fake(&refused) };
        node.datapath.commands().create(&key(&refused), &clear).unwrap();
        for state in [FlowState::Direct, FlowState::Fast] {
            node.set_state(&refused, state);
            assert_eq!(agent(&icmp_error(OUTSIDE_4, LOCAL_4, &reply(&refused, ACK))), DROP, "{state:?}");
        }
    });
}

#[test]
fn pairs_are_counted() {
    alone("pairs_are_counted", |dir| {
        let node = node(dir, Stage::Strict);
        for port in 0..3 {
            node.sends(&Tcp::syn(POD_4, REMOTE_4).with(|t| t.sport += port).frame());
        }
        let dns = ip_frame(POD_4, OUTSIDE_4, 17, &[0xc0, 0, 0, 53, 0, 12, 0, 0, 1, 2, 3, 4], &Extra::default());
        let answer = ip_frame(OUTSIDE_4, POD_4, 17, &[0, 53, 0xc0, 0, 0, 12, 0, 0, 1, 2, 3, 4], &Extra::default());
        let other = ip_frame(OUTSIDE_4, POD_4, 17, &[0xc0, 1, 0, 54, 0, 12, 0, 0, 1, 2, 3, 4], &Extra::default());
        node.sends(&dns);
        node.gets(&answer);
        node.gets(&other);
        let pairs = node.maps.pairs().unwrap();
        let find = |src, dst, port, proto| {
            let found =
                pairs.iter().find(|(k, _)| (k.src_class, k.dst_class, k.port, k.proto) == (src, dst, port, proto));
            found.map(|(_, count)| (count.events, count.bytes))
        };
        assert_eq!(find(1, 2, 80, 6), Some((3, 0)));
        assert_eq!(find(1, 0, 53, 17), Some((1, 4)));
        assert_eq!(find(0, 1, 54, 17), Some((1, 4)));
        assert_eq!(find(0, 1, 0xc000, 17), None, "an answer is no exchange of its own");
    });
}
