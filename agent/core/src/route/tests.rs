use super::*;
use crate::manifest::parse;
use proptest::prelude::*;

/// Two nodes, dual stack: client and server-1 on n1, server-2 on n2, an unmeshed pod on n2, a node without addresses.
fn world() -> World {
    let workload = |name: &str, node: &str, ips: &str, more: &str| {
        format!(
            "apiVersion: kumiko.dev/v1alpha1\nkind: Workload\nmetadata: {{name: {name}, namespace: demo, uid: u-{name}, \
             labels: {{app: {}{more}}}}}\nspec: {{serviceAccount: {}, node: {node}, ips: [{ips}], ports: [{{name: web, \
             port: 8080}}]}}\n---\n",
            name.trim_end_matches(|c: char| c.is_ascii_digit() || c == '-'),
            name.trim_end_matches(|c: char| c.is_ascii_digit() || c == '-'),
        )
    };
    let service = |name: &str, ips: &str, app: &str, target: &str| {
        format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: demo}}\nspec: {{clusterIPs: [{ips}], \
             selector: {{app: {app}}}, ports: [{{port: 80, targetPort: {target}}}]}}\n---\n"
        )
    };
    let node = |name: &str, v4: &str, v6: &str| {
        format!(
            "apiVersion: v1\nkind: Node\nmetadata: {{name: {name}}}\nstatus: {{addresses: [{{type: InternalIP, address: \
             '{v6}'}}, {{type: InternalIP, address: {v4}}}]}}\n---\n"
        )
    };
    let strict = ", kumiko.dev/stage: strict";
    let text = node("n1", "192.168.0.1", "fd00:1::1").replace("name: n1", "name: n1, uid: node-1")
        + "apiVersion: v1\nkind: Namespace\nmetadata: {name: demo, uid: ns-1}\n---\n"
        + "apiVersion: v1\nkind: ServiceAccount\nmetadata: {name: server, namespace: demo, uid: sa-1}\n---\n"
        + &node("n2", "192.168.0.2", "fd00:1::2").replace("name: n2", "name: n2, uid: node-2")
        + &workload("client-1", "n1", "10.0.1.1, 'fd00:2:1::1'", strict)
        + &workload("server-1", "n1", "10.0.1.2, 'fd00:2:1::2'", strict)
        + &workload("server-2", "n2", "10.0.2.2, 'fd00:2:2::2'", strict)
        + &workload("plain-1", "n2", "10.0.2.3", "")
        + &workload("lost-1", "n3", "10.0.3.1", strict)
        + &service("server", "10.9.0.1, 'fd00:9::1'", "server", "web")
        + &service("client", "10.9.0.2", "client", "8080")
        + &service("plain", "10.9.0.3", "plain", "web")
        + &service("nobody", "10.9.0.4", "nobody", "web")
        + "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {name: x, namespace: demo, labels: \
           {kubernetes.io/service-name: foreign}}\naddressType: IPv4\nendpoints: [{addresses: [10.7.7.7]}]\nports: [{port: \
           80}]\n---\n"
        + &service("foreign", "10.9.0.6", "x", "80")
        + &service("unnamed", "10.9.0.5", "server", "other")
        + &service("sticky", "10.9.0.7", "server", "web").replace("spec: {", "spec: {sessionAffinity: ClientIP, ")
        + &service("near", "10.9.0.8", "server", "web").replace("spec: {", "spec: {internalTrafficPolicy: Local, ")
        + &service("farther", "10.9.0.9", "lost", "8080").replace("spec: {", "spec: {internalTrafficPolicy: Local, ");
    let objects = parse("f", &text).unwrap();
    World::build("td", 1, objects.iter().map(|object| ("f", object))).unwrap().0
}

fn ask(client: &str, asked: &str, pick: u64) -> Result<Plan, Reason> {
    plan(&world(), "n1", &SynView { client: client.parse().unwrap(), asked: asked.parse().unwrap(), pick })
}

#[test]
fn a_service_with_affinity_or_for_the_node_only() {
    let picks = || (0..64_u64).map(|n| n << 58);
    for (asked, names) in [("10.9.0.1:80", 2), ("10.9.0.7:80", 1), ("10.9.0.8:80", 1)] {
        let chosen: std::collections::BTreeSet<String> =
            picks().map(|pick| ask("10.0.1.1:50000", asked, pick).unwrap().target.name.clone()).collect();
        assert_eq!(chosen.len(), names, "{asked}: {chosen:?}");
    }
    assert_eq!(ask("10.0.1.1:50000", "10.9.0.8:80", u64::MAX).unwrap().target.name, "server-1");
    assert_eq!(ask("10.0.1.1:50000", "10.9.0.9:80", 0), Err(Reason::NoReadyEndpoint));
    let clients = |last: u8| weight(IpAddr::from([10, 0, 1, last]), "10.0.1.2:8080".parse().unwrap());
    let other = |last: u8| weight(IpAddr::from([10, 0, 1, last]), "10.0.2.2:8080".parse().unwrap());
    let first = (0..=255).filter(|last| clients(*last) > other(*last)).count();
    assert!((64..192).contains(&first), "{first} of 256 clients went to the first of two endpoints");
}

