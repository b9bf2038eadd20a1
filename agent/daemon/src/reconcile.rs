//! The control loop that makes the kernel's maps and hooks follow the model.
//!
//! One pass takes the newest [`World`], the interfaces that are there, and what the maps hold, and does the next right
//! thing for each local workload ([`kumiko_core::stage::next`] decides). Passes are cheap to repeat: whatever failed is
//! still different afterwards, and is tried again. The order within a pass:
//!
//! 1. numbers for new names, on disk before they are in a map;
//! 2. the shards' snapshot, so that they know whatever the kernel may hand them from now on;
//! 3. who and where everybody is, with workloads that get their hooks in this pass still counted as not meshed;
//! 4. hooks and endpoints, in `learn` where they go up to a capturing stage;
//! 5. everything else as it has to be: from here on new connections use the new stages;
//! 6. connections older than that are marked, pods' sockets become legacy entries, then `learn` ends.

mod edge;
mod engine;
mod judged;
mod kernel;
mod local;
mod state;
mod touched;

pub use edge::{Edge, EdgeError, Veth};
pub use engine::Engine;
pub use judged::{Between, Carried};
pub use kernel::KernelEdge;
pub use state::{ACCEPT_AFTER_LOWERING, EndpointReport, Gone, NodeState, SharedState};

use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use kumiko_core::model::World;
use kumiko_core::policy::history::History;
use kumiko_kernel::bpf::Datapath;
use kumiko_kernel::link::{LinkEvent, Watch};
use kumiko_kernel::netns::Netns;
use thiserror::Error;
use tokio::sync::{broadcast, watch};
use tokio::time::MissedTickBehavior;

/// Between two passes while something is awaited that tells nobody when it happens.
const AGAIN: Duration = Duration::from_secs(1);
/// Between two looks at what changes without a word: hooks that somebody else took off, limits on a veth.
const LOOK: Duration = Duration::from_secs(5);

/// Why the control loop cannot begin or go on.
#[derive(Debug, Error)]
pub enum ReconcileError {
    /// Maps or files left by the agent before.
    #[error("the state that the last agent left cannot be taken over: {0}")]
    TakeOver(#[from] EdgeError),
    /// Netlink.
    #[error("interfaces of the host's namespace cannot be followed: {0}")]
    Links(#[source] io::Error),
    /// The way into the agent's namespace.
    #[error(
        "the veth into the agent's namespace was removed: nothing can be carried without it; start the agent again"
    )]
    NoWay,
}

/// What the control loop works on.
pub struct Options {
    /// This node.
    pub node: String,
    /// The agent's directory: numbers are kept in `handles.json` there.
    pub run_dir: PathBuf,
    /// Programs and maps.
    pub datapath: Arc<Datapath>,
    /// The host's namespace; the loop must run on a thread that is in it.
    pub host: Netns,
    /// The agent's namespace.
    pub agent: Netns,
    /// The host's side of the veth into the agent's namespace.
    pub agent_ifindex: u32,
    /// What the agent carries, if policy is to be brought into force, not only stages.
    pub carried: Option<Box<dyn Carried>>,
}

/// What others see of the control loop.
#[derive(Debug, Clone)]
pub struct Reconciled {
    /// The newest snapshot.
    pub state: SharedState,
    /// What verdicts are and were made of.
    pub history: Arc<Mutex<History>>,
    /// Number of passes that changed it; above 0 the first one is done.
    pub changed: watch::Receiver<u64>,
    /// Workloads whose flows have to end now. A receiver that lags compares its flows with the snapshot instead.
    pub gone: broadcast::Sender<Gone>,
}

/// The control loop, before it runs.
pub struct Reconciler {
    engine: Engine<KernelEdge>,
    world: watch::Receiver<Arc<World>>,
    host: Netns,
    agent_ifindex: u32,
}

impl Reconciler {
    /// Reads what the last agent left. On a thread in the host's namespace.
    ///
    /// # Errors
    /// [`ReconcileError`].
    pub fn new(options: Options, world: watch::Receiver<Arc<World>>) -> Result<(Self, Reconciled), ReconcileError> {
        let host = options.host.try_clone().map_err(ReconcileError::Links)?;
        let agent_ifindex = options.agent_ifindex;
        let edge = KernelEdge::new(options.datapath, options.host, options.agent, agent_ifindex, &options.run_dir);
        let (engine, reconciled) = Engine::new(options.node, edge, options.carried)?;
        Ok((Self { engine, world, host, agent_ifindex }, reconciled))
    }

    /// Follows links and the model until the source ends. Passes do blocking work of milliseconds: run it where nothing
    /// waits for less.
    ///
    /// # Errors
    /// Links cannot, or no longer, be followed, or the agent's own is gone.
    pub async fn run(mut self) -> Result<(), ReconcileError> {
        // In the runtime that runs it: another one may end before, and the watch with it.
        let mut links = Watch::new(&self.host).map_err(ReconcileError::Links)?;
        let mut links_known = false;
        let mut look = tokio::time::interval(LOOK);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let (again, lapses) = (self.engine.waits(), self.engine.lapses_in());
            tokio::select! {
                changed = self.world.changed() => if changed.is_err() { return Ok(()) },
                event = links.next() => {
                    let event = event.map_err(ReconcileError::Links)?;
                    links_known |= matches!(event, LinkEvent::Resync { .. });
                    self.link(&event)?;
                }
                () = tokio::time::sleep(AGAIN), if again => {}
                () = tokio::time::sleep(lapses.unwrap_or(LOOK)), if lapses.is_some() => {}
                _ = look.tick() => self.engine.look(Instant::now()),
            }
            // Links come in bursts: one pass for all that is known already.
            while let Ok(event) = tokio::time::timeout(Duration::ZERO, links.next()).await {
                let event = event.map_err(ReconcileError::Links)?;
                links_known |= matches!(event, LinkEvent::Resync { .. });
                self.link(&event)?;
            }
            let world = self.world.borrow_and_update().clone();
            // Before the first reading nothing is known, which is not the same as "nothing is wanted".
            if world.epoch() > 0 && links_known {
                self.engine.pass(world, Instant::now());
            }
        }
    }

    fn link(&mut self, event: &LinkEvent) -> Result<(), ReconcileError> {
        match event {
            LinkEvent::Gone { ifindex } if *ifindex == self.agent_ifindex => return Err(ReconcileError::NoWay),
            LinkEvent::Gone { ifindex } => self.engine.link_gone(*ifindex),
            LinkEvent::Running { ifindex, running } => self.engine.link_running(*ifindex, *running),
            _ => {}
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
