//! Where a pod's veth ends on the host.

mod find;

use std::io;
use std::path::PathBuf;

use crate::netlink::Connection;
use crate::netlink::link::{Link, Which};
use crate::netns::Netns;

/// A veth, its bridge, the bridge's VRF; more than any link has above it.
const MASTERS: usize = 4;

/// How a manifest says where a pod is attached.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Attachment {
    /// By its namespace and the name of the interface inside.
    Netns {
        /// File that the namespace is mounted on, or `/proc/<pid>/ns/net`.
        path: PathBuf,
        /// Interface inside, as a rule `eth0`.
        interface: String,
    },
    /// By the name of the veth's end in the host's namespace.
    Veth {
        /// Interface on the host.
        name: String,
    },
}

/// The host's end of a pod's veth, and what frames into the pod have to look like.
#[derive(Debug)]
pub struct PodVeth {
    /// Index of the host's end, in the host's namespace.
    pub ifindex: u32,
    /// Its name.
    pub name: String,
    /// MAC of the pod's end.
    pub pod_mac: [u8; 6],
    /// MAC of the pod's gateway: of the host's end, or of the bridge that the host's end is a port of.
    pub gateway_mac: [u8; 6],
    /// Index of the bridge or VRF that the host's end is a port of, the outermost one; 0: there is none.
    pub master: u32,
    /// The pod's namespace; none when only the host's end was named and no file or process leads to it.
    pub netns: Option<Netns>,
    /// MTU of the pod's end.
    pub mtu: u32,
    /// Whether both ends are up: frames redirected there would arrive.
    pub running: bool,
}

/// Why a pod cannot be attached (now).
#[derive(Debug, thiserror::Error)]
pub enum VethError {
    /// The namespace is not there (yet).
    #[error("cannot open the pod's network namespace {path}: {source}", path = path.display())]
    Netns {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// A pod of the host's own namespace.
    #[error("{path} is the host's own network namespace: a host-network pod cannot be captured", path = path.display())]
    HostNetwork {
        /// The file.
        path: PathBuf,
    },
    /// No such interface (yet).
    #[error("no interface {name} in {place}")]
    NoInterface {
        /// Its name.
        name: String,
        /// Where it was looked for.
        place: String,
    },
    /// Another kind of interface.
    #[error(
        "{name} in {place} is {kind}, not a veth: only veth pods can be captured (not netkit, macvlan, ipvlan, SR-IOV)"
    )]
    NotVeth {
        /// Its name.
        name: String,
        /// Where it is.
        place: String,
        /// What it is.
        kind: String,
    },
    /// The other end is elsewhere.
    #[error("the other end of {name} (in {place}) is not in the {wanted}: {why}")]
    PeerElsewhere {
        /// Its name.
        name: String,
        /// Where it is.
        place: String,
        /// Where the other end should be.
        wanted: &'static str,
        /// What was found.
        why: &'static str,
    },
    /// No Ethernet address.
    #[error("{name} in {place} has no Ethernet address")]
    NoMac {
        /// Its name.
        name: String,
        /// Where it is.
        place: String,
    },
    /// A netlink request.
    #[error("cannot ask the kernel about {name}: {source}")]
    Netlink {
        /// The interface or file.
        name: String,
        /// The cause.
        #[source]
        source: io::Error,
    },
}

impl VethError {
    /// Whether waiting may help: the namespace or the interface is not there, which is so for a pod that is being
    /// made. The link watch tells when to try again.
    pub fn may_come(&self) -> bool {
        matches!(self, Self::Netns { .. } | Self::NoInterface { .. })
    }
}

/// Finds the host's end of a pod's veth. `host` is the node's namespace.
pub fn resolve(attachment: &Attachment, host: &Netns) -> Result<PodVeth, VethError> {
    match attachment {
        Attachment::Netns { path, interface } => by_netns(path, interface, host),
        Attachment::Veth { name } => by_host_link(name, host),
    }
}

