//! What shards tell about their flows, without ever waiting.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use kumiko_abi::{FlowId, FlowKey, Reason};
use kumiko_core::flow_record::{FlowClose, FlowSide, ServiceName};
use tokio::sync::mpsc;

/// Reports that may wait for the collector; more are dropped and counted.
pub const REPORT_QUEUE: usize = 16_384;

/// A flow that the agent begins with: as dialler, or as acceptor of an OPEN (then also when it is refused before it
/// has an entry in the flow table).
#[derive(Clone, PartialEq, Debug)]
pub struct FlowStart {
    /// The flow.
    pub id: FlowId,
    /// Key of its entry on this node: client and asked address where it is dialled, client and pod where it is
    /// delivered.
    pub key: FlowKey,
    /// The client's address and port.
    pub client: SocketAddr,
    /// The pod that is to be reached.
    pub target: Option<SocketAddr>,
    /// Service that was asked for.
    pub service: Option<ServiceName>,
    /// Handle of the client's workload here, or 0.
    pub source: u32,
    /// Handle of the target's workload here, or 0.
    pub destination: u32,
    /// Accepted from a tunnel.
    pub delivering: bool,
    /// The other end is on another node.
    pub remote: bool,
    /// That node; empty when unknown.
    pub peer_node: String,
    /// Epoch of the verdicts that the agent asked; 0: it asked none.
    pub epoch: u32,
    /// Epoch of the other node's, as it says; 0: it does not, or not yet.
    pub peer_epoch: u32,
}

/// A flow that opened: the far pod, or this node's, accepted.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct FlowOpened {
    /// Number of the tunnel; `None`: same node.
    pub tunnel: Option<u64>,
    /// Time that the flow waited for the tunnel's handshake, in microseconds; `None`: a warm tunnel.
    pub handshake_us: Option<u64>,
    /// Time from the client's SYN (or from OPEN) to the pod's answer, in microseconds.
    pub connect_us: u64,
    /// Epoch of the verdicts by which the other node let it; 0: not said, or no other node did.
    pub peer_epoch: u32,
}

/// How a flow ended that had opened.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FlowEnded {
    /// How.
    pub close: FlowClose,
    /// Who, if the agent can tell.
    pub closed_by: Option<FlowSide>,
    /// Why.
    pub reason: Reason,
    /// Smoothed round-trip time of the tunnel's socket (same node: of the pod's), in microseconds.
    pub rtt_us: Option<u32>,
    /// Segments that this socket sent again.
    pub retransmits: Option<u32>,
    /// Epoch of the verdict that ended it; 0: none did.
    pub epoch: u32,
}

/// One report.
#[derive(Clone, PartialEq, Debug)]
pub enum FlowReport {
    /// See [`FlowSink::dialling`].
    Dialling(Box<FlowStart>),
    /// See [`FlowSink::opened`].
    Opened(FlowId, FlowOpened),
    /// See [`FlowSink::refused`].
    Refused(FlowId, Reason, i32),
    /// See [`FlowSink::downgraded`].
    Downgraded(FlowId),
    /// See [`FlowSink::ended`].
    Ended(FlowId, FlowEnded),
}

impl FlowReport {
    /// The flow that it is about.
    pub fn id(&self) -> FlowId {
        match self {
            Self::Dialling(start) => start.id,
            Self::Opened(id, _) | Self::Refused(id, ..) | Self::Downgraded(id) | Self::Ended(id, _) => *id,
        }
    }
}

/// The shards' end. No method waits: a full queue loses the report, counted.
#[derive(Clone, Debug)]
pub struct FlowSink {
    sender: mpsc::Sender<FlowReport>,
    lost: Arc<AtomicU64>,
}

/// The collector's end.
#[derive(Debug)]
pub struct FlowReports {
    pub(super) receiver: mpsc::Receiver<FlowReport>,
    pub(super) lost: Arc<AtomicU64>,
}

/// Both ends of the queue of reports.
pub fn flow_reports() -> (FlowSink, FlowReports) {
    let (sender, receiver) = mpsc::channel(REPORT_QUEUE);
    let lost = Arc::new(AtomicU64::new(0));
    (FlowSink { sender, lost: lost.clone() }, FlowReports { receiver, lost })
}

impl FlowSink {
    /// The agent begins with a flow: dials it, or got an OPEN for it. First of all reports about it.
    pub fn dialling(&self, start: FlowStart) {
        self.report(FlowReport::Dialling(Box::new(start)));
    }

    /// The flow opened.
    pub fn opened(&self, id: FlowId, opened: FlowOpened) {
        self.report(FlowReport::Opened(id, opened));
    }

    /// The flow did not open. `errno`: what the connection to the pod ended with (also when the far agent told it), or
    /// 0. Last of the reports about it.
    pub fn refused(&self, id: FlowId, reason: Reason, errno: i32) {
        self.report(FlowReport::Refused(id, reason, errno));
    }

    /// No tunnel was to be had, and the flow goes on in the clear. Last of the reports about it.
    pub fn downgraded(&self, id: FlowId) {
        self.report(FlowReport::Downgraded(id));
    }

    /// The flow had opened and is over. Last of the reports about it.
    pub fn ended(&self, id: FlowId, ended: FlowEnded) {
        self.report(FlowReport::Ended(id, ended));
    }

    fn report(&self, report: FlowReport) {
        if self.sender.try_send(report).is_err() {
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
    }
}
