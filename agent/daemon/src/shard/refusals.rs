//! Tunnels and OPENs that this node refused as acceptor, by reason; and how often the log says so.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use kumiko_abi::Reason;

use crate::quiet::Quiet;

/// What the log tells of: others can cause it as often as they like.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Event {
    /// A connection on the tunnel port that became no tunnel.
    TunnelRefused,
    /// A tunnel that ended by its peer's fault.
    TunnelEnded,
    /// A node that could not be dialled.
    NoTunnel,
}

impl Event {
    /// For a line about many of them.
    pub(super) fn text(self) -> &'static str {
        match self {
            Self::TunnelRefused => "more tunnels were refused",
            Self::TunnelEnded => "more tunnels ended",
            Self::NoTunnel => "more dials came to no tunnel",
        }
    }
}

/// Counters, one a reason.
#[derive(Debug, Clone)]
pub struct Refusals {
    counts: Arc<[(Reason, AtomicU64)]>,
    lines: Arc<Quiet<(Event, Reason)>>,
}

impl Default for Refusals {
    fn default() -> Self {
        let counts = Reason::ALL.iter().map(|reason| (*reason, AtomicU64::new(0))).collect();
        Self { counts, lines: Arc::default() }
    }
}

impl Refusals {
    /// Counts one.
    pub fn count(&self, reason: Reason) {
        if let Some((_, count)) = self.counts.iter().find(|(known, _)| *known == reason) {
            count.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Those that happened.
    pub fn counts(&self) -> Vec<(Reason, u64)> {
        let read = |(reason, count): &(Reason, AtomicU64)| (*reason, count.load(Ordering::Relaxed));
        self.counts.iter().map(read).filter(|(_, count)| *count > 0).collect()
    }

    /// Whether the log is told of this one, with how many it was not told of.
    pub(super) fn may_write(&self, event: Event, reason: Reason) -> Option<u64> {
        self.lines.may_write((event, reason), Instant::now())
    }

    /// What the log was not told of, when it is time to.
    pub(super) fn left_out(&self) -> Vec<(Event, Reason, u64)> {
        let told = self.lines.left_out(Instant::now());
        told.into_iter().map(|((event, reason), more)| (event, reason, more)).collect()
    }
}
