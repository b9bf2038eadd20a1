//! `kumiko.dev/v1alpha1` Workload.

use std::collections::{BTreeMap, HashSet};
use std::net::IpAddr;

use kumiko_abi::Stage;
use serde::Deserialize;

use super::broken::Broken;
use super::check::{Checker, stage_path};
use super::node::{Node, Step};
use super::{Claim, Place, Problem, Protocol};

/// A pod or another endpoint with its own addresses.
#[derive(Clone, PartialEq, Debug)]
pub struct WorkloadObject {
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// UID: never used again for another workload.
    pub uid: String,
    /// Labels, for selectors.
    pub labels: BTreeMap<String, String>,
    /// Stage of its own label, with the label's place; may only raise its namespace's.
    pub stage: Option<(Stage, Place)>,
    /// Service account.
    pub service_account: String,
    /// Node that it runs on.
    pub node: String,
    /// Its addresses, at least one.
    pub ips: Vec<IpAddr>,
    /// Ports that it declares.
    pub ports: Vec<WorkloadPort>,
    /// Where its veth is; for the node's own agent.
    pub attachment: Option<Attachment>,
    /// May be chosen for Services by selector.
    pub ready: bool,
}

/// Addresses that a workload claims which another one has: it is not in force, and they are nobody's until one of them gives
/// them up.
#[derive(Clone, PartialEq, Debug)]
pub struct ClaimedAddresses {
    /// Namespace and name.
    pub workload: String,
    /// Its UID.
    pub uid: String,
    /// Node that it runs on.
    pub node: String,
    /// The addresses.
    pub ips: Vec<IpAddr>,
}

/// A declared port.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct WorkloadPort {
    /// Name, for a Service's named target port; may be empty.
    pub name: String,
    /// Number.
    pub port: u16,
    /// Protocol.
    pub protocol: Protocol,
    /// The node's kubelet may reach it though the workload is strict.
    pub probe: bool,
}

/// Where a local workload's veth is.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Attachment {
    /// The other end of an interface in a network namespace.
    Netns {
        /// Path of the namespace.
        path: String,
        /// Interface inside.
        interface: String,
    },
    /// The host-side interface.
    Veth {
        /// Its name.
        name: String,
    },
}

/// As written; positions and unknown fields are the reader's.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Raw {
    #[serde(rename = "apiVersion")]
    _api_version: String,
    #[serde(rename = "kind")]
    _kind: String,
    metadata: RawMetadata,
    spec: RawSpec,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawMetadata {
    name: Option<String>,
    namespace: Option<String>,
    uid: Option<String>,
    #[serde(default)]
    labels: Option<BTreeMap<String, String>>,
    /// For people.
    #[serde(default, rename = "annotations")]
    _annotations: Option<BTreeMap<String, String>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawSpec {
    service_account: Option<String>,
    node: Option<String>,
    #[serde(default)]
    ips: Vec<String>,
    #[serde(default)]
    ports: Vec<RawPort>,
    attachment: Option<RawAttachment>,
    ready: Option<bool>,
}

#[derive(Deserialize)]
struct RawPort {
    name: Option<String>,
    port: i64,
    protocol: Option<String>,
    #[serde(default)]
    probe: bool,
}

#[derive(Deserialize)]
struct RawAttachment {
    netns: Option<String>,
    interface: Option<String>,
    veth: Option<String>,
}

const METADATA: Step<'_> = Step::Key("metadata");
const SPEC: Step<'_> = Step::Key("spec");

/// Validates a document whose kind is Workload.
pub(super) fn read(root: &Node, problems: &mut Vec<(Place, Problem)>) -> Option<(WorkloadObject, Vec<(Claim, Place)>)> {
    let raw: Raw = super::document::typed(root, "Workload", problems)?;
    let mut check = Checker::new(root, problems);
    let namespace = check.label(&[METADATA, Step::Key("namespace")], raw.metadata.namespace.as_deref());
    let name = check.subdomain(&[METADATA, Step::Key("name")], raw.metadata.name.as_deref());
    let uid = check.uid(&[METADATA, Step::Key("uid")], raw.metadata.uid.as_deref());
    let stage = check.stage(raw.metadata.labels.as_ref()).map(|stage| (stage, root.place_of(&stage_path())));
    let account = check.subdomain(&[SPEC, Step::Key("serviceAccount")], raw.spec.service_account.as_deref());
    let node = check.subdomain(&[SPEC, Step::Key("node")], raw.spec.node.as_deref());
    check.claim(&[METADATA, Step::Key("name")], Claim::Name("Workload", namespace.clone(), name.clone()));
    check.claim(&[METADATA, Step::Key("uid")], Claim::Uid(uid.clone()));
    let object = WorkloadObject {
        ips: ips(&mut check, &raw.spec.ips),
        ports: ports(&mut check, raw.spec.ports),
        attachment: raw.spec.attachment.and_then(|raw| attachment(&mut check, raw)),
        ready: raw.spec.ready.unwrap_or(true),
        labels: raw.metadata.labels.unwrap_or_default(),
        service_account: account,
        namespace,
        name,
        uid,
        stage,
        node,
    };
    Some((object, check.claims()))
}

fn ips(check: &mut Checker<'_>, raw: &[String]) -> Vec<IpAddr> {
    if raw.is_empty() {
        check.problem(&[SPEC, Step::Key("ips")], Problem::Missing { path: "spec.ips".to_owned() });
    }
    let mut ips = Vec::with_capacity(raw.len());
    for (index, text) in raw.iter().enumerate() {
        let path = [SPEC, Step::Key("ips"), Step::Index(index)];
        if let Some(ip) = check.ip(&path, text) {
            check.claim(&path, Claim::PodIp(ip));
            ips.push(ip);
        }
    }
    ips
}

fn ports(check: &mut Checker<'_>, raw: Vec<RawPort>) -> Vec<WorkloadPort> {
    let mut names = HashSet::new();
    let mut ports = Vec::with_capacity(raw.len());
    for (index, raw) in raw.into_iter().enumerate() {
        let path = |field| [SPEC, Step::Key("ports"), Step::Index(index), Step::Key(field)];
        let name = raw.name.unwrap_or_default();
        if !name.is_empty() {
            check.port_name(&path("name"), &name);
            if !names.insert(name.clone()) {
                check.broken(&path("name"), &name, Broken::WorkloadPortTwice);
            }
        }
        let port = check.port(&path("port"), raw.port);
        let protocol = check.protocol(&path("protocol"), raw.protocol.as_deref());
        ports.push(WorkloadPort { name, port, protocol, probe: raw.probe });
    }
    ports
}

fn attachment(check: &mut Checker<'_>, raw: RawAttachment) -> Option<Attachment> {
    let path = |field| [SPEC, Step::Key("attachment"), Step::Key(field)];
    match (raw.netns, raw.interface, raw.veth) {
        (Some(netns), interface, None) => {
            let interface = interface.unwrap_or_else(|| "eth0".to_owned());
            check.netns(&path("netns"), &netns);
            check.interface(&path("interface"), &interface);
            Some(Attachment::Netns { path: netns, interface })
        }
        (None, None, Some(name)) => {
            check.interface(&path("veth"), &name);
            Some(Attachment::Veth { name })
        }
        _ => {
            check.problem(&[SPEC, Step::Key("attachment")], Problem::Attachment);
            None
        }
    }
}
