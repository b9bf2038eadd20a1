//! What is refused, with its place and what to do about it.

use std::sync::Arc;

use crate::manifest::{Scope, parse, parse_in};
use crate::model::World;
use crate::policy::list::list;
use crate::policy::load::{Loaded, load, load_in};

const HEAD: &str = "apiVersion: kumiko.dev/v1alpha1\n";

/// The first problem of a document whose second line on is `text`.
fn refused(text: &str) -> String {
    let problems = parse_in(Scope::Policy, "f", &format!("{HEAD}{text}")).unwrap_err();
    problems[0].to_string()
}

fn baseline(spec: &str) -> String {
    refused(&format!("kind: MeshBaseline\nmetadata: {{name: b}}\nspec:\n{spec}"))
}

/// A NetworkPolicy with one peer that may come in.
fn network(peer: &str) -> String {
    format!(
        "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{name: p, namespace: n}}\nspec: {{podSelector: \
         {{}}, ingress: [{{from: [{peer}]}}]}}\n"
    )
}

fn policy(spec: &str) -> String {
    refused(&format!("kind: MeshPolicy\nmetadata: {{name: p, namespace: n}}\nspec:\n{spec}"))
}

#[test]
fn no_list_is_longer_than_the_definitions_let_it_be() {
    let many = |count: usize, one: &str| vec![one; count].join(", ");
    let rules: Vec<String> = (0..257).map(|number| format!("{{name: r{number}}}")).collect();
    let told = policy(&format!("  ingress: [{}]", rules.join(", ")));
    assert!(told.starts_with("f:5:12: spec.ingress holds 257 entries, the limit is 256"), "{told}");
    let told = policy(&format!("  ingress: [{{name: a, from: [{}]}}]", many(257, "{namespace: a}")));
    assert!(told.starts_with("f:5:29: spec.ingress[0].from holds 257 entries"), "{told}");
    let told = policy(&format!("  mode: audit\n  ingress: []\n  replaces: [{}]", many(65, "x")));
    let labels: Vec<String> = (0..65).map(|number| format!("k{number}: v")).collect();
    let told_of_labels =
        baseline(&format!("  subject: {{namespaceLabels: {{{}}}}}\n  ingress: {{}}", labels.join(", ")));
    assert!(told_of_labels.starts_with("f:5:30: spec.subject.namespaceLabels holds 65 entries"), "{told_of_labels}");
    assert!(told.starts_with("f:7:13: spec.replaces holds 65 entries, the limit is 64"), "{told}");
}

#[test]
fn peers_of_kubernetes_are_checked_as_an_api_server_does() {
    let read = |peer: &str| parse_in(Scope::Policy, "f", &network(peer));
    let problem = |peer: &str| read(peer).unwrap_err()[0].to_string();
    let kind = |peer: &str| read(peer).unwrap().remove(0).kind;
    let (loose, exact) = (
        "{ipBlock: {cidr: 10.1.2.3/8, except: [10.9.9.9/16]}}",
        "{ipBlock: {cidr: 10.0.0.0/8, except: [10.9.0.0/16]}}",
    );
    assert_eq!(kind(loose), kind(exact), "an API server takes the loose one, too");
    let outside = problem("{ipBlock: {cidr: 10.0.0.0/8, except: [11.0.0.0/8]}}");
    assert!(
        outside.contains("spec.ingress[0].from[0].ipBlock.except[0]: \"11.0.0.0/8\" must be a part of cidr"),
        "{outside}"
    );
    let key = problem("{podSelector: {matchExpressions: [{key: \"a b\", operator: Exists}]}}");
    assert!(key.contains("matchExpressions[0].key: \"a b\" is no key of a label"), "{key}");
    let mapped = problem("{ipBlock: {cidr: \"::ffff:10.0.0.0/104\"}}");
    assert!(mapped.contains("is IPv4 written as IPv6"), "{mapped}");
}

#[test]
fn a_namespace_below_its_lowest_stage_is_told() {
    let namespace = |name: &str, more: &str| {
        format!(
            "apiVersion: v1\nkind: Namespace\nmetadata: {{name: {name}, labels: {{p.example/tier: prod{more}}}}}\n---\n"
        )
    };
    let text = format!(
        "{}{}{HEAD}kind: MeshSettings\nmetadata: {{name: mesh}}\nspec:\n  platformLabelPrefixes: [p.example/]\n  \
         minStage: [{{stage: observe}}, {{namespaceLabels: {{p.example/tier: prod}}, stage: strict}}]\n",
        namespace("low", ", kumiko.dev/stage: permissive"),
        namespace("high", ", kumiko.dev/stage: strict"),
    );
    let objects = parse_in(Scope::Policy, "f", &text).unwrap();
    let told = load(objects.iter().map(|object| ("f", object))).problems;
    assert_eq!(told.len(), 1, "{told:?}");
    assert!(
        told[0].to_string().starts_with("f:1:1: Namespace low: its stage permissive is below strict, the lowest"),
        "{}",
        told[0]
    );
}

