use super::node::{MAX_DEPTH, MAX_VALUES};
use super::*;
use kumiko_abi::Stage;
use proptest::prelude::*;

mod folder;
mod real;
mod said;

const WORKLOAD: &str = r#"
apiVersion: kumiko.dev/v1alpha1
kind: Workload
metadata:
  name: client-1
  namespace: demo
  uid: 6f0c1b1e-0001
  labels: {app: client}
spec:
  serviceAccount: client
  node: n1
  ips: [10.244.1.2, "fd00:244:1::2"]
  ports:
    - {name: http, port: 8080, protocol: TCP, probe: true}
  attachment: {netns: /run/netns/n1-client-1, interface: eth0}
"#;

/// The diagnostics of a text, as people read them.
fn told(text: &str) -> Vec<String> {
    match parse("f.yaml", text) {
        Ok(objects) => panic!("not refused: {objects:?}"),
        Err(diagnostics) => diagnostics.iter().map(Diagnostic::to_string).collect(),
    }
}

/// The only diagnostic of the workload above after a change.
fn changed(from: &str, to: &str) -> String {
    assert!(WORKLOAD.contains(from), "{from} is not in the text");
    let told = told(&WORKLOAD.replacen(from, to, 1));
    assert_eq!(told.len(), 1, "{told:?}");
    told.into_iter().next().unwrap()
}

#[test]
fn a_workload_is_read_whole() {
    let objects = parse("f.yaml", WORKLOAD).unwrap();
    let Kind::Workload(workload) = &objects[0].kind else { panic!() };
    assert_eq!(objects[0].place, Place { line: 2, column: 1 });
    assert_eq!((workload.namespace.as_str(), workload.name.as_str()), ("demo", "client-1"));
    assert_eq!(workload.uid, "6f0c1b1e-0001");
    assert_eq!(workload.ips, ["10.244.1.2".parse::<IpAddr>().unwrap(), "fd00:244:1::2".parse().unwrap()]);
    assert_eq!(
        workload.ports,
        [WorkloadPort { name: "http".into(), port: 8080, protocol: Protocol::Tcp, probe: true }]
    );
    let netns = Attachment::Netns { path: "/run/netns/n1-client-1".into(), interface: "eth0".into() };
    assert_eq!(workload.attachment, Some(netns));
    assert!(workload.ready && workload.stage.is_none());
    assert_eq!(objects[0].claims.len(), 4);
}

#[test]
fn defaults_of_a_workload() {
    let text = WORKLOAD
        .replace("attachment: {netns: /run/netns/n1-client-1, interface: eth0}", "attachment: {netns: /run/netns/x}")
        .replace("{name: http, port: 8080, protocol: TCP, probe: true}", "{port: 1}")
        .replace("labels: {app: client}", "labels: {kumiko.dev/stage: strict}");
    let objects = parse("f.yaml", &text).unwrap();
    let Kind::Workload(workload) = &objects[0].kind else { panic!() };
    assert_eq!(workload.attachment, Some(Attachment::Netns { path: "/run/netns/x".into(), interface: "eth0".into() }));
    assert_eq!(workload.ports[0].protocol, Protocol::Tcp);
    assert!(!workload.ports[0].probe);
    assert_eq!(workload.stage, Some((Stage::Strict, Place { line: 8, column: 30 })));
    let remote = WORKLOAD.lines().filter(|line| !line.contains("attachment")).collect::<Vec<_>>().join("\n");
    assert!(parse("f.yaml", &remote).is_ok());
    let veth = WORKLOAD.replace("{netns: /run/netns/n1-client-1, interface: eth0}", "{veth: vethab12}");
    assert!(parse("f.yaml", &veth).is_ok());
}

