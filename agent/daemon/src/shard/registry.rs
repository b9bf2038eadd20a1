//! Flows that this agent serves now, and the switch that ends each of them.
//!
//! Shared by all shards: one lock when a flow begins and one when it ends, none in between.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use kumiko_abi::{FlowId, FlowKey, Reason};
use tokio::sync::Notify;

/// Ends one flow from outside its task.
#[derive(Debug, Default)]
pub struct Stop {
    reason: AtomicU16,
    notify: Notify,
}

impl Stop {
    /// Asks the flow to end; the first reason stays.
    pub fn stop(&self, reason: Reason) {
        let _ = self.reason.compare_exchange(0, reason as u16, Ordering::AcqRel, Ordering::Acquire);
        self.notify.notify_one();
    }

    /// Returns when the flow has to end, with the cause. For the flow's own task only.
    pub async fn stopped(&self) -> Reason {
        loop {
            if let Some(reason) = self.asked() {
                return reason;
            }
            self.notify.notified().await;
        }
    }

    /// The cause, if the flow has to end.
    pub fn asked(&self) -> Option<Reason> {
        match self.reason.load(Ordering::Acquire) {
            0 => None,
            number => Some(Reason::from_u16(number).unwrap_or(Reason::None)),
        }
    }
}

/// What the registry knows about a flow.
#[derive(Debug, Clone)]
pub struct Entry {
    /// The flow.
    pub id: FlowId,
    /// The address that the client asked for: a Service's, or the pod's own.
    pub asked: SocketAddr,
    /// Handles of both workloads.
    pub handles: [u32; 2],
    /// Ends it.
    pub stop: Arc<Stop>,
}

/// All flows of all shards, by the key of their entry on the pod's side.
#[derive(Debug, Default, Clone)]
pub struct Registry {
    flows: Arc<Mutex<HashMap<FlowKey, Entry>>>,
}

impl Registry {
    fn lock(&self) -> MutexGuard<'_, HashMap<FlowKey, Entry>> {
        // A panic ends the process, so a poisoned lock cannot be met; taking the value keeps this total.
        self.flows.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a flow; the returned guard removes it.
    pub fn add(&self, key: FlowKey, entry: Entry) -> Registered {
        let id = entry.id;
        self.lock().insert(key, entry);
        Registered { registry: self.clone(), key, id }
    }

    /// The flow under a key.
    pub fn get(&self, key: &FlowKey) -> Option<Entry> {
        self.lock().get(key).cloned()
    }

    /// Whether no flow is served.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Number of flows.
    pub fn len(&self) -> usize {
        self.lock().len()
    }

    /// Ends every flow of a workload.
    pub fn stop_workload(&self, handle: u32, reason: Reason) -> usize {
        self.stop_where(|entry| entry.handles.contains(&handle), reason)
    }

    /// Ends every flow.
    pub fn stop_all(&self, reason: Reason) -> usize {
        self.stop_where(|_| true, reason)
    }

    /// Ends every flow with a workload that is not `known` any more.
    pub fn stop_unless(&self, known: impl Fn(u32) -> bool) -> usize {
        self.stop_where(|entry| entry.handles.iter().any(|handle| !known(*handle)), Reason::EndpointGone)
    }

    fn stop_where(&self, which: impl Fn(&Entry) -> bool, reason: Reason) -> usize {
        let stops: Vec<Arc<Stop>> = self.lock().values().filter(|e| which(e)).map(|e| e.stop.clone()).collect();
        for stop in &stops {
            stop.stop(reason);
        }
        stops.len()
    }
}

/// Takes a flow out of the registry when dropped, unless another one has taken its key.
#[derive(Debug)]
pub struct Registered {
    registry: Registry,
    key: FlowKey,
    id: FlowId,
}

impl Drop for Registered {
    fn drop(&mut self) {
        let mut flows = self.registry.lock();
        if flows.get(&self.key).is_some_and(|e| e.id == self.id) {
            flows.remove(&self.key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(n: u8) -> Entry {
        Entry {
            id: FlowId([n; 16]),
            asked: "10.0.0.1:80".parse().unwrap(),
            handles: [u32::from(n), 99],
            stop: Arc::default(),
        }
    }

    fn key(port: u16) -> FlowKey {
        kumiko_core::addr::flow_key(SocketAddr::new([10, 0, 0, 2].into(), port), "10.0.0.1:80".parse().unwrap(), 6).0
    }

    #[test]
    fn a_late_guard_does_not_remove_the_next_flow() {
        let registry = Registry::default();
        let first = registry.add(key(1), entry(1));
        let second = registry.add(key(1), entry(2));
        drop(first);
        assert_eq!(registry.get(&key(1)).unwrap().id, FlowId([2; 16]));
        drop(second);
        assert_eq!(registry.len(), 0);
    }

    #[test]
    fn stopping_a_workload_leaves_the_others() {
        let registry = Registry::default();
        let (a, b) = (entry(1), entry(2));
        let _guards = [registry.add(key(1), a.clone()), registry.add(key(2), b.clone())];
        assert_eq!(registry.stop_workload(1, Reason::EndpointGone), 1);
        assert_eq!(a.stop.asked(), Some(Reason::EndpointGone));
        assert_eq!(b.stop.asked(), None);
    }
}
