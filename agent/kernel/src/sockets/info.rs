//! `TCP_INFO`: what the kernel knows about a connection.

use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::time::{Duration, Instant};

use super::socklen_of;

/// Bytes asked for: up to and with `tcpi_bytes_retrans`. Older kernels give less, the rest reads zero.
const LEN: usize = 216;

/// Excerpt of `struct tcp_info` (`linux/tcp.h`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct TcpInfo {
    /// State, see [`crate::diag::TcpState`].
    pub state: u8,
    /// Timeouts in a row without an answer.
    pub retransmits: u8,
    /// Zero-window or keepalive probes in a row without an answer.
    pub probes: u8,
    /// How often the interval of probes was doubled.
    pub backoff: u8,
    /// Retransmission timeout, doubled by every one in a row.
    pub timeout: Duration,
    /// Smoothed round-trip time in µs.
    pub rtt_us: u32,
    /// Its mean deviation in µs.
    pub rttvar_us: u32,
    /// Lowest round-trip time in µs; `u32::MAX` before the first.
    pub min_rtt_us: u32,
    /// Segments sent again, in all.
    pub total_retransmits: u32,
    /// Segments sent and not acknowledged.
    pub unacked: u32,
    /// Time since data was last sent.
    pub last_data_sent: Duration,
    /// Time since data last arrived.
    pub last_data_received: Duration,
    /// Time since an acknowledgement last arrived.
    pub last_ack_received: Duration,
    /// Bytes that the peer acknowledged.
    pub bytes_acked: u64,
    /// Bytes received.
    pub bytes_received: u64,
    /// Segments received.
    pub segments_received: u32,
    /// Bytes written and not sent yet.
    pub notsent_bytes: u32,
    /// Bytes sent, with repetitions (4.19).
    pub bytes_sent: u64,
    /// Bytes sent again (4.19).
    pub bytes_retransmitted: u64,
}

impl TcpInfo {
    /// For how long, at least, the peer has owed an answer to what was sent again and again; zero when it owes none.
    ///
    /// A peer that merely keeps its window closed answers every probe, and so never owes anything: that is what
    /// `TCP_USER_TIMEOUT` does not tell apart. The time is worked out from the doubled timeouts, because no field has
    /// the time of the first sending: "no acknowledgement since" alone would be an hour after an idle hour.
    pub fn unanswered(&self) -> Duration {
        let owed = match (self.retransmits, self.probes) {
            (0, 0 | 1) => Duration::ZERO,
            // Probes of a closed window, each interval twice the one before: at least the last interval.
            (0, _) => self.timeout.saturating_mul(1_u32.checked_shl(u32::from(self.backoff)).unwrap_or(u32::MAX)) / 2,
            // The timeout was doubled each time; what has passed is their sum, one first timeout less than the next.
            (times, _) => {
                let first = self.timeout / 1_u32.checked_shl(u32::from(times)).unwrap_or(u32::MAX);
                self.timeout.saturating_sub(first)
            }
        };
        owed.min(self.last_ack_received)
    }

    fn parse(bytes: &[u8; LEN]) -> Self {
        let byte = |at: usize| bytes.get(at).copied().unwrap_or(0);
        let word = |at: usize| bytes.get(at..).and_then(<[u8]>::first_chunk::<4>).map_or(0, |b| u32::from_ne_bytes(*b));
        let long = |at: usize| bytes.get(at..).and_then(<[u8]>::first_chunk::<8>).map_or(0, |b| u64::from_ne_bytes(*b));
        let milliseconds = |at: usize| Duration::from_millis(u64::from(word(at)));
        // Offsets of struct tcp_info, which only ever grows at its end.
        Self {
            state: byte(0),
            retransmits: byte(2),
            probes: byte(3),
            backoff: byte(4),
            timeout: Duration::from_micros(u64::from(word(8))),
            unacked: word(24),
            last_data_sent: milliseconds(44),
            last_data_received: milliseconds(52),
            last_ack_received: milliseconds(56),
            rtt_us: word(68),
            rttvar_us: word(72),
            total_retransmits: word(100),
            bytes_acked: long(120),
            bytes_received: long(128),
            segments_received: word(140),
            notsent_bytes: word(144),
            min_rtt_us: word(148),
            bytes_sent: long(200),
            bytes_retransmitted: long(208),
        }
    }
}

/// How long a peer has owed an answer, from looks at its connection now and then.
///
/// One look tells the time up to the last repetition only, which at 30 s is 25 s old; and where the kernel hears that the
/// peer's address is unreachable (its neighbour entry is gone) it takes the doubling back, and one look tells next to
/// nothing.
#[derive(Debug, Default)]
pub struct Owed {
    /// Since when, and the segments that had been received by then.
    since: Option<(Instant, u32)>,
}

