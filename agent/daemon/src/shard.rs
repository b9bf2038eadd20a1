//! A shard: one thread in the agent's namespace that owns its flows from SYN to end.

mod carry;
mod deliver;
mod dial;
mod failure;
mod listen;
mod pairing;
mod refusals;
mod registry;
mod report;
mod serve;
mod tunnels;
mod turns;

use std::cell::RefCell;
use std::io;
use std::net::{SocketAddr, TcpListener as StdListener};
use std::rc::Rc;
use std::sync::Arc;

use anyhow::Context as _;
use kumiko_abi::flow::flags;
use kumiko_abi::{CommandResult, Flow, FlowState, Reason, Stage, SynRecord, Verdict};
use kumiko_core::route::{self, Plan, SynView};
use kumiko_kernel::bpf::{Commands, FlowTable, SynRing};
use kumiko_kernel::inject::{IcmpInjector, Injector};
use kumiko_kernel::netns::Netns;
use kumiko_kernel::readable::Readable;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::LocalSet;
use tracing::{debug, warn};

use crate::clock;
use crate::identity::Identities;
use crate::reconcile::SharedState;
use crate::telemetry::FlowSink;

pub use refusals::{Event, Refusals};
pub use registry::Registry;
pub use tunnels::{TunnelList, TunnelRow};

use failure::Failure;
use pairing::Pairings;
use tunnels::Tunnels;
use turns::Turns;

/// Connections taken from a listener before other work gets its turn.
const ACCEPT_BATCH: usize = 64;

/// What all shards share.
#[derive(Clone)]
pub struct Common {
    /// This node's name.
    pub node: Arc<str>,
    /// Number of this agent in the kernel's maps.
    pub generation: u32,
    /// Index of `kumiko0`.
    pub agent_ifindex: u32,
    /// The model and what is attached.
    pub state: SharedState,
    /// Certificates.
    pub identities: Arc<Identities>,
    /// The one way to change a flow entry.
    pub commands: Commands,
    /// The flow table, to read.
    pub flows: FlowTable,
    /// Reports about flows.
    pub sink: FlowSink,
    /// Live flows of all shards.
    pub registry: Registry,
    /// Tunnels of all shards, for people.
    pub tunnels: TunnelList,
    /// Number of the snapshot in `state`: OPENs wait on it for what the model does not know yet.
    pub changed: watch::Receiver<u64>,
    /// What this node refused as acceptor.
    pub refusals: Refusals,
    /// Becomes true when the agent drains.
    pub drain: watch::Receiver<bool>,
}

/// What belongs to one shard and is made before its thread starts.
pub struct Parts {
    /// Its number.
    pub index: u32,
    /// Parked SYNs.
    pub syns: SynRing,
    /// Transparent listeners, IPv4 and IPv6.
    pub listeners: Vec<StdListener>,
    /// Into the agent's namespace.
    pub injector: Injector,
    /// Towards pods, as ICMP errors.
    pub icmp: IcmpInjector,
    /// The host's namespace, for tunnels.
    pub host: Netns,
}

struct Shard {
    common: Common,
    index: u32,
    injector: Injector,
    icmp: IcmpInjector,
    pairings: Pairings,
    turns: Turns,
    tunnels: Tunnels,
    picks: RefCell<u64>,
}

/// Runs a shard until the agent has drained. The calling thread has to be in the agent's namespace.
pub fn run(common: Common, parts: Parts, end: watch::Receiver<bool>) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("shard's runtime")?;
    let local = LocalSet::new();
    local.block_on(&runtime, async move {
        let Parts { index, syns, listeners, injector, icmp, host } = parts;
        let turns = Turns::new(common.tunnels.arriving());
        let shard = Rc::new(Shard {
            tunnels: Tunnels::new(host, u16::try_from(index).unwrap_or(0)),
            common,
            index,
            injector,
            icmp,
            pairings: Pairings::default(),
            turns,
            picks: RefCell::new(clock::unix_ns() ^ u64::from(index)),
        });
        for listener in listeners {
            let listener = TcpListener::from_std(listener).context("transparent listener")?;
            tokio::task::spawn_local(accept_clients(shard.clone(), listener));
        }
        tokio::task::spawn_local(listen::tunnels(shard.clone()));
        tokio::task::spawn_local(tunnels::tend(shard.clone()));
        let readable = Readable::new(&syns).context("ring of parked SYNs")?;
        tokio::task::spawn_local(take_syns(shard.clone(), syns, readable));
        let mut end = end;
        // The sender's end means the same.
        let _ = end.wait_for(|over| *over).await;
        anyhow::Ok(())
    })
}

