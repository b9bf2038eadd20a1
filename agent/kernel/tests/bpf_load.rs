//! The programs load, within their budgets, and a second agent takes over what the first one pinned.

#[path = "bpf/fixture.rs"]
#[allow(dead_code, reason = "each test file uses a part of it")]
mod fixture;

use std::{fs, os::fd::AsFd, path::Path};

use fixture::{addr, alone, config, endpoint, ip, load, load_result, pins};
use kumiko_abi::{CommandResult, Flow, FlowKey, FlowState, Reason, Stage, Verdict, flow::TCP, flow::flags, programs};
use kumiko_kernel::bpf::{BpfError, Commands, Datapath};
use nix::net::if_::if_nametoindex;

/// Most instructions that the verifier may walk. Measured on 6.18: 41,540, 13,804, 4,198, 522, 1,617; the rest is room
/// for other kernels' verifiers and small changes.
const BUDGETS: [(&str, u32); 5] = [
    (programs::POD_INGRESS, 60_000),
    (programs::POD_EGRESS, 25_000),
    (programs::AGENT_INGRESS, 8_000),
    (programs::AGENT_LOOKUP, 1_500),
    (programs::FLOW_COMMAND, 4_000),
];

#[test]
fn programs_keep_their_budgets() {
    alone("programs_keep_their_budgets", |dir| {
        let datapath = load(dir);
        let verified = datapath.verified_instructions();
        println!("{verified:?}");
        for (name, budget) in BUDGETS {
            let (_, count) = verified.iter().find(|(program, _)| *program == name).unwrap();
            assert!((1..=budget).contains(count), "{name} took {count} instructions of {budget}");
        }
    });
}

#[test]
fn log_statements_load_too() {
    alone("log_statements_load_too", |dir| {
        let options =
            kumiko_kernel::bpf::LoadOptions { object: kumiko_kernel::bpf::ObjectSource::Embedded, pin_dir: pins(dir) };
        let datapath = Datapath::load_with_log(&options, 5).unwrap();
        let _log = datapath.logger().unwrap();
    });
}

fn veth(name: &str) -> u32 {
    ip(&format!("link add {name} type veth peer name {name}p"));
    ip(&format!("link set {name} up"));
    if_nametoindex(name).unwrap()
}

fn links(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(pins(dir).join("links"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

fn attach_all(datapath: &Datapath, pod: u32, agent: u32) {
    datapath.attach_pod(pod).unwrap();
    datapath.attach_agent_veth(agent).unwrap();
    datapath.attach_lookup(fs::File::open("/proc/thread-self/ns/net").unwrap().as_fd()).unwrap();
}

#[test]
fn a_second_agent_takes_over() {
    alone("a_second_agent_takes_over", |dir| {
        let (pod, agent) = (veth("pod0"), veth("agent0"));
        let first = load(dir);
        attach_all(&first, pod, agent);
        first.maps().set_config(&config(agent)).unwrap();
        first.maps().init_use(pod).unwrap();
        first.maps().set_endpoint(pod, &endpoint(7, Stage::Strict)).unwrap();
        let key = some_key();
        assert_eq!(first.commands().create(&key, &some_flow(pod)).unwrap(), CommandResult::Done);
        let before = links(dir);
        drop(first);

        let second = load(dir);
        assert_eq!(second.attached().unwrap(), [pod]);
        assert_eq!(second.maps().config().unwrap(), config(agent));
        assert_eq!(second.maps().endpoints().unwrap(), [(pod, endpoint(7, Stage::Strict))]);
        assert_eq!(second.flows().get(&key).unwrap().src_ifindex, pod);
        assert_eq!(second.maps().endpoint_use(pod).unwrap().unwrap().flows, 1);
        // Attaching again changes nothing but the program.
        attach_all(&second, pod, agent);
        assert_eq!(links(dir), before);
        second.maps().init_use(pod).unwrap();
        assert_eq!(second.maps().endpoint_use(pod).unwrap().unwrap().flows, 1, "use survives");

        // The interface goes: its pins go with the next agent.
        ip("link del pod0");
        assert_eq!(second.attached().unwrap(), Vec::<u32>::new());
        drop(second);
        let third = load(dir);
        assert_eq!(links(dir), [format!("agent-{agent}-in"), "lookup".to_owned()]);
        third.detach_pod(pod).unwrap();
        drop(third);

        Datapath::remove_everything(&pins(dir)).unwrap();
        assert!(!dir.join("bpf/kumiko").exists());
        Datapath::remove_everything(&pins(dir)).unwrap();
    });
}

#[test]
fn filters_where_links_are_missing() {
    alone("filters_where_links_are_missing", |dir| {
        let (pod, agent) = (veth("pod0"), veth("agent0"));
        let first = load(dir);
        first.force_clsact();
        attach_all(&first, pod, agent);
        assert_eq!(first.attached().unwrap(), [pod]);
        drop(first);
        let shown = || {
            let output = std::process::Command::new("tc").args(["filter", "show", "dev", "pod0", "ingress"]).output();
            String::from_utf8(output.unwrap().stdout).unwrap()
        };
        assert_eq!(shown().matches("name pod_ingress").count(), 1, "{}", shown());
        let second = load(dir);
        second.force_clsact();
        attach_all(&second, pod, agent);
        assert_eq!(shown().matches("name pod_ingress").count(), 1, "replaced, not added: {}", shown());
        second.detach_pod(pod).unwrap();
        assert_eq!(shown().matches("name pod_ingress").count(), 0);
        assert_eq!(second.attached().unwrap(), Vec::<u32>::new());
        Datapath::remove_everything(&pins(dir)).unwrap();
    });
}

#[test]
fn a_map_of_another_layout_is_refused() {
    alone("a_map_of_another_layout_is_refused", |dir| {
        let datapath = load(dir);
        drop(datapath);
        // Two maps change places: as good as a layout of another version.
        let pins = pins(dir);
        fs::rename(pins.join("FLOWS"), pins.join("x")).unwrap();
        fs::rename(pins.join("ADDRS"), pins.join("FLOWS")).unwrap();
        let error = load_result(dir).err().unwrap();
        assert!(matches!(error, BpfError::Layout { .. }), "{error}");
        assert!(error.to_string().contains("cleanup"));
    });
}

fn some_key() -> FlowKey {
    FlowKey::of_packet(&addr("10.0.0.1"), 4000, &addr("10.0.0.2"), 80, TCP).0
}

fn some_flow(ifindex: u32) -> Flow {
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
        _pad: [0; 6],
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
