//! What becomes of open flows that the rules allow no more.

use std::collections::HashMap;

use kumiko_abi::policy::{REVOKE_CUT, REVOKE_KEEP, speaks};
use kumiko_abi::{FlowId, Reason};

/// Rules that refuse a flow.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Refused {
    /// Why.
    pub reason: Reason,
    /// What becomes of it if it is open: [`kumiko_abi::policy::Cell::revoke`].
    pub revoke: u32,
}

impl Refused {
    /// Of both ends' rules: the reason that speaks first, and the stricter fate.
    pub fn of_both(egress: Option<Self>, ingress: Option<Self>) -> Option<Self> {
        match (egress, ingress) {
            (Some(one), Some(other)) => {
                let first = if speaks(one.reason) <= speaks(other.reason) { one } else { other };
                Some(Self { revoke: one.revoke.min(other.revoke), ..first })
            }
            (one, other) => one.or(other),
        }
    }
}

/// Flows that have a while left, with the second since which.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Graces {
    since: HashMap<FlowId, i64>,
    seen: HashMap<FlowId, i64>,
}

impl Graces {
    /// Says why a flow has to end now, if it has to. Seconds are of one clock that never goes back.
    pub fn fate(&mut self, id: FlowId, refused: Option<Refused>, now: i64) -> Option<Reason> {
        let Refused { reason, revoke } = refused?;
        match revoke {
            REVOKE_CUT => Some(reason),
            REVOKE_KEEP => None,
            seconds => {
                let since = self.since.get(&id).copied().unwrap_or(now);
                if now.saturating_sub(since) >= i64::from(seconds) {
                    return Some(reason);
                }
                self.seen.insert(id, since);
                None
            }
        }
    }

    /// All flows were looked at: those that were not seen have ended, or are allowed again. If not `all` were, or could be
    /// ended, nothing is forgotten, and [`Self::waits`] asks for another look.
    pub fn looked(&mut self, all: bool) {
        let seen = std::mem::take(&mut self.seen);
        if all {
            self.since = seen;
        } else {
            self.since.extend(seen);
        }
    }

    /// Whether any flow has a while left.
    pub fn waits(&self) -> bool {
        !self.since.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: FlowId = FlowId([1; 16]);

    fn refused(revoke: u32) -> Option<Refused> {
        Some(Refused { reason: Reason::TeamDefault, revoke })
    }

    #[test]
    fn cut_at_once_kept_or_after_a_while() {
        let mut graces = Graces::default();
        assert_eq!(graces.fate(ID, refused(REVOKE_CUT), 100), Some(Reason::TeamDefault));
        assert_eq!(graces.fate(ID, refused(REVOKE_KEEP), 100), None);
        assert_eq!(graces.fate(ID, None, 100), None);
        graces.looked(true);
        assert!(!graces.waits());
        for now in [100, 129] {
            assert_eq!(graces.fate(ID, refused(30), now), None, "at {now}");
            graces.looked(true);
            assert!(graces.waits());
        }
        assert_eq!(graces.fate(ID, refused(30), 130), Some(Reason::TeamDefault));
        graces.looked(true);
        assert!(!graces.waits());
    }

    #[test]
    fn who_is_allowed_again_begins_anew() {
        let mut graces = Graces::default();
        assert_eq!(graces.fate(ID, refused(30), 100), None);
        graces.looked(true);
        assert_eq!(graces.fate(ID, None, 120), None);
        graces.looked(true);
        assert!(!graces.waits());
        assert_eq!(graces.fate(ID, refused(30), 140), None);
        graces.looked(true);
        assert_eq!(graces.fate(ID, refused(30), 169), None);
        graces.looked(true);
        assert_eq!(graces.fate(ID, refused(30), 170), Some(Reason::TeamDefault));
    }

    #[test]
    fn who_could_not_be_ended_is_looked_at_again() {
        let mut graces = Graces::default();
        assert_eq!(graces.fate(ID, refused(30), 100), None);
        graces.looked(false);
        assert_eq!(graces.fate(ID, refused(30), 130), Some(Reason::TeamDefault));
        graces.looked(false);
        assert!(graces.waits());
        assert_eq!(graces.fate(ID, refused(30), 131), Some(Reason::TeamDefault));
        graces.looked(true);
        assert!(!graces.waits());
    }

    #[test]
    fn of_both_ends_the_first_reason_and_the_stricter_fate() {
        let one = Refused { reason: Reason::TeamDefault, revoke: REVOKE_CUT };
        let other = Refused { reason: Reason::BaselineDenied, revoke: 60 };
        let both = Some(Refused { reason: Reason::BaselineDenied, revoke: REVOKE_CUT });
        assert_eq!(Refused::of_both(Some(one), Some(other)), both);
        assert_eq!(Refused::of_both(None, Some(other)), Some(other));
        assert_eq!(Refused::of_both(None, None), None);
    }
}
