//! What several kinds share.

use std::collections::BTreeMap;
use std::fmt;

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::de::{self, Unexpected, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

/// Whether an object decides.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// It decides.
    #[default]
    Enforce,
    /// What it would change is recorded (`kumiko flows --would-deny`); nothing is refused for it.
    Audit,
}

/// What becomes of connections that are open when their right ends.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Action {
    /// They go on until they end.
    Keep,
    /// They may go on for `seconds`.
    Grace,
    /// Both ends get a reset at once.
    #[default]
    Cut,
}

/// What becomes of connections that are open when their right ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = ("self.action == 'grace' ? has(self.seconds) : !has(self.seconds)", "seconds belongs to action grace, and to no other"))]
pub struct OnRevoke {
    /// What is done: `cut`, `grace` or `keep`.
    pub action: Action,
    /// How long, with `grace`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 86_400))]
    pub seconds: Option<u32>,
}

/// Who is not a workload, by what is known of its address.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Entity {
    /// Outside of all of `MeshSettings`' networks.
    World,
    /// The node that the pod runs on.
    Host,
    /// Any node's address: a host process, a host-network pod, or somebody masqueraded.
    Node,
    /// The kubelet's health checks, on ports that are declared for them.
    Probe,
    /// The cluster's API server.
    KubeApiserver,
}

impl Entity {
    /// Its name in manifests.
    pub const fn name(self) -> &'static str {
        match self {
            Self::World => "world",
            Self::Host => "host",
            Self::Node => "node",
            Self::Probe => "probe",
            Self::KubeApiserver => "kube-apiserver",
        }
    }
}

/// Addresses.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct IpBlock {
    /// A network, such as `192.0.2.0/24` or `2001:db8::/32`.
    pub cidr: String,
    /// Networks within it that are not meant.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub except: Vec<String>,
}

/// Whom a rule is about. What is named of a workload must all be so; `ipBlock` and `entity` stand alone.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = ("[has(self.ipBlock), has(self.entity), has(self.__namespace__) || has(self.namespaceLabels) || has(self.serviceAccount) || has(self.spiffeId) || has(self.labels)].filter(x, x).size() == 1", "a peer is a workload (namespace, namespaceLabels, serviceAccount, spiffeId, labels), or an ipBlock, or an entity"))]
#[x_kube(validation = ("!has(self.serviceAccount) || has(self.__namespace__) || has(self.namespaceLabels)", "an account's name means nothing without its namespace"))]
#[x_kube(validation = ("!has(self.labels) || has(self.__namespace__) || has(self.namespaceLabels)", "a pod's labels mean nothing without its namespace"))]
pub struct Peer {
    /// The namespace with this name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63))]
    pub namespace: Option<String>,
    /// Namespaces with all of these labels.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub namespace_labels: BTreeMap<String, String>,
    /// Pods of this service account.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub service_account: Option<String>,
    /// Who has this SPIFFE ID.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 2048), regex(pattern = r"^spiffe://[^/]+/ns/[^/]+/sa/[^/]+$"))]
    pub spiffe_id: Option<String>,
    /// Pods with all of these labels. The API server claims them, no certificate proves them.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// Addresses. To allow, they match nobody who is a workload; to deny, everybody.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ip_block: Option<IpBlock>,
    /// Who is not a workload.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub entity: Option<Entity>,
}

/// Protocol of a rule's ports. `ICMP` is ICMPv6, too, and has no ports.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "UPPERCASE")]
pub enum TransportProtocol {
    #[default]
    #[allow(missing_docs, reason = "it would be the description in kubectl explain")]
    Tcp,
    #[allow(missing_docs, reason = "the same")]
    Udp,
    #[allow(missing_docs, reason = "the same")]
    Sctp,
    #[allow(missing_docs, reason = "the same")]
    Icmp,
}

/// A port's number, or the name that the destination's pod gives one.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize)]
#[serde(untagged)]
pub enum PortRef {
    /// 1 to 65535.
    Number(u16),
    /// Resolved on the destination's pod; a pod without the name is not matched.
    Name(String),
}

impl<'de> Deserialize<'de> for PortRef {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_any(PortVisitor)
    }
}

/// Says what a port is; serde's words for an untagged enum do not.
struct PortVisitor;

impl Visitor<'_> for PortVisitor {
    type Value = PortRef;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a port number from 1 to 65535, or a port's name")
    }

    fn visit_i64<E: de::Error>(self, number: i64) -> Result<PortRef, E> {
        let wrong = |_| E::invalid_type(Unexpected::Signed(number), &self);
        u16::try_from(number).map(PortRef::Number).map_err(wrong)
    }

    fn visit_u64<E: de::Error>(self, number: u64) -> Result<PortRef, E> {
        self.visit_i64(i64::try_from(number).unwrap_or(i64::MAX))
    }

    fn visit_str<E: de::Error>(self, name: &str) -> Result<PortRef, E> {
        Ok(PortRef::Name(name.to_owned()))
    }
}

impl JsonSchema for PortRef {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "PortRef".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({ "x-kubernetes-int-or-string": true })
    }
}

/// Ports of the destination's pod: those behind a Service, not the Service's own.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = ("!has(self.endPort) || (has(self.port) && type(self.port) == int && self.endPort >= self.port)", "endPort needs a number as port, and not a higher one"))]
#[x_kube(validation = ("!has(self.port) || type(self.port) != int || (self.port >= 1 && self.port <= 65535)", "a port is 1 to 65535, or a name"))]
#[x_kube(validation = ("self.protocol != 'ICMP' || !has(self.port)", "ICMP has no ports"))]
pub struct Port {
    /// `TCP`, `UDP`, `SCTP` or `ICMP`, which is ICMPv6, too.
    #[serde(default)]
    pub protocol: TransportProtocol,
    /// Its number or name; without it all of the protocol.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<PortRef>,
    /// The last one of a range that `port` begins.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 65_535))]
    pub end_port: Option<u16>,
}

/// A rule about who may come in.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct IngressRule {
    /// Its name, which no other rule of this list has: verdicts are told by it.
    #[schemars(length(min = 1, max = 63), regex(pattern = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"))]
    pub name: String,
    /// Any one of them; without the field anybody.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 256))]
    pub from: Option<Vec<Peer>>,
    /// Any one of them; without the field any port.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 256))]
    pub ports: Option<Vec<Port>>,
    /// Also a peer that only its address speaks for, where the workload is strict.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub unauthenticated: bool,
}

/// A rule about where to go.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct EgressRule {
    /// Its name, which no other rule of this list has: verdicts are told by it.
    #[schemars(length(min = 1, max = 63), regex(pattern = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"))]
    pub name: String,
    /// Any one of them; without the field anybody.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 256))]
    pub to: Option<Vec<Peer>>,
    /// Any one of them; without the field any port.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 256))]
    pub ports: Option<Vec<Port>>,
    /// Also a peer that only its address speaks for, where the workload is strict (UDP between nodes is such, so rules
    /// for DNS say it).
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub unauthenticated: bool,
}
