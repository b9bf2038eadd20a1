//! What the admin API shows, read from the parts.

mod policy;

use std::collections::BTreeMap;
use std::net::TcpListener as StdListener;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, UNIX_EPOCH};

use anyhow::Context as _;
use kumiko_abi::{Config, Reason, Stage, Stat};
use kumiko_core::api::{
    AttachmentState, CertView, EndpointCounts, FlowRecord, KernelStatus, ReasonCount, SourceStatus, Status,
    TunnelCounts, TunnelView, WorkloadView,
};
use kumiko_core::flow_record::{FlowFilter, hex_id};
use kumiko_core::model::Workload;
use kumiko_core::stage::Phase;
use kumiko_kernel::bpf::{Datapath, Maps};
use tokio::net::TcpListener;
use tokio::sync::{broadcast, watch};

use crate::admin::{self, AdminSocket, AdminState};
use crate::clock;
use crate::identity::Identities;
use crate::options::RunOptions;
use crate::reconcile::{NodeState, Reconciled};
use crate::shard::Common;
use crate::source::Source;
use crate::telemetry::{Listing, MetricsInput, Pair, Telemetry, WorldNames};

/// Everything that answers are made of.
pub(super) struct View {
    trust_domain: String,
    started: u64,
    config: Config,
    kernel: KernelStatus,
    maps: Maps,
    source: Source,
    common: Common,
    identities: Arc<Identities>,
    telemetry: Telemetry,
    reconciled: Reconciled,
    draining: watch::Receiver<bool>,
}

impl View {
    #[expect(clippy::too_many_arguments, reason = "one place that knows all parts, called once")]
    pub(super) fn new(
        options: &RunOptions,
        config: &Config,
        datapath: &Datapath,
        source: &Source,
        common: &Common,
        telemetry: &Telemetry,
        reconciled: &Reconciled,
        draining: watch::Receiver<bool>,
    ) -> Self {
        let release =
            nix::sys::utsname::uname().map_or_else(|_| String::new(), |u| u.release().to_string_lossy().into());
        let instructions =
            datapath.verified_instructions().into_iter().map(|(name, count)| (name.to_owned(), count)).collect();
        Self {
            trust_domain: options.trust_domain.clone(),
            started: clock::unix_ns(),
            config: *config,
            kernel: KernelStatus {
                release,
                attach: datapath.attach_mode().to_owned(),
                layout: kumiko_abi::LAYOUT,
                instructions,
                map_write_failures: 0,
            },
            maps: datapath.maps(),
            source: source.clone(),
            common: common.clone(),
            identities: common.identities.clone(),
            telemetry: telemetry.clone(),
            reconciled: reconciled.clone(),
            draining,
        }
    }

    /// What keeps the agent from being ready, for people; empty: it is.
    fn waiting_for(&self, state: &NodeState) -> Vec<String> {
        let mut waiting = Vec::new();
        if *self.reconciled.changed.borrow() == 0 {
            waiting.push("the first pass of the control loop".to_owned());
        }
        if state.world.node(&self.common.node).is_none() {
            waiting.push(format!("a Node object named {} with an InternalIP", self.common.node));
        }
        let missing = self.identities.certs().iter().filter(|cert| cert.not_after_unix_ns == 0).count();
        if missing > 0 {
            waiting.push(format!("{missing} certificates from the issuer (see `kumiko certs`)"));
        }
        let unlearnt = state.endpoints().filter(|(_, report)| matches!(report.phase, Phase::Learning(_))).count();
        if unlearnt > 0 {
            waiting.push(format!("{unlearnt} workloads that are being raised"));
        }
        waiting
    }

    fn endpoints(&self, state: &NodeState) -> EndpointCounts {
        let mut counts = EndpointCounts::default();
        for workload in state.world.workloads_on(&self.common.node) {
            match workload.stage {
                Stage::Off => counts.off += 1,
                Stage::Observe => counts.observe += 1,
                Stage::Permissive => counts.permissive += 1,
                Stage::Strict => counts.strict += 1,
            }
            match attachment(workload, true, state) {
                AttachmentState::Attached | AttachmentState::Learning | AttachmentState::Moving => counts.attached += 1,
                AttachmentState::Waiting => counts.waiting += 1,
                AttachmentState::None | AttachmentState::Remote => {}
            }
        }
        counts
    }