fn by_netns(path: &std::path::Path, interface: &str, host: &Netns) -> Result<PodVeth, VethError> {
    let netns = Netns::open(path).map_err(|source| VethError::Netns { path: path.to_owned(), source })?;
    if netns.is(host) {
        return Err(VethError::HostNetwork { path: path.to_owned() });
    }
    let place = path.display().to_string();
    let asked = |source| VethError::Netlink { name: format!("{interface} in {place}"), source };
    let mut inside = Connection::route(&netns).map_err(asked)?;
    let mut outside = Connection::route(host).map_err(asked)?;
    let pod = inside.link(Which::Name(interface)).map_err(asked)?;
    let pod = veth(pod, interface, &place)?;
    let elsewhere = |why| VethError::PeerElsewhere {
        name: interface.to_owned(),
        place: place.clone(),
        wanted: "host's namespace",
        why,
    };
    if pod.peer_nsid.is_none() {
        return Err(elsewhere("it is in the pod's own namespace"));
    }
    let index = pod.peer.ok_or_else(|| elsewhere("the kernel does not say where it is"))?;
    // The index alone proves nothing: every namespace has its own. So the host's interface has to lead back.
    let end = outside
        .link(Which::Index(index))
        .map_err(asked)?
        .filter(|end| end.is_veth() && end.peer == Some(pod.index))
        .ok_or_else(|| elsewhere("no interface there leads back"))?;
    let number = outside.nsid(&netns).map_err(asked)?;
    if number.is_none() || end.peer_nsid != number {
        return Err(elsewhere("the interface with that index there leads to another namespace"));
    }
    finish(&mut outside, end, &pod, &place, Some(netns))
}

fn by_host_link(name: &str, host: &Netns) -> Result<PodVeth, VethError> {
    let place = "the host's namespace";
    let asked = |source| VethError::Netlink { name: name.to_owned(), source };
    let mut outside = Connection::route(host).map_err(asked)?;
    let end = outside.link(Which::Name(name)).map_err(asked)?;
    let end = veth(end, name, place)?;
    let elsewhere = |why| VethError::PeerElsewhere {
        name: name.to_owned(),
        place: place.to_owned(),
        wanted: "pod's namespace",
        why,
    };
    let nsid = end.peer_nsid.ok_or_else(|| elsewhere("it is in the host's own"))?;
    let index = end.peer.ok_or_else(|| elsewhere("the kernel does not say where it is"))?;
    let pod = outside.link(Which::Elsewhere { index, nsid }).map_err(asked)?;
    let pod = veth(pod, name, "the pod's namespace")?;
    let netns = find::by_number(&mut outside, nsid, host).map_err(asked)?;
    finish(&mut outside, end, &pod, place, netns)
}

fn finish(
    outside: &mut Connection,
    end: Link,
    pod: &Link,
    place: &str,
    netns: Option<Netns>,
) -> Result<PodVeth, VethError> {
    let no_mac = |link: &Link, place: &str| VethError::NoMac { name: link.name.clone(), place: place.to_owned() };
    let pod_mac = pod.mac.ok_or_else(|| no_mac(pod, place))?;
    let mut gateway_mac = end.mac.ok_or_else(|| no_mac(&end, "the host's namespace"))?;
    let (mut master, mut above) = (0, end.master);
    for _ in 0..MASTERS {
        let Some(index) = above else { break };
        let link = outside
            .link(Which::Index(index))
            .map_err(|source| VethError::Netlink { name: format!("the bridge of {}", end.name), source })?;
        // Another kind of master (a VRF, Open vSwitch) does not answer for the gateway.
        if let Some(mac) = link.as_ref().filter(|b| b.kind.as_deref() == Some("bridge")).and_then(|b| b.mac) {
            gateway_mac = mac;
        }
        master = index;
        above = link.and_then(|link| link.master);
    }
    let running = end.running && pod.running;
    Ok(PodVeth { ifindex: end.index, name: end.name, pod_mac, gateway_mac, master, netns, mtu: pod.mtu, running })
}

fn veth(link: Option<Link>, name: &str, place: &str) -> Result<Link, VethError> {
    let Some(link) = link else {
        return Err(VethError::NoInterface { name: name.to_owned(), place: place.to_owned() });
    };
    if link.is_veth() {
        return Ok(link);
    }
    let kind = link.kind.unwrap_or_else(|| "a hardware or loopback interface".into());
    Err(VethError::NotVeth { name: link.name, place: place.to_owned(), kind })
}
