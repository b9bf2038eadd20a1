//! Documents to objects: Kubernetes' own kinds, whole as clusters print them.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;
use k8s_openapi::api::core::v1 as core;
use k8s_openapi::api::discovery::v1 as discovery;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kumiko_abi::Stage;

use super::broken::Broken;
use super::check::Checker;
use super::document::{Read, typed};
use super::node::{Node, Step};
use super::{Claim, Kind, Place, Problem, Protocol};

/// `v1` Namespace.
#[derive(Clone, PartialEq, Debug)]
pub struct NamespaceObject {
    /// Name.
    pub name: String,
    /// Stage of its label, `off` without one.
    pub stage: Stage,
    /// Labels, with the name that every API server adds.
    pub labels: BTreeMap<String, String>,
    /// The API server's; empty: not said.
    pub uid: String,
}

/// `v1` ServiceAccount: only which one it is.
#[derive(Clone, PartialEq, Debug)]
pub struct ServiceAccountObject {
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// The API server's; empty: not said.
    pub uid: String,
}

/// `v1` Node.
#[derive(Clone, PartialEq, Debug)]
pub struct NodeObject {
    /// Name.
    pub name: String,
    /// InternalIP addresses, in order.
    pub addresses: Vec<IpAddr>,
    /// Networks that its pods' addresses are of (`spec.podCIDRs`); none: it is not said.
    pub pod_cidrs: Vec<IpNet>,
    /// The API server's; empty: not said.
    pub uid: String,
}

/// `v1` Service.
#[derive(Clone, PartialEq, Debug)]
pub struct ServiceObject {
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// Cluster IPs; empty when headless or external.
    pub cluster_ips: Vec<IpAddr>,
    /// External IPs and what load balancers gave: for clients outside the cluster. Several Services may share one.
    pub outer_ips: Vec<IpAddr>,
    /// Ports.
    pub ports: Vec<ServicePortObject>,
    /// Labels that a workload must have; `None`: its EndpointSlices are made by someone else.
    pub selector: Option<BTreeMap<String, String>>,
    /// Endpoints count before they are ready.
    pub publish_not_ready: bool,
    /// A client keeps to one endpoint (`sessionAffinity: ClientIP`).
    pub affinity: bool,
    /// Only endpoints of the client's node (`internalTrafficPolicy: Local`).
    pub local_only: bool,
}

/// A port of a Service.
#[derive(Clone, PartialEq, Debug)]
pub struct ServicePortObject {
    /// Name; may be empty when it is the only one.
    pub name: String,
    /// Port of the cluster IP.
    pub port: u16,
    /// Protocol.
    pub protocol: Protocol,
    /// Port of the endpoints, when they follow from the selector.
    pub target: PortTarget,
    /// Port of every node's address.
    pub node_port: Option<u16>,
}

/// Port of the endpoints.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum PortTarget {
    /// The same for all.
    Number(u16),
    /// Each workload's port of this name.
    Name(String),
}

/// `discovery.k8s.io/v1` EndpointSlice.
#[derive(Clone, PartialEq, Debug)]
pub struct EndpointSliceObject {
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// Service that it belongs to, by label.
    pub service: Option<String>,
    /// Its endpoints are names, not addresses.
    pub fqdn: bool,
    /// Endpoints.
    pub endpoints: Vec<SliceEndpoint>,
    /// Ports, by the Service port's name.
    pub ports: Vec<BackendPort>,
}

/// One endpoint of a slice.
#[derive(Clone, PartialEq, Debug)]
pub struct SliceEndpoint {
    /// Addresses, which all mean the same endpoint.
    pub addresses: Vec<IpAddr>,
    /// Ready; unknown counts as ready.
    pub ready: bool,
    /// Terminates and still serves: used while no endpoint is ready.
    pub draining: bool,
}

/// One port of a slice.
#[derive(Clone, PartialEq, Debug)]
pub struct BackendPort {
    /// Name of the Service's port.
    pub name: String,
    /// Number.
    pub port: u16,
    /// Protocol.
    pub protocol: Protocol,
}

