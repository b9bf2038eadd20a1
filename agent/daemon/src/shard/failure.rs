//! Why a flow did not come about.

use kumiko_abi::Reason;

/// A reason, and the errno of the pod's connect when that is where it failed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Failure {
    pub(super) reason: Reason,
    /// Linux errno, or 0.
    pub(super) errno: i32,
}

impl Failure {
    pub(super) const fn new(reason: Reason) -> Self {
        Self { reason, errno: 0 }
    }
}

impl From<Reason> for Failure {
    fn from(reason: Reason) -> Self {
        Self::new(reason)
    }
}
