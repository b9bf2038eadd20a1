//! Named places where a test may stop, kill or fail the agent.
//!
//! Without the feature `points` [`hit`] is a constant, [`records_per_key`] and [`model_within`] their arguments. With it
//! (in `kumiko-agent-faults` only) a test arms points through a socket in the run directory: see `armed`.

#[cfg(not(any(test, feature = "points")))]
use std::time::Duration;

#[cfg(any(test, feature = "points"))]
mod armed;

#[cfg(any(test, feature = "points"))]
pub use armed::{SOCKET, hit, model_within, records_per_key, serve};

/// A test asked for the operation at this point to fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Injected;

impl std::fmt::Display for Injected {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("failed on a test's demand")
    }
}

impl std::error::Error for Injected {}

macro_rules! points {
    ($($(#[doc = $doc:literal])+ $variant:ident = $name:literal,)+) => {
        /// A place in the agent's work.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Point { $($(#[doc = $doc])+ $variant),+ }

        impl Point {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$variant),+];

            /// Its name on the control socket.
            pub fn name(self) -> &'static str {
                match self { $(Self::$variant => $name),+ }
            }

            /// The point of a name.
            pub fn named(name: &str) -> Option<Self> {
                match name { $($name => Some(Self::$variant),)+ _ => None }
            }
        }
    };
}

points! {
    /// Dialler: the far end has accepted; the client's entry is still `pending`.
    DiallerOpened = "dialler-opened",
    /// Dialler: the pairing stands and the entry is `captured`; the kept SYN has not been injected.
    DiallerCaptured = "dialler-captured",
    /// Dialler: the SYN was injected; the client's socket has not been accepted.
    DiallerInjected = "dialler-injected",
    /// Dialler: both sides are there; no byte was relayed.
    DiallerAccepted = "dialler-accepted",
    /// Acceptor: a name or an OPEN is about what the model does not know; the wait for it begins.
    ModelAwaited = "model-awaited",
    /// Acceptor: OPEN is right; nothing was done for it.
    AcceptorAsked = "acceptor-asked",
    /// Acceptor: the entry is made; the pod was not asked.
    AcceptorEntered = "acceptor-entered",
    /// Acceptor: the pod has accepted; OPENED was not sent.
    AcceptorConnected = "acceptor-connected",
    /// Acceptor: OPENED was sent; no byte was relayed.
    AcceptorOpened = "acceptor-opened",
    /// Between a TCP connection to a node and its TLS handshake.
    Handshake = "handshake",
    /// Sending side: KeyUpdate is sealed, the new key is not in place.
    KeyUpdate = "key-update",
    /// Receiving side: the peer's KeyUpdate was read, its new key is not in place.
    PeerKeyUpdate = "peer-key-update",
    /// A flow has ended in order; its tunnel is on the way back to the pool.
    HandBack = "hand-back",
    /// Between an endpoint's entry and its hooks.
    Hook = "hook",
    /// Between hooks in `learn` and the list of the pod's sockets.
    StageLearning = "stage-learning",
    /// Before an endpoint moves to its next phase.
    StagePhase = "stage-phase",
    /// Before a write to a map of the desired state.
    MapWrite = "map-write",
}

/// What the agent does here in a test that has armed the point; otherwise nothing.
///
/// # Errors
/// [`Injected`] when the operation is to fail; the caller does what it does when the kernel or the peer fails it.
#[cfg(not(any(test, feature = "points")))]
#[inline(always)]
#[allow(clippy::missing_const_for_fn, reason = "with the feature it is none")]
pub fn hit(_point: Point) -> Result<(), Injected> {
    Ok(())
}

/// Records sealed with one key: `default`, or what a test has set.
#[cfg(not(any(test, feature = "points")))]
#[inline(always)]
pub fn records_per_key(default: u64) -> u64 {
    default
}

/// How long an acceptor waits for its model: `default`, or what a test has set.
#[cfg(not(any(test, feature = "points")))]
#[inline(always)]
#[allow(clippy::missing_const_for_fn, reason = "with the feature it is none")]
pub fn model_within(default: Duration) -> Duration {
    default
}