const METADATA: Step<'_> = Step::Key("metadata");
const SPEC: Step<'_> = Step::Key("spec");
/// A namespace's name as a label, for selectors.
const NAME_LABEL: &str = "kubernetes.io/metadata.name";
const NAME: [Step<'_>; 2] = [METADATA, Step::Key("name")];
const NAMESPACE: [Step<'_>; 2] = [METADATA, Step::Key("namespace")];

pub(super) fn namespace(root: &Node, problems: &mut Vec<(Place, Problem)>) -> Read {
    let raw: core::Namespace = typed(root, "Namespace", problems)?;
    let mut check = Checker::new(root, problems);
    let name = check.label(&NAME, raw.metadata.name.as_deref());
    let stage = check.stage(raw.metadata.labels.as_ref()).unwrap_or_default();
    check.claim(&NAME, Claim::Name("Namespace", String::new(), name.clone()));
    let mut labels = raw.metadata.labels.unwrap_or_default();
    if let Some(other) = labels.insert(NAME_LABEL.to_owned(), name.clone()).filter(|other| *other != name) {
        let path = [METADATA, Step::Key("labels"), Step::Key(NAME_LABEL)];
        check.broken(&path, &other, Broken::OthersName);
    }
    let uid = uid(&mut check, raw.metadata.uid.as_deref());
    Some((Kind::Namespace(NamespaceObject { name, stage, labels, uid }), check.claims()))
}

/// A UID that may be left out.
fn uid(check: &mut Checker<'_>, said: Option<&str>) -> String {
    said.map_or(String::new(), |uid| check.uid(&[METADATA, Step::Key("uid")], Some(uid)))
}

pub(super) fn service_account(root: &Node, problems: &mut Vec<(Place, Problem)>) -> Read {
    let raw: core::ServiceAccount = typed(root, "ServiceAccount", problems)?;
    let mut check = Checker::new(root, problems);
    let (namespace, name) = named(&mut check, "ServiceAccount", &raw.metadata);
    let uid = uid(&mut check, raw.metadata.uid.as_deref());
    Some((Kind::ServiceAccount(ServiceAccountObject { namespace, name, uid }), check.claims()))
}

pub(super) fn node(root: &Node, problems: &mut Vec<(Place, Problem)>) -> Read {
    let raw: core::Node = typed(root, "Node", problems)?;
    let mut check = Checker::new(root, problems);
    let name = check.subdomain(&NAME, raw.metadata.name.as_deref());
    check.claim(&NAME, Claim::Name("Node", String::new(), name.clone()));
    let listed = raw.status.and_then(|status| status.addresses).unwrap_or_default();
    let mut addresses = Vec::new();
    for (index, listed) in listed.iter().enumerate().filter(|(_, listed)| listed.type_ == "InternalIP") {
        let path = [Step::Key("status"), Step::Key("addresses"), Step::Index(index), Step::Key("address")];
        if let Some(ip) = check.ip(&path, &listed.address) {
            check.claim(&path, Claim::Ip(ip));
            addresses.push(ip);
        }
    }
    if !listed.iter().any(|listed| listed.type_ == "InternalIP") {
        let path = "status.addresses of type InternalIP".to_owned();
        check.problem(&[Step::Key("status"), Step::Key("addresses")], Problem::Missing { path });
    }
    let pod_cidrs = check.pod_cidrs(&raw.spec.unwrap_or_default());
    let uid = uid(&mut check, raw.metadata.uid.as_deref());
    Some((Kind::Node(NodeObject { name, addresses, pod_cidrs, uid }), check.claims()))
}

/// Namespace, name and the claim on them.
fn named(check: &mut Checker<'_>, kind: &'static str, metadata: &ObjectMeta) -> (String, String) {
    let namespace = check.label(&NAMESPACE, metadata.namespace.as_deref());
    let name = check.subdomain(&NAME, metadata.name.as_deref());
    check.claim(&NAME, Claim::Name(kind, namespace.clone(), name.clone()));
    (namespace, name)
}

pub(super) fn service(root: &Node, problems: &mut Vec<(Place, Problem)>) -> Read {
    let raw: core::Service = typed(root, "Service", problems)?;
    let mut check = Checker::new(root, problems);
    let (namespace, name) = named(&mut check, "Service", &raw.metadata);
    let spec = raw.spec.unwrap_or_default();
    let cluster_ips = cluster_ips(&mut check, &spec);
    let outer_ips = outer_ips(&mut check, &spec, raw.status.as_ref());
    let mut ports: Vec<ServicePortObject> = Vec::new();
    for (index, raw) in spec.ports.unwrap_or_default().into_iter().enumerate() {
        let path = |field| [SPEC, Step::Key("ports"), Step::Index(index), Step::Key(field)];
        let port = check.port(&path("port"), i64::from(raw.port));
        let protocol = check.protocol(&path("protocol"), raw.protocol.as_deref());
        let target = match raw.target_port {
            None => PortTarget::Number(port),
            Some(IntOrString::Int(number)) => PortTarget::Number(check.port(&path("targetPort"), i64::from(number))),
            Some(IntOrString::String(name)) => {
                check.port_name(&path("targetPort"), &name);
                PortTarget::Name(name)
            }
        };
        if ports.iter().any(|other| (other.port, other.protocol) == (port, protocol)) {
            check.broken(&path("port"), &format!("{port}/{protocol}"), Broken::ServicePortTwice);
        }
        // Zero: none is given yet.
        let given = raw.node_port.filter(|number| *number != 0);
        let node_port = given.map(|number| check.port(&path("nodePort"), i64::from(number)));
        ports.push(ServicePortObject { name: raw.name.unwrap_or_default(), port, protocol, target, node_port });
    }
    let selector = spec.selector.filter(|selector| !selector.is_empty());
    let publish_not_ready = spec.publish_not_ready_addresses.unwrap_or(false);
    let affinity = check.is("sessionAffinity", spec.session_affinity.as_deref(), ["None", "ClientIP"]);
    let local_only = check.is("internalTrafficPolicy", spec.internal_traffic_policy.as_deref(), ["Cluster", "Local"]);
    let object = ServiceObject {
        namespace,
        name,
        cluster_ips,
        outer_ips,
        ports,
        selector,
        publish_not_ready,
        affinity,
        local_only,
    };
    Some((Kind::Service(object), check.claims()))
}

fn cluster_ips(check: &mut Checker<'_>, spec: &core::ServiceSpec) -> Vec<IpAddr> {
    if spec.type_.as_deref() == Some("ExternalName") {
        return Vec::new();
    }
    let mut ips: Vec<IpAddr> = Vec::new();
    let listed = spec.cluster_ips.iter().flatten().enumerate();
    let listed = listed.map(|(index, text)| (vec![SPEC, Step::Key("clusterIPs"), Step::Index(index)], text));
    let single = spec.cluster_ip.iter().map(|text| (vec![SPEC, Step::Key("clusterIP")], text));
    for (path, text) in listed.chain(single).filter(|(_, text)| !text.is_empty() && *text != "None") {
        match check.ip(&path, text) {
            // clusterIP repeats the first of clusterIPs.
            Some(ip) if !ips.contains(&ip) => {
                check.claim(&path, Claim::Ip(ip));
                ips.push(ip);
            }
            _ => {}
        }
    }
    ips
}

fn outer_ips(check: &mut Checker<'_>, spec: &core::ServiceSpec, status: Option<&core::ServiceStatus>) -> Vec<IpAddr> {
    let mut ips = Vec::new();
    for (index, text) in spec.external_ips.iter().flatten().enumerate() {
        ips.extend(check.ip(&[SPEC, Step::Key("externalIPs"), Step::Index(index)], text));
    }
    let balanced = status.and_then(|status| status.load_balancer.as_ref());
    for (index, ingress) in balanced.and_then(|balanced| balanced.ingress.as_ref()).into_iter().flatten().enumerate() {
        let path = ["status", "loadBalancer", "ingress"].map(Step::Key);
        let [status, balancer, list] = path;
        if let Some(text) = &ingress.ip {
            ips.extend(check.ip(&[status, balancer, list, Step::Index(index), Step::Key("ip")], text));
        }
    }
    ips
}

pub(super) fn endpoint_slice(root: &Node, problems: &mut Vec<(Place, Problem)>) -> Read {
    let raw: discovery::EndpointSlice = typed(root, "EndpointSlice", problems)?;
    let mut check = Checker::new(root, problems);
    let (namespace, name) = named(&mut check, "EndpointSlice", &raw.metadata);
    let service = raw.metadata.labels.and_then(|mut labels| labels.remove("kubernetes.io/service-name"));
    let fqdn = match raw.address_type.as_str() {
        "IPv4" | "IPv6" => false,
        "FQDN" => true,
        other => {
            check.broken(&[Step::Key("addressType")], other, Broken::AddressType);
            false
        }
    };
    let mut endpoints = Vec::new();
    for (index, raw) in raw.endpoints.iter().flatten().enumerate().filter(|_| !fqdn) {
        let path = |i| [Step::Key("endpoints"), Step::Index(index), Step::Key("addresses"), Step::Index(i)];
        let ips = raw.addresses.iter().enumerate();
        let addresses = ips.filter_map(|(i, text)| check.ip(&path(i), text)).collect();
        let conditions = raw.conditions.clone().unwrap_or_default();
        let ready = conditions.ready.unwrap_or(true);
        let draining = !ready && conditions.serving == Some(true) && conditions.terminating == Some(true);
        endpoints.push(SliceEndpoint { addresses, ready, draining });
    }
    let mut ports = Vec::new();
    for (index, raw) in raw.ports.unwrap_or_default().into_iter().enumerate() {
        let path = |field| [Step::Key("ports"), Step::Index(index), Step::Key(field)];
        let protocol = check.protocol(&path("protocol"), raw.protocol.as_deref());
        // Without a number the slice speaks for any port: nothing to connect to.
        if let Some(port) = raw.port {
            let port = check.port(&path("port"), i64::from(port));
            ports.push(BackendPort { name: raw.name.unwrap_or_default(), port, protocol });
        }
    }
    let object = EndpointSliceObject { namespace, name, service, fqdn, endpoints, ports };
    Some((Kind::EndpointSlice(object), check.claims()))
}
