//! Why a flow did not come about.

use kumiko_abi::Reason;
use kumiko_fault::Point;

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

/// A place where a test may end a flow that is on its way, as if its kernel had refused the next step.
pub(super) fn at(point: Point) -> Result<(), Failure> {
    kumiko_fault::hit(point).map_err(|_| Failure::new(Reason::ConnectFailed))
}
