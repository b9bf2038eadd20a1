//! What shards, telemetry and the admin API know of the node: one immutable snapshot, replaced as a whole.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use kumiko_abi::Stage;
use kumiko_core::api::PolicyStatus;
use kumiko_core::compile::Shortage;
use kumiko_core::model::{ServiceRef, Workload, World};
use kumiko_core::policy::compile::Image;
use kumiko_core::stage::Phase;

/// How long acceptors take OPEN for a workload that has just left the mesh: other nodes learn of it a little later.
pub const ACCEPT_AFTER_LOWERING: Duration = Duration::from_secs(30);

/// The snapshot that everybody reads without a lock.
pub type SharedState = Arc<ArcSwap<NodeState>>;

/// The node at one moment.
#[derive(Debug, Clone, Default)]
pub struct NodeState {
    /// This node's name.
    pub node: String,
    /// The model.
    pub world: Arc<World>,
    /// Handles by UID.
    pub(super) handles: Arc<HashMap<String, u32>>,
    /// Workloads by handle; also those that are gone, while flows may still carry their handle.
    pub(super) workloads: Arc<HashMap<u32, Arc<Workload>>>,
    /// Service ports by id.
    pub(super) services: Arc<HashMap<u32, ServiceRef>>,
    /// SPIFFE IDs by class.
    pub(super) classes: Arc<HashMap<u32, String>>,
    /// Interfaces of local workloads whose hooks are on and whose veth is up, by UID.
    pub(super) attached: HashMap<String, u32>,
    /// Local workloads that left the mesh, and when.
    pub(super) lowered: HashMap<String, Instant>,
    /// Local workloads as the control loop sees them, by UID.
    pub(super) endpoints: HashMap<String, EndpointReport>,
    /// What has no number in the maps, because all are taken.
    pub shortage: Shortage,
    /// Map writes that failed since the start; they are tried again.
    pub unwritten: u64,
    /// Tables of verdicts in force with the model that they were made of; none before the first ones.
    pub(super) verdicts: Option<(Arc<Image>, Arc<World>)>,
    /// What status says of it.
    pub(super) policy: PolicyStatus,
}

/// A local workload as the control loop sees it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct EndpointReport {
    /// Where it is on its way.
    pub phase: Phase,
    /// Host-side interface; empty while unknown.
    pub interface: String,
    /// Its index; 0 while unknown.
    pub ifindex: u32,
    /// Why it is not where it should be, and what to do; empty when nothing is wrong.
    pub problem: String,
}

/// A workload whose flows have to end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gone {
    /// Its UID.
    pub uid: String,
    /// Its handle.
    pub handle: u32,
    /// Its host-side interface.
    pub ifindex: u32,
}

impl NodeState {
    /// Policy in force.
    pub fn policy(&self) -> PolicyStatus {
        self.policy.clone()
    }

    /// Epoch of the verdicts that are asked; 0: none are.
    pub fn epoch(&self) -> u32 {
        self.verdicts.as_ref().map_or(0, |(image, _)| image.epoch)
    }

    /// Tables of verdicts in force.
    pub fn verdicts(&self) -> Option<&Arc<Image>> {
        self.verdicts.as_ref().map(|(image, _)| image)
    }

    /// Interface of a local workload that can be delivered to: hooks on, veth up.
    pub fn attached_ifindex(&self, uid: &str) -> Option<u32> {
        self.attached.get(uid).copied()
    }

    /// Handle of a workload, 0 if it has none.
    pub fn handle(&self, uid: &str) -> u32 {
        self.handles.get(uid).copied().unwrap_or_default()
    }

    /// The workload of a handle; also one that is gone, while flows may still carry its handle.
    pub fn workload_of(&self, handle: u32) -> Option<&Arc<Workload>> {
        self.workloads.get(&handle)
    }

    /// Stage of a handle's workload.
    pub fn stage_of(&self, handle: u32) -> Option<Stage> {
        self.workload_of(handle).map(|workload| workload.stage)
    }

    /// The Service port of an id.
    pub fn service_of(&self, id: u32) -> Option<&ServiceRef> {
        self.services.get(&id)
    }

    /// The id of a Service port, 0 if it has none.
    pub fn service_id(&self, service: &ServiceRef) -> u32 {
        self.services.iter().find(|(_, known)| *known == service).map_or(0, |(id, _)| *id)
    }

    /// The SPIFFE ID of a class.
    pub fn class_of(&self, class: u32) -> Option<&str> {
        self.classes.get(&class).map(String::as_str)
    }

    /// Whether an acceptor takes OPEN for a local workload: it is meshed, or was until a moment ago.
    pub fn accepts(&self, uid: &str, now: Instant) -> bool {
        let recent = |at: &Instant| now.saturating_duration_since(*at) < ACCEPT_AFTER_LOWERING;
        self.world.workload(uid).is_some_and(|workload| workload.meshed()) || self.lowered.get(uid).is_some_and(recent)
    }

    /// Whether the hooks of a meshed local workload are about to go on: nothing is wrong with it, but they are not there yet.
    pub fn is_coming(&self, uid: &str) -> bool {
        self.world.workload(uid).is_some_and(|workload| workload.meshed())
            && self.endpoint(uid).is_some_and(|seen| seen.phase == Phase::Detached && seen.problem.is_empty())
    }

    /// How the control loop sees a local workload.
    pub fn endpoint(&self, uid: &str) -> Option<&EndpointReport> {
        self.endpoints.get(uid)
    }

    /// Whether an enrolled local workload is on its way to another stage. Those that are being enrolled do not count: on a busy
    /// node there is always a new one.
    pub fn changes_stages(&self) -> bool {
        self.endpoints.iter().any(|(uid, report)| match (report.phase, self.world.workload(uid)) {
            (Phase::Enforcing(stage), Some(workload)) => stage != workload.stage,
            _ => false,
        })
    }

    /// All local workloads as the control loop sees them.
    pub fn endpoints(&self) -> impl Iterator<Item = (&str, &EndpointReport)> {
        self.endpoints.iter().map(|(uid, report)| (uid.as_str(), report))
    }
}
