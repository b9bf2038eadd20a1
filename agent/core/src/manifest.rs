//! YAML documents to validated objects, with diagnostics that say where, why and what to do.
//!
//! Unknown fields are refused: a misspelt `serviceAcount` that is silently skipped would give a workload another
//! identity than its author meant. Input is bounded in size, depth and number of nodes, aliases included.

mod broken;
mod check;
mod de;
mod diagnostic;
mod document;
mod folder;
mod kinds;
mod node;
mod policy;
mod refused;
mod workload;

pub use broken::{Broken, Meanwhile};
pub use diagnostic::{Diagnostic, Mismatch, NotHad, Place, Problem};
pub use folder::{Digest, FileContent, FolderState, digest};
pub use kinds::{
    BackendPort, EndpointSliceObject, NamespaceObject, NodeObject, PortTarget, ServiceAccountObject, ServiceObject,
    ServicePortObject, SliceEndpoint,
};
pub use policy::{ExceptionObject, PlatformLabel, PolicyObject};
pub use workload::{Attachment, ClaimedAddresses, WorkloadObject, WorkloadPort};

use std::collections::HashMap;
use std::fmt;
use std::net::IpAddr;

use kumiko_abi::flow;

use crate::policy::foreign::ForeignObject;
use crate::policy::settings::Settings;

/// Label of a namespace or workload that holds its stage.
pub const STAGE_LABEL: &str = "kumiko.dev/stage";
/// API group and version of kumiko's own kinds.
pub const API_VERSION: &str = "kumiko.dev/v1alpha1";
/// Largest file that is read, in bytes.
pub const MAX_BYTES: usize = 8 << 20;

/// Most problems of one file that are told; who mends these sees the next ones.
pub const MAX_DIAGNOSTICS: usize = 50;

/// A validated object with the names and addresses that it claims.
#[derive(Clone, PartialEq, Debug)]
pub struct Object {
    /// What it is.
    pub kind: Kind,
    /// Where its document begins.
    pub place: Place,
    /// What no other object may claim ([`Claim::clashes`]), with the place that claims it.
    pub claims: Vec<(Claim, Place)>,
}

/// The kinds that are read.
#[derive(Clone, PartialEq, Debug)]
#[allow(missing_docs, reason = "each variant is named after what it carries")]
pub enum Kind {
    Namespace(NamespaceObject),
    Node(NodeObject),
    ServiceAccount(ServiceAccountObject),
    Service(ServiceObject),
    EndpointSlice(EndpointSliceObject),
    Workload(WorkloadObject),
    /// Of a workload that is not in force: addresses that another one has.
    Claimed(ClaimedAddresses),
    Policy(PolicyObject),
    Exception(ExceptionObject),
    Settings(Settings),
    /// Policy that is not enforced.
    Foreign(ForeignObject),
}

/// Something that one object at most may have.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Claim {
    /// Kind, namespace (empty for cluster-wide kinds) and name.
    Name(&'static str, String, String),
    /// A workload's UID.
    Uid(String),
    /// An address of a node or Service.
    Ip(IpAddr),
    /// An address of a workload. What two of them claim is settled when all documents are known ([`crate::model`]): the
    /// order of files must not say whose it is, nor keep a pod out of the mesh.
    PodIp(IpAddr),
}

/// What claims are compared by.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum ClaimKey<'a> {
    Ip(IpAddr),
    Other(&'a Claim),
}

impl Claim {
    fn key(&self) -> ClaimKey<'_> {
        match self {
            Self::Ip(ip) | Self::PodIp(ip) => ClaimKey::Ip(*ip),
            other => ClaimKey::Other(other),
        }
    }

    /// Whether objects of two files cannot both have what they claim.
    pub fn clashes(&self, other: &Self) -> bool {
        self.key() == other.key() && !matches!((self, other), (Self::PodIp(_), Self::PodIp(_)))
    }
}

impl fmt::Display for Claim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(kind, namespace, name) if namespace.is_empty() => write!(f, "{kind} {name}"),
            Self::Name(kind, namespace, name) => write!(f, "{kind} {namespace}/{name}"),
            Self::Uid(uid) => write!(f, "UID {uid}"),
            Self::Ip(ip) | Self::PodIp(ip) => write!(f, "address {ip}"),
        }
    }
}

/// Protocol of a packet, as far as rules tell them apart. Ports are of the first three.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[allow(missing_docs, reason = "each variant is named after what it carries")]
pub enum Protocol {
    Tcp,
    Udp,
    Sctp,
    /// ICMP and ICMPv6.
    Icmp,
    /// All the rest.
    Other,
}

