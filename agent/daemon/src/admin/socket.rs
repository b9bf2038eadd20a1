//! The socket file.

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::os::unix::net::{UnixListener as StdListener, UnixStream as StdStream};
use std::path::{Path, PathBuf};

use tokio::net::UnixListener;

use super::AdminError;

/// A listening socket of mode 0600; its file goes when this is dropped, unless another has taken its place.
#[derive(Debug)]
pub struct AdminSocket {
    pub(super) listener: UnixListener,
    path: PathBuf,
    inode: u64,
}

impl AdminSocket {
    /// Listens at `path`. A socket that a dead agent left is replaced; one that somebody listens at is not.
    ///
    /// Has to be called in a tokio runtime.
    pub fn bind(path: &Path) -> Result<Self, AdminError> {
        let failed = |what, source| AdminError::Io { what, path: path.to_owned(), source };
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent).map_err(|source| failed("cannot make the directory of", source))?;
        }
        match fs::symlink_metadata(path) {
            Ok(there) if !there.file_type().is_socket() => {
                return Err(AdminError::NoSocket { path: path.to_owned() });
            }
            Ok(_) => match StdStream::connect(path) {
                Ok(_) => return Err(AdminError::InUse { path: path.to_owned() }),
                Err(error) if matches!(error.kind(), ErrorKind::ConnectionRefused | ErrorKind::NotFound) => {}
                Err(source) => return Err(failed("cannot tell whether an agent serves", source)),
            },
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(source) => return Err(failed("cannot look at", source)),
        }
        // Under another name until its mode is right; then it takes the place of a stale one in one step.
        let mut name = path.file_name().unwrap_or_default().to_owned();
        name.push(format!(".{}", std::process::id()));
        let fresh = path.with_file_name(name);
        let _ = fs::remove_file(&fresh);
        let placed = StdListener::bind(&fresh).and_then(|listener| {
            fs::set_permissions(&fresh, fs::Permissions::from_mode(0o600))?;
            listener.set_nonblocking(true)?;
            let inode = fs::symlink_metadata(&fresh)?.ino();
            fs::rename(&fresh, path)?;
            Ok((UnixListener::from_std(listener)?, inode))
        });
        let (listener, inode) = placed.map_err(|source| {
            let _ = fs::remove_file(&fresh);
            failed("cannot listen at", source)
        })?;
        Ok(Self { listener, path: path.to_owned(), inode })
    }
}

impl Drop for AdminSocket {
    fn drop(&mut self) {
        if fs::symlink_metadata(&self.path).is_ok_and(|there| there.ino() == self.inode) {
            let _ = fs::remove_file(&self.path);
        }
    }
}
