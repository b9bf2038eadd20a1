//! Manifests as clusters print them.

use super::super::*;
use kumiko_abi::Stage;

const NAMESPACE: &str = include_str!("real/namespace.yaml");
const NODE: &str = include_str!("real/node.yaml");
const SERVICE: &str = include_str!("real/service.yaml");
const SLICE: &str = include_str!("real/endpointslice.yaml");

fn only(text: &str) -> Kind {
    let objects = parse("f.yaml", text)
        .unwrap_or_else(|problems| panic!("{}", problems.iter().map(|p| format!("{p}\n")).collect::<String>()));
    assert_eq!(objects.len(), 1);
    objects.into_iter().next().unwrap().kind
}

#[test]
fn a_namespace() {
    let Kind::Namespace(NamespaceObject { name, stage, labels, .. }) = only(NAMESPACE) else { panic!() };
    assert_eq!((name.as_str(), stage), ("demo", Stage::Strict));
    assert_eq!(labels["kubernetes.io/metadata.name"], "demo");
}

#[test]
fn a_namespace_has_no_other_namespaces_name() {
    let text = "apiVersion: v1\nkind: Namespace\nmetadata: {name: a, labels: {kubernetes.io/metadata.name: b}}\n";
    let told = parse("f", text).unwrap_err()[0].to_string();
    assert!(
        told.contains("metadata.labels.kubernetes.io/metadata.name: \"b\" is not the namespace's own name"),
        "{told}"
    );
}

#[test]
fn a_node() {
    let addresses = vec!["192.168.49.2".parse().unwrap(), "fd00:49::2".parse().unwrap()];
    let pod_cidrs = ["10.244.0.0/24", "fd00:244::/64"].map(|net| net.parse().unwrap()).to_vec();
    let uid = "5f1c4d0d-7d2a-43ab-97b5-64e1d0f9f9ab".to_owned();
    assert_eq!(only(NODE), Kind::Node(NodeObject { name: "minikube".into(), addresses, pod_cidrs, uid }));
}

#[test]
fn a_service() {
    let Kind::Service(service) = only(SERVICE) else { panic!() };
    assert_eq!(service.cluster_ips, ["10.96.112.7".parse::<IpAddr>().unwrap(), "fd00:96::9a1c".parse().unwrap()]);
    let ports: Vec<_> = service.ports.iter().map(|p| (p.name.as_str(), p.port, p.protocol, p.target.clone())).collect();
    assert_eq!(
        ports,
        [
            ("http", 80, Protocol::Tcp, PortTarget::Name("web".into())),
            ("metrics", 9090, Protocol::Tcp, PortTarget::Number(9090)),
            ("dns", 53, Protocol::Udp, PortTarget::Number(5353))
        ]
    );
}

#[test]
fn an_endpoint_slice() {
    let Kind::EndpointSlice(slice) = only(SLICE) else { panic!() };
    assert_eq!(slice.service.as_deref(), Some("web"));
    assert_eq!(slice.endpoints.iter().map(|e| e.ready).collect::<Vec<_>>(), [true, false, true]);
    assert_eq!(slice.ports.len(), 2);
}

#[test]
fn headless_and_external_services_have_no_address() {
    for spec in ["{clusterIP: None, clusterIPs: [None]}", "{type: ExternalName, externalName: example.com}", "{}"] {
        let text = format!("apiVersion: v1\nkind: Service\nmetadata: {{name: a, namespace: b}}\nspec: {spec}\n");
        let Kind::Service(service) = only(&text) else { panic!() };
        assert!(service.cluster_ips.is_empty(), "{spec}");
    }
}

#[test]
fn a_list_is_its_items() {
    let indent = |text: &str| {
        let mut lines = text.lines().filter(|line| !line.starts_with("---"));
        let first = lines.next().map(|line| format!("- {line}\n")).unwrap_or_default();
        first + &lines.map(|line| format!("  {line}\n")).collect::<String>()
    };
    let list = format!(
        "apiVersion: v1\nkind: List\nmetadata:\n  resourceVersion: \"\"\nitems:\n{}{}",
        indent(NAMESPACE),
        indent(NODE)
    );
    assert_eq!(parse("f.yaml", &list).unwrap().len(), 2);
    let nested = "apiVersion: v1\nkind: List\nitems: [{apiVersion: v1, kind: List, items: []}]\nitem: 1\n";
    let told: Vec<String> = parse("f.yaml", nested).unwrap_err().iter().map(ToString::to_string).collect();
    assert!(told[0].starts_with("f.yaml:3:9: List of v1 is not read here"), "{told:?}");
    assert_eq!(told[1], "f.yaml:4:1: List has no field item: check its spelling, or remove it");
}

#[test]
fn json_is_yaml() {
    let text =
        r#"{"apiVersion":"v1","kind":"Namespace","metadata":{"name":"demo","labels":{"kumiko.dev/stage":"observe"}}}"#;
    let Kind::Namespace(NamespaceObject { name, stage, labels, .. }) = only(text) else { panic!() };
    assert_eq!((name.as_str(), stage), ("demo", Stage::Observe));
    assert_eq!(labels["kubernetes.io/metadata.name"], "demo", "as every API server adds it");
}
