//! The admin API: HTTP/1.1 and JSON on a Unix socket of root's (or the agent's user's) own. Types and paths:
//! [`kumiko_core::api`].

pub(crate) mod asked;
mod follow;
pub(crate) mod policy;
mod serve;
mod socket;

use std::path::PathBuf;
use std::sync::Arc;

use kumiko_core::api::{CertView, FlowRecord, Status, TunnelView, WorkloadView};
use kumiko_core::flow_record::FlowFilter;
use thiserror::Error;
use tokio::sync::broadcast;

use crate::telemetry::{Listing, MetricsInput};

pub use policy::{AppliedQuery, ExplainQuery, MAX_WAIT, PolicyState};
pub use serve::{MAX_CONNECTIONS, MAX_FOLLOWERS, serve, serve_metrics};
pub use socket::AdminSocket;

/// Flows that are listed unless the query says otherwise.
pub const DEFAULT_LIMIT: usize = 1_000;
/// Most flows that one answer lists.
pub const MAX_LIMIT: usize = 20_000;

/// Where the answers come from. Called on a thread that may wait a little, never on a shard's.
pub trait AdminState: PolicyState + Send + Sync + 'static {
    /// How the agent is.
    fn status(&self) -> Status;
    /// Workloads of the mesh.
    fn workloads(&self) -> Vec<WorkloadView>;
    /// Tunnels of this node.
    fn tunnels(&self) -> Vec<TunnelView>;
    /// Certificates of this node.
    fn certs(&self) -> Vec<CertView>;
    /// What a scrape is made of.
    fn metrics(&self) -> MetricsInput;
    /// The newest `limit` flows that fit.
    fn flows(&self, filter: &FlowFilter, limit: usize) -> Listing;
    /// Flows from now on.
    fn follow(&self) -> broadcast::Receiver<Arc<FlowRecord>>;
}

/// Why there is no admin API.
#[derive(Debug, Error)]
pub enum AdminError {
    /// Somebody else serves there.
    #[error("an agent serves {} already: stop it first, or give this one another --run-dir", path.display())]
    InUse {
        /// The socket.
        path: PathBuf,
    },
    /// Something else stands there.
    #[error("{} is there and no socket: remove it, or use another --run-dir", path.display())]
    NoSocket {
        /// What stands there.
        path: PathBuf,
    },
    /// The system said no.
    #[error("{what} {}: {source}", path.display())]
    Io {
        /// What was tried.
        what: &'static str,
        /// Where.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
}

#[cfg(test)]
mod tests;
