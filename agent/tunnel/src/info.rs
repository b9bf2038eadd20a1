//! What others may see of a tunnel while a task owns it.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use kumiko_abi::FlowId;
use kumiko_core::Principal;
use kumiko_core::origin::Origin;
use std::net::SocketAddr;

/// What never changes about a tunnel.
#[derive(Clone, Debug)]
pub struct Facts {
    /// This node dialled it.
    pub dialled: bool,
    /// Principal whose certificate this node showed.
    pub local: Principal,
    /// Serial of that certificate, hex.
    pub local_serial: String,
    /// Principal that the peer proved.
    pub peer: Principal,
    /// Where that certificate was given to; `None`: it does not say.
    pub peer_origin: Option<Origin>,
    /// Serial of the peer's certificate, hex.
    pub peer_serial: String,
    /// Address of the peer's end.
    pub peer_addr: SocketAddr,
    /// Cipher suite.
    pub cipher: &'static str,
    /// End of the handshake.
    pub established: SystemTime,
    /// Time that the handshake took.
    pub handshake: Duration,
    /// First end of validity of both certificates: afterwards no flow is opened on it.
    pub usable_until: SystemTime,
}

/// A tunnel's facts and counters. One task writes, anybody reads.
#[derive(Debug)]
pub struct TunnelInfo {
    /// Numbered per process.
    pub number: u64,
    /// What never changes.
    pub facts: Facts,
    flows: AtomicU64,
    sent: AtomicU64,
    received: AtomicU64,
    key_updates_sent: AtomicU64,
    key_updates_received: AtomicU64,
    busy: AtomicBool,
    flow_id: [AtomicU64; 2],
}

/// A reading of a tunnel's counters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct TunnelCounters {
    /// Flows carried, the current one included.
    pub flows: u64,
    /// Plaintext bytes of flows sent.
    pub bytes_sent: u64,
    /// Plaintext bytes of flows received.
    pub bytes_received: u64,
    /// Key changes of what this side sends.
    pub key_updates_sent: u64,
    /// Key changes of what the peer sends.
    pub key_updates_received: u64,
    /// The flow that it carries now.
    pub flow: Option<FlowId>,
}

static NEXT: AtomicU64 = AtomicU64::new(1);

impl TunnelInfo {
    pub(crate) fn new(facts: Facts) -> Self {
        Self {
            number: NEXT.fetch_add(1, Ordering::Relaxed),
            facts,
            flows: AtomicU64::new(0),
            sent: AtomicU64::new(0),
            received: AtomicU64::new(0),
            key_updates_sent: AtomicU64::new(0),
            key_updates_received: AtomicU64::new(0),
            busy: AtomicBool::new(false),
            flow_id: [AtomicU64::new(0), AtomicU64::new(0)],
        }
    }

    /// Reads the counters; each is right, they may be from moments apart.
    pub fn counters(&self) -> TunnelCounters {
        let read = |a: &AtomicU64| a.load(Ordering::Relaxed);
        let flow = self.busy.load(Ordering::Acquire).then(|| {
            let mut id = [0; 16];
            let (high, low) = id.split_at_mut(8);
            high.copy_from_slice(&read(&self.flow_id[0]).to_be_bytes());
            low.copy_from_slice(&read(&self.flow_id[1]).to_be_bytes());
            FlowId(id)
        });
        TunnelCounters {
            flows: read(&self.flows),
            bytes_sent: read(&self.sent),
            bytes_received: read(&self.received),
            key_updates_sent: read(&self.key_updates_sent),
            key_updates_received: read(&self.key_updates_received),
            flow,
        }
    }

    pub(crate) fn begin(&self, id: FlowId) {
        let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = id.0;
        self.flow_id[0].store(u64::from_be_bytes([a, b, c, d, e, f, g, h]), Ordering::Relaxed);
        self.flow_id[1].store(u64::from_be_bytes([i, j, k, l, m, n, o, p]), Ordering::Relaxed);
        self.flows.fetch_add(1, Ordering::Relaxed);
        self.busy.store(true, Ordering::Release);
    }

    pub(crate) fn end(&self) {
        self.busy.store(false, Ordering::Release);
    }

    pub(crate) fn count(&self, sent: u64, received: u64) {
        // One writer: no need for the cost of an atomic addition.
        let add = |a: &AtomicU64, n| a.store(a.load(Ordering::Relaxed) + n, Ordering::Relaxed);
        if sent != 0 {
            add(&self.sent, sent);
        }
        if received != 0 {
            add(&self.received, received);
        }
    }

    pub(crate) fn key_updates(&self, sent: u64, received: u64) {
        self.key_updates_sent.store(sent, Ordering::Relaxed);
        self.key_updates_received.store(received, Ordering::Relaxed);
    }
}
