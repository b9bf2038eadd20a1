use kumiko_abi::{Direction, FlowKey};

use super::*;
use crate::addr::flow_key;

struct Fixed;

impl Directory for Fixed {
    fn by_handle(&self, handle: u32) -> Option<Arc<PartyName>> {
        match handle {
            1 => Some(Arc::new(workload("client", "n1"))),
            2 => Some(Arc::new(workload("server", "n2"))),
            3 => Some(Arc::new(workload("cache", "n1"))),
            _ => None,
        }
    }

    fn by_ip(&self, ip: IpAddr) -> Option<Arc<PartyName>> {
        match ip.to_string().as_str() {
            "10.0.1.1" => self.by_handle(1),
            "10.0.2.2" => self.by_handle(2),
            "10.0.1.3" => self.by_handle(3),
            _ => None,
        }
    }

    fn service(&self, asked: SocketAddr, _: u8) -> Option<Arc<ServiceName>> {
        (asked.port() == 80 && asked.ip().to_string() == "10.96.0.1").then(|| {
            Arc::new(ServiceName {
                namespace: "demo".into(),
                name: "web".into(),
                ip: "10.96.0.1".parse().unwrap(),
                port: 80,
            })
        })
    }
}

fn workload(name: &str, node: &str) -> PartyName {
    PartyName {
        kind: PartyKind::Workload,
        namespace: "demo".into(),
        name: name.into(),
        service_account: name.into(),
        principal: format!("spiffe://cluster.local/ns/demo/sa/{name}"),
        node: node.into(),
        stage: if name == "client" { Stage::Permissive } else { Stage::Strict },
    }
}

fn entry(from: &str, to: &str, state: FlowState) -> Entry {
    let (key, initiator): (FlowKey, u32) = flow_key(from.parse().unwrap(), to.parse().unwrap(), TCP);
    let flow = Flow {
        id: FlowId([0xab; 16]),
        first_ns: 1_000,
        last_syn_ns: 1_000,
        last_ns: 5_000,
        over_ns: 0,
        src: 0,
        dst: 0,
        service: 0,
        src_ifindex: 0,
        dst_ifindex: 0,
        generation: 1,
        epoch: 3,
        isn: 0,
        flags: initiator,
        shard: 0,
        reason: Reason::Allowed as u16,
        state: state as u8,
        verdict: Verdict::Allow as u8,
        _pad: [0; 2],
        not_after: 0,
        dir: [
            Direction { packets: 3, bytes: 30, ..Direction::default() },
            Direction { packets: 4, bytes: 400, ..Direction::default() },
        ],
    };
    Entry { key, flow }
}

fn record(entry: &Entry, facts: &AgentFacts) -> FlowRecord {
    let mut names = Names::default();
    names.complete(&Fixed, entry, facts);
    FlowRecord::build("n1", Clock { unix_minus_monotonic: 1_000_000 }, entry, &names, facts)
}

#[test]
fn an_open_flow_to_another_node() {
    let mut entry = entry("10.0.1.1:40000", "10.0.2.2:80", FlowState::Captured);
    (entry.flow.src, entry.flow.dst, entry.flow.src_ifindex) = (1, 2, 9);
    let facts =
        AgentFacts { opened: true, tunnel: Some(4), peer_node: "n2".into(), remote: true, ..Default::default() };
    let record = record(&entry, &facts);
    assert_eq!(record.id, "ab".repeat(16));
    assert_eq!((record.source.name.as_str(), record.source.port), ("client", 40000));
    assert_eq!((record.destination.name.as_str(), record.destination.port), ("server", 80));
    assert_eq!(
        (record.path, record.direction, record.state),
        (FlowPath::Tunnel, FlowDirection::Outbound, FlowPhase::Open)
    );
    assert!(record.encrypted && !record.legacy && !record.plaintext);
    assert_eq!((record.start_unix_ns, record.end_unix_ns), (1_001_000, 1_005_000));
    assert_eq!((record.bytes_sent, record.bytes_received), (30, 400));
    assert_eq!((record.stage, record.close), (Stage::Permissive, None));
    assert_eq!((record.epoch, &*record.proof), (3, "tls"));
}

