//! Tunnels of a shard: warm ones from the pool, new ones by a handshake; and the list of all shards' for people.

use std::cell::RefCell;
use std::collections::{HashMap, VecDeque};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use kumiko_abi::Reason;
use kumiko_fault::Point;
use kumiko_kernel::netns::Netns;
use kumiko_kernel::sockets;
use kumiko_tunnel::identity::Identities;
use kumiko_tunnel::pool::{Key, Limits, Pool};
use kumiko_tunnel::{HandshakeError, Tunnel, TunnelInfo, TunnelOptions};
use tokio::net::TcpStream;
use tokio::sync::{Semaphore, oneshot};
use tracing::info;

use super::failure::Failure;
use super::refusals::Event;
use super::{Common, Shard};

/// Handshakes with one node that a shard does at once as dialler; more wait, as their clients do. By node, so that one
/// that does not answer takes no turns from the others.
const MAX_DIALS: usize = 32;
/// Idle tunnels kept for one pair of principals and node: what a busy client has open at once would otherwise be closed
/// and made anew all the time.
const IDLE_PER_KEY: usize = 128;
/// How long a dial, or an acceptor's handshake, waits for its principal's certificate, which may be on its way from the issuer.
pub(super) const CERTIFICATE_WITHIN: Duration = Duration::from_secs(3);
/// Between two looks at the idle tunnels.
const SWEEP: Duration = Duration::from_secs(5);

/// A shard's own tunnels.
pub(super) struct Tunnels {
    host: Netns,
    shard: u16,
    pool: RefCell<Pool>,
    dials: RefCell<HashMap<SocketAddr, Arc<Semaphore>>>,
    waiting: RefCell<HashMap<Key, Waiting>>,
}

/// Flows that wait for a turn to dial; a tunnel that comes back goes to the first of them.
type Waiting = VecDeque<oneshot::Sender<Tunnel>>;

/// A tunnel, and the time its handshake took if it was made for this flow.
pub(super) struct Taken {
    pub(super) tunnel: Tunnel,
    pub(super) handshake: Option<Duration>,
}

impl Tunnels {
    pub(super) fn new(host: Netns, shard: u16) -> Self {
        let limits = Limits { per_key: IDLE_PER_KEY, ..Limits::default() };
        Self {
            host,
            shard,
            pool: RefCell::new(Pool::new(limits)),
            dials: RefCell::default(),
            waiting: RefCell::default(),
        }
    }

    /// The host's namespace.
    pub(super) fn host(&self) -> &Netns {
        &self.host
    }

    /// Keeps a tunnel for the next flow, or gives it to one that waits.
    fn put_back(&self, mut tunnel: Tunnel) {
        if !tunnel.check() {
            return;
        }
        if let Some(waiting) = self.waiting.borrow_mut().get_mut(&Key::of(&tunnel)) {
            while let Some(next) = waiting.pop_front() {
                match next.send(tunnel) {
                    Ok(()) => return,
                    // Its turn came, or its client gave up.
                    Err(unwanted) => tunnel = unwanted,
                }
            }
        }
        self.pool.borrow_mut().put_back(tunnel);
    }

    /// Turns to shake hands with a node.
    fn turns(&self, node: SocketAddr) -> Arc<Semaphore> {
        self.dials.borrow_mut().entry(node).or_insert_with(|| Arc::new(Semaphore::new(MAX_DIALS))).clone()
    }

    /// Queues for a tunnel that comes back.
    fn wait(&self, key: &Key, fresh: bool) -> oneshot::Receiver<Tunnel> {
        let (sender, receiver) = oneshot::channel();
        if !fresh {
            let mut waiting = self.waiting.borrow_mut();
            let queue = waiting.entry(key.clone()).or_default();
            // Those that wait no more go when the queue would grow.
            if queue.len() == queue.capacity() {
                queue.retain(|sender| !sender.is_closed());
            }
            queue.push_back(sender);
        }
        receiver
    }

    /// Closes idle tunnels that are too old, and forgets who waits no more.
    fn sweep(&self) {
        self.pool.borrow_mut().sweep(Instant::now());
        self.dials.borrow_mut().retain(|_, turns| Arc::strong_count(turns) > 1);
        self.waiting.borrow_mut().retain(|_, queue| {
            queue.retain(|sender| !sender.is_closed());
            !queue.is_empty()
        });
    }
}

impl Shard {
    /// Keeps a tunnel whose flow has ended for the next one. One whose certificate was renewed meanwhile is closed: it
    /// would outlive, busy by turns, every look at the idle ones.
    pub(super) fn put_back(&self, tunnel: Tunnel) {
        if outdated(&self.common.identities.current(), &tunnel) || kumiko_fault::hit(Point::HandBack).is_err() {
            tunnel.close();
        } else {
            self.tunnels.put_back(tunnel);
        }
    }

