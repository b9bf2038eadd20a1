//! One pass after the other: from the model and what is there to writes, hooks and the shards' snapshot.

mod follow;
mod judge;
mod learn;
mod look;
mod progress;
mod services;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::time::Instant;

use arc_swap::ArcSwap;
use kumiko_abi::flow::flags;
use kumiko_abi::map::service_flags;
use kumiko_abi::{Backend, FlowKey, FlowState, Stage};
use kumiko_core::compile::{
    self, Attached, AttachedEndpoint, Desired, Handles, MAX_HANDLE, Op, Shortage, compile, diff,
};
use kumiko_core::model::{ServiceRef, Workload, World};
use kumiko_core::stage::{Crossings, Phase, legacy};
use kumiko_fault::Point;
use tokio::sync::{broadcast, watch};
use tracing::{debug, warn};

use judge::Judging;

use super::Reconciled;
use super::edge::{Edge, EdgeError};
use super::judged::Carried;
use super::local::{Leaving, Local};
use super::state::{ACCEPT_AFTER_LOWERING, Gone, NodeState, SharedState};

/// Signals about ended workloads that a slow receiver may leave unread.
const GONE_WAITING: usize = 1024;

/// The control loop's memory.
#[derive(Debug)]
pub struct Engine<E> {
    edge: E,
    node: String,
    /// The newest model.
    newest: Arc<World>,
    /// The model in force: the newest, with workloads on their way between two stages.
    world: Arc<World>,
    crossings: Crossings,
    handles: Handles,
    /// What the maps hold.
    written: Desired,
    locals: BTreeMap<String, Local>,
    /// Endpoints without a workload, by interface.
    leaving: BTreeMap<u32, Leaving>,
    /// Workloads by handle, also those that are gone.
    workloads: Arc<HashMap<u32, Arc<Workload>>>,
    numbers: Arc<HashMap<String, u32>>,
    services: Arc<HashMap<u32, ServiceRef>>,
    classes: Arc<HashMap<u32, String>>,
    lowered: HashMap<String, Instant>,
    /// Endpoints of Services that are ready no more, and may still be the choice of exchanges.
    gone_backends: HashSet<Backend>,
    /// Something failed that another pass may get done.
    unfinished: bool,
    /// What got no number at the last model.
    shortage: Shortage,
    /// Map writes that failed, since the start.
    unwritten: u64,
    /// Nothing, while policy is not asked for.
    judging: Option<Judging>,
    shared: SharedState,
    changed: watch::Sender<u64>,
    gone: broadcast::Sender<Gone>,
}

impl<E: Edge> Engine<E> {
    /// Takes over what the last agent left.
    ///
    /// # Errors
    /// Maps or the file of numbers cannot be read.
    pub fn new(node: String, mut edge: E, carried: Option<Box<dyn Carried>>) -> Result<(Self, Reconciled), EdgeError> {
        let mut handles = edge.load()?.unwrap_or_default();
        // Entries and endpoints of the last agent may carry numbers that the file does not have (it was lost, or could
        // not be written): not to be given again.
        let mut referenced = HashSet::new();
        edge.scan(&mut |_, flow| referenced.extend([flow.src, flow.dst]))?;
        referenced.extend(edge.written(&handles)?.endpoints.values().map(|endpoint| endpoint.handle));
        handles.workloads.reserve(&referenced, MAX_HANDLE);
        let written = edge.written(&handles)?;
        let leaving = found(&mut edge, &handles, &written)?;
        let epoch = edge.epoch()?;
        let history = Arc::default();
        let judging = carried.map(|carried| Judging::new(carried, &node, epoch, Arc::clone(&history)));
        let (gone, _) = broadcast::channel(GONE_WAITING);
        let (changed, changed_rx) = watch::channel(0);
        let state = NodeState { node: node.clone(), ..NodeState::default() };
        let shared: SharedState = Arc::new(ArcSwap::from_pointee(state));
        let reconciled = Reconciled { state: shared.clone(), history, changed: changed_rx, gone: gone.clone() };
        let engine = Self {
            edge,
            node,
            newest: Arc::default(),
            world: Arc::default(),
            crossings: Crossings::default(),
            handles,
            written,
            locals: BTreeMap::new(),
            leaving,
            workloads: Arc::default(),
            numbers: Arc::default(),
            services: Arc::default(),
            classes: Arc::default(),
            lowered: HashMap::new(),
            gone_backends: HashSet::new(),
            unfinished: false,
            shortage: Shortage::default(),
            unwritten: 0,
            judging,
            shared,
            changed,
            gone,
        };
        Ok((engine, reconciled))
    }

