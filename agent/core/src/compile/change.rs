//! From one state of the maps to the next, in an order that opens no window.

use kumiko_abi::{Addr, AddrEntry, Backend, BackendKey, Endpoint, ServiceEntry, Workload};

use super::Desired;

/// One write to a map.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(missing_docs, reason = "each variant is named after what it carries")]
pub enum Op {
    SetWorkload(u32, Workload),
    SetAddr(Addr, AddrEntry),
    SetProbePort(u32, u16),
    SetEndpoint(u32, Endpoint),
    SetService((Addr, u16, u8), ServiceEntry),
    SetBackend(BackendKey, Backend),
    RemoveBackend(BackendKey),
    SetNet((Addr, u32), [u32; 2]),
    RemoveNet((Addr, u32)),
    RemoveService((Addr, u16, u8)),
    RemoveEndpoint(u32),
    RemoveProbePort(u32, u16),
    RemoveAddr(Addr),
    /// The element of an array cannot go: it is zeroed.
    ClearWorkload(u32),
}

/// The writes that lead from `old` to `new`.
///
/// An endpoint of a Service stands before the Service counts it. A workload stands before an address or endpoint points at it, a Service is captured only when its endpoints are
/// known; and the other way round when they go. So no packet meets an address whose workload reads as "not meshed"
/// because its half is not written yet.
pub fn diff(old: &Desired, new: &Desired) -> Vec<Op> {
    let mut ops = Vec::new();
    ops.extend(set(&old.workloads, &new.workloads).map(|(k, v)| Op::SetWorkload(*k, *v)));
    ops.extend(set(&old.nets, &new.nets).map(|(k, v)| Op::SetNet(*k, *v)));
    ops.extend(set(&old.addrs, &new.addrs).map(|(k, v)| Op::SetAddr(*k, *v)));
    ops.extend(new.probe_ports.difference(&old.probe_ports).map(|(h, p)| Op::SetProbePort(*h, *p)));
    ops.extend(set(&old.endpoints, &new.endpoints).map(|(k, v)| Op::SetEndpoint(*k, *v)));
    ops.extend(set(&old.backends, &new.backends).map(|(k, v)| Op::SetBackend(*k, *v)));
    ops.extend(set(&old.services, &new.services).map(|(k, v)| Op::SetService(*k, *v)));
    ops.extend(gone(&old.services, &new.services).map(|k| Op::RemoveService(*k)));
    ops.extend(gone(&old.backends, &new.backends).map(|k| Op::RemoveBackend(*k)));
    ops.extend(gone(&old.endpoints, &new.endpoints).map(|k| Op::RemoveEndpoint(*k)));
    ops.extend(old.probe_ports.difference(&new.probe_ports).map(|(h, p)| Op::RemoveProbePort(*h, *p)));
    ops.extend(gone(&old.addrs, &new.addrs).map(|k| Op::RemoveAddr(*k)));
    ops.extend(gone(&old.nets, &new.nets).map(|k| Op::RemoveNet(*k)));
    ops.extend(gone(&old.workloads, &new.workloads).map(|k| Op::ClearWorkload(*k)));
    ops
}

type Map<K, V> = std::collections::BTreeMap<K, V>;

fn set<'a, K: Ord, V: PartialEq>(old: &'a Map<K, V>, new: &'a Map<K, V>) -> impl Iterator<Item = (&'a K, &'a V)> {
    new.iter().filter(|(key, value)| old.get(key) != Some(value))
}

fn gone<'a, K: Ord, V>(old: &'a Map<K, V>, new: &'a Map<K, V>) -> impl Iterator<Item = &'a K> {
    old.keys().filter(|key| !new.contains_key(key))
}

impl Desired {
    /// What the maps hold after a write.
    pub fn apply(&mut self, op: &Op) {
        match *op {
            Op::SetWorkload(handle, workload) => drop(self.workloads.insert(handle, workload)),
            Op::SetAddr(addr, entry) => drop(self.addrs.insert(addr, entry)),
            Op::SetProbePort(handle, port) => drop(self.probe_ports.insert((handle, port))),
            Op::SetEndpoint(ifindex, endpoint) => drop(self.endpoints.insert(ifindex, endpoint)),
            Op::SetBackend(key, backend) => drop(self.backends.insert(key, backend)),
            Op::RemoveBackend(key) => drop(self.backends.remove(&key)),
            Op::SetNet(net, classes) => drop(self.nets.insert(net, classes)),
            Op::RemoveNet(net) => drop(self.nets.remove(&net)),
            Op::SetService(key, entry) => drop(self.services.insert(key, entry)),
            Op::RemoveService(key) => drop(self.services.remove(&key)),
            Op::RemoveEndpoint(ifindex) => drop(self.endpoints.remove(&ifindex)),
            Op::RemoveProbePort(handle, port) => drop(self.probe_ports.remove(&(handle, port))),
            Op::RemoveAddr(addr) => drop(self.addrs.remove(&addr)),
            Op::ClearWorkload(handle) => drop(self.workloads.remove(&handle)),
        }
    }
}
