//! `kumiko policy` against an agent: the world and policy that the evaluator's own tests use are in force.

use std::path::Path;
use std::pin::Pin;
use std::process::Output;
use std::sync::Arc;

use kumiko_agent::admin::{AppliedQuery, ExplainQuery, PolicyState};
use kumiko_core::api::{Applied, AppliedState, PolicyObjectView, SetView, SetsView};
use kumiko_core::flow_record::hex_id;
use kumiko_core::manifest::{Scope, parse_in};
use kumiko_core::model::World;
use kumiko_core::policy::compile::{Image, compile};
use kumiko_core::policy::explain::{Explanation, InForce, explain};
use kumiko_core::policy::history::History;
use kumiko_core::policy::list;
use kumiko_core::policy::seen::explain_seen;
use kumiko_core::policy::verdict::Evaluator;
use serde_json::Value;

use super::sample::{Sample, Server, kumiko};

/// 2026-11-25.
const NOW: i64 = 1_795_564_800;
const WORLD: &str = include_str!("../../../core/src/policy/tests/told/world.yaml");
const POLICY: &str = include_str!("../../../core/src/policy/tests/told/policy.yaml");

fn world() -> World {
    let files = [("world.yaml", WORLD), ("policy.yaml", POLICY)];
    let objects = files.map(|(file, text)| (file, parse_in(Scope::Policy, file, text).unwrap()));
    let objects = objects.iter().flat_map(|(file, objects)| objects.iter().map(|object| (*file, object)));
    World::build("cluster.local", 1, objects).unwrap().0
}

impl PolicyState for Sample {
    fn explain(&self, asked: &ExplainQuery) -> Result<Explanation, String> {
        let world = world();
        let asked = match asked {
            ExplainQuery::Asked(asked) => asked,
            ExplainQuery::Seen(id) => {
                let record =
                    self.flows.iter().find(|record| record.id == hex_id(*id)).ok_or("no such flow is known")?;
                let mut history = History::default();
                history.record(1, Arc::new(world));
                return explain_seen(record, &history);
            }
        };
        let flow = asked.flow(&world, "the model that is in force").map_err(|error| error.to_string())?;
        let by = InForce {
            node: "n1".into(),
            epoch: 12,
            now: true,
            waits: String::new(),
            claims: Vec::new(),
            peers: Vec::new(),
        };
        Ok(explain(&Evaluator::of(&world), &flow, NOW).in_force(by))
    }

    fn applied(&self, asked: &AppliedQuery) -> Result<Applied, String> {
        let held = self.source.as_ref().ok_or("no source")?.held.lock().unwrap().clone();
        let state = match held.files.get(&asked.file) {
            Some(version) if version.read != asked.digest => AppliedState::Unread,
            None => AppliedState::Unread,
            Some(version) if version.in_force.is_some_and(|(digest, _)| digest == asked.digest) => {
                AppliedState::InForce
            }
            Some(_) => AppliedState::Refused,
        };
        Ok(Applied { state, epoch: 12, problem: String::new(), diagnostics: held.refused })
    }

    fn change(&self) -> Pin<Box<dyn Future<Output = ()> + Send>> {
        let mut status = self.source.as_ref().unwrap().status.clone();
        status.mark_unchanged();
        Box::pin(async move { status.changed().await.unwrap() })
    }

    fn policy(&self) -> Result<Vec<PolicyObjectView>, String> {
        Ok(list::list(&world(), "n1", NOW))
    }

    fn sets(&self) -> Result<SetsView, String> {
        let world = world();
        let image = Image::of(&compile(&Evaluator::of(&world), "n1", NOW).unwrap(), NOW, 12).unwrap();
        let set = |(id, size): (u32, kumiko_core::policy::compile::Size)| SetView {
            id,
            workloads: vec!["payments/api-5f2".into(), "payments/api-7".into()],
            objects: vec!["MeshBaseline/bank".into()],
            classes: size.classes,
            columns: size.columns,
            cells: size.cells,
            bytes: size.bytes,
        };
        Ok(SetsView { epoch: 12, sets: image.sizes().into_iter().map(set).collect(), tables: image.uses() })
    }
}