impl Protocol {
    /// IP protocol number; one of several. Of the rest: 255, which is reserved (RFC 5237).
    pub const fn number(self) -> u8 {
        match self {
            Self::Tcp => flow::TCP,
            Self::Udp => flow::UDP,
            Self::Sctp => flow::SCTP,
            Self::Icmp => flow::ICMP,
            Self::Other => u8::MAX,
        }
    }

    /// Of an IP protocol number.
    pub const fn of_number(number: u8) -> Self {
        match number {
            flow::TCP => Self::Tcp,
            flow::UDP => Self::Udp,
            flow::SCTP => Self::Sctp,
            flow::ICMP | flow::ICMPV6 => Self::Icmp,
            _ => Self::Other,
        }
    }

    /// By its name, as in records of flows; whatever is none is one of the rest.
    pub fn of_name(name: &str) -> Self {
        let all = [Self::Tcp, Self::Udp, Self::Sctp, Self::Icmp];
        all.into_iter().find(|protocol| protocol.name() == name).unwrap_or(Self::Other)
    }

    /// Its name, as in records of flows.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Sctp => "sctp",
            Self::Icmp => "icmp",
            Self::Other => "other",
        }
    }

    /// Whether its packets have ports.
    pub const fn has_ports(self) -> bool {
        flow::has_ports(self.number())
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
            Self::Sctp => "SCTP",
            Self::Icmp => "ICMP",
            Self::Other => "other protocols",
        })
    }
}

impl Kind {
    /// Name of the kind, as in manifests.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Namespace(_) => "Namespace",
            Self::Node(_) => "Node",
            Self::ServiceAccount(_) => "ServiceAccount",
            Self::Service(_) => "Service",
            Self::EndpointSlice(_) => "EndpointSlice",
            Self::Workload(_) | Self::Claimed(_) => "Workload",
            Self::Policy(policy) => policy.object.id.kind.name(),
            Self::Exception(_) => "MeshException",
            Self::Settings(_) => "MeshSettings",
            Self::Foreign(object) => object.kind.name(),
        }
    }
}

/// Which kinds a reader takes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Scope {
    /// Without policy: for who enforces none, so that nothing is accepted and silently not enforced.
    #[default]
    Plain,
    /// Policy too: for the agent, which enforces it, and for who only asks what it would mean.
    Policy,
}

impl Scope {
    /// The kinds, for people.
    const fn kinds(self) -> &'static str {
        match self {
            Self::Plain => {
                "v1 Namespace, Node, Service and ServiceAccount, discovery.k8s.io/v1 EndpointSlice and kumiko.dev/v1alpha1 Workload"
            }
            Self::Policy => {
                "v1 Namespace, Node, Service and ServiceAccount, discovery.k8s.io/v1 EndpointSlice, networking.k8s.io/v1 NetworkPolicy and \
                 kumiko.dev/v1alpha1 Workload, MeshBaseline, MeshPolicy, MeshException and MeshSettings"
            }
        }
    }
}

/// Reads every document of a file that an agent may take.
///
/// # Errors
/// Any problem refuses the whole file; all problems are told at once.
pub fn parse(file: &str, text: &str) -> Result<Vec<Object>, Vec<Diagnostic>> {
    parse_in(Scope::Plain, file, text)
}

/// Reads every document of a file.
///
/// # Errors
/// Any problem refuses the whole file; all problems are told at once.
pub fn parse_in(scope: Scope, file: &str, text: &str) -> Result<Vec<Object>, Vec<Diagnostic>> {
    let told = |place, problem| vec![Diagnostic { file: file.to_owned(), place, problem }];
    if text.len() > MAX_BYTES {
        return Err(told(Place::FILE, Problem::TooLarge { bytes: text.len(), max: MAX_BYTES }));
    }
    let documents = node::parse(text).map_err(|(place, problem)| told(place, problem))?;
    let mut objects = Vec::new();
    let mut problems = Vec::new();
    for document in &documents {
        document::read(scope, document, &mut objects, &mut problems);
    }
    let mut seen: HashMap<ClaimKey<'_>, Place> = HashMap::new();
    for (claim, place) in objects.iter().flat_map(|object| &object.claims) {
        if let Some(first) = seen.get(&claim.key()) {
            problems.push((*place, Problem::Claimed { claim: claim.clone(), file: file.to_owned(), place: *first }));
        } else {
            seen.insert(claim.key(), *place);
        }
    }
    if problems.is_empty() {
        return Ok(objects);
    }
    problems.sort_by_key(|(place, _)| *place);
    problems.truncate(MAX_DIAGNOSTICS);
    Err(problems.into_iter().map(|(place, problem)| Diagnostic { file: file.to_owned(), place, problem }).collect())
}

#[cfg(test)]
mod tests;
