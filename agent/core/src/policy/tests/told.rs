//! What people are told: the examples of the design, and one of each other kind of answer.

use crate::manifest::{Protocol, Scope, parse_in};
use crate::model::World;
use crate::policy::explain::{Claims, Explanation, InForce, PeerEpoch, explain, waits};
use crate::policy::load::load;
use crate::policy::port::Asked;
use crate::policy::verdict::{End, Evaluator, Flow};

/// 2026-11-25.
const NOW: i64 = 1_795_564_800;

const WORLD: &str = include_str!("told/world.yaml");
const POLICY: &str = include_str!("told/policy.yaml");

fn told(more: &str, from: &str, to: &str, port: u16) -> String {
    told_of(more, from, to, Asked { protocol: Protocol::Tcp, port })
}

fn told_of(more: &str, from: &str, to: &str, asked: Asked) -> String {
    let answer = explained_of(more, from, to, asked);
    let lines: Vec<String> = answer.lines.iter().map(|line| format!("{}: {}", line.label.trim(), line.text)).collect();
    format!("{} ({})\n{}", answer.verdict, answer.because, lines.join("\n"))
}

fn explained(more: &str, from: &str, to: &str) -> Explanation {
    explained_of(more, from, to, Asked { protocol: Protocol::Tcp, port: 8443 })
}

fn explained_of(more: &str, from: &str, to: &str, asked: Asked) -> Explanation {
    let text = format!("{WORLD}\n---\n{POLICY}\n---\n{more}");
    let objects = parse_in(Scope::Policy, "f", &text).unwrap_or_else(|problems| panic!("{}", problems[0]));
    let named = || objects.iter().map(|object| ("f", object));
    let (world, _) = World::build("td", 1, named()).unwrap();
    let loaded = load(named());
    assert_eq!(loaded.problems, []);
    let end = |who: &str| match who.parse() {
        Ok(ip) => End::at(&world, ip),
        Err(_) => {
            let (namespace, name) = who.split_once('/').unwrap();
            let workload = world.workload_named(namespace, name).unwrap().clone();
            End { ip: workload.ips[0], workload: Some(workload) }
        }
    };
    let flow = Flow::new(end(from), end(to), asked);
    let evaluator = Evaluator { world: &world, policies: &loaded.policies, settings: &loaded.settings };
    explain(&evaluator, &flow, NOW)
}

#[test]
fn a_baseline_denies() {
    assert_eq!(
        told("", "fx-dev/batch-1", "payments/api-5f2", 8443),
        "deny (baseline)\n\
         by: MeshBaseline/bank ingress.deny.no-dev\n\
         also: MeshBaseline/bank ingress.allow: none matches\n\
         team: cannot allow this\n\
         expired: MeshException/fx-migration, 2026-10-31, fx-team@bank\n\
         next: ask platform for a MeshException"
    );
}

#[test]
fn at_a_probe_s_port_the_kubelet_is_told_from_others() {
    let probed = "apiVersion: v1\nkind: Node\nmetadata: {name: n9}\nspec: {}\n\
                  status: {addresses: [{type: InternalIP, address: 192.0.2.9}]}\n---\n\
                  apiVersion: kumiko.dev/v1alpha1\nkind: Workload\nmetadata: {name: probed, namespace: tools, uid: u9}\n\
                  spec: {serviceAccount: shell, node: n9, ips: [10.0.0.9], ports: [{name: h, port: 80, probe: true}]}\n";
    let at_port = told(probed, "192.0.2.9", "tools/probed", 80);
    assert!(at_port.starts_with("allow ()\n"), "{at_port}");
    let about = "probe: this is about the kubelet, whose port it is; any other process of the node is ";
    assert!(at_port.contains(&format!("{about}refused")), "{at_port}");
    let elsewhere = told(probed, "192.0.2.9", "tools/probed", 81);
    assert!(elsewhere.starts_with("deny (unproved)\n") && !elsewhere.contains("kubelet"), "{elsewhere}");
    let by_rule = "---\napiVersion: kumiko.dev/v1alpha1\nkind: MeshPolicy\nmetadata: {name: p, namespace: tools}\nspec:\n  \
                   ingress: [{name: r, from: [{entity: host}]}]\n";
    let both = told(&format!("{probed}{by_rule}"), "192.0.2.9", "tools/probed", 80);
    assert!(both.contains(&format!("{about}let, too")), "{both}");
}

#[test]
fn of_kubernetes_networks_workloads_are_part() {
    let block = "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: p, namespace: tools}\nspec:\n  \
                 podSelector: {}\n  ingress: [{from: [{ipBlock: {cidr: 'fd00::/8'}}, {ipBlock: {cidr: 10.0.0.0/8}}], \
                 ports: [{port: 80}]}]\n";
    let told_at = |from, port| told(block, from, "tools/shell", port);
    let port = told_at("fx-dev/batch-1", 22);
    assert!(port.contains("\nnearest: rule 0: port is TCP 22, wants TCP 80\n"), "{port}");
    let address = told_at("192.0.2.1", 80);
    assert!(address.contains("\nnearest: rule 0: address is 192.0.2.1, wants 10.0.0.0/8\n"), "{address}");
}

