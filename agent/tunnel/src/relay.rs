//! Carries one flow: both directions on one task, driven by the edges that the sockets report.
//!
//! Back-pressure: a direction reads only when all it has read before is written. It holds at most one buffer (17 KiB to
//! 1 MiB), so what a stalled reader can pile up is that and the kernel's socket buffers.
//!
//! How an end travels: end of stream becomes FIN and comes out as `shutdown(Write)`; an RST becomes RESET, and the
//! caller aborts the other side; where RESET cannot be sent because the direction is blocked, the tunnel's own
//! connection is reset. End of the tunnel without FIN is never shown as an end of stream.

mod flow;
mod plain;

use std::io;
use std::net::Shutdown;

use kumiko_abi::Reason;
use tokio::io::Interest;
use tokio::net::TcpStream;

pub use flow::relay;
pub use plain::plain_relay;

use crate::error::TunnelError;

/// Rounds of reading and writing after which other flows of the shard get their turn.
const ROUNDS: usize = 8;

/// How one side of a flow ended what it sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SideEnd {
    /// It did not: the flow ended for another cause.
    Open,
    /// End of stream.
    Finished,
    /// Reset.
    Reset(Reason),
    /// Its socket failed, with this errno (keepalive: ETIMEDOUT).
    Failed(i32),
    /// The tunnel ended without an end of stream.
    Lost(Reason),
}

/// Who ended a flow first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Who {
    /// The plain side (the first one of [`plain_relay`]).
    Plain,
    /// The far side (the second one of [`plain_relay`]).
    Far,
    /// The agent itself.
    Agent,
}

/// How a relay ended.
#[derive(Debug)]
pub struct RelayEnd {
    /// Bytes read from the plain side and handed to the far one.
    pub to_far: u64,
    /// Bytes of the far side written to the plain one.
    pub from_far: u64,
    /// How the plain side ended.
    pub plain: SideEnd,
    /// How the far side ended.
    pub far: SideEnd,
    /// Who ended first.
    pub first: Option<Who>,
    /// The cause, when the flow was ended from outside.
    pub stopped: Option<Reason>,
    /// The tunnel is idle and may carry another flow.
    pub reusable: bool,
    /// What was wrong with the tunnel.
    pub error: Option<TunnelError>,
}

impl RelayEnd {
    pub(crate) fn new() -> Self {
        Self {
            to_far: 0,
            from_far: 0,
            plain: SideEnd::Open,
            far: SideEnd::Open,
            first: None,
            stopped: None,
            reusable: false,
            error: None,
        }
    }

    /// Both sides ended their streams and all bytes were handed to the kernel: turn linger off and close. Any other end:
    /// close with linger {1,0}, so that the application sees a reset.
    pub fn orderly(&self) -> bool {
        self.plain == SideEnd::Finished && self.far == SideEnd::Finished && self.stopped.is_none()
    }

    /// One reason for all of it.
    pub fn reason(&self) -> Reason {
        if let Some(reason) = self.stopped {
            return reason;
        }
        match (self.far, self.plain) {
            (SideEnd::Reset(reason) | SideEnd::Lost(reason), _) | (_, SideEnd::Reset(reason)) => reason,
            (_, SideEnd::Failed(_)) | (SideEnd::Failed(_), _) => Reason::EndpointGone,
            (SideEnd::Finished, SideEnd::Finished) => Reason::Finished,
            _ => Reason::TunnelLost,
        }
    }

    fn ended_by(&mut self, who: Who) {
        self.first.get_or_insert(who);
    }
}

/// Access to TCP's urgent data, which needs system calls that this crate does not make. Sockets have `SO_OOBINLINE`.
pub trait Urgent {
    /// Whether the next byte to be read is the urgent one (`SIOCATMARK`).
    fn at_mark(&self, stream: &TcpStream) -> bool;

    /// Sends one byte as urgent (`MSG_OOB`), without blocking.
    fn send(&self, stream: &TcpStream, byte: u8) -> io::Result<()>;
}

/// Waits for `interest` (for ever if there is none); says whether the socket reported an error.
///
/// The report is forgotten at once: it stands beside the readiness to read, and may come before it (an RST shows its
/// error first, its end of stream an instant later). Kept, it would be answered again and again, by a task that never
/// lets the thread look for the rest.
async fn ready(stream: &TcpStream, interest: Option<Interest>) -> bool {
    let Some(interest) = interest else { return std::future::pending().await };
    // A failing registration shows in the next call that uses the socket.
    let error = stream.ready(interest).await.map_or(true, |r| r.is_error());
    if error {
        let _ = stream.try_io(Interest::ERROR, || Err::<(), _>(io::ErrorKind::WouldBlock.into()));
    }
    error
}

fn would_block(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::WouldBlock
}

/// What a failed read or write says about a plain side.
fn plain_end(error: &io::Error, reset: Reason) -> SideEnd {
    match error.kind() {
        io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionAborted => {
            SideEnd::Reset(reset)
        }
        _ => SideEnd::Failed(error.raw_os_error().unwrap_or(0)),
    }
}

/// Ends the sending half.
fn shut(stream: &TcpStream) -> io::Result<()> {
    match socket2::SockRef::from(stream).shutdown(Shutdown::Write) {
        // The peer has reset it meanwhile; the next read says so.
        Err(error) if error.kind() == io::ErrorKind::NotConnected => Ok(()),
        other => other,
    }
}
