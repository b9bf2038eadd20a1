use std::fs;
use std::io;
use std::os::unix::process::ExitStatusExt;
use std::process::Command;

use kumiko_kernel::netns::{Netns, create_persistent, remove};

use crate::world::{Space, root};

#[test]
fn within_goes_there_and_comes_back() {
    if !root() {
        return;
    }
    let space = Space::new("within");
    let home = Netns::current().unwrap();
    let there = space.netns.within(Netns::current).unwrap();
    assert!(there.is(&space.netns) && !there.is(&home));
    assert!(Netns::current().unwrap().is(&home));
    // Nested, and where the thread is already.
    let nested = space.netns.within(|| home.within(|| space.netns.within(Netns::current))).unwrap();
    assert!(nested.is(&space.netns));
    let failed = space.netns.within(|| -> io::Result<()> { Err(io::Error::other("no")) });
    assert!(failed.is_err() && Netns::current().unwrap().is(&home));
    let panicked = std::panic::catch_unwind(|| space.netns.within(|| -> io::Result<()> { panic!("on purpose") }));
    assert!(panicked.is_err() && Netns::current().unwrap().is(&home));
}

#[test]
fn a_file_that_is_no_namespace_is_refused() {
    let file = tempfile::NamedTempFile::new().unwrap();
    assert_eq!(Netns::open(file.path()).unwrap_err().kind(), io::ErrorKind::InvalidInput);
}

#[test]
fn a_persistent_namespace_stays_and_goes() {
    if !root() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("netns/a");
    let made = create_persistent(&path).unwrap();
    assert!(!made.is(&Netns::current().unwrap()));
    let inode = made.inode();
    drop(made);
    assert_eq!(create_persistent(&path).unwrap().inode(), inode, "taken over");
    // A second one beside it keeps the folder.
    let other = folder.path().join("netns/b");
    create_persistent(&other).unwrap();
    remove(&path).unwrap();
    assert!(!path.exists() && other.exists());
    remove(&path).unwrap();
    remove(&other).unwrap();
    assert!(!folder.path().join("netns").exists());
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(!mounts.contains(folder.path().to_str().unwrap()));
}

#[test]
fn a_file_left_by_a_reboot_becomes_a_namespace_again() {
    if !root() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("netns/a");
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(&path, "").unwrap();
    create_persistent(&path).unwrap();
    remove(&path).unwrap();
    assert!(!path.exists());
}

/// Child of the next test: cannot come back, because it gave up its privileges meanwhile.
#[test]
#[ignore = "ends its process; run by the test below"]
fn child_that_cannot_return() {
    let space = Space::new("lost");
    let path = space.path();
    let _ = space.netns.within(|| {
        fs::write(std::env::var("KUMIKO_TEST_NOTE").unwrap(), path.to_str().unwrap())?;
        // For this thread alone, unlike libc's setresuid.
        // SAFETY: no pointers are passed.
        assert_eq!(unsafe { libc::syscall(libc::SYS_setresuid, 65_534, 65_534, 65_534) }, 0);
        Ok(())
    });
    fs::write(std::env::var("KUMIKO_TEST_NOTE").unwrap(), "went on").unwrap();
}

#[test]
fn a_thread_that_cannot_return_ends_the_process() {
    if !root() {
        return;
    }
    let note = tempfile::NamedTempFile::new().unwrap();
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "netns::child_that_cannot_return", "--ignored", "--test-threads=1"])
        .env("KUMIKO_TEST_NOTE", note.path())
        .output()
        .unwrap();
    let left = fs::read_to_string(note.path()).unwrap();
    if let Some(name) = left.strip_prefix("/run/netns/") {
        let _ = Command::new("ip").args(["netns", "del", name]).status();
    }
    assert_eq!(output.status.signal(), Some(libc::SIGABRT), "{}", String::from_utf8_lossy(&output.stdout));
    assert!(left.starts_with("/run/netns/"), "{left}");
}
