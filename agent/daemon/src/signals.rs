//! The signals that end a process in order.

use std::fs;
use std::io;

use nix::sys::signal::Signal as Number;
use tokio::signal::unix::{Signal, SignalKind, signal};

/// SIGTERM, SIGINT and SIGHUP.
pub struct EndSignals {
    terminate: Signal,
    interrupt: Signal,
    /// The end of a terminal is an end like the others, not a crash; `None`: started by `nohup`, to outlive it.
    hangup: Option<Signal>,
}

impl EndSignals {
    /// From now on they are caught. In a tokio runtime.
    ///
    /// # Errors
    /// A handler cannot be set.
    pub fn new() -> io::Result<Self> {
        let hangup = if is_ignored(Number::SIGHUP) { None } else { Some(signal(SignalKind::hangup())?) };
        Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())?, hangup })
    }

    /// Waits for one of them.
    pub async fn recv(&mut self) {
        let hangup = async {
            match &mut self.hangup {
                Some(hangup) => hangup.recv().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
            _ = hangup => {}
        }
    }
}

/// Whether whoever started this process had it ignore a signal.
fn is_ignored(number: Number) -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:")).unwrap_or_default();
    u64::from_str_radix(mask.trim(), 16).is_ok_and(|mask| mask & (1 << (number as i32 - 1)) != 0)
}