fn policy(server: &Server, args: &[&str]) -> (Option<i32>, String, String) {
    let args = [&["policy"], args].concat();
    let Output { status, stdout, stderr } = server.kumiko(Some(80), &args);
    (status.code(), String::from_utf8(stdout).unwrap(), String::from_utf8(stderr).unwrap())
}

#[test]
fn explain_asks_the_agent() {
    let server = Server::start(Sample::new());
    let ask = |from: &str, to: &str, more: &[&str]| {
        policy(&server, &[&["explain", "--from", from, "--to", to, "--port", "8443"], more].concat())
    };
    let (code, shown, _) = ask("orders/web-3", "payments/api-5f2", &[]);
    let expected = "\
DENY (team default)  orders/web-3 -> payments/api-5f2  TCP 8443
  by       no ingress rule matches
  default  caused by MeshPolicy/payments/api (selects app=api)
  nearest  rule checkout: namespace is orders, wants checkout
  ceiling  MeshBaseline/bank ingress.allow.prod would allow it
  next     team payments adds a rule
  policy   epoch 12 on n1
";
    assert_eq!((code, shown.as_str()), (Some(1), expected));
    let (code, shown, _) = ask("checkout/web-1", "payments/api-5f2", &[]);
    let expected = "\
ALLOW  checkout/web-1 -> payments/api-5f2  TCP 8443
  egress            checkout/web-1 is strict
    deny            no baseline denies it
    ceiling         yes: MeshBaseline/bank egress.allow.prod (decides)
    network policy  none selects it, or the peer is its own node
    team            no MeshPolicy selects it
    proof           not asked for going out
    peer            proved by TLS: spiffe://cluster.local/ns/payments/sa/api;
                    claimed: app=api
  ingress           payments/api-5f2 is strict
    deny            no baseline denies it
    ceiling         yes: MeshBaseline/bank ingress.allow.prod
    network policy  none selects it, or the peer is its own node
    team            yes: MeshPolicy/payments/api ingress.checkout (decides)
    proof           yes
    peer            proved by TLS: spiffe://cluster.local/ns/checkout/sa/web;
                    claimed: app=web
  policy            epoch 12 on n1
";
    assert_eq!((code, shown.as_str()), (Some(0), expected), "{shown}");
    let (code, shown, _) = ask("checkout/web-1", "payments/api-5f2", &["-o", "json"]);
    let answer: Value = serde_json::from_str(&shown).unwrap();
    assert_eq!((code, answer["verdict"].as_str()), (Some(0), Some("allow")));
    assert_eq!(answer["inForce"], serde_json::json!({"node": "n1", "epoch": 12, "now": true}));
    let decides = |side: usize| {
        let terms = answer["sides"][side]["terms"].as_array().unwrap();
        terms.iter().find(|term| term["decides"] == true).unwrap()["term"].clone()
    };
    assert_eq!((decides(0), decides(1)), ("ceiling".into(), "team".into()));
    let (code, _, told) = ask("checkout/web-9", "payments/api-5f2", &[]);
    let nobody = "kumiko: cannot say: checkout/web-9: no workload of this name is in the model that is in force\n";
    assert_eq!((code, told.as_str()), (Some(2), nobody));
    let (code, _, told) = policy(&server, &["explain", "--from", "a/b", "--to", "c/d"]);
    assert_eq!(code, Some(2));
    assert!(told.contains("--port"), "{told}");
    let (code, _, told) = ask("a/b", "c/d", &["--trust-domain", "x"]);
    assert_eq!(code, Some(2));
    assert!(told.contains("--folder"), "{told}");
}

