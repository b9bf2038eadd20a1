use proptest::prelude::*;

use super::*;
use crate::manifest::{FileContent, FolderState};
use crate::model::World;

fn node(name: &str, cidrs: &str) -> String {
    let number = name.trim_start_matches('n');
    format!(
        "apiVersion: v1\nkind: Node\nmetadata: {{name: {name}}}\nspec: {{podCIDRs: [{cidrs}]}}\nstatus: {{addresses: [{{type: \
         InternalIP, address: 192.168.0.{number}}}]}}\n"
    )
}

fn pod(name: &str, node: &str, ips: &str) -> String {
    format!(
        "apiVersion: kumiko.dev/v1alpha1\nkind: Workload\nmetadata: {{name: {name}, namespace: demo, uid: u-{name}}}\nspec: \
         {{serviceAccount: a, node: {node}, ips: [{ips}]}}\n"
    )
}

fn world(files: &[(String, String)]) -> (World, Vec<String>) {
    let mut state = FolderState::default();
    state.apply(files.iter().map(|(name, text)| (name.clone(), FileContent::Text(text.clone()))).collect());
    let (world, told) = World::build("td", 1, state.objects()).unwrap();
    (world, told.iter().map(ToString::to_string).collect())
}

/// Files in this order.
fn files(texts: &[String]) -> Vec<(String, String)> {
    texts.iter().enumerate().map(|(number, text)| (format!("{number:02}"), text.clone())).collect()
}

/// Who has it: a workload's name, `nobody`, or nothing that is known.
fn owner(world: &World, ip: &str) -> String {
    let ip = ip.parse().unwrap();
    let has = world.workload_at(ip).map(|workload| workload.name.clone());
    assert!(!(world.is_disputed(ip) && has.is_some()));
    if world.is_disputed(ip) { "nobody".to_owned() } else { has.unwrap_or_default() }
}

#[test]
fn an_address_counts_inside_its_nodes_networks_only() {
    let texts = [
        node("n1", "10.0.1.0/24, 'fd00:1::/64'"),
        node("n2", "10.0.2.7/24"),
        pod("a", "n1", "10.0.1.5, 'fd00:1::5'"),
        pod("b", "n2", "10.0.1.6, 10.0.2.6"),
    ];
    let (world, told) = world(&files(&texts));
    assert_eq!(owner(&world, "10.0.1.5"), "a");
    assert_eq!(owner(&world, "fd00:1::5"), "a");
    assert_eq!((owner(&world, "10.0.1.6"), owner(&world, "10.0.2.6")), ("nobody".to_owned(), "b".to_owned()));
    let b = world.workload("u-b").unwrap();
    assert_eq!((b.ips.len(), b.disputed.len()), (1, 1));
    assert_eq!(
        told,
        [
            "03:1:1: Workload demo/b: its address 10.0.1.6 is outside of the podCIDRs of Node n2, so it has it not: correct one of the \
          two"
        ]
    );
}

#[test]
fn a_node_does_not_get_anothers_address_by_claiming_it() {
    let nodes = [node("n1", "10.0.1.0/24"), node("n2", "10.0.2.0/24")].concat_with();
    let (honest, liar) = (pod("honest", "n1", "10.0.1.5"), pod("liar", "n2", "10.0.1.5"));
    let (first, told) = world(&files(&[nodes.clone(), honest.clone(), liar.clone()]));
    assert_eq!(owner(&first, "10.0.1.5"), "honest", "{told:?}");
    assert!(
        told[0].contains("Workload demo/liar: its address 10.0.1.5 is outside of the podCIDRs of Node n2"),
        "{told:?}"
    );
    // Nor does it help to be first.
    assert_eq!(owner(&world(&files(&[nodes, liar, honest])).0, "10.0.1.5"), "honest");
}

#[test]
fn what_two_claim_is_nobodys_in_whatever_order() {
    let (a, b) = (pod("a", "n1", "10.0.0.5, 10.0.0.6"), pod("b", "n2", "10.0.0.5"));
    for texts in [[a.clone(), b.clone()], [b, a]] {
        let (world, told) = world(&files(&texts));
        assert_eq!(owner(&world, "10.0.0.5"), "nobody");
        assert!(told.iter().any(|told| told.contains("is claimed by Workload demo/")), "{told:?}");
        assert_eq!(told.len(), 2, "each is told: {told:?}");
    }
    let nodes = [node("n1", "10.0.0.0/16"), node("n2", "10.0.2.0/24")].concat_with();
    let (shared, told) = world(&files(&[nodes, pod("a", "n1", "10.0.2.9, 10.0.3.9"), pod("b", "n2", "10.0.2.8")]));
    assert_eq!(["10.0.2.9", "10.0.3.9", "10.0.2.8"].map(|ip| owner(&shared, ip)), ["nobody", "a", "nobody"]);
    assert!(
        told[0].ends_with("is of the podCIDRs of Nodes n1 and n2, so it is nobody's: correct one of them"),
        "{told:?}"
    );
}

