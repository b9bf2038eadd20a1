use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use kumiko_kernel::cgroup::{CgroupError, id_and_level};

use crate::world::root;

struct Group(PathBuf);

impl Drop for Group {
    fn drop(&mut self) {
        let _ = fs::remove_dir(&self.0);
    }
}

#[test]
fn depth_is_counted_from_the_root() {
    if !root() {
        return;
    }
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    let Some(mount) = mounts.lines().find(|l| l.split(' ').nth(2) == Some("cgroup2")) else {
        eprintln!("skipped: no cgroup2 mount");
        return;
    };
    let mount = Path::new(mount.split(' ').nth(1).unwrap());
    if mount.join("cgroup.type").exists() {
        assert!(matches!(id_and_level(mount), Err(CgroupError::NotRoot { .. })));
        return;
    }
    assert_eq!(id_and_level(mount).unwrap().1, 0);
    let outer = Group(mount.join(format!("kumiko-test-{}", std::process::id())));
    fs::create_dir(&outer.0).unwrap();
    let inner = Group(outer.0.join("kubelet"));
    fs::create_dir(&inner.0).unwrap();
    assert_eq!(id_and_level(&outer.0).unwrap().1, 1);
    assert_eq!(id_and_level(&inner.0).unwrap(), (fs::metadata(&inner.0).unwrap().ino(), 2));
    drop(inner);
    assert!(matches!(id_and_level(&outer.0.join("kubelet")), Err(CgroupError::Io { .. })));
}

#[test]
fn other_folders_are_refused() {
    assert!(matches!(id_and_level(Path::new("/proc")), Err(CgroupError::NotCgroup2 { .. })));
}
