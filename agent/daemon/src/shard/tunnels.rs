//! Tunnels of a shard: warm ones from the pool, new ones by a handshake; and the list of all shards' for people.

use std::cell::RefCell;
use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use kumiko_abi::Reason;
use kumiko_core::Principal;
use kumiko_kernel::netns::Netns;
use kumiko_kernel::sockets;
use kumiko_tunnel::pool::{Key, Limits, Pool};
use kumiko_tunnel::{HandshakeError, Tunnel, TunnelInfo, TunnelOptions};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tracing::info;

use super::failure::Failure;
use super::{Common, Shard};

/// Handshakes that one shard does at once as dialler; more wait, as their clients do.
const MAX_DIALS: usize = 64;
/// How long a dial waits for its principal's certificate, which may be on its way from the issuer.
const CERTIFICATE_WITHIN: Duration = Duration::from_secs(3);
/// Between two looks at the idle tunnels.
const SWEEP: Duration = Duration::from_secs(5);

/// A shard's own tunnels.
pub(super) struct Tunnels {
    host: Netns,
    shard: u16,
    pool: RefCell<Pool>,
    dials: Semaphore,
}

/// A tunnel, and the time its handshake took if it was made for this flow.
pub(super) struct Taken {
    pub(super) tunnel: Tunnel,
    pub(super) handshake: Option<Duration>,
}

impl Tunnels {
    pub(super) fn new(host: Netns, shard: u16) -> Self {
        Self { host, shard, pool: RefCell::new(Pool::new(Limits::default())), dials: Semaphore::new(MAX_DIALS) }
    }

    /// A tunnel that a flow can be opened on.
    pub(super) async fn take(
        &self,
        common: &Common,
        source: &Principal,
        destination: &Principal,
        node: SocketAddr,
    ) -> Result<Taken, Failure> {
        let key = Key { source: source.clone(), destination: destination.clone(), node };
        if let Some(tunnel) = self.pool.borrow_mut().take(&key) {
            return Ok(Taken { tunnel, handshake: None });
        }
        if common.identities.client_for(source, CERTIFICATE_WITHIN).await.is_none() {
            return Err(Failure::new(Reason::NoCertificate));
        }
        let Ok(_permit) = self.dials.acquire().await else { return Err(Failure::new(Reason::TunnelLimit)) };
        // One may have come back while this dial waited for its turn.
        if let Some(tunnel) = self.pool.borrow_mut().take(&key) {
            return Ok(Taken { tunnel, handshake: None });
        }
        let began = Instant::now();
        let from = own_address(common, node.ip()).ok_or(Failure::new(Reason::NoSuchNode))?;
        let connect = || sockets::tunnel_connect(from, node);
        let failed = |error: HandshakeError| {
            info!(%node, %source, %destination, reason = error.reason().name(), %error, "no tunnel");
            common.tunnels.fail();
            Failure::new(error.reason())
        };
        let socket = self.host.within(connect).map_err(|error| failed(HandshakeError::Connect(error)))?;
        let stream = TcpStream::from_std(socket).map_err(|error| failed(HandshakeError::Connect(error)))?;
        let identities = common.identities.current();
        let tunnel = kumiko_tunnel::dial(stream, &identities, source, destination, TunnelOptions::default())
            .await
            .map_err(failed)?;
        common.tunnels.add(&tunnel, self.shard);
        Ok(Taken { tunnel, handshake: Some(began.elapsed()) })
    }

    /// The host's namespace.
    pub(super) fn host(&self) -> &Netns {
        &self.host
    }

    /// Keeps a tunnel for the next flow.
    pub(super) fn put_back(&self, tunnel: Tunnel) {
        self.pool.borrow_mut().put_back(tunnel);
    }
}

/// This node's address of the family of `like`.
fn own_address(common: &Common, like: IpAddr) -> Option<IpAddr> {
    let state = common.state.load();
    let node = state.world.node(&common.node)?;
    node.addresses.iter().copied().find(|ip| ip.is_ipv4() == like.is_ipv4())
}

/// Closes idle tunnels that are too old, or were made with a certificate that has been renewed or dropped; all of them
/// when the agent drains.
pub(super) async fn tend(shard: Rc<Shard>) {
    let mut versions = shard.common.identities.versions();
    let mut drain = shard.common.drain.clone();
    loop {
        tokio::select! {
            () = tokio::time::sleep(SWEEP) => shard.tunnels.pool.borrow_mut().sweep(Instant::now()),
            changed = versions.changed() => {
                if changed.is_err() {
                    return;
                }
                let current = shard.common.identities.current();
                shard.tunnels.pool.borrow_mut().retire(|tunnel| {
                    current.client_for(tunnel.local()).is_none_or(|c| c.svid.serial() != tunnel.facts().local_serial)
                });
            }
            _ = drain.wait_for(|draining| *draining) => {
                shard.tunnels.pool.borrow_mut().drain();
                return;
            }
        }
    }
}

/// A tunnel as people see it.
#[derive(Debug, Clone)]
pub struct TunnelRow {
    /// Facts and counters.
    pub info: Arc<TunnelInfo>,
    /// Shard that owns it.
    pub shard: u16,
}

/// Tunnels by number, with their shard.
type Known = HashMap<u64, (Weak<TunnelInfo>, u16)>;

/// Tunnels of all shards: one lock when a tunnel is made, one when somebody looks.
#[derive(Debug, Clone, Default)]
pub struct TunnelList {
    made: Arc<AtomicU64>,
    failed: Arc<AtomicU64>,
    known: Arc<Mutex<Known>>,
}

impl TunnelList {
    /// Lists a tunnel for as long as it lives.
    pub fn add(&self, tunnel: &Tunnel, shard: u16) {
        self.made.fetch_add(1, Ordering::Relaxed);
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        // Dead ones go when the list would grow: on average once a tunnel.
        if known.len() == known.capacity() {
            known.retain(|_, (info, _)| info.strong_count() > 0);
        }
        known.insert(tunnel.info().number, (Arc::downgrade(tunnel.info()), shard));
    }

    /// Counts a handshake that failed.
    pub fn fail(&self) {
        self.failed.fetch_add(1, Ordering::Relaxed);
    }

    /// Handshakes that gave a tunnel.
    pub fn made(&self) -> u64 {
        self.made.load(Ordering::Relaxed)
    }

    /// Handshakes that failed.
    pub fn failed(&self) -> u64 {
        self.failed.load(Ordering::Relaxed)
    }

    /// All that live, by number.
    pub fn rows(&self) -> Vec<TunnelRow> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.retain(|_, (info, _)| info.strong_count() > 0);
        let mut rows: Vec<TunnelRow> = known
            .values()
            .filter_map(|(info, shard)| Some(TunnelRow { info: info.upgrade()?, shard: *shard }))
            .collect();
        rows.sort_by_key(|row| row.info.number);
        rows
    }
}