#[test]
fn of_several_rules_that_deny_the_first_by_name_is_told_first() {
    let two = "apiVersion: kumiko.dev/v1alpha1\nkind: MeshBaseline\nmetadata: {name: a}\nspec:\n  subject: {namespace: tools}\n  \
               ingress: {deny: [{name: z}, {name: b}]}\n";
    let told = told(two, "192.0.2.1", "tools/shell", 22);
    assert!(
        told.starts_with("deny (baseline)\nby: MeshBaseline/a ingress.deny.b\nalso: MeshBaseline/a ingress.deny.z\n"),
        "{told}"
    );
}

#[test]
fn a_live_exception_leaves_it_to_the_team() {
    let live = "apiVersion: kumiko.dev/v1alpha1\nkind: MeshException\nmetadata: {name: live}\nspec:\n  \
                suspends: [{baseline: bank, rules: [ingress.deny.no-dev, ingress.allow]}]\n  \
                subject: {namespace: payments}\n  peers: [{namespace: fx-dev, serviceAccount: batch}]\n  \
                owner: fx\n  expires: 2026-12-31T00:00:00Z\n";
    let told = told(live, "fx-dev/batch-1", "payments/api-5f2", 8443);
    assert!(told.starts_with("deny (team default)\nby: no ingress rule matches"), "{told}");
    assert!(
        told.contains(
            "nearest: rule checkout: namespace is fx-dev, wants checkout; service account is batch, wants web"
        ),
        "{told}"
    );
}

#[test]
fn no_rule_of_the_team_has_it() {
    assert_eq!(
        told("", "orders/web-3", "payments/api-5f2", 8443),
        "deny (team default)\n\
         by: no ingress rule matches\n\
         default: caused by MeshPolicy/payments/api (selects app=api)\n\
         nearest: rule checkout: namespace is orders, wants checkout\n\
         ceiling: MeshBaseline/bank ingress.allow.prod would allow it\n\
         next: team payments adds a rule"
    );
    let told = told("", "checkout/web-1", "payments/api-5f2", 80);
    assert!(told.contains("nearest: rule checkout: port is TCP 80, wants TCP 8443"), "{told}");
}

#[test]
fn the_ceiling_has_not_got_it() {
    let told = told("", "192.0.2.1", "payments/api-5f2", 8443);
    assert_eq!(
        told,
        "deny (ceiling)\n\
         by: MeshBaseline/bank ingress.allow: none matches\n\
         nearest: rule prod: 192.0.2.1 is no workload, wants one\n\
         team: cannot allow this\n\
         next: ask platform for a MeshException"
    );
}

#[test]
fn kubernetes_refuses_and_a_strict_pod_wants_proof() {
    let network = "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: none, namespace: ledger}\n\
                   spec: {podSelector: {}}\n";
    let refused = told(network, "payments/api-5f2", "ledger/db-0", 5432);
    assert!(
        refused.starts_with(
            "deny (network policy)\nby: no ingress rule matches\n\
             default: caused by NetworkPolicy/ledger/none (selects every workload of its namespace)"
        ),
        "{refused}"
    );
    assert!(
        refused.ends_with("next: team ledger adds a rule to a NetworkPolicy (a MeshPolicy does not help here)"),
        "{refused}"
    );
    assert_eq!(
        told("", "192.0.2.1", "tools/shell", 22),
        "deny (unproved)\n\
         by: tools/shell is strict, and only an address speaks for 192.0.2.1\n\
         next: allow 192.0.2.1 by a rule that names its network (ipBlock) or entity"
    );
}

#[test]
fn a_default_names_all_that_its_policy_chooses_by_and_the_nearest_rule_its_exceptions() {
    let more = "apiVersion: kumiko.dev/v1alpha1\nkind: MeshPolicy\nmetadata: {name: p, namespace: tools}\nspec:\n  \
                subject: {serviceAccount: shell}\n  \
                ingress: [{name: out, from: [{ipBlock: {cidr: 192.0.2.0/24, except: [192.0.2.0/28]}}]}]\n";
    let told = told(more, "192.0.2.1", "tools/shell", 22);
    assert!(told.contains("caused by MeshPolicy/tools/p (selects service account shell)"), "{told}");
    let nearest = "nearest: rule out: address is 192.0.2.1, wants 192.0.2.0/24 except 192.0.2.0/28";
    assert!(told.contains(nearest), "{told}");
}