    fn stats(&self) -> (u64, u64, BTreeMap<String, u64>) {
        let stats = self.maps.stats().unwrap_or_default();
        let value = |stat: Stat| stats.get(stat as usize).copied().unwrap_or_default();
        let named = Stat::ALL.iter().map(|stat| (stat.name().to_owned(), value(*stat))).collect();
        (value(Stat::LeakBytes), value(Stat::EventsLost), named)
    }

    fn refused(&self) -> Vec<ReasonCount> {
        let mut counts: BTreeMap<Reason, u64> = self.common.refusals.counts().into_iter().collect();
        let kernel = self.maps.reasons().unwrap_or_default();
        for reason in Reason::ALL.iter().filter(|reason| reason.refuses()) {
            let count = kernel.get(*reason as usize).copied().unwrap_or_default();
            if count > 0 {
                *counts.entry(*reason).or_default() += count;
            }
        }
        let mut list: Vec<ReasonCount> = counts
            .into_iter()
            .map(|(reason, count)| ReasonCount {
                reason: reason.name().to_owned(),
                text: reason.text().to_owned(),
                hint: reason.hint().to_owned(),
                count,
            })
            .collect();
        list.sort_by(|a, b| b.count.cmp(&a.count).then_with(|| a.reason.cmp(&b.reason)));
        list
    }
}