#[test]
fn unknown_fields_tell_their_place() {
    assert_eq!(
        changed("serviceAccount: client", "serviceAcount: client\n  serviceAccount: client"),
        "f.yaml:10:3: Workload has no field spec.serviceAcount: check its spelling, or remove it"
    );
    assert_eq!(
        changed("probe: true", "prob: true"),
        "f.yaml:14:47: Workload has no field spec.ports[0].prob: check its spelling, or remove it"
    );
    assert_eq!(
        told("apiVersion: v1\nkind: Service\nmetadata: {name: a, namespace: b}\nspec:\n  clusterIp: 10.0.0.1\n"),
        ["f.yaml:5:3: Service has no field spec.clusterIp: check its spelling, or remove it"]
    );
}

#[test]
fn values_of_the_wrong_type() {
    assert_eq!(
        changed("port: 8080", "port: http"),
        "f.yaml:14:26: spec.ports[0].port: found the text \"http\", expected a whole number"
    );
    assert_eq!(
        changed("uid: 6f0c1b1e-0001", "uid: 12345"),
        "f.yaml:7:8: metadata.uid: found the number 12345, expected a string: write it in quotes"
    );
    assert_eq!(
        changed("labels: {app: client}", "labels: [app]"),
        "f.yaml:8:11: metadata.labels: found a list, expected a map"
    );
    assert_eq!(changed("port: 8080, ", ""), "f.yaml:14:7: spec.ports[0]: the field port is missing: add it");
    assert_eq!(
        told("apiVersion: kumiko.dev/v1alpha1\nkind: Workload\nmetadata: {}\n"),
        ["f.yaml:1:1: Workload: the field spec is missing: add it"]
    );
}

#[test]
fn names_and_addresses_are_checked() {
    let label = "must be 1 to 63 lower-case letters, digits and '-', beginning and ending with a letter or digit";
    assert_eq!(
        changed("namespace: demo", "namespace: Demo"),
        format!("f.yaml:6:14: metadata.namespace: \"Demo\" {label}")
    );
    assert_eq!(
        changed("name: client-1", "name: client_1"),
        "f.yaml:5:9: metadata.name: \"client_1\" must be labels of lower-case letters, digits and '-' joined by '.', at \
         most 253 characters (RFC 1123)"
    );
    assert_eq!(
        changed("10.244.1.2", "10.244.1.256"),
        "f.yaml:12:9: spec.ips[0]: \"10.244.1.256\" must be an IPv4 or IPv6 address"
    );
    for bad in [
        "127.0.0.1",
        "0.0.0.0",
        "224.0.0.1",
        "169.254.1.1",
        "255.255.255.255",
        "'::1'",
        "'fe80::1'",
        "'::ffff:10.0.0.1'",
    ] {
        assert!(changed("10.244.1.2", bad).contains("must be the address of one interface"), "{bad}");
    }
    assert_eq!(
        changed("port: 8080", "port: 70000"),
        "f.yaml:14:26: spec.ports[0].port: \"70000\" must be a port number from 1 to 65535"
    );
    assert_eq!(
        changed("protocol: TCP", "protocol: tcp"),
        "f.yaml:14:42: spec.ports[0].protocol: \"tcp\" must be TCP, UDP or SCTP"
    );
    assert!(changed("uid: 6f0c1b1e-0001", "uid: a/b").contains("must be 1 to 128 letters"));
    assert!(changed("{name: http", "{name: '80'").contains("must be a port name"));
    assert!(changed("interface: eth0", "interface: a/b").contains("must be an interface name"));
    assert!(changed("/run/netns/n1-client-1", "/run/../etc").contains("must be an absolute path without '..'"));
    assert!(changed("/run/netns/n1-client-1", "n1").contains("must be an absolute path without '..'"));
    assert_eq!(changed("  uid: 6f0c1b1e-0001\n", ""), "f.yaml:5:3: metadata.uid is missing: add it");
    assert_eq!(changed("ips: [10.244.1.2, \"fd00:244:1::2\"]", "ips: []"), "f.yaml:12:8: spec.ips is missing: add it");
    assert!(
        changed(
            "- {name: http, port: 8080, protocol: TCP, probe: true}",
            "- {name: a, port: 1}\n    - {name: a, port: 2}"
        )
        .contains("names another port of this workload too")
    );
}

