//! Idle tunnels of one shard, by (source principal, destination principal, node).
//!
//! Only the dialler pools: the acceptor never closes an idle tunnel first, so a tunnel taken from here is not being
//! closed under the flow that opens on it, and DRAIN covers the one case where it is.

use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use kumiko_core::Principal;

use crate::tunnel::Tunnel;

/// What a tunnel is good for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Key {
    /// Principal of this node's end.
    pub source: Principal,
    /// Principal of the other end.
    pub destination: Principal,
    /// The other node's tunnel address.
    pub node: SocketAddr,
}

impl Key {
    /// The key under which a dialled tunnel is kept.
    pub fn of(tunnel: &Tunnel) -> Self {
        let facts = tunnel.facts();
        Self { source: facts.local.clone(), destination: facts.peer.clone(), node: facts.peer_addr }
    }
}

/// Limits of a pool.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Idle tunnels of one key.
    pub per_key: usize,
    /// Idle tunnels in all.
    pub total: usize,
    /// How long one may be idle.
    pub idle: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self { per_key: 32, total: 1024, idle: Duration::from_secs(90) }
    }
}

/// What a pool has done so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Takes that found a tunnel.
    pub hits: u64,
    /// Takes that did not.
    pub misses: u64,
    /// Tunnels that were found closed, draining or out of date.
    pub stale: u64,
    /// Tunnels closed because a limit was reached or they were idle too long.
    pub retired: u64,
}

enum Fate {
    Kept,
    Retired,
    Stale,
}

struct Idle {
    tunnel: Tunnel,
    since: Instant,
}

/// A shard's pool. The shard calls [`Pool::sweep`] now and then.
pub struct Pool {
    limits: Limits,
    idle: HashMap<Key, VecDeque<Idle>>,
    total: usize,
    stats: Stats,
    closing: bool,
}

impl Pool {
    /// An empty pool.
    pub fn new(limits: Limits) -> Self {
        Self { limits, idle: HashMap::new(), total: 0, stats: Stats::default(), closing: false }
    }

    /// The newest idle tunnel of a key that still works.
    pub fn take(&mut self, key: &Key) -> Option<Tunnel> {
        while let Some(mut idle) = self.idle.get_mut(key).and_then(VecDeque::pop_back) {
            self.total -= 1;
            if idle.tunnel.check() {
                self.stats.hits += 1;
                return Some(idle.tunnel);
            }
            self.stats.stale += 1;
        }
        self.idle.remove(key);
        self.stats.misses += 1;
        None
    }

    /// Keeps a tunnel whose flow has ended. One that cannot be reused, or does not fit, is closed.
    pub fn put_back(&mut self, mut tunnel: Tunnel) {
        if self.closing || !tunnel.check() {
            return;
        }
        let key = Key::of(&tunnel);
        while self.total >= self.limits.total && self.retire_oldest() {}
        let queue = self.idle.entry(key).or_default();
        queue.push_back(Idle { tunnel, since: Instant::now() });
        self.total += 1;
        if queue.len() > self.limits.per_key
            && let Some(idle) = queue.pop_front()
        {
            self.total -= 1;
            self.stats.retired += 1;
            idle.tunnel.close();
        }
    }

    /// Closes what was closed by the peer, drains, is out of date or was idle too long. No system call for a tunnel on
    /// which nothing came, so it is cheap to call every second.
    pub fn sweep(&mut self, now: Instant) {
        let limit = self.limits.idle;
        self.retain(|idle| {
            if now.saturating_duration_since(idle.since) >= limit {
                Fate::Retired
            } else if idle.tunnel.check() {
                Fate::Kept
            } else {
                Fate::Stale
            }
        });
    }

    /// Closes idle tunnels that `outdated` picks: of a renewed certificate, a removed principal, another root.
    pub fn retire(&mut self, outdated: impl Fn(&Tunnel) -> bool) {
        self.retain(|idle| if outdated(&idle.tunnel) { Fate::Retired } else { Fate::Kept });
    }

    /// Closes all idle tunnels of `principal` that were not made with the certificate of `serial`.
    pub fn renewed(&mut self, principal: &Principal, serial: &str) {
        self.retire(|t| t.local() == principal && t.facts().local_serial != serial);
    }

    /// Closes all idle tunnels; none is kept any more.
    pub fn drain(&mut self) {
        self.closing = true;
        self.retire(|_| true);
    }

    /// Number of idle tunnels.
    pub fn len(&self) -> usize {
        self.total
    }

    /// Whether there is no idle tunnel.
    pub fn is_empty(&self) -> bool {
        self.total == 0
    }

    /// Counters.
    pub fn stats(&self) -> Stats {
        self.stats
    }

    /// All idle tunnels, with the time since when they are idle.
    pub fn iter(&self) -> impl Iterator<Item = (&Tunnel, Instant)> {
        self.idle.values().flatten().map(|idle| (&idle.tunnel, idle.since))
    }

    fn retain(&mut self, mut judge: impl FnMut(&mut Idle) -> Fate) {
        let (stats, mut total) = (&mut self.stats, 0);
        self.idle.retain(|_, queue| {
            for mut idle in std::mem::take(queue) {
                match judge(&mut idle) {
                    Fate::Kept => {
                        queue.push_back(idle);
                        continue;
                    }
                    Fate::Retired => stats.retired += 1,
                    Fate::Stale => stats.stale += 1,
                }
                idle.tunnel.close();
            }
            total += queue.len();
            !queue.is_empty()
        });
        self.total = total;
    }

    fn retire_oldest(&mut self) -> bool {
        let oldest = self.idle.iter().filter_map(|(key, queue)| Some((queue.front()?.since, key))).min_by_key(|o| o.0);
        let Some(key) = oldest.map(|(_, key)| key.clone()) else { return false };
        let Some(idle) = self.idle.get_mut(&key).and_then(VecDeque::pop_front) else { return false };
        self.total -= 1;
        self.stats.retired += 1;
        idle.tunnel.close();
        true
    }
}

impl std::fmt::Debug for Pool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pool").field("idle", &self.total).field("stats", &self.stats).finish_non_exhaustive()
    }
}