#[test]
fn spiffe_ids_are_of_the_trust_domains_that_there_are() {
    let told = |own: Option<&str>, settings: &str| -> Vec<String> {
        let text = format!(
            "{HEAD}kind: MeshBaseline\nmetadata: {{name: b}}\nspec:\n  subject: {{}}\n  ingress: {{deny: [{{name: a, from: \
             [{{spiffeId: \"spiffe://bank.example/ns/a/sa/b\"}}]}}]}}\n---\n{HEAD}kind: MeshSettings\nmetadata: {{name: mesh}}\n\
             spec: {{{settings}}}\n"
        );
        let objects = parse_in(Scope::Policy, "f", &text).unwrap();
        let loaded = load_in(own, objects.iter().map(|object| ("f", object)));
        assert_eq!(loaded.is_fit(), loaded.problems.is_empty());
        loaded.problems.iter().map(ToString::to_string).collect()
    };
    assert!(told(None, "").is_empty() && told(Some("bank.example"), "").is_empty());
    let other = "f:1:1: MeshBaseline/b: spiffe://bank.example/ns/a/sa/b is not of the trust domain cluster.local";
    assert!(told(Some("cluster.local"), "")[0].starts_with(other));
    assert!(told(Some("cluster.local"), "trustDomains: [cluster.local, bank.example]").is_empty());
    let unlisted = told(Some("bank.example"), "trustDomains: [cluster.local]");
    assert!(
        unlisted[0].starts_with("f:8:1: MeshSettings: spec.trustDomains does not list bank.example"),
        "{unlisted:?}"
    );
    assert!(unlisted[1].starts_with(other), "{unlisted:?}");
}

#[test]
fn a_team_cannot_hold_back_the_platforms_next_word() {
    let policy = |domain: &str| {
        format!(
            "{HEAD}kind: MeshPolicy\nmetadata: {{name: p, namespace: n}}\nspec: {{ingress: [{{name: a, from: [{{spiffeId: \
             \"spiffe://{domain}/ns/a/sa/b\"}}]}}]}}\n---\n"
        )
    };
    let audit = format!(
        "{HEAD}kind: MeshPolicy\nmetadata: {{name: q, namespace: n}}\nspec: {{mode: audit, replaces: [gone], egress: []}}\n---\n"
    );
    let deny = format!(
        "{HEAD}kind: MeshBaseline\nmetadata: {{name: b}}\nspec: {{subject: {{}}, ingress: {{deny: [{{name: all}}]}}}}\n---\n"
    );
    let loaded = |text: &str| {
        let objects = parse_in(Scope::Policy, "f", text).unwrap();
        Arc::new(load_in(Some("td"), objects.iter().map(|object| ("f", object))))
    };
    let said = |loaded: &Loaded| -> Vec<(String, bool)> {
        loaded.policies.objects().iter().map(|object| (object.id.to_string(), object.invalid)).collect()
    };
    let first = loaded(&policy("td"));
    let second = loaded(&format!("{}{audit}{deny}", policy("other.example")));
    assert!(first.is_fit() && second.is_fit());
    assert_eq!((second.problems.len(), second.unfit_files().collect::<Vec<_>>()), (2, vec!["f", "f"]));
    let both = |invalid| vec![("MeshBaseline/b".to_owned(), false), ("MeshPolicy/n/p".to_owned(), invalid)];
    let after_the_first = second.clone().with_teams_of(&first);
    assert_eq!(said(&after_the_first), both(false));
    assert_eq!(after_the_first.policies.objects()[1], first.policies.objects()[0], "as it was");
    // Nor does what never was in force count as none.
    assert_eq!(said(&second.with_teams_of(&Loaded::default())), both(true));
    // Half of the platform's word is another one.
    let half = loaded(
        &deny.replace("deny: [{name: all}]", "deny: [{name: all, from: [{spiffeId: \"spiffe://x/ns/a/sa/b\"}]}]"),
    );
    assert!(!half.is_fit());
}