#[test]
fn a_service_does_not_go_in_the_clear_to_whom_claims_its_endpoint() {
    let service = "apiVersion: v1\nkind: Service\nmetadata: {name: s, namespace: demo}\nspec: {clusterIP: 10.9.0.1, ports: [{port: 80}], \
                   selector: {app: a}}\n---\napiVersion: v1\nkind: Namespace\nmetadata: {name: demo, labels: {kumiko.dev/stage: strict}}\n";
    let a = pod("a", "n1", "10.0.0.5").replace("uid: u-a", "uid: u-a, labels: {app: a}");
    let captured = |world: &World| {
        let ip = "10.9.0.1".parse().unwrap();
        let (_, port) = world.service_at(ip, 80, crate::model::Protocol::Tcp).unwrap();
        (port.backends(ip).capture, port.backends(ip).ready.len())
    };
    assert_eq!(captured(&world(&files(&[service.to_owned(), a.clone()])).0), (true, 1));
    let other = pod("b", "n2", "10.0.0.5");
    assert_eq!(captured(&world(&files(&[service.to_owned(), a, other])).0), (true, 0));
}

#[test]
fn no_service_leads_to_loopback_or_the_link() {
    for ip in ["127.0.0.1", "169.254.169.254", "'::1'", "'fe80::1'"] {
        let kind = if ip.contains(':') { "IPv6" } else { "IPv4" };
        let slice = format!(
            "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {{name: s, namespace: demo}}\naddressType: {kind}\n\
             endpoints: [{{addresses: [{ip}]}}]\n"
        );
        let service = format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: s, namespace: demo}}\nspec: {{clusterIP: {ip}}}\n"
        );
        for text in [slice, service] {
            let told = crate::manifest::parse("f", &text).unwrap_err()[0].to_string();
            assert!(told.contains("must be the address of one interface"), "{told}");
        }
    }
}

trait ConcatWith {
    fn concat_with(self) -> String;
}

impl<const N: usize> ConcatWith for [String; N] {
    fn concat_with(self) -> String {
        self.join("---\n")
    }
}

proptest! {
    /// Whoever has an address may have it, is alone with that, and would have it in any order of documents, or nobody would.
    #[test]
    fn nobody_gets_an_address_by_order_or_by_lying(
        cidrs in proptest::collection::vec((0..4_u8, prop_oneof![Just(24_u8), Just(26), Just(16)]), 0..4),
        pods in proptest::collection::vec((0..4_usize, 0..4_u8, 0..3_u8), 1..6),
    ) {
        let nodes: Vec<String> = cidrs.iter().enumerate().map(|(n, (net, len))| node(&format!("n{}", n + 1), &format!("10.0.{net}.0/{len}"))).collect();
        let pods: Vec<(String, String)> = pods.iter().enumerate().map(|(n, (at, net, ip))| {
            let ip = format!("10.0.{net}.{ip}");
            (pod(&format!("p{n}"), &format!("n{}", at + 1), &ip), ip)
        }).collect();
        let texts: Vec<String> = nodes.iter().cloned().chain(pods.iter().map(|(text, _)| text.clone())).collect();
        let back: Vec<String> = texts.iter().rev().cloned().collect();
        let (one, other) = (world(&files(&texts)).0, world(&files(&back)).0);
        for (_, ip) in &pods {
            let has = owner(&one, ip);
            prop_assert!(!has.is_empty(), "{} is a stranger's", ip);
            let again = owner(&other, ip);
            prop_assert!(has == again, "{} is {} or {}", ip, has, again);
            let Some(workload) = one.workload_at(ip.parse().unwrap()) else { continue };
            let nets = one.node(&workload.node).map(|node| node.pod_cidrs.clone()).unwrap_or_default();
            prop_assert!(nets.is_empty() || nets.iter().any(|net| net.contains(&ip.parse::<IpAddr>().unwrap())));
            let elsewhere = one.nodes().filter(|node| node.name != workload.node).flat_map(|node| &node.pod_cidrs);
            prop_assert!(nets.is_empty() || !elsewhere.into_iter().any(|net| net.contains(&ip.parse::<IpAddr>().unwrap())));
        }
    }
}
