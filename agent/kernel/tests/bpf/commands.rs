//! The command program, and reading what it wrote.

use kumiko_abi::{CommandResult, Flow, FlowKey, FlowState, Reason, Stage, Verdict, flow::TCP, flow::flags};
use kumiko_kernel::bpf::Commands;

use crate::fixture::{addr, alone, config, endpoint, load};

pub(crate) fn some_key() -> FlowKey {
    FlowKey::of_packet(&addr("10.0.0.1"), 4000, &addr("10.0.0.2"), 80, TCP).0
}

pub(crate) fn some_flow(ifindex: u32) -> Flow {
    Flow {
        id: kumiko_abi::FlowId([0; 16]),
        first_ns: 0,
        last_syn_ns: 0,
        last_ns: 0,
        over_ns: 0,
        src: 1,
        dst: 2,
        service: 0,
        src_ifindex: ifindex,
        dst_ifindex: 0,
        generation: 1,
        epoch: 0,
        isn: 9,
        flags: flags::INITIATOR_IS_LO,
        shard: 0,
        reason: Reason::Allowed as u16,
        state: FlowState::Direct as u8,
        verdict: Verdict::Allow as u8,
        _pad: [0; 2],
        not_after: 0,
        dir: Default::default(),
    }
}

#[test]
fn commands() {
    alone("commands", |dir| {
        let datapath = load(dir);
        let (maps, commands, flows) = (datapath.maps(), datapath.commands(), datapath.flows());
        maps.set_config(&config(99)).unwrap();
        maps.init_use(5).unwrap();
        maps.set_endpoint(5, &fixture_endpoint(2)).unwrap();
        let key = some_key();
        let missing = kumiko_abi::FlowId([7; 16]);
        let cut = |c: &Commands, id| c.set_state(&key, id, FlowState::Cut, Reason::TunnelLost, Verdict::Deny, 0);

        assert_eq!(cut(&commands, &missing).unwrap(), CommandResult::Missing);
        assert_eq!(commands.reap(&key, &missing).unwrap(), CommandResult::Missing);
        assert_eq!(commands.mark(&key, flags::LEGACY).unwrap(), CommandResult::Missing);
        assert_eq!(commands.create(&key, &some_flow(5)).unwrap(), CommandResult::Done);
        assert_eq!(commands.create(&key, &some_flow(5)).unwrap(), CommandResult::Exists);

        let flow = flows.get(&key).unwrap();
        assert_ne!(flow.id.0, [0; 16]);
        assert_eq!(flow.id.0[..6], [1, 2, 3, 4, 5, 6], "begins with the node's hash");
        assert!(flow.first_ns > 0 && flow.last_ns > 0);

        assert_eq!(commands.mark(&key, flags::LEGACY | flags::CLAIMED).unwrap(), CommandResult::Done);
        assert_eq!(
            flows.get(&key).unwrap().flags,
            flags::INITIATOR_IS_LO | flags::LEGACY,
            "reserved flags are not set"
        );
        assert_eq!(cut(&commands, &missing).unwrap(), CommandResult::Differs);
        assert_eq!(cut(&commands, &flow.id).unwrap(), CommandResult::Done);
        let after = flows.get(&key).unwrap();
        assert_eq!((after.state, after.reason), (FlowState::Cut as u8, Reason::TunnelLost as u16));

        assert_eq!(commands.flag(&key, &flow.id, flags::OVER_GONE).unwrap(), CommandResult::Done);
        let over = flows.get(&key).unwrap();
        assert!(over.over_ns > 0);
        assert_eq!(over.state, FlowState::Cut as u8);
        let mut ring = datapath.event_ring().unwrap();
        let event = ring.next().unwrap();
        assert_eq!((event.kind, event.key), (kumiko_abi::EventKind::Over as u8, key));

        // What is over may be replaced; the old id then names nothing.
        assert_eq!(commands.create(&key, &some_flow(5)).unwrap(), CommandResult::Done);
        assert_eq!(ring.next().unwrap().kind, kumiko_abi::EventKind::Replaced as u8);
        assert_eq!(commands.reap(&key, &flow.id).unwrap(), CommandResult::Differs);
        let fresh = flows.get(&key).unwrap().id;
        assert_ne!(fresh, flow.id);

        // Quota of two.
        let other = |port| FlowKey::of_packet(&addr("10.0.0.1"), port, &addr("10.0.0.2"), 80, TCP).0;
        assert_eq!(commands.create(&other(1), &some_flow(5)).unwrap(), CommandResult::Done);
        assert_eq!(commands.create(&other(2), &some_flow(5)).unwrap(), CommandResult::Full);
        assert_eq!(maps.endpoint_use(5).unwrap().unwrap().flows, 2);
        assert_eq!(commands.reap(&key, &fresh).unwrap(), CommandResult::Done);
        assert_eq!(maps.endpoint_use(5).unwrap().unwrap().flows, 1);
        assert!(flows.get(&key).is_none());

        // An orphan of another generation gives way; a live captured entry does not.
        let mut captured = some_flow(6);
        captured.state = FlowState::Captured as u8;
        assert_eq!(commands.create(&other(3), &captured).unwrap(), CommandResult::Done);
        assert_eq!(commands.create(&other(3), &captured).unwrap(), CommandResult::Exists);
        maps.set_config(&kumiko_abi::Config { generation: 2, ..config(99) }).unwrap();
        captured.generation = 2;
        assert_eq!(commands.create(&other(3), &captured).unwrap(), CommandResult::Done);
        captured.state = 77;
        assert_eq!(commands.create(&other(4), &captured).unwrap(), CommandResult::Malformed);
    });
}

fn fixture_endpoint(max_flows: u32) -> kumiko_abi::Endpoint {
    kumiko_abi::Endpoint { max_flows, ..endpoint(1, Stage::Permissive) }
}

#[test]
fn every_flow_is_scanned_once() {
    alone("every_flow_is_scanned_once", |dir| {
        let datapath = load(dir);
        datapath.maps().set_config(&config(99)).unwrap();
        let commands = datapath.commands();
        let begun = std::time::Instant::now();
        for port in 1..=5000u16 {
            let key = FlowKey::of_packet(&addr("fd00::1"), port, &addr("fd00::2"), 80, TCP).0;
            assert_eq!(commands.create(&key, &some_flow(0)).unwrap(), CommandResult::Done);
        }
        println!("{} ns a command", begun.elapsed().as_nanos() / 5000);
        let mut seen = std::collections::HashSet::new();
        datapath
            .flows()
            .scan(&mut |key, flow| {
                assert_eq!(flow.isn, 9);
                assert!(seen.insert(*key));
            })
            .unwrap();
        assert_eq!(seen.len(), 5000);
    });
}
