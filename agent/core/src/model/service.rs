//! Services with their endpoints, resolved.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use super::{Protocol, Workload};
use crate::manifest::{EndpointSliceObject, PortTarget, ServiceObject, ServicePortObject, SliceEndpoint};

/// A Service with at least one cluster IP, or a headless one without.
#[derive(Clone, PartialEq, Debug)]
pub struct Service {
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// Cluster IPs.
    pub cluster_ips: Vec<IpAddr>,
    /// Addresses for clients outside the cluster.
    pub outer_ips: Vec<IpAddr>,
    /// Ports.
    pub ports: Vec<ServicePort>,
    /// A client keeps to one endpoint.
    pub affinity: bool,
    /// Only endpoints of the client's node are chosen.
    pub local_only: bool,
}

/// One port of a Service.
#[derive(Clone, PartialEq, Debug)]
pub struct ServicePort {
    /// Name; may be empty.
    pub name: String,
    /// Port of the cluster IP.
    pub port: u16,
    /// Protocol.
    pub protocol: Protocol,
    /// Port of every node's address.
    pub node_port: Option<u16>,
    /// Ready endpoints that have IPv4.
    pub v4: Backends,
    /// Ready endpoints that have IPv6.
    pub v6: Backends,
}

/// Ready endpoints of a Service port in one family.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Backends {
    /// There is one at least, if only one whose address is disputed, and each is a meshed workload: the agent takes
    /// connections.
    pub capture: bool,
    /// The endpoints, by address.
    pub ready: Vec<Backend>,
    /// An endpoint's address is nobody's: it is none of these.
    pub disputed: bool,
}

/// A ready endpoint.
#[derive(Clone, PartialEq, Debug)]
pub struct Backend {
    /// Address and target port.
    pub addr: SocketAddr,
    /// Whose address it is; `None`: not of the mesh.
    pub workload: Option<Arc<Workload>>,
}

/// A Service's port by name, for flows and ids.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct ServiceRef {
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// Port of the cluster IP.
    pub port: u16,
    /// Protocol.
    pub protocol: Protocol,
}

impl fmt::Display for ServiceRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}:{}", self.namespace, self.name, self.port)
    }
}

impl ServicePort {
    /// The endpoints that are of the same family as the cluster IP that was asked.
    pub fn backends(&self, asked: IpAddr) -> &Backends {
        if asked.is_ipv4() { &self.v4 } else { &self.v6 }
    }
}

impl Service {
    /// The same endpoints, for workloads that have changed.
    pub(super) fn with_workloads<'a>(&self, workload: impl Fn(&str) -> Option<&'a Arc<Workload>>) -> Self {
        let mut service = self.clone();
        for backends in service.ports.iter_mut().flat_map(|port| [&mut port.v4, &mut port.v6]) {
            let mut ready = std::mem::take(&mut backends.ready);
            for known in ready.iter_mut().filter_map(|backend| backend.workload.as_mut()) {
                if let Some(new) = workload(&known.uid) {
                    known.clone_from(new);
                }
            }
            *backends = Backends::new(ready, backends.disputed);
        }
        service
    }

    /// Name of one of its ports.
    pub fn reference(&self, port: &ServicePort) -> ServiceRef {
        ServiceRef {
            namespace: self.namespace.clone(),
            name: self.name.clone(),
            port: port.port,
            protocol: port.protocol,
        }
    }
}

/// What is needed to resolve endpoints.
pub(super) struct Lookup<'a> {
    /// EndpointSlices by namespace and Service.
    pub(super) slices: BTreeMap<(&'a str, &'a str), Vec<&'a EndpointSliceObject>>,
    /// Workloads by namespace.
    pub(super) workloads: BTreeMap<&'a str, Vec<&'a Arc<Workload>>>,
    /// Whose address it is.
    pub(super) by_ip: &'a dyn Fn(IpAddr) -> Option<Arc<Workload>>,
    /// Nobody's addresses.
    pub(super) disputed: &'a BTreeSet<IpAddr>,
}