#[test]
fn what_settings_cannot_hold_is_refused() {
    for (spec, told) in [
        ("trustDomains: [Bank]", "f:4:23: spec.trustDomains[0]: \"Bank\" must be a trust domain"),
        ("permissiveWithoutAgent: strict", "f:4:32: spec.permissiveWithoutAgent: "),
        ("sameNodeFastPath: 1", "f:4:26: spec.sameNodeFastPath: "),
        (
            "acceptedPolicyKinds: [CiliumNetworkPolicy]",
            "f:4:30: spec.acceptedPolicyKinds[0]: found the text \"CiliumNetworkPolicy\", expected one of AdminNetworkPolicy.",
        ),
    ] {
        let problem = refused(&format!("kind: MeshSettings\nmetadata: {{name: mesh}}\nspec: {{{spec}}}\n"));
        assert!(problem.contains(told), "{problem}");
    }
}

#[test]
fn policy_that_is_not_enforced_is_listed_as_that() {
    let text = "apiVersion: cilium.io/v2\nkind: CiliumNetworkPolicy\nmetadata: {name: l7, namespace: n}\nspecs: [{}]\n---\n\
                apiVersion: projectcalico.org/v3\nkind: GlobalNetworkPolicy\nmetadata: {name: g}\n---\n\
                apiVersion: kumiko.dev/v1alpha1\nkind: MeshSettings\nmetadata: {name: mesh}\n\
                spec: {acceptedPolicyKinds: [GlobalNetworkPolicy.projectcalico.org]}\n";
    let objects = parse_in(Scope::Policy, "f", text).unwrap();
    let (world, _) = World::build("td", 1, objects.iter().map(|object| ("f", object))).unwrap();
    let listed: Vec<_> = list(&world, "n1", 0).into_iter().map(|of| (of.kind, of.enforced, of.why, of.file)).collect();
    let row = |kind: &str, enforced, why: &str| (kind.to_owned(), enforced, why.to_owned(), "f".to_owned());
    assert_eq!(
        listed,
        [
            row("CiliumNetworkPolicy.cilium.io", false, "no kind of kumiko's, keeps stages at observe"),
            row("GlobalNetworkPolicy.projectcalico.org", false, "no kind of kumiko's, accepted"),
            row("MeshSettings", true, ""),
        ]
    );
    for bad in ["metadata: {name: l7}", "metadata: {namespace: n}", "metadata: x"] {
        let text = format!("apiVersion: cilium.io/v2\nkind: CiliumNetworkPolicy\n{bad}\n");
        assert!(parse_in(Scope::Policy, "f", &text).is_err(), "{bad}");
    }
}

#[test]
fn who_asks_about_policy_is_told_its_kinds() {
    let told = refused("kind: MeshPolice\nmetadata: {name: x}\n");
    assert!(
        told.contains("networking.k8s.io/v1 NetworkPolicy and kumiko.dev/v1alpha1 Workload, MeshBaseline"),
        "{told}"
    );
}

#[test]
fn documents_are_taken_as_a_cluster_prints_them() {
    let metadata = "  name: p\n  namespace: n\n  uid: 0b6a2c1e-3d53-4d0c-8f5e-0d1f4b3f8f11\n  resourceVersion: \"812\"\n  \
                    generation: 2\n  creationTimestamp: 2026-11-25T00:00:00Z\n  labels: {team: a}\n  \
                    annotations: {kubectl.kubernetes.io/last-applied-configuration: x}\n  finalizers: [a.example/b]\n  \
                    ownerReferences: [{apiVersion: v1, kind: ConfigMap, name: c, uid: u}]\n  \
                    managedFields: [{manager: kubectl, operation: Apply, apiVersion: kumiko.dev/v1alpha1, fieldsType: \
                    FieldsV1, time: 2026-11-25T00:00:00Z, fieldsV1: {f:spec: {f:mode: {}}}}]\n";
    let network = "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\n";
    for head in [format!("{HEAD}kind: MeshPolicy\n"), network.to_owned()] {
        let text = format!("{head}metadata:\n{metadata}spec: {{egress: []}}\n");
        assert_eq!(parse_in(Scope::Policy, "f", &text).map(|objects| objects.len()), Ok(1));
    }
}

#[test]
fn an_agent_takes_no_policy_that_it_would_not_enforce() {
    for kind in ["MeshBaseline", "MeshPolicy", "MeshException", "MeshSettings"] {
        let problems = parse("f", &format!("{HEAD}kind: {kind}\nmetadata: {{name: x}}\nspec: {{}}\n")).unwrap_err();
        let told = problems[0].to_string();
        assert!(told.contains("is not read here") && told.contains(kind), "{told}");
    }
}
