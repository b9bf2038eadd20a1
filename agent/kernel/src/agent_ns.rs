//! The agent's own network namespace: where its transparent listeners and its sockets towards pods live.
//!
//! A veth pair joins it to the host's namespace: `kumiko0` there, `eth0` here. Everything that arrives on `eth0` is
//! local, whatever its address; everything that is sent leaves by `eth0` with the MAC of `kumiko0`, where a program
//! takes it on. So the host gets no address, route, rule or mark, and its ports stay its own.

mod routes;
mod sysctl;

use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::path::{Path, PathBuf};

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{InfoData, InfoKind, InfoVeth, LinkAttribute, LinkFlags, LinkInfo, LinkMessage};

use crate::netlink::link::{Link, Which};
use crate::netlink::{Connection, errno};
use crate::netns::{self, Netns, PersistError};

/// The interface inside.
pub const AGENT_LINK: &str = "eth0";
/// MAC of `eth0` inside. Locally administered; fixed, so that it is known before anything is read back.
pub const AGENT_MAC: [u8; 6] = [0x02, 0x6b, 0x75, 0x6d, 0x69, 0x02];
/// MAC of the host's side.
pub const HOST_MAC: [u8; 6] = [0x02, 0x6b, 0x75, 0x6d, 0x69, 0x01];
/// Largest that veth takes: pods with jumbo frames lose a fifth of their throughput to a smaller one.
const MTU: u32 = 65_535;
/// IFNAMSIZ less the terminating zero.
const NAME_MAX: usize = 15;

/// What went wrong with the agent's namespace.
#[derive(Debug, thiserror::Error)]
pub enum AgentNsError {
    /// The name cannot be a file's.
    #[error("{0:?} cannot name the agent's namespace: use letters, digits, '-' and '_'")]
    Name(String),
    /// The namespace itself.
    #[error(transparent)]
    Persist(#[from] PersistError),
    /// A netlink request.
    #[error("agent namespace {name}: cannot {what}: {source}")]
    Netlink {
        /// The namespace.
        name: String,
        /// The step.
        what: &'static str,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// A sysctl.
    #[error("cannot set {path} to {value:?}: {source} (is /proc/sys mounted read-only?)", path = path.display())]
    Sysctl {
        /// The file.
        path: PathBuf,
        /// The value.
        value: String,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The name of the host's side is taken by something else.
    #[error(
        "interface {name} exists on the host and is {kind}, not kumiko's veth: remove it, or choose another --netns-name"
    )]
    Taken {
        /// The interface.
        name: String,
        /// What it is.
        kind: String,
    },
}

/// The agent's namespace and the veth pair that leads there.
#[derive(Debug)]
pub struct AgentNs {
    /// The namespace.
    pub netns: Netns,
    /// Index of the host's side, in the host's namespace.
    pub host_ifindex: u32,
    /// Name of the host's side.
    pub host_name: String,
    /// Index of `eth0`, in the agent's namespace.
    pub agent_ifindex: u32,
    /// MAC of `eth0`.
    pub agent_mac: [u8; 6],
    /// MAC of the host's side.
    pub host_mac: [u8; 6],
}

impl AgentNs {
    /// Makes the namespace `<run_dir>/netns/<name>` and all that belongs to it, or takes over what is there, without
    /// touching what is right: the flows of a restarted agent's predecessor are being reset through it.
    ///
    /// `host` is the namespace of the node, the one of the pods' host-side veths.
    pub fn ensure(run_dir: &Path, name: &str, host: &Netns) -> Result<Self, AgentNsError> {
        let host_name = host_link_name(name)?;
        let netns = netns::create_persistent(&path(run_dir, name))?;
        let fail =
            |what: &'static str| move |source: io::Error| AgentNsError::Netlink { name: name.to_owned(), what, source };
        let mut outside = Connection::route(host).map_err(fail("open netlink in the host's namespace"))?;
        let mut inside = Connection::route(&netns).map_err(fail("open netlink inside"))?;
        // Before the interface exists: it takes its settings from the defaults, and is silent from the start.
        sysctl::namespace(&netns, host)?;
        let (host_link, agent_link) = ensure_pair(&mut outside, &mut inside, &host_name, &netns, fail)?;
        sysctl::host_link(host, &host_name)?;
        sysctl::agent_link(&netns, AGENT_LINK)?;
        let loopback = inside.link(Which::Name("lo")).map_err(fail("look up lo"))?.unwrap_or_default();
        set_link(&mut inside, &loopback, None).map_err(fail("bring lo up"))?;
        set_link(&mut inside, &agent_link, Some(AGENT_MAC)).map_err(fail("set up eth0"))?;
        set_link(&mut outside, &host_link, Some(HOST_MAC)).map_err(fail("set up the host's side of the veth"))?;
        routes::ensure(&mut inside, loopback.index, agent_link.index, HOST_MAC, sysctl::has_ipv6())
            .map_err(|(what, source)| fail(what)(source))?;
        Ok(Self {
            netns,
            host_ifindex: host_link.index,
            host_name,
            agent_ifindex: agent_link.index,
            agent_mac: AGENT_MAC,
            host_mac: HOST_MAC,
        })
    }

