//! What the platform decides for the whole mesh, as it is used.

use std::net::IpAddr;

use ipnet::IpNet;
use kumiko_abi::Stage;

use super::foreign::ForeignKind;
use super::selector::{Labels, Requirement};

/// The lowest stage of some namespaces.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct MinStage {
    /// Which; without any requirement, all.
    pub labels: Vec<Requirement>,
    /// Their lowest stage.
    pub stage: Stage,
}

/// `MeshSettings`.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Settings {
    /// Prefixes of namespace labels that only the platform sets.
    pub platform_label_prefixes: Vec<String>,
    /// Lowest stages.
    pub min_stages: Vec<MinStage>,
    /// Networks of pods.
    pub pods: Vec<IpNet>,
    /// Networks of Services' addresses.
    pub services: Vec<IpNet>,
    /// Networks of nodes.
    pub nodes: Vec<IpNet>,
    /// Addresses of the API server.
    pub api_server: Vec<IpAddr>,
    /// Trust domains that rules' SPIFFE IDs may be of; none: that of the agent.
    pub trust_domains: Vec<String>,
    /// Seconds that a connection may have which is older than its pod's enrolment and which the rules would refuse.
    pub legacy_max_age: Option<u32>,
    /// A permissive pod's new connections are refused while its agent is down.
    pub refused_without_agent: bool,
    /// No flow takes the same-node fast path.
    pub slow_path: bool,
    /// Kinds of policy that are not enforced and keep no namespace from being raised.
    pub accepted: Vec<ForeignKind>,
}

impl Settings {
    /// Whether only the platform sets a namespace label.
    pub fn is_platforms(&self, key: &str) -> bool {
        self.platform_label_prefixes.iter().any(|prefix| key.starts_with(prefix))
    }

    /// The lowest stage of a namespace with these labels; `None`: any will do.
    pub fn least(&self, labels: &Labels) -> Option<Stage> {
        let fits = |min: &&MinStage| min.labels.iter().all(|requirement| requirement.holds(labels));
        self.min_stages.iter().filter(fits).map(|min| min.stage).max()
    }

    /// Whether any address may be outside of the cluster's networks: these are said.
    pub fn knows_an_outside(&self) -> bool {
        [&self.pods, &self.services, &self.nodes].iter().any(|nets| !nets.is_empty())
    }

    /// Whether an address is outside of the cluster's networks. Unless these are said nobody knows, and none is.
    pub fn outside(&self, ip: IpAddr) -> bool {
        let mut nets = [&self.pods, &self.services, &self.nodes].into_iter().flatten().peekable();
        nets.peek().is_some() && !nets.any(|net| net.contains(&ip))
    }
}