#[test]
fn by_pod_address() {
    let far = ask("10.0.1.1:50000", "10.0.2.2:8080", 0).unwrap();
    assert_eq!(far.target.name, "server-2");
    assert_eq!(far.target_addr, "10.0.2.2:8080".parse().unwrap());
    // Both nodes have IPv6 and it stands first at n2.
    assert_eq!(far.node_addr, Some("fd00:1::2".parse().unwrap()));
    assert_eq!(far.source_principal.to_string(), "spiffe://td/ns/demo/sa/client");
    assert_eq!(far.target_principal.to_string(), "spiffe://td/ns/demo/sa/server");
    assert_eq!(far.service, None);
    let near = ask("10.0.1.1:50000", "10.0.1.2:8080", 0).unwrap();
    assert_eq!((near.target.name.as_str(), near.node_addr), ("server-1", None));
}

#[test]
fn by_service_address() {
    let first = ask("10.0.1.1:50000", "10.9.0.1:80", 0).unwrap();
    assert_eq!((first.target_addr, first.node_addr), ("10.0.1.2:8080".parse().unwrap(), None));
    assert_eq!(first.service.unwrap().to_string(), "demo/server:80");
    let last = ask("10.0.1.1:50000", "10.9.0.1:80", u64::MAX).unwrap();
    assert_eq!(last.target_addr, "10.0.2.2:8080".parse().unwrap());
    let v6 = ask("[fd00:2:1::1]:50000", "[fd00:9::1]:80", u64::MAX).unwrap();
    assert_eq!(v6.target_addr, "[fd00:2:2::2]:8080".parse().unwrap());
    let itself = ask("10.0.1.1:50000", "10.9.0.2:80", 0).unwrap();
    assert_eq!((itself.target.uid.as_str(), itself.node_addr), (itself.source.uid.as_str(), None));
}

#[test]
fn a_target_that_has_just_left_the_mesh_is_still_dialled() {
    assert_eq!(ask("10.0.1.1:1", "10.0.2.3:8080", 0).unwrap().target.name, "plain-1");
    assert_eq!(ask("10.0.1.1:1", "10.9.0.3:80", 0).unwrap().target.name, "plain-1");
}

#[test]
fn refusals_of_a_plan() {
    for (client, asked, reason) in [
        ("10.0.2.2:1", "10.0.1.1:1", Reason::UnknownSource),
        ("10.7.7.7:1", "10.0.1.1:1", Reason::UnknownSource),
        ("10.0.1.1:1", "10.9.0.4:80", Reason::NoReadyEndpoint),
        ("10.0.1.1:1", "10.9.0.5:80", Reason::NoReadyEndpoint),
        ("10.0.1.1:1", "10.9.0.6:80", Reason::ServiceNotMeshed),
        ("10.0.1.1:1", "10.9.0.1:81", Reason::DestinationGone),
        ("10.0.1.1:1", "10.7.7.7:80", Reason::DestinationGone),
        ("10.0.1.1:1", "10.0.3.1:80", Reason::NoSuchNode),
    ] {
        assert_eq!(ask(client, asked, 0).unwrap_err(), reason, "{client} to {asked}");
    }
}

struct Asked<'a> {
    client: &'a str,
    to: &'a str,
    uid: &'a str,
    peer: &'a str,
    node: &'a str,
    shown: &'a str,
    source: &'a str,
    labels: &'a [u8],
    /// Of the certificate: node, and UIDs of node, namespace and account.
    origin: Option<[&'a str; 4]>,
}

const GOOD: Asked<'_> = Asked {
    client: "10.0.2.2:50000",
    to: "10.0.1.1:80",
    uid: "u-client-1",
    peer: "server",
    node: "192.168.0.2",
    shown: "client",
    source: "u-server-2",
    labels: &[],
    origin: Some(["n2", "node-2", "ns-1", "sa-1"]),
};

fn check(asked: Asked<'_>) -> Result<Accepted, Reason> {
    let principal = |account| Principal::new("td", "demo", account).unwrap();
    let open = OpenView {
        client: asked.client.parse().unwrap(),
        destination: asked.to.parse().unwrap(),
        destination_uid: asked.uid,
        source_uid: asked.source,
        label_digest: asked.labels,
    };
    let origin = asked.origin.map(|all| {
        let [node, node_uid, namespace_uid, account_uid] = all.map(str::to_owned);
        Origin { node, node_uid, namespace_uid, account_uid }
    });
    let principals = [asked.peer, asked.shown].map(principal);
    let dialler = Dialler { principal: &principals[0], origin: origin.as_ref(), ip: asked.node.parse().unwrap() };
    check_open(&world(), "n1", &open, dialler, &principals[1])
}

