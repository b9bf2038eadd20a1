//! Numbers for people.

use time::OffsetDateTime;

const KIB: f64 = 1024.0;
const SECOND: u64 = 1_000_000_000;

/// `512 B`, `1.2 KiB`, `34 MiB`.
#[expect(clippy::cast_precision_loss, reason = "three digits are shown")]
pub(crate) fn bytes(count: u64) -> String {
    if count < 1024 {
        return format!("{count} B");
    }
    let mut value = count as f64;
    let mut unit = "B";
    for next in ["KiB", "MiB", "GiB", "TiB", "PiB"] {
        // What would be shown as 1024 is one of the next unit.
        if value < KIB - 0.5 {
            break;
        }
        value /= KIB;
        unit = next;
    }
    if value < 9.95 { format!("{value:.1} {unit}") } else { format!("{value:.0} {unit}") }
}

/// `850 µs`, `12 ms`, `3.4 s`, `2 m 10 s`, `3 h 12 m`, `4 d 2 h`.
#[expect(clippy::cast_precision_loss, reason = "two digits are shown")]
pub(crate) fn duration(ns: u64) -> String {
    let seconds = ns / SECOND;
    match ns {
        0..1_000_000 => format!("{} µs", ns / 1_000),
        1_000_000..9_950_000 => format!("{:.1} ms", ns as f64 / 1e6),
        9_950_000..999_500_000 => format!("{:.0} ms", ns as f64 / 1e6),
        _ if ns < 9_950_000_000 => format!("{:.1} s", ns as f64 / 1e9),
        _ if seconds < 60 => format!("{seconds} s"),
        _ if seconds < 3_600 => two(seconds / 60, "m", seconds % 60, "s"),
        _ if seconds < 86_400 => two(seconds / 3_600, "h", seconds / 60 % 60, "m"),
        _ => two(seconds / 86_400, "d", seconds / 3_600 % 24, "h"),
    }
}

fn two(large: u64, large_unit: &str, small: u64, small_unit: &str) -> String {
    if small == 0 { format!("{large} {large_unit}") } else { format!("{large} {large_unit} {small} {small_unit}") }
}

/// `04:12:33.120`, in UTC; empty for 0.
pub(crate) fn clock(unix_ns: u64) -> String {
    let Some(time) =
        (unix_ns != 0).then(|| OffsetDateTime::from_unix_timestamp_nanos(i128::from(unix_ns)).ok()).flatten()
    else {
        return String::new();
    };
    format!("{:02}:{:02}:{:02}.{:03}", time.hour(), time.minute(), time.second(), time.millisecond())
}

/// `1,234,567`.
pub(crate) fn count(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// `1 file`, `2 files`.
pub(crate) fn some(number: u64, one: &str, many: &str) -> String {
    format!("{} {}", count(number), if number == 1 { one } else { many })
}

/// `ns/account` of a SPIFFE ID; others as they are.
pub(crate) fn principal(id: &str) -> String {
    match id.parse::<kumiko_core::Principal>() {
        Ok(principal) => format!("{}/{}", principal.namespace, principal.service_account),
        Err(_) => id.to_owned(),
    }
}

/// Now, in Unix nanoseconds.
pub(crate) fn now() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.map_or(0, |since| u64::try_from(since.as_nanos()).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        let shown = [0, 1023, 1024, 1536, 10 * 1024, 1_048_575, 1 << 20, 5_368_709_120].map(bytes);
        assert_eq!(shown, ["0 B", "1023 B", "1.0 KiB", "1.5 KiB", "10 KiB", "1.0 MiB", "1.0 MiB", "5.0 GiB"]);
    }

    #[test]
    fn times() {
        let shown = [
            850_000,
            1_900_000,
            12_000_000,
            3_400_000_000,
            59 * SECOND,
            130 * SECOND,
            11_520 * SECOND,
            90 * 3_600 * SECOND,
        ];
        let words = ["850 µs", "1.9 ms", "12 ms", "3.4 s", "59 s", "2 m 10 s", "3 h 12 m", "3 d 18 h"];
        assert_eq!(shown.map(duration), words);
        assert_eq!(duration(999_900_000), "1.0 s");
        assert_eq!(clock(1_800_000_000_120_000_000), "08:00:00.120");
        assert_eq!(clock(0), "");
    }

    #[test]
    fn counts() {
        assert_eq!([0, 999, 1_000, 262_144, 1_234_567].map(count), ["0", "999", "1,000", "262,144", "1,234,567"]);
        assert_eq!(principal("spiffe://cluster.local/ns/demo/sa/web"), "demo/web");
    }
}
