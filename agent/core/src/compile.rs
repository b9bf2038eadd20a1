//! The model as the kernel's maps of one node hold it, and the way from one state to the next.
//!
//! Pure and deterministic: the same model, attachments and numbers give the same maps, whatever came before.

mod change;
mod numbers;
mod verdicts;

pub use change::{Op, diff};
pub use numbers::{Handles, HandlesError, MAX_HANDLE, Numbers, Shortage};
pub use verdicts::sets_of;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use kumiko_abi::map::{endpoint_flags, service_flags, workload_flags};
use kumiko_abi::policy::NetKey;
use kumiko_abi::{
    Addr, AddrEntry, AddrKind, Backend, BackendKey, Endpoint, ServiceEntry, ServiceKey, Stage,
    Workload as KernelWorkload,
};

use crate::addr::to_abi;
use crate::model::{Protocol, Service, ServicePort, Workload, World};
use crate::stage::Phase;

/// Most flows of one endpoint that may be pending at once: a SYN flood of one pod stops here.
pub const MAX_PENDING: u32 = 4096;
/// Most flow entries of one endpoint: a quarter of the table, so one scanning pod does not deny the node.
pub const MAX_FLOWS: u32 = 65_536;

/// Address of node ports in the keys of `SERVICES`.
const NODE_PORT: Addr = [0; 16];

/// A local workload whose veth carries the hooks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct AttachedEndpoint {
    /// Host-side interface.
    pub ifindex: u32,
    /// Where it is on its way.
    pub phase: Phase,
    /// May take the same-node fast path.
    pub fast: bool,
    /// MAC of the pod.
    pub pod_mac: [u8; 6],
    /// MAC that the pod sends to.
    pub gateway_mac: [u8; 6],
    /// Bridge or VRF that the interface is a port of; 0: none.
    pub master: u32,
}

/// Attached local workloads by UID.
pub type Attached = BTreeMap<String, AttachedEndpoint>;

/// Contents of the maps.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Desired {
    /// `WORKLOADS` by handle.
    pub workloads: BTreeMap<u32, KernelWorkload>,
    /// `ADDRS`.
    pub addrs: BTreeMap<Addr, AddrEntry>,
    /// `PROBE_PORTS`: handle and port.
    pub probe_ports: BTreeSet<(u32, u16)>,
    /// `ENDPOINTS` by interface.
    pub endpoints: BTreeMap<u32, Endpoint>,
    /// `SERVICES`, by address, port and protocol.
    pub services: BTreeMap<(Addr, u16, u8), ServiceEntry>,
    /// `BACKENDS`.
    pub backends: BTreeMap<BackendKey, Backend>,
    /// `NETS`, by network and length of its prefix.
    pub nets: BTreeMap<(Addr, u32), [u32; 2]>,
}

/// The key of `SERVICES` for a key of [`Desired::services`].
pub const fn service_key(key: (Addr, u16, u8)) -> ServiceKey {
    ServiceKey { addr: key.0, port: key.1, proto: key.2, _pad: 0 }
}

/// The key of `NETS` for a key of [`Desired::nets`].
pub const fn net_key((net, prefix): (Addr, u32)) -> NetKey {
    NetKey { prefix, net }
}

impl Desired {
    /// Marks remote workloads that are meshed here and were not in `before`: connections to them from before are yet to
    /// be marked as legacy. New ones are captured from the first moment; the leak counter looks away until then.
    ///
    /// "Attached" says this to the programs: the leak counter passes over attached workloads, and for one of another
    /// node nothing else asks for it.
    pub fn hold_raised(&mut self, before: &Desired) -> bool {
        let mut held = false;
        for (handle, workload) in &mut self.workloads {
            let raised = |old: &KernelWorkload| Stage::from_u8(old.stage).meshed();
            if workload.flags & workload_flags::LOCAL == 0
                && Stage::from_u8(workload.stage).meshed()
                && !before.workloads.get(handle).is_some_and(raised)
            {
                workload.flags |= workload_flags::ATTACHED;
                held = true;
            }
        }
        held
    }
}

/// What the maps of `node` have to hold. Workloads, classes and Services without a number ([`Handles::assign`] ran out)
/// are left out.
///
/// `coming` are the UIDs of local workloads whose hooks are about to go on: until then they count as not meshed, since
/// refusing their peers meanwhile would be an error that those never had. Any other local workload without hooks is of
/// its own stage, so connections to it are refused.
pub fn compile(
    world: &World,
    node: &str,
    attached: &Attached,
    handles: &Handles,
    coming: &BTreeSet<String>,
) -> Desired {
    let mut desired = Desired::default();
    for known in world.nodes() {
        let kind = if known.name == node { AddrKind::ThisNode } else { AddrKind::Node };
        for ip in &known.addresses {
            desired.addrs.insert(to_abi(*ip), AddrEntry { handle: 0, kind: kind as u8, _pad: [0; 3], class: [0; 2] });
        }
    }
    for ip in world.disputed() {
        let entry = AddrEntry { handle: 0, kind: AddrKind::Disputed as u8, _pad: [0; 3], class: [0; 2] };
        desired.addrs.insert(to_abi(*ip), entry);
    }
    for workload in world.workloads() {
        let Some(handle) = handles.workload(&workload.uid) else { continue };
        let local = workload.node == node;
        let here = attached.get(&workload.uid).filter(|_| local);
        desired.workloads.insert(handle, kernel_workload(workload, handles, local, here, coming));
        for ip in &workload.ips {
            let entry = AddrEntry { handle, kind: AddrKind::Workload as u8, _pad: [0; 3], class: [0; 2] };
            desired.addrs.insert(to_abi(*ip), entry);
        }
        if local {
            let probes = workload.ports.iter().filter(|port| port.probe && port.protocol == Protocol::Tcp);
            desired.probe_ports.extend(probes.map(|port| (handle, port.port)));
        }
        if let Some(here) = here {
            let mut entry = endpoint(handle, here);
            let settings = &world.policy().settings;
            if settings.slow_path {
                entry.flags &= !endpoint_flags::FAST;
            }
            if settings.refused_without_agent {
                entry.flags |= endpoint_flags::REFUSED_WITHOUT_AGENT;
            }
            desired.endpoints.insert(here.ifindex, entry);
        }
    }
    services(world, node, handles, &mut desired);
    desired
}

