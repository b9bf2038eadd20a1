//! Flows that this agent serves now, and the switch that ends each of them.
//!
//! Shared by all shards: one lock when a flow begins and one when it ends, none in between.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU16, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use kumiko_abi::{FlowId, FlowKey, Reason};
use tokio::sync::{Notify, watch};

use crate::reconcile::{Between, Carried};

/// Ends one flow from outside its task.
#[derive(Debug, Default)]
pub struct Stop {
    reason: AtomicU16,
    /// Of the verdict that ends it; 0: none does.
    epoch: AtomicU32,
    notify: Notify,
}

impl Stop {
    /// Asks the flow to end; the first reason stays.
    pub fn stop(&self, reason: Reason) {
        let _ = self.reason.compare_exchange(0, reason as u16, Ordering::AcqRel, Ordering::Acquire);
        self.notify.notify_one();
    }

    /// Asks the flow to end by a verdict of an epoch.
    pub fn stop_by(&self, reason: Reason, epoch: u32) {
        if self.asked().is_none() {
            self.epoch.store(epoch, Ordering::Release);
        }
        self.stop(reason);
    }

    /// Epoch of the verdict that ends it, or 0.
    pub fn epoch(&self) -> u32 {
        self.epoch.load(Ordering::Acquire)
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
    /// The client, with its own port: towards the pod it may have another one.
    pub client: SocketAddr,
    /// The address that the client asked for: a Service's, or the pod's own.
    pub asked: SocketAddr,
    /// Handles of both workloads.
    pub handles: [u32; 2],
    /// As rules are asked about it; not known before the dial has a plan.
    pub between: Option<Between>,
    /// Ends it.
    pub stop: Arc<Stop>,
}

/// All flows of all shards, by the key of their entry on the pod's side.
#[derive(Debug, Default, Clone)]
pub struct Registry {
    flows: Arc<Mutex<HashMap<FlowKey, Entry>>>,
    /// Flows that ended by a verdict, since the start.
    ended: watch::Sender<u64>,
}

impl Registry {
    fn lock(&self) -> MutexGuard<'_, HashMap<FlowKey, Entry>> {
        // A panic ends the process, so a poisoned lock cannot be met; taking the value keeps this total.
        self.flows.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a flow; the returned guard removes it. An older one under this key is stopped: its client has begun anew, and
    /// what it still does (an OPEN on its way) would hit the new flow.
    pub fn add(&self, key: FlowKey, entry: Entry) -> Registered {
        let stop = entry.stop.clone();
        let older = self.lock().insert(key, entry);
        if let Some(older) = &older {
            older.stop.stop(Reason::TupleBusy);
        }
        Registered { registry: self.clone(), key, stop, replaced: older.is_some() }
    }

    /// Adds a flow that another node asks for, if the key is free or holds an older life of the same tuple, which is
    /// stopped.
    ///
    /// # Errors
    /// Who keeps the key.
    pub fn claim(&self, key: FlowKey, entry: Entry) -> Result<Registered, Claimed> {
        let mut flows = self.lock();
        let older = flows.get(&key);
        let replaced = older.is_some();
        if let Some(live) = older {
            if (live.client, live.asked) != (entry.client, entry.asked) {
                return Err(Claimed::ByAnother);
            }
            if began_later(&live.id, &entry.id) {
                return Err(Claimed::ByLater);
            }
            live.stop.stop(Reason::TupleBusy);
        }
        let stop = entry.stop.clone();
        flows.insert(key, entry);
        drop(flows);
        Ok(Registered { registry: self.clone(), key, stop, replaced })
    }

    /// Says between whom a flow is. What rules say has to be asked after this: whoever changed them meanwhile has looked, or
    /// will look, at this flow too.
    pub fn learn(&self, registered: &Registered, between: Between) {
        let mut flows = self.lock();
        if let Some(entry) = flows.get_mut(&registered.key).filter(|e| Arc::ptr_eq(&e.stop, &registered.stop)) {
            entry.between = Some(between);
        }
    }

    /// The flow under a key.
    #[cfg(test)]
    fn get(&self, key: &FlowKey) -> Option<Entry> {
        self.lock().get(key).cloned()
    }