    /// A tunnel that a flow can be opened on; with `fresh`, not one from the pool.
    pub(super) async fn tunnel(self: &Rc<Self>, key: Key, fresh: bool) -> Result<Taken, Failure> {
        let warm = |tunnel| Ok(Taken { tunnel, handshake: None });
        if !fresh && let Some(tunnel) = self.tunnels.pool.borrow_mut().take(&key) {
            return warm(tunnel);
        }
        if self.common.identities.client_for(&key.source, CERTIFICATE_WITHIN).await.is_none() {
            return Err(Failure::new(Reason::NoCertificate));
        }
        let mut returned = self.tunnels.wait(&key, fresh);
        let turn = tokio::select! {
            biased;
            Ok(tunnel) = &mut returned => return warm(tunnel),
            turn = self.tunnels.turns(key.node).acquire_owned() => turn,
        };
        let Ok(turn) = turn else { return Err(Failure::new(Reason::TunnelLimit)) };
        // From here on a tunnel that comes back is for another one.
        drop(returned);
        let (made, tunnel) = oneshot::channel();
        let shard = self.clone();
        // On its own: when the client gives up meanwhile, the work is not lost, and the acceptor sees no broken
        // handshake.
        tokio::task::spawn_local(async move {
            let _turn = turn;
            if let Err(Ok(unwanted)) = made.send(shard.shake_hands(key).await) {
                let Taken { tunnel, .. } = unwanted;
                shard.put_back(tunnel);
            }
        });
        tunnel.await.unwrap_or(Err(Failure::new(Reason::TunnelLimit)))
    }

    async fn shake_hands(&self, key: Key) -> Result<Taken, Failure> {
        let (Key { source, destination, node }, common) = (key, &self.common);
        let began = Instant::now();
        let from = own_address(common, node.ip()).ok_or(Failure::new(Reason::NoSuchNode))?;
        let connect = || sockets::tunnel_connect(from, node);
        let failed = |error: HandshakeError| {
            let reason = error.reason();
            if let Some(more) = common.refusals.may_write(Event::NoTunnel, reason) {
                info!(%node, %source, %destination, reason = reason.name(), more, %error, "no tunnel");
            }
            common.tunnels.fail();
            Failure::new(error.reason())
        };
        let socket = self.tunnels.host.within(connect).map_err(|error| failed(HandshakeError::Connect(error)))?;
        let stream = TcpStream::from_std(socket).map_err(|error| failed(HandshakeError::Connect(error)))?;
        let identities = common.identities.current();
        kumiko_fault::hit(Point::Handshake).map_err(|fault| failed(HandshakeError::Io(io::Error::other(fault))))?;
        let tunnel = kumiko_tunnel::dial(stream, &identities, &source, &destination, TunnelOptions::default())
            .await
            .map_err(failed)?;
        common.tunnels.add(&tunnel, self.tunnels.shard);
        Ok(Taken { tunnel, handshake: Some(began.elapsed()) })
    }
}

/// Whether a tunnel was made with a certificate that has been renewed or dropped since.
fn outdated(current: &Identities, tunnel: &Tunnel) -> bool {
    current.client_for(tunnel.local()).is_none_or(|now| now.svid.serial() != tunnel.facts().local_serial)
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
    let (buffers, mut told) = (shard.common.tunnels.buffers(), 0);
    loop {
        tokio::select! {
            () = tokio::time::sleep(SWEEP) => {
                let lent = u64::try_from(kumiko_tunnel::lent_bytes()).unwrap_or(0);
                buffers.fetch_add(lent.wrapping_sub(told), Ordering::Relaxed);
                told = lent;
                shard.tunnels.sweep();
                for (event, reason, more) in shard.common.refusals.left_out() {
                    info!(reason = reason.name(), more, "{}, without a line each", event.text());
                }
            }
            changed = versions.changed() => {
                if changed.is_err() {
                    return;
                }
                let current = shard.common.identities.current();
                shard.tunnels.pool.borrow_mut().retire(|tunnel| outdated(&current, tunnel));
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
    arriving: Arc<AtomicU64>,
    buffers: Arc<AtomicU64>,
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

    /// Connections on the tunnel port that have no tunnel yet.
    pub fn arriving(&self) -> Arc<AtomicU64> {
        self.arriving.clone()
    }

    /// Bytes of relay buffers that all shards have lent, each as it last looked.
    pub fn buffers(&self) -> Arc<AtomicU64> {
        self.buffers.clone()
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
