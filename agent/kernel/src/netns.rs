//! Network namespaces: open, enter, run something inside, keep one alive by a bind mount.

mod persist;

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rustix::fs::fstatfs;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

pub use persist::{PersistError, create_persistent, remove};

/// A handle on a network namespace; the namespace lives at least as long as the handle.
#[derive(Debug)]
pub struct Netns {
    fd: OwnedFd,
    device: u64,
    inode: u64,
}

impl Netns {
    /// Opens the namespace that is mounted at `path` (`/run/netns/x`, `/proc/1/ns/net`).
    ///
    /// # Errors
    /// As `open(2)`; `InvalidInput` when the file is there but is not a namespace, which is what is left of a
    /// namespace whose mount went away.
    pub fn open(path: impl AsRef<Path>) -> io::Result<Self> {
        let path = path.as_ref();
        let file = File::open(path)?;
        Self::from_file(file).map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", path.display())))
    }

    /// The namespace of the calling thread.
    pub fn current() -> io::Result<Self> {
        Self::open("/proc/thread-self/ns/net")
    }

    fn from_file(file: File) -> io::Result<Self> {
        if !is_nsfs(&file)? {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a network namespace"));
        }
        let metadata = file.metadata()?;
        Ok(Self { fd: file.into(), device: metadata.dev(), inode: metadata.ino() })
    }

    /// Number of the namespace, as `ls -i` shows it. Unique among live ones on this kernel.
    pub fn inode(&self) -> u64 {
        self.inode
    }

    /// Whether both are handles on one namespace.
    pub fn is(&self, other: &Netns) -> bool {
        (self.device, self.inode) == (other.device, other.inode)
    }

    /// Another handle on the same namespace.
    pub fn try_clone(&self) -> io::Result<Self> {
        Ok(Self { fd: self.fd.try_clone()?, device: self.device, inode: self.inode })
    }

    /// Moves the calling thread into the namespace for good.
    pub fn enter(&self) -> io::Result<()> {
        move_into_link_name_space(self.fd.as_fd(), Some(LinkNameSpaceType::Network))?;
        Ok(())
    }

    /// Runs `work` with the calling thread in the namespace, and brings the thread back, also when `work` panics.
    ///
    /// Sockets belong for ever to the namespace that they are made in, so this is how a shard gets one elsewhere.
    /// `/proc/sys/net` inside `work` is the namespace's own too.
    ///
    /// Ends the process if the thread cannot be brought back: sockets meant for the one namespace would from then on
    /// be made in the other, and plaintext would leave the node.
    pub fn within<T>(&self, work: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        let home = Netns::current()?;
        if home.is(self) {
            return work();
        }
        self.enter()?;
        let _back = Back(home);
        work()
    }
}

impl AsFd for Netns {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Brings the thread back when dropped.
struct Back(Netns);

impl Drop for Back {
    fn drop(&mut self) {
        if let Err(error) = self.0.enter() {
            tracing::error!(%error, "a thread could not return to its network namespace: the agent ends");
            std::process::abort();
        }
    }
}

/// Whether a file lies on the file system of namespaces.
fn is_nsfs(file: impl AsFd) -> io::Result<bool> {
    Ok(fstatfs(file)?.f_type == libc::NSFS_MAGIC)
}