    /// Whether a flow still has to end by a verdict.
    pub fn ends(&self) -> bool {
        self.lock().values().any(|entry| entry.stop.epoch() != 0)
    }

    /// Changes whenever one of these has ended.
    pub fn ended(&self) -> watch::Receiver<u64> {
        self.ended.subscribe()
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

/// Flows that are looked at between two that may begin or end.
const LOOKED_AT_ONCE: usize = 256;

impl Carried for Registry {
    fn end_those(&self, epoch: u32, judge: &mut dyn FnMut(FlowId, &Between) -> Option<Reason>) {
        // Who comes later asks the new rules itself; see [`Registry::learn`].
        let keys: Vec<FlowKey> = self.lock().keys().copied().collect();
        for keys in keys.chunks(LOOKED_AT_ONCE) {
            let flows = self.lock();
            let known = |entry: &Entry| Some((entry.id, entry.between.clone()?, entry.stop.clone()));
            let asked: Vec<_> = keys.iter().filter_map(|key| flows.get(key).and_then(known)).collect();
            drop(flows);
            for (id, between, stop) in asked {
                if let Some(reason) = judge(id, &between) {
                    stop.stop_by(reason, epoch);
                }
            }
        }
    }
}

/// Why a key cannot be had.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Claimed {
    /// Another client's flow, or one to another address, has it: this port is taken.
    ByAnother,
    /// The same client has begun anew since: whoever asks was overtaken.
    ByLater,
}

/// Whether flow `a` began after flow `b` of the same node: an id is that node's hash, the time, and a sequence.
fn began_later(a: &FlowId, b: &FlowId) -> bool {
    let (node, time) = (..6, 6..14);
    a.0.get(node) == b.0.get(node) && a.0.get(time.clone()) > b.0.get(time)
}

/// Takes a flow out of the registry when dropped, unless another one has taken its key.
#[derive(Debug)]
pub struct Registered {
    registry: Registry,
    key: FlowKey,
    /// Tells lives of one key apart; the id does not: an OPEN that is tried again has the same.
    stop: Arc<Stop>,
    replaced: bool,
}

impl Registered {
    /// Whether an older flow had the key.
    pub fn replaced(&self) -> bool {
        self.replaced
    }