impl Lookup<'_> {
    pub(super) fn resolve(&self, object: &ServiceObject) -> Service {
        let port = |port: &ServicePortObject| {
            let mut ready = match self.slices.get(&(object.namespace.as_str(), object.name.as_str())) {
                Some(slices) => self.of_slices(slices, object, port),
                None => self.of_selector(object, port),
            };
            ready.sort_by_key(|backend| backend.addr);
            ready.dedup_by_key(|backend| backend.addr);
            let (v4, v6) = ready.into_iter().partition::<Vec<_>, _>(|backend| backend.addr.is_ipv4());
            let of = |ready: Vec<Backend>| {
                let (disputed, ready): (Vec<_>, Vec<_>) =
                    ready.into_iter().partition(|backend| self.disputed.contains(&backend.addr.ip()));
                Backends::new(ready, !disputed.is_empty())
            };
            ServicePort {
                name: port.name.clone(),
                port: port.port,
                protocol: port.protocol,
                node_port: port.node_port,
                v4: of(v4),
                v6: of(v6),
            }
        };
        Service {
            namespace: object.namespace.clone(),
            name: object.name.clone(),
            cluster_ips: object.cluster_ips.clone(),
            outer_ips: object.outer_ips.clone(),
            ports: object.ports.iter().map(port).collect(),
            affinity: object.affinity,
            local_only: object.local_only,
        }
    }

    fn of_slices(
        &self,
        slices: &[&EndpointSliceObject],
        service: &ServiceObject,
        port: &ServicePortObject,
    ) -> Vec<Backend> {
        let of = |wanted: &dyn Fn(&SliceEndpoint) -> bool| {
            let mut found = Vec::new();
            for slice in slices {
                // A slice names its ports as the Service does.
                let numbers = slice.ports.iter().filter(|p| p.name == port.name && p.protocol == port.protocol);
                for number in numbers {
                    for endpoint in slice.endpoints.iter().filter(|endpoint| wanted(endpoint)) {
                        // All addresses of an endpoint mean the same thing (EndpointSlice API): the first is used.
                        let Some(ip) = endpoint.addresses.first() else { continue };
                        let addr = SocketAddr::new(*ip, number.port);
                        found.push(Backend { addr, workload: (self.by_ip)(*ip) });
                    }
                }
            }
            found
        };
        let mut found = of(&|endpoint| endpoint.ready || service.publish_not_ready);
        // kube-proxy's rule, for each family of its own: those that are going, while there is nobody else.
        let mut draining = of(&|endpoint| endpoint.draining);
        draining.retain(|late| !found.iter().any(|ready| ready.addr.is_ipv4() == late.addr.is_ipv4()));
        found.extend(draining);
        found
    }

    fn of_selector(&self, service: &ServiceObject, port: &ServicePortObject) -> Vec<Backend> {
        let Some(selector) = &service.selector else { return Vec::new() };
        let workloads = self.workloads.get(service.namespace.as_str());
        let chosen = workloads.into_iter().flatten().filter(|workload| {
            (workload.ready || service.publish_not_ready)
                && selector.iter().all(|(key, value)| workload.labels.get(key) == Some(value))
        });
        let mut found = Vec::new();
        for workload in chosen {
            let number = match &port.target {
                PortTarget::Number(number) => Some(*number),
                PortTarget::Name(name) => workload
                    .ports
                    .iter()
                    .find(|declared| declared.name == *name && declared.protocol == port.protocol)
                    .map(|declared| declared.port),
            };
            // A workload without a port of that name is no endpoint for this port (EndpointSlice controller's rule).
            let Some(number) = number else { continue };
            for like in [IpAddr::from([0; 4]), IpAddr::from([0; 16])] {
                let disputed = || workload.disputed.iter().copied().find(|ip| ip.is_ipv4() == like.is_ipv4());
                if let Some(ip) = workload.ip_like(like).or_else(disputed) {
                    let workload = Some(Arc::clone(workload));
                    found.push(Backend { addr: SocketAddr::new(ip, number), workload });
                }
            }
        }
        found
    }
}

impl Backends {
    fn new(ready: Vec<Backend>, disputed: bool) -> Self {
        let meshed = |backend: &Backend| backend.workload.as_ref().is_some_and(|workload| workload.meshed());
        // Left to kube-proxy, whoever disputes an endpoint's address would get its clients in the clear.
        Self { capture: (disputed || !ready.is_empty()) && ready.iter().all(meshed), ready, disputed }
    }
}