#[test]
fn what_was_proved_and_by_which_epoch() {
    let seen = |entry: &Entry, facts: &AgentFacts| record(entry, facts).proof.into_owned();
    let (far, near) = (("10.0.1.1:40000", "10.0.2.2:80"), ("10.0.1.1:40000", "10.0.1.3:80"));
    let of = |(from, to), state, ifindexes: [u32; 2], flags: u32| {
        let mut entry = entry(from, to, state);
        [entry.flow.src_ifindex, entry.flow.dst_ifindex] = ifindexes;
        entry.flow.flags |= flags;
        if state == FlowState::Cut {
            (entry.flow.verdict, entry.flow.reason) = (Verdict::Deny as u8, Reason::TeamDefault as u16);
        }
        entry
    };
    let none = AgentFacts::default();
    assert_eq!(seen(&of(near, FlowState::Fast, [9, 8], 0), &none), "veth");
    assert_eq!(seen(&of(near, FlowState::Direct, [9, 8], flags::VETH_PROVED), &none), "veth");
    assert_eq!(seen(&of(far, FlowState::Direct, [9, 0], 0), &none), "claim");
    assert_eq!(seen(&of(far, FlowState::Direct, [0, 8], flags::PROBE), &none), "veth");
    // The other end had not proved anything yet; the agent's own interface proves nobody.
    for to in [0, 5] {
        assert_eq!(seen(&of(far, FlowState::Cut, [9, to], 0), &none), "");
    }
    assert_eq!(seen(&of(near, FlowState::Cut, [9, 8], 0), &none), "veth");
    assert_eq!(seen(&of((far.1, near.1), FlowState::Cut, [0, 8], 0), &none), "claim");
    let mut accepted = AgentFacts { delivering: true, remote: true, ..AgentFacts::default() };
    assert_eq!(seen(&of((far.1, near.1), FlowState::Cut, [0, 0], 0), &accepted), "tls");
    // What the agent asked counts, be it later than the SYN.
    accepted.judged(0);
    assert_eq!(record(&of(near, FlowState::Fast, [9, 8], 0), &accepted).epoch, 3);
    accepted.judged(7);
    assert_eq!(record(&of(near, FlowState::Fast, [9, 8], 0), &accepted).epoch, 7);
}

#[test]
fn the_same_flow_where_it_is_delivered() {
    let mut entry = entry("10.0.1.1:40000", "10.0.2.2:80", FlowState::Captured);
    (entry.flow.src, entry.flow.dst, entry.flow.src_ifindex, entry.flow.dst_ifindex) = (1, 2, 5, 9);
    entry.flow.flags |= flags::DELIVERED;
    let facts = AgentFacts { opened: true, delivering: true, remote: true, ..Default::default() };
    let mut names = Names::default();
    names.complete(&Fixed, &entry, &facts);
    let record = FlowRecord::build("n2", Clock::default(), &entry, &names, &facts);
    assert_eq!((record.direction, record.path), (FlowDirection::Inbound, FlowPath::Tunnel));
    assert_eq!(record.stage, Stage::Strict);
    assert!(record.encrypted);
}

#[test]
fn no_flow_ends_before_it_began() {
    let mut entry = entry("10.0.1.1:40000", "10.0.2.2:80", FlowState::Captured);
    entry.flow.over_ns = 400;
    let record = record(&entry, &AgentFacts::default());
    assert_eq!((record.start_unix_ns, record.end_unix_ns), (1_001_000, 1_001_000));
}

#[test]
fn a_refused_process_of_the_node_is_named_as_one() {
    // A host's own address on a pod's veth is no node's InternalIP, and a refusal carries no flags.
    let mut entry = entry("10.0.1.254:40000", "10.0.1.3:80", FlowState::Cut);
    (entry.flow.dst, entry.flow.dst_ifindex) = (3, 9);
    (entry.flow.reason, entry.flow.verdict) = (Reason::HostRefused as u16, Verdict::Deny as u8);
    let record = record(&entry, &AgentFacts::default());
    assert_eq!((record.source.kind, record.source.name.as_str()), (PartyKind::Node, "n1"));
    assert!(record.host && record.verdict == Verdict::Deny);
}