#[test]
fn explain_tells_of_a_flow_that_was_seen() {
    let server = Server::start(Sample::new());
    // The sample's pods are nobody in this policy's world.
    let (code, shown, told) = policy(&server, &["explain", "--flow", &"02".repeat(16)]);
    assert_eq!((code, shown.as_str()), (Some(2), ""));
    let expected = "\
kumiko: cannot say: demo/client-1 was nobody in epoch 1
  Its record says: allow, allowed: no policy speaks against it. Ask what is in force now: kumiko policy explain --from \
                    demo/client-1 --to demo/server-2 --port 8080
";
    assert_eq!(told, expected);
    for (args, word) in [
        (&["--flow", "7"][..], "32 hex digits"),
        (&["--flow", "ffffffffffffffffffffffffffffffff"], "no such flow"),
        (&["--flow", "7", "--port", "1"], "cannot be used with"),
        (&["--flow", "7", "--folder", "x"], "cannot be used with"),
    ] {
        let (code, _, told) = policy(&server, &[&["explain"], args].concat());
        assert!(code == Some(2) && told.contains(word), "{told}");
    }
}

#[test]
fn without_an_agent_nothing_is_said_to_be_in_force() {
    let directory = tempfile::tempdir().unwrap();
    let socket: &Path = &directory.path().join("admin.sock");
    let all = [&["list"][..], &["sets"], &["explain", "--from", "a/b", "--to", "c/d", "--port", "1"]];
    for args in all {
        let output = kumiko(socket, None, &[&["policy"], args].concat()).output().unwrap();
        assert_eq!((output.status.code(), output.stdout.is_empty()), (Some(3), true), "{args:?}");
    }
}

#[test]
fn list_says_what_is_enforced_and_why_not() {
    let server = Server::start(Sample::new());
    let (code, shown, _) = policy(&server, &["list"]);
    assert_eq!(code, Some(0));
    let expected = "\
KIND           NAMESPACE  NAME          ENFORCED              HERE  FILE
MeshBaseline              bank          yes                      1  policy.yaml
MeshException             fx-migration  no: ended 2026-10-31     1  policy.yaml
MeshPolicy     lab        nobody        no: stage is observe     0  world.yaml
MeshPolicy     payments   api           yes                      1  policy.yaml
MeshSettings              mesh          yes                         world.yaml

MeshBaseline/bank:
  names nobody that is here: ingress.guarantee.scrape, egress.guarantee.dns
";
    assert_eq!(shown, expected, "{shown}");
    let (_, shown, _) = policy(&server, &["list", "-o", "json"]);
    let list: Vec<Value> = serde_json::from_str(&shown).unwrap();
    let of = |name: &str| list.iter().find(|object| object["name"] == name).unwrap();
    assert_eq!(of("nobody")["why"], "stage is observe");
    assert_eq!(of("api")["enforced"], true);
    assert_eq!(of("api")["file"], "policy.yaml");
}

#[test]
fn sets_say_what_they_take() {
    let server = Server::start(Sample::new());
    let (code, shown, _) = policy(&server, &["sets"]);
    assert_eq!(code, Some(0));
    let expected = "\
SET  WORKLOADS            OBJECTS            CLASSES  COLUMNS  CELLS   BYTES
  1  payments/api-5f2 +1  MeshBaseline/bank        7      5+7     82  22 KiB

Epoch 12 takes 22 KiB
  TABLE                   USED       OF  SHARE    BYTES
  sets                       2    2,048  0.1 %     72 B
  rows                       7  524,288  0.1 %     56 B
  chunks of port tables  5,120  524,288  1.0 %   20 KiB
  distinct chunks            9    8,192  0.2 %    576 B
  cells                     82  262,144  0.1 %  1.3 KiB
  networks                   3   16,384  0.1 %     84 B
";
    assert_eq!(shown, expected, "{shown}");
    let (_, shown, _) = policy(&server, &["sets", "-o", "json"]);
    let sets: Value = serde_json::from_str(&shown).unwrap();
    assert_eq!(sets["epoch"], 12);
}