fn kernel_workload(
    workload: &Workload,
    handles: &Handles,
    local: bool,
    here: Option<&AttachedEndpoint>,
    coming: &BTreeSet<String>,
) -> KernelWorkload {
    let mut flags = workload_flags::LIVE;
    let mut stage = workload.stage;
    if local {
        flags |= workload_flags::LOCAL;
        match here {
            Some(_) => flags |= workload_flags::ATTACHED,
            None if coming.contains(&workload.uid) => stage = Stage::Off,
            None => {}
        }
    }
    let class = handles.class(&workload.principal).unwrap_or_default();
    KernelWorkload {
        class: [class; 2],
        ifindex: here.map_or(0, |here| here.ifindex),
        node: handles.node(&workload.node).unwrap_or_default(),
        stage: stage as u8,
        flags,
    }
}

/// The kernel's view of an attached endpoint.
pub fn endpoint(handle: u32, here: &AttachedEndpoint) -> Endpoint {
    let (stage, learn) = match here.phase {
        Phase::Detached => (Stage::Off, 0),
        Phase::Learning(stage) => (stage, endpoint_flags::LEARN),
        Phase::Enforcing(stage) => (stage, 0),
    };
    Endpoint {
        handle,
        flags: learn | if here.fast { endpoint_flags::FAST } else { 0 },
        set: [0; 2],
        max_pending: MAX_PENDING,
        max_flows: MAX_FLOWS,
        stage: stage as u8,
        _pad: [0; 3],
        pod_mac: here.pod_mac,
        gateway_mac: here.gateway_mac,
        master: here.master,
    }
}

/// The phase that an endpoint left in the map was in; the agent before us may have ended anywhere.
pub fn phase_of(endpoint: &Endpoint) -> Phase {
    let stage = Stage::from_u8(endpoint.stage);
    if endpoint.flags & endpoint_flags::LEARN != 0 { Phase::Learning(stage) } else { Phase::Enforcing(stage) }
}

fn services(world: &World, node: &str, handles: &Handles, desired: &mut Desired) {
    for service in world.services() {
        for port in &service.ports {
            let Some(id) = handles.service(&service.reference(port)) else { continue };
            for ip in &service.cluster_ips {
                let capture = port.protocol == Protocol::Tcp && port.backends(*ip).capture;
                let flags = if capture { service_flags::CAPTURE } else { 0 }
                    | if service.affinity { service_flags::AFFINITY } else { 0 };
                let backends = backends(service, port, *ip, node, id, &mut desired.backends);
                let key = (to_abi(*ip), port.port, port.protocol.number());
                desired.services.insert(key, ServiceEntry { id, flags, backends });
            }
        }
    }
    outer(world, handles, desired);
}

/// Endpoints that the programs choose from, for clients of this node, where the agent does not. Says how many.
fn backends(
    service: &Service,
    port: &ServicePort,
    asked: IpAddr,
    node: &str,
    id: u32,
    all: &mut BTreeMap<BackendKey, Backend>,
) -> u32 {
    let here = |backend: &&crate::model::Backend| {
        !service.local_only || backend.workload.as_ref().is_some_and(|workload| workload.node == node)
    };
    let family = if asked.is_ipv4() { 0 } else { BackendKey::V6 };
    let mut count = 0;
    for backend in port.backends(asked).ready.iter().filter(here) {
        let value = Backend { addr: to_abi(backend.addr.ip()), port: backend.addr.port(), _pad: [0; 6] };
        all.insert(BackendKey { service: id, index: count | family }, value);
        count += 1;
    }
    count
}

/// Node ports, external and load-balancer addresses. What a cluster IP or a workload has is theirs: no Service can take
/// a pod's address away by naming it.
fn outer(world: &World, handles: &Handles, desired: &mut Desired) {
    for service in world.services() {
        for port in &service.ports {
            let Some(id) = handles.service(&service.reference(port)) else { continue };
            let free =
                service.outer_ips.iter().filter(|ip| world.workload_at(**ip).is_none() && !world.is_disputed(**ip));
            let addresses = free.map(|ip| (to_abi(*ip), port.port));
            let node_port = port.node_port.map(|number| (NODE_PORT, number));
            for (addr, number) in addresses.chain(node_port) {
                let entry = ServiceEntry { id, flags: service_flags::OUTER, backends: 0 };
                desired.services.entry((addr, number, port.protocol.number())).or_insert(entry);
            }
        }
    }
}

#[cfg(test)]
mod tests;
