//! What a lab is made of: values only.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use anyhow::{Result, bail};
use serde::{Deserialize, Serialize};

/// How pods are joined to their node.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Net {
    /// Point-to-point veths: a host address each, gateway 169.254.1.1 and `fe80::1` (as Calico and the ptp plugin do).
    Routed,
    /// Veths on a bridge with the pods' subnet (as the bridge plugin does).
    Bridged,
}

/// How far a namespace has adopted the mesh.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Stage {
    /// Untouched.
    Off,
    /// Counted and judged.
    Observe,
    /// Tunnels to meshed peers, takes plaintext.
    Permissive,
    /// Takes tunnels only.
    Strict,
}

macro_rules! words {
    ($type:ident { $($variant:ident = $word:literal),+ }) => {
        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(match self { $(Self::$variant => $word),+ })
            }
        }
        impl FromStr for $type {
            type Err = anyhow::Error;
            fn from_str(text: &str) -> Result<Self> {
                match text { $($word => Ok(Self::$variant),)+ _ => bail!("{text:?} is none of: {}", [$($word),+].join(", ")) }
            }
        }
    };
}
words!(Net { Routed = "routed", Bridged = "bridged" });
words!(Stage { Off = "off", Observe = "observe", Permissive = "permissive", Strict = "strict" });

/// IPv4 or IPv6.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}
words!(Family { V4 = "v4", V6 = "v6" });

/// A pod to make.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct PodSpec {
    /// Its name, unique in the lab, at most 14 bytes (its veth is named after it).
    pub name: String,
    /// Its namespace.
    pub namespace: String,
    /// Its service account.
    pub service_account: String,
    /// The node it runs on, from 1.
    pub node: u8,
    /// Declared ports; kubelet may probe the first.
    pub ports: Vec<u16>,
    /// Whether a Workload document is written for it; without one the mesh does not know it.
    pub workload: bool,
    /// Whether it is gone: it is in the documents and behind Services, but has no namespace and no veth.
    #[serde(default)]
    pub gone: bool,
}

impl PodSpec {
    /// A pod that the mesh knows; its service account and label `app` are its name without the number.
    pub fn new(name: &str, namespace: &str, node: u8) -> Self {
        let role = name.rsplit_once('-').map_or(name, |(role, _)| role);
        Self {
            name: name.into(),
            namespace: namespace.into(),
            service_account: role.into(),
            node,
            ports: vec![8080],
            workload: true,
            gone: false,
        }
    }
}

/// A Service to make: its address and ports translate to the same ports of its pods, in the node's nftables too.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ServiceSpec {
    /// Its name.
    pub name: String,
    /// Its namespace.
    pub namespace: String,
    /// Names of the pods behind it.
    pub pods: Vec<String>,
    /// (port, target port) pairs.
    pub ports: Vec<(u16, u16)>,
}

/// A lab to make.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct LabSpec {
    /// Its name among the labs of this checkout.
    pub name: String,
    /// Number of nodes, 1 to 9.
    pub nodes: u8,
    /// How pods are joined.
    pub net: Net,
    /// Namespaces and their stages.
    pub namespaces: Vec<(String, Stage)>,
    /// Pods.
    pub pods: Vec<PodSpec>,
    /// Services, numbered in this order.
    pub services: Vec<ServiceSpec>,
    /// Further arguments of every agent.
    pub agent_args: Vec<String>,
    /// Lifetime of certificates, as the issuer takes it.
    pub svid_ttl: String,
    /// Whether its agents are those with fault points.
    #[serde(default)]
    pub faults: bool,
    /// Whether each node reads a folder of its own, in which a test may tell it other things than the others.
    #[serde(default)]
    pub own_folders: bool,
    /// Whether its Services have their ports for UDP too.
    #[serde(default)]
    pub datagrams: bool,
    /// Whether it stays when its maker ends.
    pub keep: bool,
}

