//! One agent per run directory, per pin directory and per host: what two share, one would take from the other.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};

/// How long a holder that was killed a moment ago may take to be gone.
const DYING: Duration = Duration::from_secs(3);
/// Name of [`HostLock`], in the abstract namespace of Unix sockets, which each network namespace has for itself.
const HOST_NAME: &[u8] = b"kumiko-agent";

/// Why a place could not be taken.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Somebody else has it.
    #[error("another agent (process {holder}) runs on {path}: stop it, or give this one a run directory of its own", path = path.display())]
    Taken {
        /// The run directory.
        path: PathBuf,
        /// Its process id as it wrote it, or `unknown`.
        holder: String,
    },
    /// Somebody else works on the pinned maps.
    #[error("another agent uses the maps pinned under {path}: stop it, or give this one a bpf file system of its own (--bpffs)", path = path.display())]
    Pins {
        /// The directory.
        path: PathBuf,
    },
    /// Somebody else is this host's agent.
    #[error(
        "another agent runs in this network namespace (`ss -xap` shows who has @kumiko-agent): a node has one; stop it first"
    )]
    Host,
    /// The name of [`HostLock`].
    #[error("cannot take the name of this host's agent: {0}")]
    Name(#[source] io::Error),
    /// The file.
    #[error("cannot take the lock {path}: {source} (it needs a directory that can be written)", path = path.display())]
    Io {
        /// The lock file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
}

impl LockError {
    /// Whether a living process is why.
    fn is_held(&self) -> bool {
        matches!(self, Self::Taken { .. } | Self::Pins { .. } | Self::Host)
    }
}

/// Takes a lock; gives a holder that is being killed the time to be gone, so that a restart need not wait for it.
pub fn patiently<T>(take: impl Fn() -> Result<T, LockError>) -> Result<T, LockError> {
    let deadline = Instant::now() + DYING;
    loop {
        match take() {
            Err(error) if error.is_held() && Instant::now() < deadline => thread::sleep(Duration::from_millis(10)),
            other => return other,
        }
    }
}

/// Held by the one agent of a network namespace, gone with the process however it ends. Two of them would share the
/// tunnels' port and hook the same pods.
#[derive(Debug)]
pub struct HostLock {
    _name: UnixDatagram,
}

impl HostLock {
    /// Takes the lock of the calling thread's network namespace.
    pub fn acquire() -> Result<Self, LockError> {
        let name = SocketAddr::from_abstract_name(HOST_NAME).map_err(LockError::Name)?;
        match UnixDatagram::bind_addr(&name) {
            Ok(name) => Ok(Self { _name: name }),
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => Err(LockError::Host),
            Err(error) => Err(LockError::Name(error)),
        }
    }
}

/// Held by the one agent that works on the maps pinned under a directory, of whatever layout. The directory is made if
/// need be.
#[derive(Debug)]
pub struct PinLock {
    _dir: File,
}

impl PinLock {
    /// Takes the lock on `<bpffs>/kumiko`, or says that somebody has it.
    pub fn acquire(root: &Path) -> Result<Self, LockError> {
        let io = |source| LockError::Io { path: root.to_owned(), source };
        loop {
            fs::create_dir_all(root).map_err(io)?;
            let dir = File::open(root).map_err(io)?;
            match flock(&dir, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) if is_at(&dir, root).map_err(io)? => return Ok(Self { _dir: dir }),
                Ok(()) => {}
                Err(rustix::io::Errno::WOULDBLOCK) => return Err(LockError::Pins { path: root.to_owned() }),
                Err(error) => return Err(io(error.into())),
            }
        }
    }
}

/// Whether what was opened still stands at `path`: its holder before may have removed it between our open and our lock,
/// and then it is nobody's.
fn is_at(file: &File, path: &Path) -> io::Result<bool> {
    let ours = file.metadata()?;
    match fs::metadata(path) {
        Ok(there) => Ok((there.dev(), there.ino()) == (ours.dev(), ours.ino())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// Held by the one agent of a run directory: a lock on `<run_dir>/lock`, gone with the process however it ends.
#[derive(Debug)]
pub struct RunLock {
    file: File,
    path: PathBuf,
}

impl RunLock {
    /// Takes the lock, or says at once who has it. The directory is made (0755) if need be.
    pub fn acquire(run_dir: &Path) -> Result<Self, LockError> {
        let path = run_dir.join("lock");
        let io = |source| LockError::Io { path: path.clone(), source };
        fs::create_dir_all(run_dir).map_err(io)?;
        loop {
            let mut file = OpenOptions::new()
                .read(true)
                .write(true)
                .create(true)
                .truncate(false)
                .mode(0o600)
                .open(&path)
                .map_err(io)?;
            match flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => {}
                Err(rustix::io::Errno::WOULDBLOCK) => {
                    let mut holder = String::new();
                    let read = file.read_to_string(&mut holder);
                    let holder = match holder.trim() {
                        "" => "unknown".to_owned(),
                        _ if read.is_err() => "unknown".to_owned(),
                        pid => pid.to_owned(),
                    };
                    return Err(LockError::Taken { path: run_dir.to_owned(), holder });
                }
                Err(error) => return Err(io(error.into())),
            }
            if !is_at(&file, &path).map_err(io)? {
                continue;
            }
            file.set_len(0).map_err(io)?;
            file.rewind().map_err(io)?;
            writeln!(file, "{}", std::process::id()).map_err(io)?;
            return Ok(Self { file, path });
        }
    }

    /// Removes the file and gives up the lock, for a clean-up that leaves no trace.
    pub fn remove(self) -> Result<(), LockError> {
        let done = match fs::remove_file(&self.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        };
        // Only now: whoever opened the old file meanwhile sees that it is gone.
        drop(self.file);
        done.map_err(|source| LockError::Io { path: self.path, source })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_agent_is_told_who_has_it() {
        let folder = tempfile::tempdir().unwrap();
        let run_dir = folder.path().join("run");
        let first = RunLock::acquire(&run_dir).unwrap();
        let refused = RunLock::acquire(&run_dir).unwrap_err();
        assert!(refused.to_string().contains(&std::process::id().to_string()), "{refused}");
        first.remove().unwrap();
        assert!(!run_dir.join("lock").exists());
        let second = RunLock::acquire(&run_dir).unwrap();
        drop(second);
        RunLock::acquire(&run_dir).unwrap();
    }

    #[test]
    fn the_second_user_of_the_pins_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().join("kumiko");
        let first = PinLock::acquire(&root).unwrap();
        let refused = PinLock::acquire(&root).unwrap_err();
        assert!(refused.to_string().contains("--bpffs"), "{refused}");
        fs::remove_dir(&root).unwrap();
        let again = PinLock::acquire(&root).unwrap();
        drop((first, again));
        PinLock::acquire(&root).unwrap();
    }

    #[test]
    fn a_holder_that_is_dying_is_waited_for() {
        let folder = tempfile::tempdir().unwrap();
        let first = RunLock::acquire(folder.path()).unwrap();
        let going = thread::spawn(move || {
            thread::sleep(Duration::from_millis(50));
            drop(first);
        });
        patiently(|| RunLock::acquire(folder.path())).unwrap();
        going.join().unwrap();
    }
}
