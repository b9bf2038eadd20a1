//! What stands for policy that never was in force.

use std::collections::BTreeMap;

use kumiko_abi::Reason;
use kumiko_abi::policy::{Question, View, find};
use proptest::prelude::*;

use super::*;
use crate::manifest::{FileContent, FolderState};
use crate::model::World;
use crate::policy::compile::{Image, compile};
use crate::policy::explain::explain;
use crate::policy::port::Asked;
use crate::policy::verdict::{End, Evaluator, Flow};

const PODS: &str = "\
apiVersion: v1
kind: Namespace
metadata: {name: demo, labels: {kumiko.dev/stage: strict}}
---
apiVersion: kumiko.dev/v1alpha1
kind: Workload
metadata: {name: api, namespace: demo, uid: u-api, labels: {app: api}}
spec: {serviceAccount: api, node: n1, ips: [10.0.0.1]}
---
apiVersion: kumiko.dev/v1alpha1
kind: Workload
metadata: {name: web, namespace: demo, uid: u-web, labels: {app: web}}
spec: {serviceAccount: web, node: n1, ips: [10.0.0.2]}
";

fn mesh(name: &str, spec: &str) -> String {
    format!(
        "apiVersion: kumiko.dev/v1alpha1\nkind: MeshPolicy\nmetadata: {{name: {name}, namespace: demo}}\nspec:\n{spec}"
    )
}

fn network(spec: &str) -> String {
    format!(
        "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{name: p, namespace: demo}}\nspec:\n{spec}"
    )
}

fn state(files: &[(&str, &str)]) -> FolderState {
    let mut state = FolderState::of(Scope::Policy);
    apply(&mut state, files);
    state
}

fn apply(state: &mut FolderState, files: &[(&str, &str)]) {
    let files = files.iter().map(|(name, text)| ((*name).to_owned(), FileContent::Text((*text).to_owned())));
    state.apply(files.collect::<BTreeMap<_, _>>());
}

/// What stands for policy, each by its name, whom it selects, and its directions.
fn stand_ins(state: &FolderState) -> Vec<String> {
    let policies = state.objects().filter_map(|(_, object)| match &object.kind {
        Kind::Policy(policy) if policy.object.invalid => Some(&policy.object),
        _ => None,
    });
    let one = |object: &rule::Object| {
        let labels: Vec<String> = object.subject.labels.iter().map(ToString::to_string).collect();
        let selects = [labels, object.subject.service_account.iter().cloned().collect()].concat().join(",");
        let direction = |rules: &Option<Rules>, word| rules.as_ref().map_or("", |_| word);
        let (ingress, egress) = (direction(&object.ingress, "i"), direction(&object.egress, "e"));
        assert_eq!(object.subject.namespace.as_ref(), Some(&object.id.namespace));
        format!("{} [{selects}] {ingress}{egress}", object.id)
    };
    policies.map(one).collect()
}

/// Why the flow is refused; `None`: it is not.
fn refusal(state: &FolderState, from: &str, to: &str) -> Option<Reason> {
    let (world, _) = World::build("td", 1, state.objects()).unwrap();
    let compiled = compile(&Evaluator::of(&world), "n1", 0).unwrap();
    let image = Image::of(&compiled, 0, 0).unwrap();
    let ip = |name: &str| world.workload_named("demo", name).unwrap().ips[0];
    let asked = |own: &str, peer: &str, ingress| {
        let (set, class) = (image.ends[&format!("u-{own}")], image.class(ip(peer)));
        let question = Question { set, class, ingress, proto: 6, proved: true, port: 80 };
        find(&image, question).unwrap().refusal(View::Enforced, 1)
    };
    asked(from, to, false).or(asked(to, from, true))
}