    /// Does what can be done now.
    pub fn pass(&mut self, world: Arc<World>, now: Instant) {
        self.unfinished = false;
        self.lowered.retain(|_, at| now.saturating_duration_since(*at) < ACCEPT_AFTER_LOWERING);
        let arrived = self.crossings.arrive(now);
        let changed = world.epoch() != self.newest.epoch();
        if changed {
            self.crossings.note(&self.newest, &world, now);
            self.newest = world;
        }
        if changed || arrived {
            let none = self.crossings.is_empty();
            let world = if none { self.newest.clone() } else { Arc::new(self.crossings.in_force(&self.newest)) };
            self.follow(world, now);
        }
        self.resolve();
        if changed || arrived || self.judges_again() {
            self.judge();
        }
        self.publish();
        self.sweep();
        let coming = self.coming();
        if !coming.is_empty() {
            self.write_maps(&coming);
        }
        self.progress(now);
        self.write_maps(&BTreeSet::new());
        self.publish();
        if self.learn(now) {
            self.publish();
        }
        self.announce();
    }

    /// Says that the snapshot is another one, and complete.
    fn announce(&self) {
        self.changed.send_modify(|changes| *changes += 1);
    }

    /// Whether another pass is worth it without any notification.
    pub fn waits(&self) -> bool {
        let local =
            |local: &Local| local.retry || matches!(local.phase, Phase::Learning(_) | Phase::Enforcing(Stage::Off));
        let on_the_way = !self.crossings.is_empty() || !self.lowered.is_empty();
        self.unfinished || self.graces() || on_the_way || !self.leaving.is_empty() || self.locals.values().any(local)
    }

    /// Workloads whose hooks go on in this pass.
    fn coming(&self) -> BTreeSet<String> {
        self.locals.iter().filter(|(_, local)| local.coming()).map(|(uid, _)| uid.clone()).collect()
    }

    fn write(&mut self, op: Op) -> bool {
        let written = match kumiko_fault::hit(Point::MapWrite) {
            Ok(()) => self.edge.write(&op),
            Err(fault) => Err(fault.into()),
        };
        match written {
            Ok(()) => {
                self.written.apply(&op);
                true
            }
            Err(error) => {
                warn!(%error, ?op, "a map could not be written: tried again");
                self.unfinished = true;
                self.unwritten += 1;
                false
            }
        }
    }

    /// Brings the maps to where they have to be; `coming` as in [`compile`].
    fn write_maps(&mut self, coming: &BTreeSet<String>) {
        let desired = self.desired(coming);
        let before: HashSet<Backend> = self.written.backends.values().copied().collect();
        let mut held = desired.clone();
        let mut raised = held.hold_raised(&self.written);
        raised |= self.captures_more(&desired);
        self.write_all(diff(&self.written, &held));
        if raised {
            self.mark_outlived();
            self.write_all(diff(&self.written, &desired));
        }
        self.forget_backends(&before);
    }

    /// Writes in order. What hangs on a write that failed waits for the next pass; the rest does not.
    fn write_all(&mut self, ops: Vec<Op>) {
        let mut failed = HashSet::new();
        for op in ops {
            let hangs_on = match op {
                Op::SetWorkload(handle, _) | Op::ClearWorkload(handle) => handle,
                Op::SetAddr(_, entry) => entry.handle,
                Op::SetEndpoint(_, endpoint) => endpoint.handle,
                Op::RemoveAddr(addr) => self.written.addrs.get(&addr).map_or(0, |entry| entry.handle),
                _ => 0,
            };
            if !failed.contains(&hangs_on) && !self.write(op) && hangs_on != 0 {
                failed.insert(hangs_on);
            }
        }
    }

