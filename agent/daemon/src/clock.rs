//! The clocks that the kernel's maps and people use.

use std::time::{SystemTime, UNIX_EPOCH};

use nix::time::{ClockId, clock_gettime};

/// `CLOCK_MONOTONIC` in ns: what `bpf_ktime_get_ns` gives the programs.
pub fn monotonic_ns() -> u64 {
    // The call cannot fail for this clock; 0 would only make a pending flow look fresh.
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC).map_or((0, 0), |t| (t.tv_sec(), t.tv_nsec()));
    u64::try_from(now.0).unwrap_or(0).saturating_mul(1_000_000_000).saturating_add(u64::try_from(now.1).unwrap_or(0))
}

/// `CLOCK_BOOTTIME` in seconds: what the programs hold the end of a verdict against.
pub fn boot_seconds() -> i64 {
    clock_gettime(ClockId::CLOCK_BOOTTIME).map_or(0, |t| t.tv_sec())
}

/// The second since 1970 at which the machine was booted, by what the clocks say now, if that is another than was `known`.
/// Seconds of the two are cut off one after the other, and a clock that is slewed says now one and now the next: a difference of
/// one is none.
pub fn booted(known: Option<i64>) -> Option<i64> {
    stepped(known, unix_seconds().saturating_sub(boot_seconds()))
}

fn stepped(known: Option<i64>, measured: i64) -> Option<i64> {
    let same = known.is_some_and(|known| known.abs_diff(measured) <= 1);
    (!same).then_some(measured)
}

/// Wall clock in seconds since 1970.
pub fn unix_seconds() -> i64 {
    i64::try_from(unix_ns() / 1_000_000_000).unwrap_or(i64::MAX)
}

/// Wall clock in ns since 1970.
pub fn unix_ns() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| u64::try_from(d.as_nanos()).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_of_the_wall_clock_is_told_from_its_rounding() {
        assert_eq!(stepped(None, 100), Some(100));
        assert_eq!([99, 100, 101].map(|measured| stepped(Some(100), measured)), [None; 3]);
        assert_eq!([98, 102, 3_700].map(|measured| stepped(Some(100), measured)), [98, 102, 3_700].map(Some));
    }
}