impl LabSpec {
    /// Two pods a node (`client-N`, `server-N`) in namespace `demo`; Services `server` (all of them) and `server-N`.
    pub fn standard(name: &str, nodes: u8, net: Net, stage: Stage) -> Self {
        let mut pods = Vec::new();
        for node in 1..=nodes {
            pods.push(PodSpec::new(&format!("client-{node}"), "demo", node));
            pods.push(PodSpec::new(&format!("server-{node}"), "demo", node));
        }
        let servers: Vec<String> = (1..=nodes).map(|node| format!("server-{node}")).collect();
        let service = |name: &str, pods: Vec<String>| ServiceSpec {
            name: name.into(),
            namespace: "demo".into(),
            pods,
            ports: vec![(80, 8080)],
        };
        let mut services = vec![service("server", servers.clone())];
        services.extend(servers.iter().map(|server| service(server, vec![server.clone()])));
        Self {
            name: name.into(),
            nodes,
            net,
            namespaces: vec![("demo".into(), stage)],
            pods,
            services,
            agent_args: Vec::new(),
            svid_ttl: "4h".into(),
            faults: false,
            own_folders: false,
            datagrams: false,
            keep: false,
        }
    }

    /// Declares `count` more ports from `first` on at every server pod, and the same at every Service.
    pub fn with_ports(mut self, first: u16, count: u16) -> Self {
        let ports = first..first + count;
        for pod in &mut self.pods {
            pod.ports.extend(ports.clone());
        }
        for service in &mut self.services {
            service.ports.extend(ports.clone().map(|port| (port, port)));
        }
        self
    }

    /// Adds a pod.
    pub fn with_pod(mut self, pod: PodSpec) -> Self {
        if !self.namespaces.iter().any(|(name, _)| *name == pod.namespace) {
            self.namespaces.push((pod.namespace.clone(), Stage::Off));
        }
        self.pods.push(pod);
        self
    }

    /// Refuses what could not be built.
    pub fn check(&self) -> Result<()> {
        if !(1..=9).contains(&self.nodes) {
            bail!("a lab has 1 to 9 nodes, not {}", self.nodes);
        }
        for pod in &self.pods {
            if pod.name.len() > 14 || !(1..=self.nodes).contains(&pod.node) {
                bail!(
                    "pod {} on node {}: names have at most 14 bytes, nodes are 1 to {}",
                    pod.name,
                    pod.node,
                    self.nodes
                );
            }
        }
        Ok(())
    }

    /// Addresses of the pod at `index` of `pods`, IPv4 first.
    pub fn pod_ips(&self, index: usize) -> [IpAddr; 2] {
        let node = self.pods.get(index).map_or(0, |pod| pod.node);
        let before = self.pods.iter().take(index).filter(|pod| pod.node == node).count();
        let host = u8::try_from(before + 2).unwrap_or(u8::MAX);
        [
            IpAddr::V4(Ipv4Addr::new(10, 244, node, host)),
            IpAddr::V6(Ipv6Addr::new(0xfd00, 0x244, u16::from(node), 0, 0, 0, 0, u16::from(host))),
        ]
    }

    /// Cluster addresses of the Service at `index` of `services`, IPv4 first.
    pub fn service_ips(index: usize) -> [IpAddr; 2] {
        let host = u8::try_from(index + 10).unwrap_or(u8::MAX);
        [
            IpAddr::V4(Ipv4Addr::new(10, 96, 0, host)),
            IpAddr::V6(Ipv6Addr::new(0xfd00, 0x96, 0, 0, 0, 0, 0, u16::from(host))),
        ]
    }
}

/// Addresses of a node, IPv4 first.
pub fn node_ips(node: u8) -> [IpAddr; 2] {
    [
        IpAddr::V4(Ipv4Addr::new(172, 31, 0, node)),
        IpAddr::V6(Ipv6Addr::new(0xfd00, 0x31, 0, 0, 0, 0, 0, u16::from(node))),
    ]
}

/// Picks the address of a family.
pub fn of_family(ips: [IpAddr; 2], family: Family) -> IpAddr {
    let [v4, v6] = ips;
    match family {
        Family::V4 => v4,
        Family::V6 => v6,
    }
}