#[test]
fn an_attachment_is_one_of_two() {
    let text = "f.yaml:15:15: spec.attachment needs exactly one of netns (with interface) and veth: write one, or remove \
                spec.attachment";
    for bad in ["{}", "{netns: /a, veth: b}", "{interface: eth0}", "{veth: a, interface: eth0}"] {
        assert_eq!(changed("{netns: /run/netns/n1-client-1, interface: eth0}", bad), text, "{bad}");
    }
}

#[test]
fn a_stage_is_one_of_four() {
    assert_eq!(
        changed("{app: client}", "{kumiko.dev/stage: on}"),
        "f.yaml:8:30: the label kumiko.dev/stage is \"on\": write off, observe, permissive or strict"
    );
}

#[test]
fn one_claim_each_within_a_file() {
    assert_eq!(
        changed("\"fd00:244:1::2\"", "10.244.1.2"),
        "f.yaml:12:21: address 10.244.1.2 is already claimed at f.yaml:12: remove one of the claims"
    );
    let two = format!("{WORKLOAD}---\n{}", WORKLOAD.replace("10.244.1.2, \"fd00:244:1::2\"", "10.244.1.3"));
    assert_eq!(
        told(&two),
        [
            "f.yaml:21:9: Workload demo/client-1 is already claimed at f.yaml:5: remove one of the claims",
            "f.yaml:23:8: UID 6f0c1b1e-0001 is already claimed at f.yaml:7: remove one of the claims"
        ]
    );
}

#[test]
fn what_is_no_object_of_ours() {
    assert_eq!(
        told("apiVersion: apps/v1\nkind: Deployment\n"),
        [
            "f.yaml:2:7: Deployment of apps/v1 is not read here: only v1 Namespace, Node, Service and ServiceAccount, discovery.k8s.io/v1 \
          EndpointSlice and kumiko.dev/v1alpha1 Workload are; remove the document or move it to another folder"
        ]
    );
    assert_eq!(
        told("- a\n"),
        ["f.yaml:1:1: a document must be an object with apiVersion, kind and metadata: write these, or remove it"]
    );
    assert_eq!(told("kind: Service\n"), ["f.yaml:1:1: apiVersion is missing: add it"]);
    assert!(parse("f.yaml", "").unwrap().is_empty());
    assert!(parse("f.yaml", "# nothing\n---\n---\n").unwrap().is_empty());
}

#[test]
fn a_node_needs_an_address() {
    let node =
        "apiVersion: v1\nkind: Node\nmetadata: {name: n1}\nstatus:\n  addresses: [{type: Hostname, address: n1}]\n";
    assert_eq!(told(node), ["f.yaml:5:14: status.addresses of type InternalIP is missing: add it"]);
}

#[test]
fn yaml_that_is_none() {
    assert_eq!(told("a: [1\nb: 2\n").len(), 1);
    assert!(told("a: [1\nb: 2\n")[0].contains("is not YAML: "), "{:?}", told("a: [1\nb: 2\n"));
    assert_eq!(
        told("a: 1\nb: 2\na: 3\n"),
        ["f.yaml:3:1: the key \"a\" stands here already (line 1): remove one of them"]
    );
    assert_eq!(told("a: !secret b\n"), ["f.yaml:1:4: the YAML tag !secret is not supported: remove it"]);
    assert_eq!(told("{1: a}\n"), ["f.yaml:1:2: a key must be a plain string: write it in quotes"]);
    assert_eq!(
        told("a: &x [*x]\n"),
        ["f.yaml:1:8: an alias to something that is not complete here: write the value out"]
    );
}

