//! `kumiko policy` against folders, without an agent.

use std::fs;
use std::path::Path;
use std::process::Output;

use serde_json::Value;

use super::sample::kumiko;

const DOCUMENTS: [&str; 2] = ["world.yaml", "policy.yaml"];

/// The folder that the evaluator's own tests use.
fn folder() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("../core/src/policy/tests/told");
    for name in DOCUMENTS {
        fs::copy(from.join(name), dir.path().join(name)).unwrap();
    }
    dir
}

fn policy(dir: &Path, args: &[&str]) -> (Option<i32>, String, String) {
    let dir = dir.to_str().unwrap();
    let args = [&["policy"], args, &["--folder", dir]].concat();
    let Output { status, stdout, stderr } = kumiko(Path::new("/nonexistent"), Some(100), &args).output().unwrap();
    (status.code(), String::from_utf8(stdout).unwrap(), String::from_utf8(stderr).unwrap())
}

#[test]
fn explain_answers_by_its_exit_code_too() {
    let dir = folder();
    let ask = |from: &str, to: &str, more: &[&str]| {
        let args = [&["explain", "--from", from, "--to", to, "--port", "8443"], more].concat();
        policy(dir.path(), &args)
    };
    let (code, shown, _) = ask("fx-dev/batch-1", "payments/api-5f2", &[]);
    let expected = "\
DENY (baseline)  fx-dev/batch-1 -> payments/api-5f2  TCP 8443
  by       MeshBaseline/bank ingress.deny.no-dev
  also     MeshBaseline/bank ingress.allow: none matches
  team     cannot allow this
  expired  MeshException/fx-migration, 2026-10-31, fx-team@bank
  next     ask platform for a MeshException
";
    assert_eq!((code, shown.as_str()), (Some(1), expected));
    let (code, shown, _) = ask("checkout/web-1", "payments/api-5f2", &[]);
    assert_eq!(code, Some(0), "{shown}");
    assert!(shown.starts_with("ALLOW  checkout/web-1 -> payments/api-5f2  TCP 8443\n"), "{shown}");
    let (code, shown, _) = ask("10.0.0.4", "10.0.0.1", &["-o", "json"]);
    let answer: Value = serde_json::from_str(&shown).unwrap();
    assert_eq!(
        (code, answer["verdict"].as_str(), answer["from"].as_str()),
        (Some(0), Some("allow"), Some("checkout/web-1"))
    );
    let (code, _, told) = ask("checkout/web-9", "payments/api-5f2", &[]);
    assert_eq!(
        (code, told.as_str()),
        (Some(2), "kumiko: cannot say: checkout/web-9: no workload of this name is in the folder\n")
    );
    let service = "apiVersion: v1\nkind: Service\nmetadata: {name: api, namespace: payments}\n\
                   spec: {clusterIP: 10.96.0.7, ports: [{port: 443, targetPort: 8443}], selector: {app: api}}\n---\n\
                   apiVersion: kumiko.dev/v1alpha1\nkind: Workload\nmetadata: {name: six, namespace: lab, uid: u8}\n\
                   spec: {serviceAccount: six, node: n1, ips: [\"fd00::8\"]}\n";
    fs::write(dir.path().join("service.yaml"), service).unwrap();
    let (code, shown, told) = ask("checkout/web-1", "10.96.0.7", &[]);
    assert_eq!((code, shown.as_str()), (Some(2), ""));
    assert!(told.contains("10.96.0.7: is an address of Service payments/api: name one of its workloads"), "{told}");
    let (code, _, told) = ask("checkout/web-1", "payments/api", &[]);
    assert_eq!(code, Some(2));
    assert!(told.contains("payments/api: is a Service, not a workload: name one of the workloads"), "{told}");
    let (code, _, told) = ask("checkout/web-1", "lab/six", &[]);
    assert_eq!(code, Some(2));
    assert!(told.contains("checkout/web-1 and lab/six have no addresses of one family"), "{told}");
    let (code, shown, _) = ask("::ffff:10.0.0.4", "payments/api-5f2", &[]);
    assert_eq!(code, Some(0), "{shown}");
    assert!(shown.starts_with("ALLOW  checkout/web-1 -> payments/api-5f2"), "{shown}");
    let (code, _, _) = policy(dir.path(), &["explain", "--from", "a/b"]);
    assert_eq!(code, Some(2));
    fs::write(dir.path().join("bad.yaml"), "kind: MeshPolicy\n").unwrap();
    let (code, shown, told) = ask("checkout/web-1", "payments/api-5f2", &[]);
    assert_eq!((code, shown.as_str()), (Some(2), ""));
    assert!(told.contains("\nbad.yaml:1:1: apiVersion is missing: add it"), "{told}");
}