    /// Whether the key is still this flow's.
    pub fn holds(&self) -> bool {
        self.registry.lock().get(&self.key).is_some_and(|e| Arc::ptr_eq(&e.stop, &self.stop))
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        let mut flows = self.registry.lock();
        if flows.get(&self.key).is_some_and(|e| Arc::ptr_eq(&e.stop, &self.stop)) {
            flows.remove(&self.key);
        }
        drop(flows);
        if self.stop.epoch() != 0 {
            self.registry.ended.send_modify(|ended| *ended += 1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(n: u8) -> Entry {
        Entry {
            id: FlowId([n; 16]),
            client: SocketAddr::new([10, 0, 0, 2].into(), 1),
            asked: "10.0.0.1:80".parse().unwrap(),
            handles: [u32::from(n), 99],
            between: None,
            stop: Arc::default(),
        }
    }

    fn key(port: u16) -> FlowKey {
        kumiko_core::addr::flow_key(SocketAddr::new([10, 0, 0, 2].into(), port), "10.0.0.1:80".parse().unwrap(), 6).0
    }

    #[test]
    fn a_late_guard_does_not_remove_the_next_flow() {
        let registry = Registry::default();
        let (one, two) = (entry(1), Entry { id: FlowId([1; 16]), ..entry(2) });
        let first = registry.add(key(1), one.clone());
        let second = registry.add(key(1), two.clone());
        assert_eq!(one.stop.asked(), Some(Reason::TupleBusy), "its client has begun anew");
        assert_eq!(two.stop.asked(), None);
        drop(first);
        assert!(Arc::ptr_eq(&registry.get(&key(1)).unwrap().stop, &two.stop));
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

    #[test]
    fn rules_are_asked_while_flows_begin_and_end() {
        let registry = Registry::default();
        let count = u16::try_from(LOOKED_AT_ONCE * 2 + 1).unwrap();
        let between = |port: u16| Between {
            proto: kumiko_abi::flow::TCP,
            source_uid: "a".to_owned(),
            target_uid: "b".to_owned(),
            client: [10, 0, 0, 2].into(),
            to: SocketAddr::new([10, 0, 0, 1].into(), port),
            host: false,
            proved: true,
        };
        let entries: Vec<Entry> = (0..count).map(|_| entry(1)).collect();
        let mut guards: Vec<Registered> =
            (0..count).zip(&entries).map(|(n, e)| registry.add(key(n), e.clone())).collect();
        // The first knows no ends yet.
        for (port, guard) in (1..count).zip(&guards[1..]) {
            registry.learn(guard, between(port));
        }
        let mut asked = 0;
        registry.end_those(1, &mut |_, between| {
            asked += 1;
            assert!(registry.flows.try_lock().is_ok(), "shards wait for nobody's rules");
            drop(guards.pop());
            (between.to.port() % 2 == 1).then_some(Reason::TeamDefault)
        });
        assert!(
            (usize::from(count) / 2 + 1..usize::from(count)).contains(&asked),
            "{asked}: who has ended is not asked about"
        );
        for (port, entry) in (0..count).zip(&entries) {
            let ended = entry.stop.asked();
            assert!(ended.is_none() || (ended == Some(Reason::TeamDefault) && port % 2 == 1), "{port}: {ended:?}");
        }
        let stopped = entries.iter().filter(|entry| entry.stop.asked().is_some()).count();
        assert!(stopped > asked / 4, "{stopped} of {asked}");
    }

    #[test]
    fn who_waits_for_an_end_is_told_of_it() {
        let registry = Registry::default();
        let (a, b) = (entry(1), entry(2));
        let (first, second) = (registry.add(key(1), a.clone()), registry.add(key(2), b.clone()));
        let ended = registry.ended();
        b.stop.stop(Reason::EndpointGone);
        drop(second);
        assert!(!registry.ends() && !ended.has_changed().unwrap());
        a.stop.stop_by(Reason::TeamDefault, 7);
        assert!(registry.ends() && !ended.has_changed().unwrap());
        assert_eq!((a.stop.asked(), a.stop.epoch()), (Some(Reason::TeamDefault), 7));
        drop(first);
        assert!(!registry.ends() && ended.has_changed().unwrap());
        // What ends anyhow is not ended by a verdict.
        b.stop.stop_by(Reason::TeamDefault, 8);
        assert_eq!((b.stop.asked(), b.stop.epoch()), (Some(Reason::EndpointGone), 0));
    }

    fn id(node: u8, time: u64, sequence: u8) -> FlowId {
        let mut id = [node; 16];
        id[6..14].copy_from_slice(&time.to_be_bytes());
        id[14] = sequence;
        FlowId(id)
    }

    #[test]
    fn an_open_that_was_overtaken_is_told_by_its_id() {
        assert!(began_later(&id(1, 256, 0), &id(1, 255, 9)));
        assert!(!began_later(&id(1, 255, 9), &id(1, 256, 0)));
        assert!(!began_later(&id(1, 7, 2), &id(1, 7, 1)), "one OPEN that is tried again");
        assert!(!began_later(&id(2, 256, 0), &id(1, 255, 0)), "clocks of two nodes");
    }

    #[test]
    fn a_key_goes_to_the_latest_life_of_its_tuple_only() {
        let registry = Registry::default();
        let life = |time| Entry { id: id(1, time, 0), ..entry(1) };
        let (older, newer) = (life(1), life(2));
        let first = registry.claim(key(1), older.clone()).unwrap();
        let second = registry.claim(key(1), newer.clone()).unwrap();
        assert_eq!((older.stop.asked(), newer.stop.asked()), (Some(Reason::TupleBusy), None));
        assert!(!first.holds() && second.holds());
        assert_eq!(registry.claim(key(1), older).unwrap_err(), Claimed::ByLater);
        // A port that was lent to this flow is its client's own for another one: neither ends the other.
        let owner = Entry { client: SocketAddr::new([10, 0, 0, 2].into(), 2), ..life(3) };
        assert_eq!(registry.claim(key(1), owner).unwrap_err(), Claimed::ByAnother);
        assert!(second.holds() && newer.stop.asked().is_none());
    }
}