#[test]
fn what_can_be_read_of_it_says_whom_it_selects() {
    let bad = "  ingres: []\n";
    let cases = [
        // The rule is bad, the rest is fine.
        (mesh("p", "  subject: {labels: {app: api}}\n  ingress: [{name: A}]\n"), "MeshPolicy/demo/p [app=api] i"),
        (mesh("p", "  subject: {serviceAccount: api}\n  egress: [{name: A}]\n"), "MeshPolicy/demo/p [api] e"),
        // Nobody knows which direction was meant.
        (mesh("p", &format!("  subject: {{labels: {{app: api}}}}\n{bad}")), "MeshPolicy/demo/p [app=api] ie"),
        // The subject is bad: all of the namespace.
        (mesh("p", "  subject: {lables: {app: api}}\n  ingress: []\n"), "MeshPolicy/demo/p [] i"),
        (mesh("p", "  subject:\n  egress: []\n"), "MeshPolicy/demo/p [] e"),
        (mesh("p", "  subject: {labels: {app: '-'}}\n  ingress: [{name: A}]\n"), "MeshPolicy/demo/p [] i"),
        (mesh("p", "  - a\n"), "MeshPolicy/demo/p [] ie"),
        // Twice the same key, a tab, half a text: no YAML.
        (mesh("p", "  ingress: []\n  ingress: []\n"), "MeshPolicy/demo/p [] ie"),
        (mesh("p", "  ingress: [{name: a\n"), "MeshPolicy/demo/p [] ie"),
        (mesh("\"p\"", "\tingress: []\n"), "MeshPolicy/demo/p [] ie"),
        // Another version of the API, a name that is none.
        (mesh("p", "  ingress: []\n").replace("v1alpha1", "v1"), "MeshPolicy/demo/p [] i"),
        (mesh("P_", "  ingress: []\n"), "MeshPolicy/demo/P_ [] i"),
        (mesh("p", "  ingress: []\n").replace("name: p, ", ""), "MeshPolicy/demo/(f:1:1) [] i"),
        // In audit it would refuse nothing; of no namespace nobody knows whom.
        (mesh("p", "  mode: audit\n  ingress: [{name: A}]\n"), ""),
        (mesh("p", "  mode: audti\n  ingress: []\n"), "MeshPolicy/demo/p [] i"),
        (mesh("p", "  ingress: []\n").replace(", namespace: demo", ""), ""),
        // Kubernetes' own.
        (
            network("  podSelector: {matchLabels: {app: api}}\n  ingress: [{from: [{}]}]\n"),
            "NetworkPolicy/demo/p [app=api] i",
        ),
        (network("  podSelector: {}\n  policyTypes: [Egress]\n  egress: [{to: [{}]}]\n"), "NetworkPolicy/demo/p [] e"),
        (network("  podSelector: {}\n  egress: [{to: [{}]}]\n"), "NetworkPolicy/demo/p [] ie"),
        (network("  podSelector: {}\n  policyTypes: [egress]\n"), "NetworkPolicy/demo/p [] ie"),
        (network("  podSelector: {matchLabel: {}}\n  policyTypes: [Ingress]\n"), "NetworkPolicy/demo/p [] i"),
        (network("  podSelector: {}\n").replace("networking.k8s.io", "networking.example.org"), ""),
    ];
    for (text, expected) in cases {
        let state = state(&[("f", &text)]);
        assert!(!state.refused_files().is_empty(), "{text}");
        assert_eq!(stand_ins(&state).join("; "), expected, "{text}");
    }
}

#[test]
fn a_policy_that_never_was_valid_refuses_what_no_other_allows() {
    let bad = mesh("bad", "  subject: {labels: {app: api}}\n  ingress: [{name: A}]\n");
    let mut state = state(&[("pods", PODS)]);
    assert_eq!(refusal(&state, "web", "api"), None);
    apply(&mut state, &[("pods", PODS), ("bad", &bad)]);
    assert_eq!(refusal(&state, "web", "api"), Some(Reason::PolicyInvalid));
    assert_eq!(refusal(&state, "api", "web"), None, "it selects ingress of app=api");
    let (world, _) = World::build("td", 1, state.objects()).unwrap();
    let end = |name| End {
        ip: world.workload_named("demo", name).unwrap().ips[0],
        workload: world.workload_named("demo", name).cloned(),
    };
    let asked = Asked { protocol: crate::manifest::Protocol::Tcp, port: 80 };
    let told = explain(&Evaluator::of(&world), &Flow::new(end("web"), end("api"), asked), 0);
    let lines: Vec<String> = told.lines.iter().map(|line| format!("{}: {}", line.label, line.text)).collect();
    assert_eq!((told.verdict.as_ref(), told.because.as_ref()), ("deny", "policy invalid"));
    assert_eq!(
        lines,
        [
            "by: no ingress rule matches",
            "default: caused by MeshPolicy/demo/bad (selects app=api, without rules that are known)",
            "next: team demo mends its policy: see `kumiko status`"
        ]
    );
    // A union: what another policy allows stays allowed.
    let good = mesh("good", "  ingress: [{name: web, from: [{namespace: demo, serviceAccount: web}]}]\n");
    apply(&mut state, &[("pods", PODS), ("bad", &bad), ("good", &good)]);
    assert_eq!(refusal(&state, "web", "api"), None);
    apply(&mut state, &[("pods", PODS), ("bad", &network("  podSelector: {}\n  policyTypes: [Egres]\n"))]);
    assert_eq!(refusal(&state, "web", "api"), Some(Reason::PolicyInvalid));
    apply(&mut state, &[("pods", PODS), ("bad", &network("  podSelector: {}\n  egress: [{}]\n  ingress: [{}]\n"))]);
    assert_eq!((refusal(&state, "web", "api"), stand_ins(&state).len()), (None, 0), "mended");
}