    fn attached(&self) -> Attached {
        self.locals.iter().filter_map(|(uid, local)| Some((uid.clone(), local.endpoint()?))).collect()
    }

    /// Endpoints that rules are asked about: also those of workloads whose veths could not be found yet after a start.
    fn judged_ends(&self) -> Attached {
        let mut ends = self.attached();
        for leaving in self.leaving.values().filter(|leaving| !leaving.begun) {
            ends.entry(leaving.uid.clone()).or_insert(leaving.endpoint);
        }
        ends
    }

    fn desired(&self, coming: &BTreeSet<String>) -> Desired {
        let attached = self.attached();
        let mut desired = compile(&self.world, &self.node, &attached, &self.handles, coming);
        for leaving in self.leaving.values() {
            let entry = compile::endpoint(leaving.handle, &leaving.endpoint);
            desired.endpoints.entry(leaving.endpoint.ifindex).or_insert(entry);
        }
        match self.judging.as_ref().map(|judging| &judging.image) {
            Some(Some((image, judged))) => {
                desired.judge_by(image, judged, &self.world, &self.judged_ends(), &self.written);
            }
            Some(None) => desired.keep_verdicts(&self.world, &self.judged_ends(), &self.written),
            None => {}
        }
        desired
    }

    /// A Service is captured that was not.
    fn captures_more(&self, desired: &Desired) -> bool {
        let captures = |flags: u32| flags & service_flags::CAPTURE != 0;
        desired.services.iter().any(|(key, entry)| {
            captures(entry.flags) && !self.written.services.get(key).is_some_and(|old| captures(old.flags))
        })
    }

    /// Marks connections in the clear that a tunnel would carry if they began now.
    fn mark_outlived(&mut self) {
        let mut found = Vec::new();
        let world = &self.world;
        let scanned = self.edge.scan(&mut |key, flow| {
            if legacy::outlived(world, key, flow) {
                found.push((*key, *flow));
            }
        });
        if let Err(error) = scanned {
            warn!(%error, "older connections could not be marked as legacy");
            self.unfinished = true;
        }
        let mut marked = 0;
        for (key, flow) in found {
            match self.edge.flag(&key, &flow, flags::LEGACY) {
                Ok(_) => marked += 1,
                Err(error) => debug!(%error, "an older connection could not be marked as legacy"),
            }
        }
        debug!(marked, "older connections in the clear go on as legacy");
    }

    /// Interfaces of flows that only go on while the hooks are there.
    fn carried(&mut self) -> Option<HashSet<u32>> {
        let mut carried = HashSet::new();
        let scanned = self.edge.scan(&mut |_, flow| {
            let state = FlowState::from_u8(flow.state);
            if flow.flags & flags::OVER == 0
                && matches!(state, Some(FlowState::Pending | FlowState::Captured | FlowState::Fast))
            {
                carried.extend([flow.src_ifindex, flow.dst_ifindex]);
            }
        });
        match scanned {
            Ok(()) => Some(carried),
            Err(error) => {
                warn!(%error, "hooks stay where they are until it is known what they carry");
                self.unfinished = true;
                None
            }
        }
    }

    /// An interface of the host is gone, with the pod behind it.
    pub fn link_gone(&mut self, ifindex: u32) {
        if let Some(leaving) = self.leaving.get(&ifindex).cloned() {
            self.tell_gone(&leaving.uid, leaving.handle, ifindex);
            self.leaving.remove(&ifindex);
            self.forget(ifindex);
        }
        let Some(local) = self.locals.values_mut().find(|local| local.ifindex() == Some(ifindex)) else { return };
        let (uid, handle) = (local.workload.uid.clone(), local.handle);
        local.phase = Phase::Detached;
        local.veth = None;
        local.problem = "its interface is gone".to_owned();
        self.tell_gone(&uid, handle, ifindex);
        self.forget(ifindex);
        self.publish();
        self.announce();
    }

