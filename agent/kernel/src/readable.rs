//! Waiting for any descriptor in tokio: netlink sockets, ring buffers, listeners of other crates.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Tells when a descriptor can be read.
#[derive(Debug)]
pub struct Readable {
    fd: AsyncFd<OwnedFd>,
}

impl Readable {
    /// Watches what `source` refers to, by a duplicate of its descriptor. The source must be non-blocking, or be read
    /// in a way that cannot block.
    ///
    /// Has to be called in a tokio runtime, which may be a current-thread one.
    pub fn new(source: &impl AsFd) -> io::Result<Self> {
        let fd = source.as_fd().try_clone_to_owned()?;
        // SAFETY: the value is an OwnedFd that nobody else can reach: the descriptor is open, stays so until it is
        // dropped with the AsyncFd, and as_raw_fd gives the same one each time.
        let fd = unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) }?;
        Ok(Self { fd })
    }

    /// Calls `attempt` until it gives something, waiting for the descriptor in between. `attempt` must return `None`
    /// only when there was nothing more to read: the wait is for what comes after that.
    ///
    /// Can be dropped between two attempts without loss.
    pub async fn wait<T>(&self, mut attempt: impl FnMut() -> Option<T>) -> io::Result<T> {
        loop {
            let mut ready = self.fd.readable().await?;
            if let Some(value) = attempt() {
                return Ok(value);
            }
            // Only forgets the readiness that this attempt was made on: what came meanwhile is kept.
            ready.clear_ready();
        }
    }
}