#[test]
fn a_version_that_was_in_force_stays_and_nothing_stands_for_it() {
    let good = mesh("p", "  ingress: [{name: web, from: [{namespace: demo, serviceAccount: web}]}]\n");
    let bad = mesh("p", "  ingress: [{name: A}]\n");
    let new = mesh("new", "  subject: {labels: {app: web}}\n  egress: []\n");
    let mut state = state(&[("pods", PODS), ("f", &good)]);
    apply(&mut state, &[("pods", PODS), ("f", &bad)]);
    assert_eq!((refusal(&state, "web", "api"), stand_ins(&state)), (None, Vec::new()));
    // Beside it in the file one that is fine and new: no version of it is in force.
    apply(&mut state, &[("pods", PODS), ("f", &format!("{bad}---\n{new}"))]);
    assert_eq!(stand_ins(&state), ["MeshPolicy/demo/new [app=web] e"]);
    assert_eq!(refusal(&state, "web", "api"), Some(Reason::PolicyInvalid));
    // A file that is fine, but for an address that another one has.
    let clash = "apiVersion: v1\nkind: Node\nmetadata: {name: n}\nstatus: {addresses: [{type: InternalIP, address: 10.0.0.1}]}\n";
    apply(&mut state, &[("pods", PODS), ("z", &format!("{clash}---\n{new}"))]);
    assert_eq!(stand_ins(&state), ["MeshPolicy/demo/new [app=web] e"]);
    // The same name twice: both are told apart.
    apply(&mut state, &[("pods", PODS), ("y", &format!("{bad}---\n{bad}")), ("z", &bad)]);
    assert_eq!(
        stand_ins(&state),
        ["MeshPolicy/demo/p [] i", "MeshPolicy/demo/p (y:7:1) [] i", "MeshPolicy/demo/p (z:1:1) [] i"]
    );
}

#[test]
fn each_kind_says_what_follows() {
    let head = "apiVersion: kumiko.dev/v1alpha1\nkind: ";
    let told = |text: &str| {
        let state = state(&[("f", &format!("{head}{text}\nspec: {{nothing: x}}\n"))]);
        let told = state.diagnostics().map(ToString::to_string).find(|told| told.contains("no version"));
        (told.unwrap_or_default(), stand_ins(&state).len())
    };
    let cases = [
        (
            "MeshBaseline\nmetadata: {name: bank}",
            "f:1:1: MeshBaseline/bank has no version that is in force: it denies, caps and guarantees nothing",
        ),
        (
            "MeshException\nmetadata: {name: fx}",
            "f:1:1: MeshException/fx has no version that is in force: it suspends nothing",
        ),
        (
            "MeshSettings\nmetadata: {name: mesh}",
            "f:1:1: MeshSettings/mesh has no version that is in force: no label is the platform's",
        ),
        (
            "MeshPolicy\nmetadata: {name: p}",
            "f:1:1: MeshPolicy/p has no version that is in force: it is in audit, or does not say of",
        ),
    ];
    for (text, expected) in cases {
        let (told, closed) = told(text);
        assert!(told.starts_with(expected), "{told}");
        assert_eq!(closed, 0, "{text}");
    }
    let (told, closed) = told("MeshPolicy\nmetadata: {name: p, namespace: demo}");
    assert_eq!(closed, 1);
    assert!(told.contains("MeshPolicy/demo/p has no version that is in force: what it selects is refused"), "{told}");
}

#[test]
fn lists_and_several_documents_have_their_places() {
    let item =
        "{apiVersion: kumiko.dev/v1alpha1, kind: MeshPolicy, metadata: {name: q, namespace: demo}, spec: {x: y}}";
    let text = format!(
        "# first\n{}---\n{}---\napiVersion: v1\nkind: List\nitems: [{item}]\n",
        mesh("a", "  ingress: [{name: A}]\n"),
        mesh("b", "  ingress: [[\n"),
    );
    let state = state(&[("f", &text)]);
    assert_eq!(stand_ins(&state), ["MeshPolicy/demo/a [] i", "MeshPolicy/demo/b [] ie", "MeshPolicy/demo/q [] ie"]);
    let places: Vec<(u32, u32)> = state
        .diagnostics()
        .filter(|told| matches!(told.problem, Problem::NeverValid { .. }))
        .map(|told| (told.place.line, told.place.column))
        .collect();
    assert_eq!(places, [(2, 1), (8, 1), (16, 9)]);
}

proptest! {
    /// Whatever is cut off or put in: who is denied ingress by the whole policy is denied it by what is left, as soon as
    /// its kind and namespace can be read.
    #[test]
    fn half_a_policy_refuses_as_much(at in 0..200_usize, put in "[ -~\\n]{0,12}") {
        let whole = mesh("p", "  subject: {labels: {app: api}}\n  ingress: []\n  egress: []\n");
        let head = whole.find("spec:").unwrap();
        let at = at.min(whole.len());
        let text = format!("{}{put}", &whole[..at]);
        let state = state(&[("pods", PODS), ("f", &text)]);
        if at >= head && !put.contains("---") && !state.refused_files().is_empty() {
            prop_assert_eq!(refusal(&state, "web", "api"), Some(Reason::PolicyInvalid), "{}", text);
        }
    }
}