    /// A veth went down, or up.
    pub fn link_running(&mut self, ifindex: u32, running: bool) {
        let Some(local) = self.locals.values_mut().find(|local| local.ifindex() == Some(ifindex)) else { return };
        let Some(veth) = &mut local.veth else { return };
        if std::mem::replace(&mut veth.running, running) == running {
            return;
        }
        let (uid, handle) = (local.workload.uid.clone(), local.handle);
        if running {
            // It may have become a bridge's port meanwhile: its gateway is another one then.
            self.resolve_again(&uid);
        } else {
            self.tell_gone(&uid, handle, ifindex);
        }
        self.publish();
        self.announce();
    }

    /// Ends the flows of a workload: in the shards at once.
    fn tell_gone(&mut self, uid: &str, handle: u32, ifindex: u32) {
        // Nobody listening is no error.
        let _ = self.gone.send(Gone { uid: uid.to_owned(), handle, ifindex });
    }

    /// Removes what the kernel has of an interface that is gone, and ends its entries.
    fn forget(&mut self, ifindex: u32) {
        let mut found: Vec<(FlowKey, kumiko_abi::Flow)> = Vec::new();
        let scanned = self.edge.scan(&mut |key, flow| {
            if (flow.src_ifindex == ifindex || flow.dst_ifindex == ifindex) && flow.flags & flags::OVER == 0 {
                found.push((*key, *flow));
            }
        });
        let ended = found.iter().try_for_each(|(key, flow)| self.edge.flag(key, flow, flags::OVER_GONE).map(drop));
        let unhooked = self.edge.unhook(ifindex);
        if self.written.endpoints.contains_key(&ifindex) {
            self.write(Op::RemoveEndpoint(ifindex));
        }
        let forgotten = self.edge.remove_use(ifindex);
        for error in [scanned, ended, unhooked, forgotten].into_iter().filter_map(Result::err) {
            warn!(%error, ifindex, "what was left of an interface could not be removed");
        }
    }

    /// Replaces the snapshot that everybody reads.
    fn publish(&mut self) {
        let attached = |local: &Local| {
            let veth = local.veth.as_ref().filter(|veth| veth.running && local.phase != Phase::Detached)?;
            Some((local.workload.uid.clone(), veth.ifindex))
        };
        self.shared.store(Arc::new(NodeState {
            node: self.node.clone(),
            world: self.world.clone(),
            handles: self.numbers.clone(),
            workloads: self.workloads.clone(),
            services: self.services.clone(),
            classes: self.classes.clone(),
            attached: self.locals.values().filter_map(attached).collect(),
            lowered: self.lowered.clone(),
            endpoints: self.locals.iter().map(|(uid, local)| (uid.clone(), local.report())).collect(),
            shortage: self.shortage,
            unwritten: self.unwritten,
            verdicts: self.judging.as_ref().and_then(|judging| judging.image.clone()),
            policy: self.judging.as_ref().map_or_else(Default::default, |judging| judging.status.clone()),
        }));
    }
}

/// Endpoints and hooks that were there before us.
fn found<E: Edge>(edge: &mut E, handles: &Handles, written: &Desired) -> Result<BTreeMap<u32, Leaving>, EdgeError> {
    let mut found = BTreeMap::new();
    for ifindex in edge.hooked()? {
        let endpoint = written.endpoints.get(&ifindex).copied().unwrap_or_default();
        let uid = handles.workloads.name(endpoint.handle).unwrap_or_default().to_owned();
        let endpoint_here = AttachedEndpoint {
            ifindex,
            phase: compile::phase_of(&endpoint),
            fast: false,
            pod_mac: endpoint.pod_mac,
            gateway_mac: endpoint.gateway_mac,
            master: endpoint.master,
        };
        found.insert(ifindex, Leaving { uid, handle: endpoint.handle, endpoint: endpoint_here, begun: false });
    }
    Ok(found)
}