impl AdminState for View {
    fn status(&self) -> Status {
        let state = self.reconciled.state.load_full();
        let waiting_for = self.waiting_for(&state);
        let (leak_bytes, events_lost, stats) = self.stats();
        let rows = self.common.tunnels.rows();
        let busy = rows.iter().filter(|row| row.info.counters().flow.is_some()).count();
        let narrow = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        let draining = *self.draining.borrow();
        let mut flows = self.telemetry.status();
        flows.events_lost = events_lost;
        Status {
            node: self.common.node.to_string(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            generation: self.config.generation,
            trust_domain: self.trust_domain.clone(),
            started_unix_ns: self.started,
            ready: waiting_for.is_empty() && !draining,
            waiting_for,
            draining,
            shards: self.config.shards,
            kernel: KernelStatus { map_write_failures: state.unwritten, ..self.kernel.clone() },
            endpoints: self.endpoints(&state),
            source: SourceStatus {
                without_number: narrow(state.shortage.workloads + state.shortage.services),
                ..self.source.status.borrow().as_ref().clone()
            },
            policy: state.policy(),
            identity: self.identities.status(),
            tunnels: TunnelCounts {
                busy: narrow(busy),
                idle: narrow(rows.len() - busy),
                arriving: u32::try_from(self.common.tunnels.arriving().load(Ordering::Relaxed)).unwrap_or(u32::MAX),
                buffer_bytes: self.common.tunnels.buffers().load(Ordering::Relaxed),
                handshakes: self.common.tunnels.made(),
                handshake_failures: self.common.tunnels.failed(),
            },
            flows,
            leak_bytes,
            stats,
            refused: self.refused(),
        }
    }

    fn workloads(&self) -> Vec<WorkloadView> {
        let state = self.reconciled.state.load_full();
        let uses: BTreeMap<u32, _> = self.maps.uses().unwrap_or_default().into_iter().collect();
        let legacy = self.telemetry.legacy();
        let mut list: Vec<WorkloadView> = state
            .world
            .workloads()
            .map(|workload| {
                let local = workload.node == *self.common.node;
                let report = state.endpoint(&workload.uid).filter(|_| local).cloned().unwrap_or_default();
                let used = uses.get(&report.ifindex).copied().unwrap_or_default();
                WorkloadView {
                    namespace: workload.namespace.clone(),
                    name: workload.name.clone(),
                    uid: workload.uid.clone(),
                    service_account: workload.service_account.clone(),
                    principal: workload.principal.to_string(),
                    node: workload.node.clone(),
                    ips: workload.ips.clone(),
                    stage: workload.stage,
                    local,
                    ready: workload.ready,
                    attachment: attachment(workload, local, &state),
                    interface: report.interface,
                    problem: report.problem,
                    flows: used.flows,
                    pending: used.pending,
                    legacy: legacy.get(&report.ifindex).copied().unwrap_or_default(),
                }
            })
            .collect();
        list.sort_by(|a, b| (&a.namespace, &a.name).cmp(&(&b.namespace, &b.name)));
        list
    }

    fn tunnels(&self) -> Vec<TunnelView> {
        let state = self.reconciled.state.load_full();
        let node_at = |ip| state.world.node_at(ip).map_or_else(String::new, |node| node.name.clone());
        let rows = self.common.tunnels.rows();
        rows.into_iter()
            .map(|row| {
                let (facts, counters) = (&row.info.facts, row.info.counters());
                let micros = |d: Duration| u64::try_from(d.as_micros()).unwrap_or(u64::MAX);
                let since = facts.established.duration_since(UNIX_EPOCH).unwrap_or_default();
                TunnelView {
                    number: row.info.number,
                    dialled: facts.dialled,
                    local: facts.local.to_string(),
                    peer: facts.peer.to_string(),
                    peer_node: node_at(facts.peer_addr.ip().to_canonical()),
                    peer_addr: facts.peer_addr.to_string(),
                    peer_serial: facts.peer_serial.clone(),
                    flow: counters.flow.map_or_else(String::new, hex_id),
                    shard: row.shard,
                    since_unix_ns: u64::try_from(since.as_nanos()).unwrap_or(u64::MAX),
                    handshake_us: micros(facts.handshake),
                    flows_carried: counters.flows,
                    bytes_sent: counters.bytes_sent,
                    bytes_received: counters.bytes_received,
                    key_updates_sent: counters.key_updates_sent,
                    key_updates_received: counters.key_updates_received,
                }
            })
            .collect()
    }

    fn certs(&self) -> Vec<CertView> {
        self.identities.certs()
    }

    fn metrics(&self) -> MetricsInput {
        let names = WorldNames::new(self.reconciled.state.load_full());
        let pairs = self.maps.pairs().unwrap_or_default();
        MetricsInput {
            status: self.status(),
            certs: self.certs(),
            pairs: pairs.iter().map(|(key, count)| Pair::new(key, *count, &names)).collect(),
            closed: self.telemetry.closed(),
            // The server adds what it knows of itself.
            ..MetricsInput::default()
        }
    }

    fn flows(&self, filter: &FlowFilter, limit: usize) -> Listing {
        self.telemetry.settle();
        self.telemetry.list(filter, limit)
    }

    fn follow(&self) -> broadcast::Receiver<Arc<FlowRecord>> {
        self.telemetry.follow()
    }
}

fn attachment(workload: &Workload, local: bool, state: &NodeState) -> AttachmentState {
    if !local {
        return AttachmentState::Remote;
    }
    match state.endpoint(&workload.uid).map(|report| report.phase).unwrap_or_default() {
        Phase::Learning(_) => AttachmentState::Learning,
        Phase::Enforcing(stage) if stage == workload.stage => AttachmentState::Attached,
        Phase::Enforcing(_) => AttachmentState::Moving,
        Phase::Detached if workload.stage == Stage::Off => AttachmentState::None,
        Phase::Detached => AttachmentState::Waiting,
    }
}

/// Starts the admin API, and the metrics port if there is to be one.
pub(super) fn serve(
    options: &RunOptions,
    metrics: Option<StdListener>,
    view: Arc<View>,
    end: watch::Receiver<bool>,
) -> anyhow::Result<()> {
    let socket = AdminSocket::bind(&options.places.run_dir.join("admin.sock"))?;
    if let Some(listener) = metrics {
        let listener = TcpListener::from_std(listener).context("metrics listener")?;
        tokio::spawn(admin::serve_metrics(listener, view.clone(), super::wait_for(end.clone())));
    }
    tokio::spawn(admin::serve(socket, view, super::wait_for(end)));
    Ok(())
}