    /// Removes the veth pair, the namespace and its folder. What is not there is no error.
    pub fn remove(run_dir: &Path, name: &str, host: &Netns) -> Result<(), AgentNsError> {
        let host_name = host_link_name(name)?;
        let fail = |what| move |source| AgentNsError::Netlink { name: name.to_owned(), what, source };
        let mut outside = Connection::route(host).map_err(fail("open netlink in the host's namespace"))?;
        let link = outside.link(Which::Name(&host_name)).map_err(fail("look up the host's side of the veth"))?;
        if let Some(link) = link.filter(Link::is_veth) {
            delete_link(&mut outside, link.index).map_err(fail("remove the veth"))?;
        }
        netns::remove(&path(run_dir, name))?;
        Ok(())
    }
}

fn path(run_dir: &Path, name: &str) -> PathBuf {
    run_dir.join("netns").join(name)
}

/// Name of the host's side: `kumiko0` for `kumiko`, and so on; long names are cut and told apart by a hash.
fn host_link_name(name: &str) -> Result<String, AgentNsError> {
    let sound = !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_');
    if !sound {
        return Err(AgentNsError::Name(name.to_owned()));
    }
    if name.len() < NAME_MAX {
        return Ok(format!("{name}0"));
    }
    // FNV-1a: it only has to be the same every time.
    let hash = name.bytes().fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193));
    let head: String = name.chars().take(NAME_MAX - 9).collect();
    Ok(format!("{head}{hash:08x}0"))
}

/// The pair's ends, made anew unless both are there and belong together.
fn ensure_pair<F>(
    outside: &mut Connection,
    inside: &mut Connection,
    host_name: &str,
    netns: &Netns,
    fail: impl Fn(&'static str) -> F,
) -> Result<(Link, Link), AgentNsError>
where
    F: FnOnce(io::Error) -> AgentNsError,
{
    if let Some(pair) = find_pair(outside, inside, host_name, netns).map_err(fail("look up the veth"))? {
        return Ok(pair);
    }
    // One end without the other: what a predecessor left whose namespace is gone.
    if let Some(link) = outside.link(Which::Name(host_name)).map_err(fail("look up the host's side of the veth"))? {
        if !link.is_veth() {
            let kind = link.kind.unwrap_or_else(|| "not a virtual interface".into());
            return Err(AgentNsError::Taken { name: host_name.to_owned(), kind });
        }
        delete_link(outside, link.index).map_err(fail("remove the old veth"))?;
    }
    if let Some(link) = inside.link(Which::Name(AGENT_LINK)).map_err(fail("look up eth0"))? {
        delete_link(inside, link.index).map_err(fail("remove the old eth0"))?;
    }
    create_pair(outside, host_name, netns).map_err(fail("make the veth"))?;
    find_pair(outside, inside, host_name, netns)
        .map_err(fail("look up the new veth"))?
        .ok_or_else(|| fail("make the veth")(io::Error::other("it is not there, or was moved away")))
}

fn find_pair(
    outside: &mut Connection,
    inside: &mut Connection,
    host_name: &str,
    netns: &Netns,
) -> io::Result<Option<(Link, Link)>> {
    let Some(host) = outside.link(Which::Name(host_name))? else { return Ok(None) };
    let Some(agent) = inside.link(Which::Name(AGENT_LINK))? else { return Ok(None) };
    let joined = host.is_veth()
        && host.peer == Some(agent.index)
        && agent.peer == Some(host.index)
        && host.peer_nsid.is_some()
        && host.peer_nsid == outside.nsid(netns)?;
    Ok(joined.then_some((host, agent)))
}

fn create_pair(outside: &mut Connection, host_name: &str, netns: &Netns) -> io::Result<()> {
    let side = |name: &str, mac: [u8; 6]| {
        // The MAC is given here, so that no udev rule finds a random one to replace.
        vec![LinkAttribute::IfName(name.to_owned()), LinkAttribute::Address(mac.to_vec()), LinkAttribute::Mtu(MTU)]
    };
    let mut peer = LinkMessage::default();
    peer.attributes = side(AGENT_LINK, AGENT_MAC);
    peer.attributes.push(LinkAttribute::NetNsFd(netns.as_fd().as_raw_fd()));
    let mut message = LinkMessage::default();
    message.attributes = side(host_name, HOST_MAC);
    message.attributes.push(LinkAttribute::LinkInfo(vec![
        LinkInfo::Kind(InfoKind::Veth),
        LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(peer))),
    ]));
    outside.request(RouteNetlinkMessage::NewLink(message), NLM_F_CREATE | NLM_F_EXCL)?;
    Ok(())
}

/// Sets MAC and MTU where they differ, and brings the interface up.
fn set_link(connection: &mut Connection, link: &Link, mac: Option<[u8; 6]>) -> io::Result<()> {
    let mut message = LinkMessage::default();
    message.header.index = link.index;
    if let Some(mac) = mac {
        if link.mac != Some(mac) {
            message.attributes.push(LinkAttribute::Address(mac.to_vec()));
        }
        if link.mtu != MTU {
            message.attributes.push(LinkAttribute::Mtu(MTU));
        }
    }
    if link.up && message.attributes.is_empty() {
        return Ok(());
    }
    message.header.flags = LinkFlags::Up;
    message.header.change_mask = LinkFlags::Up;
    connection.request(RouteNetlinkMessage::SetLink(message), 0)?;
    Ok(())
}

fn delete_link(connection: &mut Connection, index: u32) -> io::Result<()> {
    let mut message = LinkMessage::default();
    message.header.index = index;
    match connection.request(RouteNetlinkMessage::DelLink(message), 0) {
        Err(error) if errno(&error) != Some(libc::ENODEV) => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_fit_an_interface() {
        assert_eq!(host_link_name("kumiko").unwrap(), "kumiko0");
        let a = host_link_name("kumiko-lab-a-node-1").unwrap();
        let b = host_link_name("kumiko-lab-a-node-2").unwrap();
        assert_ne!(a, b);
        assert_eq!(a.len(), NAME_MAX);
        for bad in ["", "..", "a/b", "a b", "ä"] {
            assert!(host_link_name(bad).is_err(), "{bad:?}");
        }
    }
}