#[test]
fn input_is_bounded() {
    let deep = format!("a: {}{}", "[".repeat(MAX_DEPTH + 1), "]".repeat(MAX_DEPTH + 1));
    assert_eq!(
        told(&deep),
        [format!(
            "f.yaml:1:{}: is nested deeper than 64 levels: no object that is read here is; look for a bracket or an alias too many",
            4 + MAX_DEPTH - 1
        )]
    );
    let long = "a".repeat(MAX_BYTES + 1);
    assert_eq!(
        told(&long),
        [format!("f.yaml: is {} bytes long, the limit is {MAX_BYTES}: split it into several files", MAX_BYTES + 1)]
    );
    // Ten to the ninth values from a few hundred bytes.
    let mut laughs = "a0: &a0 [x,x,x,x,x,x,x,x,x,x]\n".to_owned();
    for level in 1..10 {
        let below = vec![format!("*a{}", level - 1); 10].join(",");
        laughs.push_str(&format!("a{level}: &a{level} [{below}]\n"));
    }
    let told = told(&laughs);
    assert!(
        told[0].ends_with(&format!("holds more than {MAX_VALUES} values (aliases expanded): split the file")),
        "{told:?}"
    );
    // A chain of aliases, each one level deeper than the last.
    let mut chain = "a0: &a0 x\n".to_owned();
    for level in 1..100 {
        chain.push_str(&format!("a{level}: &a{level} [*a{}]\n", level - 1));
    }
    assert!(super::node::parse(&chain).is_err());
}

#[test]
fn not_every_problem_of_a_bad_file_is_told() {
    let many = "---\n{}\n".repeat(1000);
    assert_eq!(told(&many).len(), MAX_DIAGNOSTICS);
}

#[test]
fn aliases_are_written_out() {
    let text = WORKLOAD
        .replace("labels: {app: client}", "labels: {app: &name client}")
        .replace("serviceAccount: client", "serviceAccount: *name");
    let objects = parse("f.yaml", &text).unwrap();
    let Kind::Workload(workload) = &objects[0].kind else { panic!() };
    assert_eq!(workload.service_account, "client");
}

fn bits_of_yaml() -> impl Strategy<Value = String> {
    let words = [
        "apiVersion: v1\n",
        "kind: Service\n",
        "metadata:\n",
        "  name: a\n",
        "spec:\n",
        "  ports:\n",
        "    - port: 80\n",
        "---\n",
        "...\n",
        "- ",
        "? ",
        ": ",
        "&a ",
        "*a",
        "!!str ",
        "|\n",
        ">-\n",
        "'",
        "\"",
        "[",
        "]",
        "{",
        "}",
        ",",
        "#",
        "%YAML 1.2\n",
        "\t",
        "  ",
        "\n",
        "é",
        "\u{feff}",
        "0x1f",
        "~",
        "<<: *a\n",
        "\\u12",
        "\u{0}",
        "@",
        "`",
    ];
    proptest::collection::vec(proptest::sample::select(words.to_vec()), 0..60).prop_map(|words| words.concat())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn any_text_is_read_or_refused(text in "\\PC*") {
        let _ = parse("f.yaml", &text);
    }

    #[test]
    fn anything_like_yaml_is_read_or_refused(text in bits_of_yaml()) {
        let _ = parse("f.yaml", &text);
    }

    /// Every cut of a good document is read or refused, with a place inside the text.
    #[test]
    fn places_lie_in_the_text(at in 0..WORKLOAD.len(), with in bits_of_yaml()) {
        let text = format!("{}{with}", &WORKLOAD[..at]);
        if let Err(diagnostics) = parse("f.yaml", &text) {
            prop_assert!(!diagnostics.is_empty());
            for diagnostic in diagnostics {
                // The parser counts every kind of line break that YAML 1.1 knew, and one line after the last.
                let lines = text.chars().filter(|c| matches!(c, '\n' | '\r' | '\u{85}' | '\u{2028}' | '\u{2029}')).count() + 2;
                prop_assert!((diagnostic.place.line as usize) <= lines, "{}", diagnostic);
            }
        }
    }
}
