//! Where a captured connection goes, and whether one that arrives may be delivered: plain functions over the model.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use kumiko_abi::Reason;
use sha2::{Digest, Sha256};

use crate::Principal;
use crate::frame::AskedService;
use crate::model::{Node, Protocol, ServiceRef, Workload, World};
use crate::origin::Origin;

/// A parked SYN, as far as its route depends on it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SynView {
    /// Client's address and port.
    pub client: SocketAddr,
    /// Address and port that it asked for: a workload's or a Service's.
    pub asked: SocketAddr,
    /// Any number; chooses among ready endpoints (random, or a hash for affinity).
    pub pick: u64,
}

/// Where a connection goes.
#[derive(Clone, PartialEq, Debug)]
pub struct Plan {
    /// Client's workload.
    pub source: Arc<Workload>,
    /// The chosen workload; may be the client itself, through a Service.
    pub target: Arc<Workload>,
    /// Address and port of the target.
    pub target_addr: SocketAddr,
    /// Where the target's agent listens; `None`: the target is on this node.
    pub node_addr: Option<IpAddr>,
    /// The Service that was asked for.
    pub service: Option<ServiceRef>,
    /// What this node's certificate must prove.
    pub source_principal: Principal,
    /// What the other node's certificate must prove.
    pub target_principal: Principal,
}

/// Plans a connection of a workload of `node` that the kernel has captured.
///
/// Whether the target is still in the mesh is not asked: the SYN may be a moment older than the model, and acceptors
/// take OPEN for a while after a lowering.
///
/// # Errors
/// `UnknownSource`: the client is no workload of this node. `ServiceNotMeshed`, `NoReadyEndpoint`: the kernel's view of
/// the Service was older. `DestinationGone`: the same for a workload's address. `NoSuchNode`. `DisputedAddress`: one of the two
/// is nobody's.
pub fn plan(world: &World, node: &str, syn: &SynView) -> Result<Plan, Reason> {
    if [syn.client, syn.asked].iter().any(|end| world.is_disputed(end.ip())) {
        return Err(Reason::DisputedAddress);
    }
    let source =
        world.workload_at(syn.client.ip()).filter(|source| source.node == node).ok_or(Reason::UnknownSource)?;
    let service = world.service_at(syn.asked.ip(), syn.asked.port(), Protocol::Tcp);
    let (target, target_addr, service) = match service {
        Some((service, port)) => {
            let backends = port.backends(syn.asked.ip());
            if backends.ready.is_empty() {
                return Err(Reason::NoReadyEndpoint);
            }
            let known: Vec<(&Arc<Workload>, SocketAddr)> = backends
                .ready
                .iter()
                .filter_map(|backend| Some((backend.workload.as_ref()?, backend.addr)))
                .filter(|(workload, _)| !service.local_only || workload.node == node)
                .collect();
            let chosen = if service.affinity {
                known.iter().max_by_key(|(_, addr)| weight(syn.client.ip(), *addr))
            } else {
                choose(syn.pick, known.len()).and_then(|index| known.get(index))
            };
            let none = if service.local_only { Reason::NoReadyEndpoint } else { Reason::ServiceNotMeshed };
            let (workload, addr) = chosen.copied().ok_or(none)?;
            (workload, addr, Some(service.reference(port)))
        }
        None => (world.workload_at(syn.asked.ip()).ok_or(Reason::DestinationGone)?, syn.asked, None),
    };
    let node_addr = if target.node == node { None } else { Some(tunnel_addr(world, node, &target.node)?) };
    Ok(Plan {
        source: source.clone(),
        target: target.clone(),
        target_addr,
        node_addr,
        service,
        source_principal: source.principal.clone(),
        target_principal: target.principal.clone(),
    })
}

/// An index below `count`, every one as likely, without the bias and the division of a remainder.
fn choose(pick: u64, count: usize) -> Option<usize> {
    let product = u128::from(pick).checked_mul(u128::try_from(count).ok()?)?;
    usize::try_from(product >> 64).ok()
}

/// Weight of an endpoint for a client. The heaviest one stays the same while it is there, whoever else comes or goes.
fn weight(client: IpAddr, endpoint: SocketAddr) -> [u8; 32] {
    Sha256::digest(format!("{client} {endpoint}")).into()
}

/// Address of another node's agent: of a family that this node has too, in that node's order.
fn tunnel_addr(world: &World, here: &str, there: &str) -> Result<IpAddr, Reason> {
    let there = &world.node(there).ok_or(Reason::NoSuchNode)?.addresses;
    let own: &[IpAddr] = world.node(here).map_or(&[], |node: &Node| &node.addresses);
    let shared = there.iter().find(|ip| own.iter().any(|mine| mine.is_ipv4() == ip.is_ipv4()));
    shared.or(there.first()).copied().ok_or(Reason::NoSuchNode)
}

