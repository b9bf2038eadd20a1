//! The desired state as one validated, immutable snapshot: who is where, under which name, at which stage.

mod dispute;
mod service;
mod world;

pub use crate::manifest::{Attachment, Protocol, WorkloadPort};
pub use service::{Backend, Backends, Service, ServicePort, ServiceRef};
pub use world::{Ground, World};

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;
use kumiko_abi::Stage;
use sha2::{Digest as _, Sha256};

use crate::Principal;

/// A pod or another endpoint with its own addresses.
#[derive(Clone, PartialEq, Debug)]
pub struct Workload {
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// UID: never used again for another workload.
    pub uid: String,
    /// Service account.
    pub service_account: String,
    /// SPIFFE ID.
    pub principal: Principal,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Node that it runs on.
    pub node: String,
    /// Its addresses; none: all that it claims are disputed.
    pub ips: Vec<IpAddr>,
    /// Addresses that it claims and that are nobody's.
    pub disputed: Vec<IpAddr>,
    /// Declared ports.
    pub ports: Vec<WorkloadPort>,
    /// Where its veth is, if it is said.
    pub attachment: Option<Attachment>,
    /// May be chosen for Services by selector.
    pub ready: bool,
    /// Effective stage: its namespace's, or a higher one of its own label.
    pub stage: Stage,
}

impl Workload {
    /// Its traffic with meshed peers travels in tunnels.
    pub fn meshed(&self) -> bool {
        self.stage.meshed()
    }

    /// Its first address of the same family as `like`.
    pub fn ip_like(&self, like: IpAddr) -> Option<IpAddr> {
        self.ips.iter().copied().find(|ip| ip.is_ipv4() == like.is_ipv4())
    }
}

/// A node and the addresses its agent is reached at.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Node {
    /// Name.
    pub name: String,
    /// InternalIP addresses, in order.
    pub addresses: Vec<IpAddr>,
    /// Networks that its pods' addresses are of; none: it is not said.
    pub pod_cidrs: Vec<IpNet>,
    /// The API server's; empty: not known.
    pub uid: String,
}

/// With what the ids of all flows begin that a node dials: six bytes of the SHA-256 of its name.
pub fn node_hash(node: &str) -> [u8; 6] {
    let mut hash = [0; 6];
    for (to, from) in hash.iter_mut().zip(Sha256::digest(node.as_bytes())) {
        *to = from;
    }
    hash
}

#[cfg(test)]
mod tests;
