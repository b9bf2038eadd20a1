//! `TCP_INFO`: what the kernel knows about a connection.

use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::time::Duration;

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
    /// Bytes written and not sent yet.
    pub notsent_bytes: u32,
    /// Bytes sent, with repetitions (4.19).
    pub bytes_sent: u64,
    /// Bytes sent again (4.19).
    pub bytes_retransmitted: u64,
}

impl TcpInfo {
    /// For how long the peer has owed an answer to what was sent again and again; zero when it owes none. A peer that
    /// merely keeps its window closed answers every probe, and so never owes anything.
    pub fn unanswered(&self) -> Duration {
        if self.retransmits > 0 || self.probes > 0 { self.last_ack_received } else { Duration::ZERO }
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
            unacked: word(24),
            last_data_sent: milliseconds(44),
            last_data_received: milliseconds(52),
            last_ack_received: milliseconds(56),
            rtt_us: word(68),
            rttvar_us: word(72),
            total_retransmits: word(100),
            bytes_acked: long(120),
            bytes_received: long(128),
            notsent_bytes: word(144),
            min_rtt_us: word(148),
            bytes_sent: long(200),
            bytes_retransmitted: long(208),
        }
    }
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
