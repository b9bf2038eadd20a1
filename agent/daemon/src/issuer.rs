//! The embedded issuer: signs what an agent may ask for.
//!
//! An agent gets a certificate only for a principal that has a workload on its own node. It proves which node it is by a
//! join token bound to the node's name, over TLS 1.3 that it pins to the issuer's root.

mod authority;
mod client;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzz;
mod serve;
mod sign;
mod state;
mod token;
mod wire;

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use kumiko_core::Principal;
use kumiko_core::model::World;
use kumiko_core::origin::Origin;
use thiserror::Error;
use tokio::sync::watch;

pub use authority::{Authority, SignError, Signed};
pub use client::{ClientError, IssuerClient};
pub use serve::{Issuer, MAX_BODY, MAX_CONNECTIONS, MAX_FROM_ONE};
pub use state::StateDir;
pub use token::{TokenError, TokenKey};
pub use wire::{BundleResponse, ErrorResponse, SERVER_NAME, SignRequest, SignResponse, path};

/// What the issuer has to know about the mesh.
pub trait NodeWorkloads: Send + Sync + 'static {
    /// What a certificate says that this node gets for this principal; `None`: no workload of it is there.
    fn origin(&self, node: &str, principal: &Principal) -> Option<Origin>;
}

impl NodeWorkloads for watch::Receiver<Arc<World>> {
    fn origin(&self, node: &str, principal: &Principal) -> Option<Origin> {
        let world = self.borrow();
        world.node_has_principal(node, principal).then(|| world.origin(principal, node))
    }
}

/// Why the issuer, or a subcommand on its state, cannot go on.
#[derive(Debug, Error)]
pub enum IssuerError {
    /// A file could not be read or written.
    #[error("{what} {}: {source}", path.display())]
    File {
        /// What was tried.
        what: &'static str,
        /// Where.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// A file is not what it should be.
    #[error("{}: {problem}", path.display())]
    Content {
        /// Where.
        path: PathBuf,
        /// What is wrong and what to do.
        problem: String,
    },
    /// Making a key or a certificate failed.
    #[error("cannot make {what}: {source}")]
    Crypto {
        /// What was to be made.
        what: &'static str,
        /// Why not.
        source: rcgen::Error,
    },
    /// No random numbers.
    #[error("the system gives no random numbers")]
    Random,
    /// Setting up TLS failed.
    #[error("cannot set up TLS: {0}")]
    Tls(#[from] rustls::Error),
    /// The address could not be used.
    #[error("cannot listen on {address}: {source}")]
    Listen {
        /// Where.
        address: std::net::SocketAddr,
        /// Why not.
        source: std::io::Error,
    },
}

impl fmt::Debug for dyn NodeWorkloads {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("NodeWorkloads")
    }
}

#[cfg(test)]
mod tests;
