//! What becomes of open flows: of the objects that refuse, the strictest says so; of an exception that has ended, it does.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use kumiko_abi::policy::{Cell, Question, REVOKE_CUT, REVOKE_KEEP, View, find};

use kumiko_core::policy::compile::{Image, compile};
use kumiko_core::policy::object::{
    Action, BaselineDirection, BaselineSubject, IngressRule, MeshBaselineSpec, MeshExceptionSpec, MeshPolicySpec, Mode,
    OnRevoke, Peer, PolicySubject, Suspends,
};
use kumiko_core::policy::verdict::Evaluator;
use kumiko_worlds::{Everything, Pod, read};

const NOW: i64 = 1_800_000_000;
const BOOTED: i64 = NOW - 1_000;

fn pod(name: &str, node: &str, ip: &str) -> Pod {
    Pod {
        name: name.to_owned(),
        namespace: "a".to_owned(),
        namespace_labels: BTreeMap::new(),
        account: "x".to_owned(),
        labels: BTreeMap::new(),
        node: node.to_owned(),
        ips: vec![ip.parse().unwrap()],
        ports: Vec::new(),
        stage: 3,
    }
}

/// A server, a client elsewhere.
fn world() -> Everything {
    let nodes = [("n1", "172.16.0.1"), ("n2", "172.16.0.2")];
    Everything {
        pods: vec![pod("server", "n1", "10.0.0.1"), pod("client", "n2", "10.0.0.2")],
        nodes: nodes.map(|(name, ip)| (name.to_owned(), ip.parse().unwrap())).into(),
        now: NOW,
        ..Everything::default()
    }
}

fn grace(seconds: u32) -> OnRevoke {
    OnRevoke { action: Action::Grace, seconds: Some(seconds) }
}

const KEEP: OnRevoke = OnRevoke { action: Action::Keep, seconds: None };
const CUT: OnRevoke = OnRevoke { action: Action::Cut, seconds: None };

/// Policies that let nobody in.
fn policies(all: &mut Everything, on_revoke: &[Option<OnRevoke>]) {
    let one = |(at, on_revoke): (usize, &Option<OnRevoke>)| {
        let subject = PolicySubject { labels: BTreeMap::new(), service_account: None };
        let (mode, replaces) = (Mode::Enforce, Vec::new());
        let spec =
            MeshPolicySpec { mode, replaces, on_revoke: *on_revoke, subject, ingress: Some(Vec::new()), egress: None };
        ("a".to_owned(), format!("team{at}"), spec)
    };
    all.policies = on_revoke.iter().enumerate().map(one).collect();
}

/// A baseline that denies everything.
fn baseline(all: &mut Everything, name: &str, on_revoke: OnRevoke) {
    let rule = IngressRule { name: "all".to_owned(), from: None, ports: None, unauthenticated: false };
    let direction = BaselineDirection { deny: vec![rule], allow: None, guarantee: Vec::new() };
    let subject =
        BaselineSubject { namespace: None, service_account: None, namespace_labels: BTreeMap::new(), spiffe_id: None };
    let (ingress, on_revoke) = (Some(direction), Some(on_revoke));
    let spec = MeshBaselineSpec { on_revoke, subject, ingress, ..MeshBaselineSpec::default() };
    all.baselines.push((name.to_owned(), spec));
}

/// An exception from it, for the client.
fn exception(all: &mut Everything, name: &str, ends_in: i64, on_expiry: OnRevoke) {
    let subject =
        BaselineSubject { namespace: None, service_account: None, namespace_labels: BTreeMap::new(), spiffe_id: None };
    let spec = MeshExceptionSpec {
        suspends: vec![Suspends { baseline: "base".to_owned(), rules: vec!["ingress.deny.all".to_owned()] }],
        subject,
        peers: vec![Peer { namespace: Some("a".to_owned()), ..Peer::default() }],
        ports: None,
        owner: "somebody".to_owned(),
        expires: Time(Timestamp::from_second(NOW + ends_in).unwrap()),
        on_expiry: Some(on_expiry),
    };
    all.exceptions.push((name.to_owned(), spec));
}

/// What is said of the client's flows to the server.
fn cell(all: &Everything) -> Cell {
    let (world, loaded) = read(all);
    let evaluator = Evaluator { world: &world, policies: &loaded.policies, settings: &loaded.settings };
    let image = Image::of(&compile(&evaluator, "n1", NOW).unwrap(), BOOTED, 0).unwrap();
    let class = image.class("10.0.0.2".parse().unwrap());
    let question = Question { set: image.ends["server"], class, ingress: true, proto: 6, proved: true, port: 80 };
    find(&image, question).unwrap()
}

#[test]
fn the_strictest_of_those_that_refuse() {
    for (on_revoke, expected) in [
        (vec![None], REVOKE_CUT),
        (vec![Some(grace(60))], 60),
        (vec![Some(grace(60)), Some(grace(5))], 5),
        (vec![Some(KEEP), Some(grace(60))], 60),
        (vec![Some(KEEP), Some(KEEP)], REVOKE_KEEP),
        (vec![Some(KEEP), Some(grace(5)), Some(CUT)], REVOKE_CUT),
        (vec![Some(KEEP), None], REVOKE_CUT),
    ] {
        let mut all = world();
        policies(&mut all, &on_revoke);
        assert_eq!(cell(&all).revoke, expected, "{on_revoke:?}");
        // A baseline speaks before the team.
        baseline(&mut all, "base", grace(7));
        assert_eq!(cell(&all).revoke, 7, "{on_revoke:?}");
        baseline(&mut all, "other", KEEP);
        assert_eq!(cell(&all).revoke, 7, "{on_revoke:?}");
    }
}

#[test]
fn what_an_exception_let_be_goes_as_it_says() {
    let mut all = world();
    baseline(&mut all, "base", CUT);
    exception(&mut all, "ended", 0, grace(30));
    let ended = cell(&all);
    assert!(!ended.allows(View::Enforced, 1_000));
    assert_eq!((ended.revoke, ended.not_after), (30, 0));
    exception(&mut all, "ends", 10, grace(40));
    let ends = cell(&all);
    assert!(ends.allows(View::Enforced, 1_009) && !ends.allows(View::Enforced, 1_010));
    assert_eq!((ends.revoke, ends.not_after), (40, 1_010));
    // Two that end together, and one that ends later.
    exception(&mut all, "too", 10, KEEP);
    assert_eq!(cell(&all), Cell { why: cell(&all).why, ..ends });
    exception(&mut all, "later", 20, KEEP);
    let later = cell(&all);
    assert_eq!((later.revoke, later.not_after), (REVOKE_KEEP, 1_020));
}