#[test]
fn a_service_is_named_before_and_after_an_endpoint_is_chosen() {
    let mut entry = entry("10.0.1.1:40000", "10.96.0.1:80", FlowState::Pending);
    (entry.flow.src, entry.flow.service, entry.flow.src_ifindex) = (1, 7, 9);
    let before = record(&entry, &AgentFacts::default());
    assert_eq!((before.destination.kind, before.destination.name.as_str()), (PartyKind::Service, "web"));
    assert_eq!((before.state, before.encrypted), (FlowPhase::Pending, false));

    entry.flow.state = FlowState::Captured as u8;
    let facts = AgentFacts { target: Some("10.0.2.2:8080".parse().unwrap()), remote: true, ..Default::default() };
    let after = record(&entry, &facts);
    assert_eq!((after.destination.name.as_str(), after.destination.port), ("server", 8080));
    assert_eq!(after.service.unwrap().name, "web");
}

#[test]
fn a_service_with_its_endpoint_on_the_same_node_stays_there() {
    let mut entry = entry("10.0.1.1:40000", "10.96.0.1:80", FlowState::Captured);
    (entry.flow.src, entry.flow.service, entry.flow.src_ifindex) = (1, 7, 9);
    let facts = AgentFacts { target: Some("10.0.1.3:80".parse().unwrap()), opened: true, ..Default::default() };
    let record = record(&entry, &facts);
    assert_eq!((record.path, record.direction, record.encrypted), (FlowPath::Agent, FlowDirection::Local, false));
    assert_eq!(record.stage, Stage::Strict);
}

#[test]
fn refused_by_the_kernel() {
    let mut entry = entry("192.0.2.7:5555", "10.0.1.3:6379", FlowState::Cut);
    (entry.flow.dst, entry.flow.dst_ifindex) = (3, 8);
    entry.flow.verdict = Verdict::Deny as u8;
    entry.flow.reason = Reason::PlaintextRefused as u16;
    let record = record(&entry, &AgentFacts::default());
    assert_eq!((record.source.kind, record.direction), (PartyKind::Outside, FlowDirection::Inbound));
    assert_eq!((record.path, record.state, record.verdict), (FlowPath::Refused, FlowPhase::Closed, Verdict::Deny));
    assert_eq!((record.close, record.closed_by), (Some(FlowClose::Refused), Some(FlowSide::Mesh)));
    assert_eq!(record.reason, "plaintext_refused");
    assert!(!record.hint.is_empty());
}

#[test]
fn what_is_only_told_is_not_refused() {
    let mut entry = entry("10.0.1.1:40000", "10.0.2.2:80", FlowState::Direct);
    (entry.flow.verdict, entry.flow.reason) = (Verdict::Audit as u8, Reason::PeerUnproved as u16);
    entry.flow.dir = [Direction { packets: 2, ..Direction::default() }; 2];
    let told = record(&entry, &AgentFacts::default());
    assert_eq!((told.verdict, told.state, told.reason.as_ref()), (Verdict::Audit, FlowPhase::Open, "peer_unproved"));
    assert!(told.would_be_refused());
    // What the agent refuses is refused.
    let facts = AgentFacts { reason: Some(Reason::StaleIdentity as u16), ..AgentFacts::default() };
    assert_eq!(record(&entry, &facts).verdict, Verdict::Deny);
}

#[test]
fn refused_by_the_far_server_is_allowed_and_says_so() {
    let mut entry = entry("10.0.1.1:40000", "10.0.2.2:81", FlowState::Cut);
    (entry.flow.src, entry.flow.dst, entry.flow.src_ifindex) = (1, 2, 9);
    let facts =
        AgentFacts { reason: Some(Reason::ConnectRefused as u16), errno: 111, remote: true, ..Default::default() };
    let record = record(&entry, &facts);
    assert_eq!(
        (record.verdict, record.path, record.close),
        (Verdict::Allow, FlowPath::Tunnel, Some(FlowClose::Refused))
    );
    assert_eq!((record.reason.as_ref(), record.errno, record.encrypted), ("connect_refused", 111, false));
}