impl Owed {
    /// How long it is by now; zero when it owes none.
    pub fn look(&mut self, info: &TcpInfo, now: Instant) -> Duration {
        let unanswered = info.unanswered();
        if unanswered.is_zero() {
            self.since = None;
            return Duration::ZERO;
        }
        let told = now.checked_sub(unanswered).unwrap_or(now);
        let since = match self.since {
            Some((before, segments)) if segments == info.segments_received => before.min(told),
            _ => told,
        };
        self.since = Some((since, info.segments_received));
        now.saturating_duration_since(since)
    }
}

/// Reads any bytes as the kernel's answer.
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) fn fuzz(bytes: &[u8]) {
    let mut answer = [0; LEN];
    answer.iter_mut().zip(bytes).for_each(|(to, from)| *to = *from);
    let info = TcpInfo::parse(&answer);
    assert!(info.unanswered() <= info.last_ack_received);
}

/// Asks for it.
pub fn tcp_info(socket: &impl AsFd) -> io::Result<TcpInfo> {
    let mut bytes = [0_u8; LEN];
    let mut length = socklen_of::<[u8; LEN]>();
    // SAFETY: the descriptor is borrowed for the call; the kernel writes at most `length` bytes, which is the size of
    // `bytes`, and the length; both live through it.
    let result = unsafe {
        libc::getsockopt(
            socket.as_fd().as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            bytes.as_mut_ptr().cast(),
            &raw mut length,
        )
    };
    if result == 0 { Ok(TcpInfo::parse(&bytes)) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_idle_hour_is_not_owed() {
        let hour = Duration::from_secs(3600);
        let idle = TcpInfo { timeout: Duration::from_millis(200), last_ack_received: hour, ..TcpInfo::default() };
        assert_eq!(idle.unanswered(), Duration::ZERO);
        // One loss after it: the first timeout has passed.
        let lost = TcpInfo { retransmits: 1, timeout: Duration::from_millis(400), ..idle };
        assert_eq!(lost.unanswered(), Duration::from_millis(200));
        let gone = TcpInfo { retransmits: 7, timeout: Duration::from_millis(200 << 7), ..idle };
        assert_eq!(gone.unanswered(), Duration::from_millis(200 * 127));
        let capped = TcpInfo { retransmits: 40, timeout: Duration::from_secs(120), ..idle };
        assert!(capped.unanswered() > Duration::from_secs(119));
    }

    #[test]
    fn a_closed_window_is_not_owed_while_probes_are_answered() {
        let minutes = Duration::from_secs(120);
        let closed = TcpInfo {
            probes: 1,
            backoff: 9,
            timeout: Duration::from_millis(200),
            last_ack_received: minutes,
            ..TcpInfo::default()
        };
        assert_eq!(closed.unanswered(), Duration::ZERO);
        assert!(TcpInfo { probes: 2, ..closed }.unanswered() > Duration::from_secs(50));
    }

    /// What the kernel says so many seconds after a peer fell silent, its timeout doubled by each repetition.
    fn silent_for(seconds: u64) -> TcpInfo {
        let first = Duration::from_millis(200);
        let repeated = (0..).find(|n| first * ((2 << n) - 1) > Duration::from_secs(seconds)).unwrap();
        TcpInfo {
            retransmits: u8::try_from(repeated).unwrap(),
            timeout: first * (1 << repeated),
            last_ack_received: Duration::from_secs(seconds),
            segments_received: 7,
            ..TcpInfo::default()
        }
    }

    #[test]
    fn what_is_owed_grows_between_two_repetitions() {
        let (mut owed, began) = (Owed::default(), Instant::now());
        let at = |seconds| began + Duration::from_secs(seconds);
        assert!(silent_for(45).unanswered() < Duration::from_secs(30));
        for seconds in (5..=45).step_by(5) {
            let told = owed.look(&silent_for(seconds), at(seconds));
            assert!(
                told <= Duration::from_secs(seconds) && told + Duration::from_secs(3) > Duration::from_secs(seconds)
            );
        }
    }

    #[test]
    fn what_is_owed_grows_while_the_kernel_takes_the_doubling_back() {
        let (mut owed, began) = (Owed::default(), Instant::now());
        let at = |seconds| began + Duration::from_secs(seconds);
        let taken_back = |seconds| TcpInfo { timeout: Duration::from_millis(400), ..silent_for(seconds) };
        assert!(taken_back(31).unanswered() < Duration::from_secs(1));
        owed.look(&taken_back(1), at(1));
        assert!(owed.look(&taken_back(31), at(31)) >= Duration::from_secs(30));
    }

    #[test]
    fn an_answer_pays_what_is_owed() {
        let (mut owed, now) = (Owed::default(), Instant::now());
        let at = |seconds| now + Duration::from_secs(seconds);
        owed.look(&silent_for(5), at(5));
        // One segment between two looks, and the next ones are lost again.
        let answered = TcpInfo { segments_received: 8, last_ack_received: Duration::from_secs(1), ..silent_for(20) };
        assert!(owed.look(&answered, at(20)) <= Duration::from_secs(1));
        assert_eq!(owed.look(&TcpInfo::default(), at(25)), Duration::ZERO);
        assert!(owed.look(&silent_for(5), at(30)) < Duration::from_secs(5));
    }
}
