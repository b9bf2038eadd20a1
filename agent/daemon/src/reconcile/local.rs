//! One local workload on its way.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use kumiko_abi::Stage;
use kumiko_core::compile::AttachedEndpoint;
use kumiko_core::model::Workload;
use kumiko_core::stage::{Facts, Phase};

use super::edge::Veth;
use super::state::{ACCEPT_AFTER_LOWERING, EndpointReport};

/// How long an endpoint learns from its packets alone when its sockets cannot be listed (its veth was named, and no
/// file or process leads to the pod's namespace).
pub(super) const LEARN_BLIND: Duration = Duration::from_secs(5);

/// A local workload.
#[derive(Debug)]
pub(super) struct Local {
    pub(super) workload: Arc<Workload>,
    pub(super) handle: u32,
    pub(super) veth: Option<Veth>,
    pub(super) phase: Phase,
    /// Its veth has a limit, which the fast path would go past.
    pub(super) shaped: bool,
    /// Its sockets have become entries since it is in `Learning`.
    pub(super) learnt: bool,
    /// It was in the mesh before it began to learn: each of its connections has an entry, or its SYN was dropped just now.
    pub(super) judged: bool,
    /// Since when it is in `Learning`.
    pub(super) learning: Option<Instant>,
    /// Why it is not where it should be.
    pub(super) problem: String,
    /// Worth another try without any notification.
    pub(super) retry: bool,
}

impl Local {
    pub(super) fn new(workload: Arc<Workload>, handle: u32) -> Self {
        Self {
            workload,
            handle,
            veth: None,
            phase: Phase::Detached,
            shaped: false,
            learnt: false,
            judged: false,
            learning: None,
            problem: String::new(),
            retry: false,
        }
    }

    /// As people name it; a UID says nothing to them.
    pub(super) fn name(&self) -> String {
        format!("{}/{}", self.workload.namespace, self.workload.name)
    }

    /// Its hooks are about to go on.
    pub(super) fn coming(&self) -> bool {
        self.phase == Phase::Detached && self.workload.stage != Stage::Off && self.veth.is_some()
    }

    pub(super) fn ifindex(&self) -> Option<u32> {
        self.veth.as_ref().map(|veth| veth.ifindex)
    }

    /// As the maps hold it.
    pub(super) fn endpoint(&self) -> Option<AttachedEndpoint> {
        let veth = self.veth.as_ref().filter(|_| self.phase != Phase::Detached)?;
        Some(AttachedEndpoint {
            ifindex: veth.ifindex,
            phase: self.phase,
            fast: !self.shaped,
            pod_mac: veth.pod_mac,
            gateway_mac: veth.gateway_mac,
            master: veth.master,
        })
    }

    pub(super) fn report(&self) -> EndpointReport {
        EndpointReport {
            phase: self.phase,
            interface: self.veth.as_ref().map(|veth| veth.name.clone()).unwrap_or_default(),
            ifindex: self.ifindex().unwrap_or_default(),
            problem: self.problem.clone(),
        }
    }

    pub(super) fn enter(&mut self, phase: Phase, now: Instant) {
        self.judged = matches!(self.phase, Phase::Enforcing(stage) if stage.meshed());
        self.phase = phase;
        self.learnt = false;
        self.learning = matches!(phase, Phase::Learning(_)).then_some(now);
    }

    /// What decides the next step. `carried`: interfaces of captured and fast-path flows.
    pub(super) fn facts(&self, carried: bool, lowered: &HashMap<String, Instant>, now: Instant) -> Facts {
        // Acceptors still take OPEN for it, and nothing may be delivered to a pod without hooks.
        let recent = |at: &Instant| now.saturating_duration_since(*at) < ACCEPT_AFTER_LOWERING;
        Facts { learnt: self.learnt, carried: carried || lowered.get(&self.workload.uid).is_some_and(recent) }
    }
}

/// An endpoint whose workload is gone from the model, or was found at the start and is not claimed yet. Its hooks stay
/// until it carries nothing.
#[derive(Debug, Clone)]
pub(super) struct Leaving {
    pub(super) uid: String,
    pub(super) handle: u32,
    pub(super) endpoint: AttachedEndpoint,
    /// It is sure that no workload of the model has it: it stops capturing, its flows were told to end.
    pub(super) begun: bool,
}