#[test]
fn who_reset_it() {
    let mut entry = entry("10.0.1.1:40000", "10.0.1.3:6379", FlowState::Fast);
    entry.flow.over_ns = 6_000;
    entry.flow.flags |= flags::OVER_RST;
    entry.flow.dir[0].flags = dir_flags::SYN | dir_flags::RST;
    entry.flow.dir[1].flags = dir_flags::SYN;
    let by_client = record(&entry, &AgentFacts::default());
    assert_eq!((by_client.close, by_client.closed_by), (Some(FlowClose::Rst), Some(FlowSide::Source)));
    assert_eq!(by_client.end_unix_ns, 1_006_000);

    entry.flow.dir[0].flags = dir_flags::SYN;
    entry.flow.dir[1] = Direction { flags: dir_flags::RST, ..Direction::default() };
    let refused = record(&entry, &AgentFacts::default());
    assert_eq!((refused.close, refused.closed_by), (Some(FlowClose::Refused), Some(FlowSide::Destination)));
    assert_eq!((refused.path, refused.verdict), (FlowPath::Fast, Verdict::Allow));
    // A pod with a limit on its veth takes no fast path.
    entry.flow.state = FlowState::Direct as u8;
    entry.flow.flags |= flags::JUDGED_BOTH | flags::VETH_PROVED;
    assert_eq!(record(&entry, &AgentFacts::default()).path, FlowPath::Local);
}

#[test]
fn the_end_of_a_stream_does_not_hide_why_it_was_allowed() {
    let mut entry = entry("10.0.1.1:40000", "198.51.100.1:443", FlowState::Direct);
    entry.flow.reason = Reason::PeerOutsideMesh as u16;
    entry.flow.flags |= flags::OVER_FIN | flags::PLAINTEXT;
    entry.flow.over_ns = 9_000;
    let facts = AgentFacts { reason: Some(Reason::Finished as u16), ..Default::default() };
    let record = record(&entry, &facts);
    assert_eq!((record.reason.as_ref(), record.close), ("peer_outside_mesh", Some(FlowClose::Fin)));
    assert!(record.plaintext && !record.encrypted);
}

#[test]
fn a_probe_comes_from_the_node() {
    let mut entry = entry("10.244.1.1:33000", "10.0.1.3:8080", FlowState::Direct);
    entry.flow.flags |= flags::PROBE;
    entry.flow.dst = 3;
    let record = record(&entry, &AgentFacts::default());
    assert_eq!(
        (record.source.kind, record.source.name.as_str(), record.direction),
        (PartyKind::Node, "n1", FlowDirection::Local)
    );
}

#[test]
fn json_reads_back_and_lines_are_told_apart() {
    let entry = entry("10.0.1.1:40000", "10.0.2.2:80", FlowState::Direct);
    let record = record(&entry, &AgentFacts::default());
    let text = serde_json::to_string(&record).unwrap();
    assert!(text.contains("\"stage\":\"permissive\"") && text.contains("\"verdict\":\"allow\""), "{text}");
    let line: super::super::FlowLine = serde_json::from_str(&text).unwrap();
    assert_eq!(line, super::super::FlowLine::Flow(Box::new(record)));
    let lost: super::super::FlowLine = serde_json::from_str("{\"lost\":12}").unwrap();
    assert_eq!(lost, super::super::FlowLine::Lost { lost: 12 });
}

#[test]
fn ids_are_hex() {
    let id = FlowId([0, 1, 2, 3, 4, 5, 0xff, 0x10, 8, 9, 10, 11, 12, 13, 14, 15]);
    assert_eq!(id_from_hex(&hex_id(id)), Some(id));
    for bad in ["", "00", &"g".repeat(32), &format!("+{}", "0".repeat(31))] {
        assert_eq!(id_from_hex(bad), None);
    }
}

#[test]
fn filters_choose() {
    use super::super::FlowFilter;
    let mut entry = entry("10.0.1.1:40000", "10.96.0.1:80", FlowState::Captured);
    entry.flow.service = 7;
    let facts = AgentFacts { target: Some("10.0.2.2:80".parse().unwrap()), remote: true, ..Default::default() };
    let record = record(&entry, &facts);
    let matches = |parts: &[(&str, &str)]| {
        let mut filter = FlowFilter::default();
        for (part, value) in parts {
            assert!(filter.set(part, value).unwrap());
        }
        filter.matches(&record)
    };
    assert!(matches(&[]));
    assert!(matches(&[("from", "demo/client"), ("to", "demo/server"), ("verdict", "allow")]));
    assert!(matches(&[("to", "demo/web")]));
    assert!(matches(&[("to", "10.96.0.1"), ("from", "demo/")]));
    assert!(!matches(&[("verdict", "deny")]));
    assert!(!matches(&[("from", "demo/server")]));
    assert!(!FlowFilter::default().set("colour", "red").unwrap());
}
