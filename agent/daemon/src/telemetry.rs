//! What the agent saw: live flows, records of finished ones, counters.
//!
//! The kernel's flow table and event ring tell about every flow; shards add what only they know through a [`FlowSink`].
//! A collector on its own thread reads all three; everybody else asks a [`Telemetry`].

mod closed;
mod collector;
mod directory;
mod live;
mod metrics;
mod report;
mod store;
mod unbuilt;

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use arc_swap::ArcSwap;
use kumiko_abi::FlowId;
use kumiko_core::api::FlowTableStatus;
use kumiko_core::flow_record::{Directory, FlowFilter, FlowRecord};
use tokio::sync::{broadcast, mpsc};

pub use collector::{Collector, EventSource, FlowSource};
pub use directory::{CurrentNames, WorldNames};
pub use metrics::{MAX_PAIR_SERIES, MetricsInput, Pair, render};
pub use report::{FlowEnded, FlowOpened, FlowReport, FlowReports, FlowSink, FlowStart, REPORT_QUEUE, flow_reports};

/// Finished records that are kept.
pub const RECORDS: usize = 16_384;
/// Longest wait of [`Telemetry::settle`].
const SETTLE_WITHIN: std::time::Duration = std::time::Duration::from_millis(200);
/// Lines that a slow follower may lag behind before it loses some.
pub const FOLLOW_QUEUE: usize = 4_096;

/// What the store needs to know.
#[derive(Clone, Debug)]
pub struct Settings {
    /// This node.
    pub node: String,
    /// Finished records that are kept.
    pub records: usize,
    /// See [`FOLLOW_QUEUE`].
    pub follow_queue: usize,
    /// Silence after which a flow's socket is looked up, in ns.
    pub idle_check_ns: u64,
    /// Most entries that the flow table holds.
    pub table_capacity: u64,
}

impl Settings {
    /// The usual bounds, for a node and `--idle-check`.
    pub fn new(node: &str, idle_check: std::time::Duration, table_capacity: u64) -> Self {
        Self {
            node: node.to_owned(),
            records: RECORDS,
            follow_queue: FOLLOW_QUEUE,
            idle_check_ns: u64::try_from(idle_check.as_nanos()).unwrap_or(u64::MAX),
            table_capacity,
        }
    }
}

/// Who is who, replaced whenever the model changes.
pub type SharedDirectory = Arc<ArcSwap<Arc<dyn Directory + Send + Sync>>>;

/// Handle to everything that was collected.
#[derive(Clone)]
pub struct Telemetry {
    node: Arc<str>,
    store: Arc<Mutex<store::Store>>,
    directory: SharedDirectory,
    reports_lost: Arc<AtomicU64>,
    errors: Arc<AtomicU64>,
    asking: mpsc::Sender<SyncSender<()>>,
}

impl std::fmt::Debug for Telemetry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Telemetry").field("node", &self.node).finish_non_exhaustive()
    }
}

/// Records that were asked for.
#[derive(Debug, Default)]
pub struct Listing {
    /// The newest that fit the limit, oldest first.
    pub records: Vec<FlowRecord>,
    /// How many older ones were left out.
    pub omitted: usize,
}

impl Telemetry {
    fn new(settings: Settings, reports_lost: Arc<AtomicU64>, asking: mpsc::Sender<SyncSender<()>>) -> Self {
        let nobody: Arc<dyn Directory + Send + Sync> = Arc::new(directory::Nobody);
        Self {
            node: settings.node.as_str().into(),
            store: Arc::new(Mutex::new(store::Store::new(settings))),
            directory: Arc::new(ArcSwap::from_pointee(nobody)),
            reports_lost,
            errors: Arc::default(),
            asking,
        }
    }

    /// Takes the names that records give.
    pub fn set_directory(&self, directory: Arc<dyn Directory + Send + Sync>) {
        self.directory.store(Arc::new(directory));
    }

    /// Has the collector take what ring and queue hold now, so that a flow that has just ended is listed as ended. For a
    /// thread that may wait; a collector that is busy or gone is not waited for.
    pub fn settle(&self) {
        let (done, settled) = sync_channel(1);
        if self.asking.try_send(done).is_ok() {
            let _ = settled.recv_timeout(SETTLE_WITHIN);
        }
    }

    /// Live and finished flows that fit, the newest `limit` of them by their start.
    pub fn list(&self, filter: &FlowFilter, limit: usize) -> Listing {
        let mut flows = self.lock().snapshot();
        // Outside the lock: a full table holds many, and building each allocates.
        flows.sort_by_key(|flow| std::cmp::Reverse((flow.entry.flow.first_ns, flow.entry.flow.id.0)));
        let (mut records, mut omitted) = (Vec::new(), 0);
        let all = *filter == FlowFilter::default();
        for flow in flows {
            if all && records.len() >= limit {
                omitted += 1;
                continue;
            }
            let record = flow.build(&self.node);
            if !filter.matches(&record) {
                continue;
            }
            if records.len() < limit {
                records.push(record);
            } else {
                omitted += 1;
            }
        }
        records.reverse();
        Listing { records, omitted }
    }

    /// The record of a flow, be it over or not.
    pub fn find(&self, id: FlowId) -> Option<FlowRecord> {
        let found = self.lock().find(id)?;
        Some(found.build(&self.node))
    }

    /// What another node judged by when it last let a flow in a tunnel, by its word: its epoch, and the flow's beginning in
    /// monotonic ns.
    pub fn peer_epoch(&self, node: &str) -> Option<(u32, u64)> {
        let flows = self.lock().snapshot();
        let told = flows.iter().filter(|flow| flow.facts.peer_node == node);
        let told = told.filter_map(|flow| Some((flow.facts.peer_epoch?, flow.entry.flow.first_ns)));
        told.max_by_key(|(_, began)| *began)
    }

    /// Flows as they begin, go on and end from now on.
    pub fn follow(&self) -> broadcast::Receiver<Arc<FlowRecord>> {
        self.lock().follow()
    }

    /// Numbers about table and records. `eventsLost` is the kernel's to tell.
    pub fn status(&self) -> FlowTableStatus {
        let mut status = self.lock().status;
        status.reports_lost = self.reports_lost.load(Ordering::Relaxed);
        status.errors = self.errors.load(Ordering::Relaxed);
        status
    }

    /// Legacy flows at the last reading, by the interface of each local end.
    pub fn legacy(&self) -> HashMap<u32, u64> {
        self.lock().legacy().clone()
    }

    /// Finished flows by path, end and reason.
    pub fn closed(&self) -> Vec<((&'static str, &'static str, &'static str), u64)> {
        self.lock().closed().iter().map(|(key, count)| (*key, *count)).collect()
    }

    fn lock(&self) -> MutexGuard<'_, store::Store> {
        // A panic ends the process, so a poisoned lock cannot be met; taking the value keeps this total.
        self.store.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