#[test]
fn who_is_enrolled_is_not_told_to_enrol() {
    let far = "apiVersion: kumiko.dev/v1alpha1\nkind: Workload\nmetadata: {name: far, namespace: tools, uid: u9}\n\
               spec: {serviceAccount: far, node: n1, ips: [10.0.0.9]}\n";
    let told = told_of(far, "tools/far", "tools/shell", Asked { protocol: Protocol::Udp, port: 53 });
    assert!(
        told.ends_with(
            "next: allow tools/far by a rule with unauthenticated: true: between nodes nothing proves UDP yet"
        ),
        "{told}"
    );
}

#[test]
fn an_allow_says_who_was_proved_and_by_which_rule() {
    assert_eq!(
        told("", "checkout/web-1", "payments/api-5f2", 8443),
        "allow ()\n\
         egress: checkout/web-1 is strict\n\
         deny: no baseline denies it\n\
         ceiling: yes: MeshBaseline/bank egress.allow.prod (decides)\n\
         network policy: none selects it, or the peer is its own node\n\
         team: no MeshPolicy selects it\n\
         proof: not asked for going out\n\
         peer: proved by TLS: spiffe://td/ns/payments/sa/api; claimed: app=api\n\
         ingress: payments/api-5f2 is strict\n\
         deny: no baseline denies it\n\
         ceiling: yes: MeshBaseline/bank ingress.allow.prod\n\
         network policy: none selects it, or the peer is its own node\n\
         team: yes: MeshPolicy/payments/api ingress.checkout (decides)\n\
         proof: yes\n\
         peer: proved by TLS: spiffe://td/ns/checkout/sa/web; claimed: app=web"
    );
}

#[test]
fn that_a_newer_policy_waits_is_said() {
    assert_eq!((waits("", 7, 7), waits("", 8, 7)), (String::new(), String::new()));
    let said = |waits: String| {
        let by = InForce { node: "n1".into(), epoch: 12, now: true, waits, claims: Vec::new(), peers: Vec::new() };
        let lines = explained("", "checkout/web-1", "payments/api-5f2").in_force(by).lines;
        lines.iter().rev().take(2).rev().map(|line| format!("{}: {}", line.label, line.text)).collect::<Vec<_>>()
    };
    assert_eq!(said(String::new())[1], "policy: epoch 12 on n1");
    let coming = said(waits("", 6, 7));
    assert_eq!(coming, ["policy: epoch 12 on n1", "waits: a newer one of the source is coming into force: ask again"]);
    let aged = Claims { workload: "checkout/web-1".into(), since: 1_795_705_200, age: 200 };
    assert_eq!(aged.say(), "of checkout/web-1 by the source, 3 min old, since 2026-11-26T15:00:00Z");
    let peer = |epoch, age| PeerEpoch { node: "n2".into(), epoch, age };
    let peers = vec![peer(Some(9), None), peer(Some(9), Some(7_300)), peer(None, None)];
    let by = InForce { node: "n1".into(), epoch: 12, now: true, waits: String::new(), claims: Vec::new(), peers };
    let lines = explained("", "checkout/web-1", "payments/api-5f2").in_force(by).lines;
    let there: Vec<&str> = lines.iter().filter(|line| line.label == "policy").map(|line| line.text.as_str()).collect();
    assert_eq!(
        there,
        [
            "epoch 12 on n1",
            "epoch 9 on n2, when it let this flow",
            "epoch 9 on n2, 2 h ago",
            "epoch on n2 is not known here, no flow in a tunnel told it: ask its agent",
        ]
    );
    let refused = said(waits("too many cells", 7, 7));
    assert_eq!(refused[1], "waits: a newer one of the source is not in force: too many cells");
}

#[test]
fn the_term_that_speaks_first_is_told_of_either_end() {
    // The source's own team would refuse it too, but what no team can change comes first.
    let team = "apiVersion: kumiko.dev/v1alpha1\nkind: MeshPolicy\nmetadata: {name: quiet, namespace: fx-dev}\n\
                spec: {egress: []}\n";
    let told = told(team, "fx-dev/batch-1", "payments/api-5f2", 8443);
    assert!(told.starts_with("deny (baseline)\nby: MeshBaseline/bank ingress.deny.no-dev"), "{told}");
}

#[test]
fn observe_says_what_strict_would_do_and_audit_what_it_would_change() {
    let observed = told("", "192.0.2.1", "lab/seen", 8443);
    assert!(observed.contains("allow ()"), "{observed}");
    assert!(observed.contains("ingress: lab/seen is observe, so nothing is enforced\n"), "{observed}");
    assert!(observed.contains("team: would refuse: MeshPolicy/lab/nobody"), "{observed}");
    assert!(observed.contains("proof: would refuse"), "as strict would: {observed}");
    let audit = "apiVersion: kumiko.dev/v1alpha1\nkind: MeshPolicy\nmetadata: {name: tight, namespace: payments}\n\
                 spec: {mode: audit, replaces: [api], subject: {labels: {app: api}}, ingress: []}\n";
    let audited = told(audit, "checkout/web-1", "payments/api-5f2", 8443);
    assert!(audited.ends_with("audit: ingress: with what is in audit it would refuse this"), "{audited}");
}
