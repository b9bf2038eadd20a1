//! Numbers of a cgroup (v2), as programs see them.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::statfs;

/// Why a path is no usable cgroup.
#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    /// It cannot be looked at.
    #[error("cannot look at cgroup {path}: {source}", path = path.display())]
    Io {
        /// The folder.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// Not cgroup v2.
    #[error("{path} is not a folder of a cgroup v2 hierarchy", path = path.display())]
    NotCgroup2 {
        /// The folder.
        path: PathBuf,
    },
    /// The mount shows a part of the hierarchy.
    #[error(
        "the cgroup v2 mount at {path} is not the root of the hierarchy (a cgroup namespace, or a bind mount of a part): \
         the depth of a cgroup in it cannot be told; give the agent the host's cgroup namespace and mount",
        path = path.display()
    )]
    NotRoot {
        /// Where the mount begins.
        path: PathBuf,
    },
}

/// Id of a cgroup and its depth: what `bpf_skb_ancestor_cgroup_id(skb, depth)` gives for a socket of it. The root's
/// depth is 0.
pub fn id_and_level(path: &Path) -> Result<(u64, u32), CgroupError> {
    let io = |path: &Path| {
        let path = path.to_owned();
        move |source| CgroupError::Io { path, source }
    };
    let path = fs::canonicalize(path).map_err(io(path))?;
    if !is_cgroup2(&path).map_err(io(&path))? || !path.is_dir() {
        return Err(CgroupError::NotCgroup2 { path });
    }
    // kernfs numbers its nodes once: the inode is the cgroup's id on 64-bit kernels.
    let metadata = fs::metadata(&path).map_err(io(&path))?;
    let mut root = path.as_path();
    let mut level = 0;
    while let Some(parent) = root.parent() {
        let same_mount = is_cgroup2(parent).map_err(io(parent))?
            && fs::metadata(parent).map_err(io(parent))?.dev() == metadata.dev();
        if !same_mount {
            break;
        }
        root = parent;
        level += 1;
    }
    // Every cgroup but the root has this file (kernel documentation, cgroup-v2.rst, "cgroup.type").
    if root.join("cgroup.type").exists() {
        return Err(CgroupError::NotRoot { path: root.to_owned() });
    }
    Ok((metadata.ino(), level))
}

fn is_cgroup2(path: &Path) -> io::Result<bool> {
    Ok(statfs(path)?.f_type == libc::CGROUP2_SUPER_MAGIC)
}