/// Dials for every parked SYN. How many wait at once is bounded by the kernel's quota of each endpoint.
async fn take_syns(shard: Rc<Shard>, mut syns: SynRing, readable: Readable) {
    loop {
        let syn = match readable.wait(|| syns.next()).await {
            Ok(syn) => syn,
            Err(error) => {
                // Without its ring a shard parks SYNs for ever.
                tracing::error!(%error, "ring of parked SYNs cannot be polled");
                std::process::abort();
            }
        };
        // What another agent was to dial is judged afresh at the client's next SYN.
        if syn.generation == shard.common.generation {
            tokio::task::spawn_local(dial::dial(shard.clone(), syn));
        }
    }
}

/// Hands every accepted client to the dial that waits for it.
async fn accept_clients(shard: Rc<Shard>, listener: TcpListener) {
    let mut batch = 0;
    loop {
        match listener.accept().await {
            Ok((stream, client)) => {
                if let Err(error) = hand_over(&shard, stream, client) {
                    debug!(%error, %client, "client gone before it was paired");
                }
            }
            Err(error) => pause(&error, "accept of a client").await,
        }
        batch += 1;
        if batch % ACCEPT_BATCH == 0 {
            tokio::task::yield_now().await;
        }
    }
}

fn hand_over(shard: &Shard, stream: TcpStream, client: SocketAddr) -> io::Result<()> {
    // Its options are the listener's: should the agent die now, the client sees an RST.
    let asked = stream.local_addr()?;
    let tuple = (canonical(client), canonical(asked));
    // Not awaited: its dial has ended. Dropped with linger{1,0} it is reset.
    drop(shard.pairings.accepted(tuple, stream));
    Ok(())
}

fn canonical(addr: SocketAddr) -> SocketAddr {
    SocketAddr::new(addr.ip().to_canonical(), addr.port())
}

/// Out of descriptors or memory: without a pause the loop would spin on a listener that stays readable.
async fn pause(error: &io::Error, what: &str) {
    warn!(%error, "{what} failed");
    tokio::time::sleep(std::time::Duration::from_millis(50)).await;
}

impl Shard {
    /// Its number, as the maps hold it.
    fn number(&self) -> u16 {
        // At most MAX_SHARDS.
        u16::try_from(self.index).unwrap_or(0)
    }

    /// This node's addresses, as its Node object says.
    fn own_addresses(&self) -> Vec<std::net::IpAddr> {
        let state = self.common.state.load();
        state.world.node(&self.common.node).map_or_else(Vec::new, |node| node.addresses.clone())
    }

    /// The entry of a dialled flow, while it is this flow's and not over.
    fn living(&self, syn: &SynRecord) -> Option<Flow> {
        self.common.flows.get(&syn.key).filter(|flow| flow.id == syn.id && flow.flags & flags::OVER == 0)
    }

    fn plan(&self, syn: &SynRecord, client: SocketAddr, asked: SocketAddr) -> Result<Plan, Reason> {
        let state = self.common.state.load();
        let plan = route::plan(&state.world, &self.common.node, &SynView { client, asked, pick: self.pick() })?;
        // The kernel's handle must still be this workload's: an address that changed hands is judged afresh.
        if state.handle(&plan.source.uid) != syn.src {
            return Err(Reason::UnknownSource);
        }
        Ok(plan)
    }

    /// The next number of a xorshift generator: spreads connections over endpoints, keeps no secret.
    fn pick(&self) -> u64 {
        let mut x = self.picks.borrow_mut();
        *x = (*x).max(1);
        *x ^= *x << 13;
        *x ^= *x >> 7;
        *x ^= *x << 17;
        *x
    }

    fn set_state(
        &self,
        syn: &SynRecord,
        state: FlowState,
        reason: Reason,
        verdict: Verdict,
        marks: u32,
    ) -> Result<(), Failure> {
        match self.common.commands.set_state(&syn.key, &syn.id, state, reason, verdict, marks) {
            Ok(CommandResult::Done) => Ok(()),
            // Gone or another's: the client has moved on.
            Ok(_) => Err(Failure::new(Reason::ClientGone)),
            Err(error) => {
                warn!(%error, "flow entry could not be changed");
                Err(Failure::new(Reason::ClientGone))
            }
        }
    }

    fn inject(&self, syn: &SynRecord) -> Result<(), Failure> {
        self.injector.inject_syn(syn).map_err(|error| {
            warn!(%error, "kept SYN could not be sent on");
            Failure::new(Reason::ConnectFailed)
        })
    }

    fn unreachable(&self, syn: &SynRecord, errno: i32) -> Result<(), Failure> {
        self.icmp.unreachable(syn, errno).map_err(|error| {
            warn!(%error, "ICMP error could not be sent");
            Failure::new(Reason::ConnectFailed)
        })
    }

    /// Stages of both ends as they are now; without a plan the far one counts as strict, the safe side.
    fn stages(&self, syn: &SynRecord, plan: Option<&Plan>) -> [Stage; 2] {
        let state = self.common.state.load();
        let source = state.stage_of(syn.src).unwrap_or(Stage::Strict);
        [source, plan.map_or(Stage::Strict, |plan| plan.target.stage)]
    }
}