#[test]
fn a_spiffe_id_of_another_trust_domain_is_not_passed_over() {
    let dir = folder();
    let deny = "apiVersion: kumiko.dev/v1alpha1\nkind: MeshBaseline\nmetadata: {name: no-web}\nspec:\n  subject: {}\n  \
                ingress: {deny: [{name: web, from: [{spiffeId: \"spiffe://bank.example/ns/checkout/sa/web\"}]}]}\n";
    fs::write(dir.path().join("deny.yaml"), deny).unwrap();
    let ask = ["explain", "--from", "checkout/web-1", "--to", "payments/api-5f2", "--port", "8443"];
    let (code, _, told) = policy(dir.path(), &ask);
    assert_eq!(code, Some(2), "{told}");
    let problem =
        "MeshBaseline/no-web: spiffe://bank.example/ns/checkout/sa/web is not of the trust domain cluster.local";
    assert!(told.contains(problem), "{told}");
    let (code, shown, _) = policy(dir.path(), &[&ask[..], &["--trust-domain", "bank.example"]].concat());
    assert_eq!(code, Some(1), "{shown}");
    assert!(shown.contains("MeshBaseline/no-web ingress.deny.web"), "{shown}");
}

#[test]
fn check_warns_of_who_is_nobody_and_fails_for_a_deny() {
    let dir = folder();
    let (code, shown, _) = policy(dir.path(), &["check"]);
    let warned =
        "policy.yaml:1:1: MeshBaseline/bank: ingress.guarantee.scrape allows nobody, for nobody is whom it names";
    assert!(code == Some(0) && shown.contains(warned), "{shown}");
    let deny = "apiVersion: kumiko.dev/v1alpha1\nkind: MeshBaseline\nmetadata: {name: no-web}\nspec:\n  subject: {}\n  \
                ingress: {deny: [{name: web, from: [{namespace: chekout}]}]}\n";
    fs::write(dir.path().join("deny.yaml"), deny).unwrap();
    let (code, shown, _) = policy(dir.path(), &["check"]);
    let told = "deny.yaml:1:1: MeshBaseline/no-web: ingress.deny.web denies nobody, for nobody is whom it names, so the \
                object is degraded: ";
    assert!(code == Some(1) && shown.contains(told), "{shown}");
    let (code, shown, _) = policy(dir.path(), &["check", "-o", "json"]);
    let answer: Value = serde_json::from_str(&shown).unwrap();
    let count = |field: &str| answer[field].as_array().map(Vec::len);
    assert_eq!((code, count("problems"), count("warnings")), (Some(1), Some(1), Some(3)), "{shown}");
    let problem = &answer["problems"][0];
    assert_eq!((&problem["file"], &problem["line"], &problem["column"]), (&"deny.yaml".into(), &1.into(), &1.into()));
    fs::write(dir.path().join("deny.yaml"), deny.replace("chekout", "checkout")).unwrap();
    assert_eq!(policy(dir.path(), &["check"]).0, Some(0));
}

#[test]
fn check_tells_what_is_wrong() {
    let dir = folder();
    assert_eq!(policy(dir.path(), &["check"]).0, Some(0));
    let spec = "apiVersion: kumiko.dev/v1alpha1\nkind: MeshPolicy\nmetadata: {name: p, namespace: ledger}\n\
                spec: {mode: audit, replaces: [gone], ingress: []}\n";
    fs::write(dir.path().join("more.yaml"), spec).unwrap();
    let (code, shown, _) = policy(dir.path(), &["check"]);
    assert_eq!(code, Some(1));
    assert!(
        shown.ends_with(
            "more.yaml:1:1: MeshPolicy/ledger/p: there is no MeshPolicy ledger/gone to replace: see its name, or remove it \
             from spec.replaces\n"
        ),
        "{shown}"
    );
    let (code, shown, _) = policy(dir.path(), &["check", "-o", "json"]);
    let answer: Value = serde_json::from_str(&shown).unwrap();
    assert_eq!((code, answer["problems"].as_array().map(Vec::len)), (Some(1), Some(1)));
    let gone = dir.path().join("gone");
    let (code, _, told) = policy(&gone, &["check"]);
    assert_eq!(code, Some(2));
    assert!(told.starts_with("kumiko: cannot say: ") && told.contains("No such file"), "{told}");
}
