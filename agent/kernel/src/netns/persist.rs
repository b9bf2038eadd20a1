//! Namespaces that outlive every process, kept as `ip netns add` keeps them: by a bind mount.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::thread;

use nix::sched::{CloneFlags, unshare};
use rustix::io::Errno;
use rustix::mount::{MountPropagationFlags, UnmountFlags, mount_bind, mount_bind_recursive, mount_change, unmount};

use super::{Netns, is_nsfs};

/// What went wrong with a persistent namespace.
#[derive(Debug, thiserror::Error)]
#[error("{what} {path}: {source}{hint}", path = path.display())]
pub struct PersistError {
    /// The step.
    pub what: &'static str,
    /// The file or folder.
    pub path: PathBuf,
    /// The cause.
    #[source]
    pub source: io::Error,
    hint: &'static str,
}

impl PersistError {
    fn new(what: &'static str, path: &Path, source: impl Into<io::Error>) -> Self {
        let source = source.into();
        let hint = match source.kind() {
            io::ErrorKind::PermissionDenied => " (the agent needs root, or CAP_SYS_ADMIN and CAP_NET_ADMIN)",
            _ => "",
        };
        Self { what, path: path.to_owned(), source, hint }
    }
}

/// Opens the namespace kept at `path`, or makes a new one and keeps it there.
///
/// The folder is made (0755) and becomes a shared mount of its own, so that an unmount reaches the copies of it that
/// other mount namespaces hold; otherwise a removed namespace would live on in them, unseen.
///
/// A mount lives in the mount namespace that made it: an agent that has one of its own (started by `ip netns exec`)
/// loses the namespace when it dies. A warning tells so.
pub fn create_persistent(path: &Path) -> Result<Netns, PersistError> {
    let folder = path.parent().unwrap_or(Path::new("/"));
    fs::create_dir_all(folder).map_err(|e| PersistError::new("cannot make the folder", folder, e))?;
    fs::set_permissions(folder, Permissions::from_mode(0o755))
        .map_err(|e| PersistError::new("cannot set the mode of", folder, e))?;
    share(folder)?;
    match Netns::open(path) {
        Ok(netns) => return Ok(netns),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        // A plain file: what a reboot, or a namespace removed half way, leaves behind.
        Err(error) if error.kind() == io::ErrorKind::InvalidInput => {}
        Err(error) => return Err(PersistError::new("cannot open the namespace", path, error)),
    }
    OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o444)
        .open(path)
        .map_err(|e| PersistError::new("cannot make the file", path, e))?;
    let target = path.to_owned();
    // A thread of its own: the caller's namespace stays what it is, whatever goes wrong.
    let made = thread::Builder::new()
        .name("netns-create".into())
        .spawn(move || -> io::Result<()> {
            unshare(CloneFlags::CLONE_NEWNET)?;
            mount_bind("/proc/thread-self/ns/net", &target)?;
            Ok(())
        })
        .and_then(|handle| handle.join().unwrap_or_else(|_| Err(io::Error::other("the thread panicked"))));
    if let Err(error) = made {
        let _ = fs::remove_file(path);
        return Err(PersistError::new("cannot make a network namespace at", path, error));
    }
    Netns::open(path).map_err(|e| PersistError::new("cannot open the new namespace", path, e))
}

/// Takes away what keeps the namespace at `path`; it ends when nothing else (a socket, a process) holds it.
///
/// The folder goes too if it is empty. Nothing there is no error.
pub fn remove(path: &Path) -> Result<(), PersistError> {
    match File::open(path) {
        Ok(file) => {
            // Several mounts can lie on one another when two agents raced.
            let mut kept = is_nsfs(&file).map_err(|e| PersistError::new("cannot look at", path, e))?;
            drop(file);
            while kept {
                unmount(path, UnmountFlags::DETACH).map_err(|e| PersistError::new("cannot unmount", path, e))?;
                kept = File::open(path).and_then(is_nsfs).map_err(|e| PersistError::new("cannot look at", path, e))?;
            }
            fs::remove_file(path).map_err(|e| PersistError::new("cannot remove", path, e))?;
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(PersistError::new("cannot look at", path, error)),
    }
    let folder = path.parent().unwrap_or(Path::new("/"));
    let empty = match fs::read_dir(folder) {
        Ok(mut entries) => entries.next().is_none(),
        Err(_) => false,
    };
    if empty {
        // EINVAL: not a mount point (any more).
        match unmount(folder, UnmountFlags::DETACH) {
            Ok(()) | Err(Errno::INVAL) => {}
            Err(error) => return Err(PersistError::new("cannot unmount", folder, error)),
        }
        match fs::remove_dir(folder) {
            Ok(()) => {}
            // Somebody else's file, seen now that the mount is gone.
            Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => {}
            Err(error) => return Err(PersistError::new("cannot remove", folder, error)),
        }
    }
    Ok(())
}

/// Makes `folder` a shared mount, as `ip netns add` does with /run/netns.
fn share(folder: &Path) -> Result<(), PersistError> {
    let shared = MountPropagationFlags::SHARED | MountPropagationFlags::REC;
    match mount_change(folder, shared) {
        Ok(()) => return Ok(()),
        // Not a mount point yet.
        Err(Errno::INVAL) => {}
        Err(error) => return Err(PersistError::new("cannot share the mount", folder, error)),
    }
    if in_own_mount_namespace() {
        tracing::warn!(
            folder = %folder.display(),
            "this process has a mount namespace of its own: the agent's network namespace ends with it, and no agent \
             can take it over; start the agent with `nsenter --net` instead of `ip netns exec`, or (in a container) \
             with the run directory mounted with bidirectional propagation"
        );
    }
    mount_bind_recursive(folder, folder).map_err(|e| PersistError::new("cannot bind the folder", folder, e))?;
    mount_change(folder, shared).map_err(|e| PersistError::new("cannot share the mount", folder, e))
}

/// Whether mounts made here are unseen by the first process of this pid namespace.
fn in_own_mount_namespace() -> bool {
    match (fs::read_link("/proc/1/ns/mnt"), fs::read_link("/proc/self/ns/mnt")) {
        (Ok(first), Ok(own)) => first != own,
        // It cannot be told, so nothing is said.
        _ => false,
    }
}