#[test]
fn an_open_that_is_what_it_says() {
    let accepted = check(GOOD).unwrap();
    assert_eq!((accepted.source.name.as_str(), accepted.target.name.as_str()), ("server-2", "client-1"));
    assert!(check(Asked { node: "::ffff:192.168.0.2", ..GOOD }).is_ok());
    assert!(check(Asked { node: "fd00:1::2", ..GOOD }).is_ok());
}

#[test]
fn an_open_that_lies() {
    for (asked, reason) in [
        (Asked { client: "10.7.7.7:1", ..GOOD }, Reason::UnknownSource),
        // Its pod, but dialled by another node; or by an address that is no node's.
        (Asked { node: "192.168.0.1", ..GOOD }, Reason::UnknownSource),
        (Asked { node: "192.168.0.9", ..GOOD }, Reason::UnknownSource),
        (Asked { client: "10.0.1.1:1", ..GOOD }, Reason::UnknownSource),
        // Another pod of the same node.
        (Asked { client: "10.0.2.3:1", source: "u-plain-1", ..GOOD }, Reason::SourceMismatch),
        // Its address, but another pod had it or has it now.
        (Asked { source: "u-before", ..GOOD }, Reason::StaleIdentity),
        (Asked { client: "10.0.2.3:1", ..GOOD }, Reason::StaleIdentity),
        (Asked { source: "u-before", peer: "client", ..GOOD }, Reason::StaleIdentity),
        (Asked { peer: "client", ..GOOD }, Reason::SourceMismatch),
        // The names are the same, and others had them before; or nothing is said of what is known.
        (Asked { origin: Some(["n2", "node-2", "ns-0", "sa-1"]), ..GOOD }, Reason::StaleIdentity),
        (Asked { origin: Some(["n2", "node-2", "ns-1", "sa-0"]), ..GOOD }, Reason::StaleIdentity),
        (Asked { origin: Some(["n2", "node-0", "ns-1", "sa-1"]), ..GOOD }, Reason::StaleIdentity),
        (Asked { origin: Some(["n2", "node-2", "", "sa-1"]), ..GOOD }, Reason::StaleIdentity),
        (Asked { origin: None, ..GOOD }, Reason::StaleIdentity),
        // It was given to another node.
        (Asked { origin: Some(["n1", "node-2", "ns-1", "sa-1"]), ..GOOD }, Reason::SourceMismatch),
        // The address has another pod now; or the pod is elsewhere.
        (Asked { uid: "u-before", ..GOOD }, Reason::DestinationGone),
        (Asked { to: "10.0.2.3:80", uid: "u-plain-1", ..GOOD }, Reason::DestinationGone),
        (Asked { to: "10.7.7.7:80", ..GOOD }, Reason::DestinationGone),
        (Asked { shown: "server", ..GOOD }, Reason::DestinationMismatch),
    ] {
        assert_eq!(check(asked).unwrap_err(), reason);
    }
}

#[test]
fn a_service_that_an_open_names_is_this_models() {
    let world = world();
    let says = |name: &str, address: &str, destination: &str| {
        let service = AskedService { name: name.into(), address: address.parse().unwrap() };
        is_asked_service(&world, &service, destination.parse().unwrap())
    };
    assert!(says("demo/server", "10.9.0.1:80", "10.0.2.2:8080"));
    assert!(says("demo/server", "[fd00:9::1]:80", "[fd00:2:2::2]:8080"));
    for (name, address, destination) in [
        ("demo/client", "10.9.0.1:80", "10.0.2.2:8080"),
        ("other/server", "10.9.0.1:80", "10.0.2.2:8080"),
        ("demo/no-such-service", "10.9.0.77:80", "10.0.2.2:8080"),
        ("demo/server", "10.9.0.1:81", "10.0.2.2:8080"),
        // Not an endpoint of it; not by this port.
        ("demo/client", "10.9.0.2:80", "10.0.2.2:8080"),
        ("demo/server", "10.9.0.1:80", "10.0.2.2:9090"),
        ("demo/server", "10.9.0.1:80", "[fd00:2:2::2]:8080"),
    ] {
        assert!(!says(name, address, destination), "{name} at {address} for {destination}");
    }
}

proptest! {
    #[test]
    fn every_pick_is_an_endpoint(pick: u64, count in 1_usize..1000) {
        prop_assert!(choose(pick, count).unwrap() < count);
    }

    #[test]
    fn picks_are_spread(seed: u64) {
        // Consecutive multiples of a large odd number reach every endpoint about as often.
        let mut hits = [0; 4];
        for n in 0..400_u64 {
            hits[choose(seed.wrapping_add(n.wrapping_mul(0x9e37_79b9_7f4a_7c15)), 4).unwrap()] += 1;
        }
        prop_assert!(hits.iter().all(|hits| (90..=110).contains(hits)), "{:?}", hits);
    }
}
