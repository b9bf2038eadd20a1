//! One agent per run directory.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};

/// Why the run directory could not be taken.
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
    /// The file.
    #[error("cannot take the lock {path}: {source}", path = path.display())]
    Io {
        /// The lock file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
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
            // The holder before may have removed the file between our open and our lock: then it is nobody's.
            let ours = file.metadata().map_err(io)?;
            match fs::metadata(&path) {
                Ok(there) if (there.dev(), there.ino()) == (ours.dev(), ours.ino()) => {}
                Ok(_) => continue,
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(io(error)),
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
}
