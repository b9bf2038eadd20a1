//! From a namespace's number to a handle on it. The kernel has no call for that: every namespace that a file or a
//! process leads to is asked for its number.

use std::collections::HashSet;
use std::fs;
use std::io;
use std::path::PathBuf;

use crate::netlink::Connection;
use crate::netns::Netns;

/// Where container runtimes and `ip netns` keep namespaces.
const FOLDERS: [&str; 3] = ["/run/netns", "/var/run/netns", "/run/docker/netns"];

/// The namespace that `host` (the connection's own) knows as `nsid`.
pub(super) fn by_number(outside: &mut Connection, nsid: i32, host: &Netns) -> io::Result<Option<Netns>> {
    let mut tried = HashSet::from([host.inode()]);
    for path in folders().chain(processes()) {
        // Whatever cannot be opened any more is not the pod's.
        let Ok(netns) = Netns::open(&path) else { continue };
        if tried.insert(netns.inode()) && outside.nsid(&netns)? == Some(nsid) {
            return Ok(Some(netns));
        }
    }
    Ok(None)
}

fn folders() -> impl Iterator<Item = PathBuf> {
    FOLDERS.into_iter().filter_map(|folder| fs::read_dir(folder).ok()).flatten().flatten().map(|entry| entry.path())
}

fn processes() -> impl Iterator<Item = PathBuf> {
    let entries = fs::read_dir("/proc").ok().into_iter().flatten().flatten();
    entries
        .filter(|entry| entry.file_name().as_encoded_bytes().iter().all(u8::is_ascii_digit))
        .map(|entry| entry.path().join("ns/net"))
}
