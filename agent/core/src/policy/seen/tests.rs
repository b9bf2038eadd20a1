use std::net::SocketAddr;
use std::sync::Arc;

use kumiko_abi::flow::{TCP, flags};
use kumiko_abi::{FlowId, FlowState, Stage};

use super::*;
use crate::addr::flow_key;
use crate::flow_record::{AgentFacts, Clock, Entry, Names, PartyName};
use crate::manifest::{Scope, parse_in};

const WORLD: &str = include_str!("../tests/told/world.yaml");
const POLICY: &str = include_str!("../tests/told/policy.yaml");
const WEB: &str = "10.0.0.4:40000";
const API: &str = "10.0.0.1:8443";

fn world(epoch: u64, text: &str) -> Arc<World> {
    let objects = parse_in(Scope::Policy, "f", text).unwrap();
    Arc::new(World::build("td", epoch, objects.iter().map(|object| ("f", object))).unwrap().0)
}

/// Epoch 3: nobody is refused anything; 4: the policy of the other tests; 5: another pod has web's address.
fn history() -> History {
    let mut history = History::default();
    let policy = format!("{WORLD}\n---\n{POLICY}");
    history.record(3, world(1, WORLD));
    history.record(4, world(2, &policy));
    history.record(5, world(3, &policy.replace("name: web-1", "name: heir").replace("uid: u4", "uid: u44")));
    history
}

fn named(name: &str, ip: &str) -> Option<Arc<PartyName>> {
    let (namespace, name) = name.split_once('/')?;
    let node = if ip == API { "n1" } else { "n2" };
    Some(Arc::new(PartyName {
        kind: PartyKind::Workload,
        namespace: namespace.into(),
        name: name.into(),
        node: node.into(),
        stage: Stage::Strict,
        ..PartyName::default()
    }))
}

/// A flow to the API as its node sees it.
fn flow(from: (&str, &str), epoch: u32, end: Option<Reason>) -> FlowRecord {
    let (name, ip) = from;
    let (client, server): (SocketAddr, SocketAddr) = (ip.parse().unwrap(), API.parse().unwrap());
    let (key, initiator) = flow_key(client, server, TCP);
    let flow = kumiko_abi::Flow {
        id: FlowId([7; 16]),
        first_ns: 1_000,
        last_syn_ns: 1_000,
        last_ns: 2_000,
        over_ns: 0,
        src: 0,
        dst: 0,
        service: 0,
        src_ifindex: 2,
        dst_ifindex: 9,
        generation: 1,
        epoch,
        isn: 0,
        flags: initiator | flags::DELIVERED,
        shard: 0,
        reason: end.unwrap_or(Reason::Allowed) as u16,
        state: if end.is_some() { FlowState::Cut } else { FlowState::Captured } as u8,
        verdict: if end.is_some() { Verdict::Deny } else { Verdict::Allow } as u8,
        _pad: [0; 2],
        not_after: 0,
        dir: [kumiko_abi::Direction { packets: 2, ..Default::default() }; 2],
    };
    let names = Names { source: named(name, ip), destination: named("payments/api-5f2", API), service: None };
    let facts = AgentFacts { delivering: true, remote: true, opened: end.is_none(), ..AgentFacts::default() };
    // 2026-11-25.
    let clock = Clock { unix_minus_monotonic: 1_795_564_800_000_000_000 };
    FlowRecord::build("n1", clock, &Entry { key, flow }, &names, &facts)
}

fn said(record: &FlowRecord) -> Result<String, String> {
    explain_seen(record, &history()).map(|answer| {
        let lines: Vec<String> =
            answer.lines.iter().map(|line| format!("{}: {}", line.label.trim(), line.text)).collect();
        format!("{} ({})\n{}", answer.verdict, answer.because, lines.join("\n"))
    })
}

#[test]
fn a_flow_is_explained_by_what_judged_it() {
    let web = ("checkout/web-1", WEB);
    let open = said(&flow(web, 4, None)).unwrap();
    assert!(open.starts_with("allow ()\negress: checkout/web-1 is strict\n"), "{open}");
    assert!(open.contains("\nteam: yes: MeshPolicy/payments/api ingress.checkout (decides)\n"), "{open}");
    assert!(open.contains("peer: proved by TLS: spiffe://td/ns/checkout/sa/web; claimed: app=web\n"), "{open}");
    let end =
        "flow: 07070707070707070707070707070707 in a tunnel, open\npolicy: epoch 4 on n1, which is in force no more";
    assert!(open.ends_with(end), "{open}");
    // Before there was any policy.
    let before = said(&flow(web, 3, None)).unwrap();
    assert!(before.contains("\nteam: no MeshPolicy selects it\n"), "{before}");
    let orders = ("orders/web-3", "10.0.0.3:40000");
    let denied = said(&flow(orders, 4, Some(Reason::TeamDefault))).unwrap();
    let expected = "deny (team default)\n\
                    by: no ingress rule matches\n\
                    default: caused by MeshPolicy/payments/api (selects app=api)\n\
                    nearest: rule checkout: namespace is orders, wants checkout\n\
                    ceiling: MeshBaseline/bank ingress.allow.prod would allow it\n\
                    next: team payments adds a rule\n\
                    flow: 07070707070707070707070707070707 refused, closed, team_default\n\
                    policy: epoch 4 on n1, which is in force no more";
    assert_eq!(denied, expected);
    let heir = said(&flow(("checkout/heir", WEB), 5, None)).unwrap();
    assert!(heir.ends_with("policy: epoch 5 on n1"), "{heir}");
}

#[test]
fn what_rules_do_not_refuse_is_told_as_what_it_is() {
    let expired = said(&flow(("checkout/web-1", WEB), 4, Some(Reason::PeerCertificateExpired))).unwrap();
    assert!(
        expired.starts_with(
            "deny (peer_expired)\nby: the peer's certificate is expired or not yet valid\nnext: check clocks and the issuer\n\
             rules: would let it\n"
        ),
        "{expired}"
    );
}

#[test]
fn what_cannot_be_said_is_not_made_up() {
    let web = ("checkout/web-1", WEB);
    let old = said(&flow(web, 2, None)).unwrap_err();
    assert_eq!(
        old,
        "epoch 2 is of an agent before this one, which began with epoch 3\n  Its record says: allow, allowed: no policy speaks \
         against it. Ask what is in force now: kumiko policy explain --from checkout/web-1 --to payments/api-5f2 --port 8443"
    );
    let heir = said(&flow(web, 5, None)).unwrap_err();
    assert!(heir.starts_with("checkout/web-1 was checkout/heir in epoch 5\n"), "{heir}");
    let moment = said(&flow(web, 4, Some(Reason::TeamDefault))).unwrap_err();
    assert!(moment.contains("was refused (team_default), but what epoch 4 is made of would let it"), "{moment}");
    let mut legacy = flow(web, 4, None);
    legacy.legacy = true;
    assert!(said(&legacy).unwrap_err().contains("older than its pod's enrolment"));
    let mut none = flow(web, 0, None);
    none.epoch = 0;
    assert!(said(&none).unwrap_err().contains("no policy was in force here"));
    let mut service = flow(web, 4, None);
    service.destination.kind = PartyKind::Service;
    assert!(said(&service).unwrap_err().contains("its pod was chosen elsewhere"));
}
