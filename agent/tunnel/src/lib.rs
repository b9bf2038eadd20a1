//! Tunnels between agents: TLS 1.3 with both workloads' SPIFFE identities, one flow at a time, a warm pool.
//!
//! The caller brings connected sockets and decides; this crate never makes a socket, reads a file or knows the model.
//!
//! - [`identity`]: SVIDs, trust bundle, TLS configurations, what makes a peer's certificate acceptable.
//! - [`dial`], [`accept`]: the handshake, with limits; a [`Tunnel`] comes of it.
//! - [`relay`]: carries one flow between a plain socket and a tunnel; [`plain_relay`] between two plain sockets.
//! - [`pool`]: idle tunnels of one shard.

#![cfg_attr(test, allow(clippy::cast_possible_truncation, reason = "test patterns are cut to bytes"))]

mod aead;
mod buffer;
mod error;
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzzing;
mod handshake;
pub mod identity;
mod inbound;
mod info;
mod messages;
mod outbound;
pub mod pool;
mod record;
mod relay;
mod role;
mod session;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
mod tunnel;

pub use aead::{BadRecord, UnsupportedSuite};
pub use buffer::lent_bytes;
pub use error::{HandshakeError, TunnelError};
pub use handshake::{TunnelOptions, accept, accept_late, dial};
pub use messages::MessageError;
pub use record::RecordError;
pub use relay::{RelayEnd, SideEnd, Urgent, Who, plain_relay, relay};
pub use tunnel::{Facts, OpenError, SETTLE_WITHIN, Tunnel, TunnelCounters, TunnelInfo};
