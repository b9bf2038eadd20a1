//! Log lines that others can cause as often as they like: the first of a kind is written, and then how many more came.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Between two lines of one kind.
pub const LINE_EVERY: Duration = Duration::from_secs(10);

/// Lines by kind. There are as many kinds as the caller has: no peer's words may be among them.
#[derive(Debug)]
pub struct Quiet<K>(Mutex<HashMap<K, Kind>>);

#[derive(Debug)]
struct Kind {
    written: Instant,
    more: u64,
}

impl<K> Default for Quiet<K> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<K: Copy + Eq + Hash> Quiet<K> {
    /// Whether a line of this kind is to be written now, and how many of its kind were not since the last one.
    pub fn may_write(&self, kind: K, now: Instant) -> Option<u64> {
        let mut kinds = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(known) = kinds.get_mut(&kind) else {
            kinds.insert(kind, Kind { written: now, more: 0 });
            return Some(0);
        };
        if now.saturating_duration_since(known.written) < LINE_EVERY {
            known.more += 1;
            return None;
        }
        known.written = now;
        Some(std::mem::take(&mut known.more))
    }

    /// Kinds of which lines were left out, with how many, when their time has passed; to be called now and then. Without
    /// it the last ones would never be told of.
    pub fn left_out(&self, now: Instant) -> Vec<(K, u64)> {
        let mut kinds = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut told = Vec::new();
        kinds.retain(|kind, known| {
            if now.saturating_duration_since(known.written) < LINE_EVERY {
                return true;
            }
            if known.more > 0 {
                told.push((*kind, known.more));
                *known = Kind { written: now, more: 0 };
                return true;
            }
            false
        });
        told
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_line_in_a_while_and_none_is_lost_count_of() {
        let (quiet, start) = (Quiet::default(), Instant::now());
        let at = |ms: u64| start + Duration::from_millis(ms);
        let mut written = 0;
        let mut counted = 0;
        for ms in 0..25_000 {
            if let Some(more) = quiet.may_write("knock", at(ms)) {
                written += 1;
                counted += 1 + more;
            }
        }
        assert_eq!((written, counted), (3, 20_001));
        assert_eq!(quiet.may_write("other", at(25_000)), Some(0), "another kind has its own lines");
        assert_eq!(quiet.left_out(at(25_000)), []);
        assert_eq!(quiet.left_out(at(30_000)), [("knock", 4_999)]);
        assert_eq!(quiet.left_out(at(60_000)), []);
        assert_eq!(quiet.may_write("knock", at(60_001)), Some(0), "what has been quiet is forgotten");
    }
}