/// What an OPEN says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct OpenView<'a> {
    /// Client's address and port.
    pub client: SocketAddr,
    /// Destination pod's address and port.
    pub destination: SocketAddr,
    /// Destination workload's UID.
    pub destination_uid: &'a str,
    /// Client workload's UID.
    pub source_uid: &'a str,
    /// Digest of the client's labels, [`label_digest`] of the dialling node; empty: not said.
    pub label_digest: &'a [u8],
}

/// An OPEN that may be delivered, once its target is attached.
#[derive(Clone, PartialEq, Debug)]
pub struct Accepted {
    /// Client's workload.
    pub source: Arc<Workload>,
    /// Target workload, on this node.
    pub target: Arc<Workload>,
}

/// What a dialler says of its client's labels: a digest of those that rules choose by; empty if none do.
pub fn label_digest(world: &World, client: &Workload) -> Vec<u8> {
    world.policy().policies.used_labels().digest(world.member(client))
}

/// Who dials: what its certificate says, and where it dials from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Dialler<'a> {
    /// Principal of the certificate.
    pub principal: &'a Principal,
    /// What else the certificate says; `None`: nothing.
    pub origin: Option<&'a Origin>,
    /// Address of the tunnel's other end.
    pub ip: IpAddr,
}

/// Whether a certificate was given to this node for this very namespace and account, and not for one of before that had its name.
///
/// # Errors
/// `SourceMismatch`: to another node. `StaleIdentity`: other UIDs, or the model is late.
fn check_origin(world: &World, dialler: &Dialler<'_>, node: &str) -> Result<(), Reason> {
    let known = world.origin(dialler.principal, node);
    let nothing = Origin::default();
    let said = dialler.origin.unwrap_or(&nothing);
    if !said.is_of(&known) {
        return Err(Reason::StaleIdentity);
    }
    if said.node.is_empty() || said.node == node { Ok(()) } else { Err(Reason::SourceMismatch) }
}

/// Checks an OPEN: the source address belongs to the principal of the client certificate and to the dialling node, which that
/// certificate was given to; the
/// destination address belongs to the asked UID, here, and to the principal that this side's certificate showed.
///
/// # Errors
/// `UnknownSource`, `StaleIdentity`, `DisputedAddress` and `DestinationGone` may be the model being late: worth 500 ms. `SourceMismatch` and
/// `DestinationMismatch` are final.
pub fn check_open(
    world: &World,
    node: &str,
    open: &OpenView<'_>,
    dialler: Dialler<'_>,
    shown_principal: &Principal,
) -> Result<Accepted, Reason> {
    if [open.client, open.destination].iter().any(|end| world.is_disputed(end.ip())) {
        return Err(Reason::DisputedAddress);
    }
    let source = world.workload_at(open.client.ip()).ok_or(Reason::UnknownSource)?;
    let from = world.node_at(dialler.ip.to_canonical()).ok_or(Reason::UnknownSource)?;
    if source.node != from.name {
        return Err(Reason::UnknownSource);
    }
    // The address has another pod now, of whatever account.
    if source.uid != open.source_uid {
        return Err(Reason::StaleIdentity);
    }
    if source.principal != *dialler.principal {
        return Err(Reason::SourceMismatch);
    }
    check_origin(world, &dialler, &from.name)?;
    // Rules would be asked about what it was.
    if !world.policy().policies.used_labels().agree(world.member(source), open.label_digest) {
        return Err(Reason::StaleIdentity);
    }
    let target = world
        .workload_at(open.destination.ip())
        .filter(|target| target.uid == open.destination_uid && target.node == node)
        .ok_or(Reason::DestinationGone)?;
    if target.principal != *shown_principal {
        return Err(Reason::DestinationMismatch);
    }
    Ok(Accepted { source: source.clone(), target: target.clone() })
}

/// Whether the Service that an OPEN names is one of this node's model: under this name and address, with the destination
/// among its ready endpoints. Its name goes into this node's records, and the dialling node may lie.
pub fn is_asked_service(world: &World, service: &AskedService, destination: SocketAddr) -> bool {
    let AskedService { name, address } = service;
    let Some((known, port)) = world.service_at(address.ip(), address.port(), Protocol::Tcp) else { return false };
    let endpoints = if address.is_ipv4() { &port.v4 } else { &port.v6 };
    name.split_once('/') == Some((&known.namespace, &known.name))
        && endpoints.ready.iter().any(|endpoint| endpoint.addr == destination)
}

#[cfg(test)]
mod tests;
