//! A private corner of the kernel for one test: own mount and network namespace, own bpf file system, own `/run/netns`.

use std::{
    fmt::Write as _,
    panic::resume_unwind,
    path::{Path, PathBuf},
    process::Command,
    thread,
};

use kumiko_abi::{Addr, AddrEntry, AddrKind, Config, Endpoint, Stage, Workload, map::workload_flags};
use kumiko_kernel::bpf::{BpfError, Datapath, LoadOptions, Maps, ObjectSource, pin_dir};
use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
    unistd::geteuid,
};

/// Runs `test` on a thread with namespaces of its own; says why and does nothing where that cannot be.
pub(crate) fn alone(name: &str, test: impl FnOnce(&Path) + Send + 'static) {
    if !geteuid().is_root() {
        println!("skipped {name}: needs root");
        return;
    }
    if !ObjectSource::embedded_present() {
        println!("skipped {name}: no kernel programs in this build (cargo xtask build-ebpf)");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().to_owned();
    let worker = thread::spawn(move || {
        unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWNET).unwrap();
        let none = None::<&str>;
        mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
        let bpffs = path.join("bpf");
        std::fs::create_dir(&bpffs).unwrap();
        mount(Some("bpf"), &bpffs, Some("bpf"), MsFlags::empty(), none).unwrap();
        std::fs::create_dir_all("/run/netns").unwrap();
        mount(Some("tmpfs"), "/run/netns", Some("tmpfs"), MsFlags::empty(), none).unwrap();
        ip("link set lo up");
        test(&path);
    });
    if let Err(panic) = worker.join() {
        resume_unwind(panic);
    }
}

/// Runs `ip` with these words.
pub(crate) fn ip(words: &str) {
    let output = Command::new("ip").args(words.split_whitespace()).output().unwrap();
    assert!(output.status.success(), "ip {words}: {}", String::from_utf8_lossy(&output.stderr));
}

/// Loads the programs; a refusal tells the verifier's whole story.
pub(crate) fn load(dir: &Path) -> Datapath {
    load_result(dir).unwrap_or_else(|error| panic!("{}", story(&error)))
}

/// Loads the programs.
pub(crate) fn load_result(dir: &Path) -> Result<Datapath, BpfError> {
    Datapath::load(&LoadOptions { object: ObjectSource::Embedded, pin_dir: pins(dir) })
}

/// The pin directory of the test's bpf file system.
pub(crate) fn pins(dir: &Path) -> PathBuf {
    pin_dir(&dir.join("bpf"))
}

fn story(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut at = error.source();
    while let Some(error) = at {
        let _ = write!(text, "\ncaused by: {error}");
        at = error.source();
    }
    text
}

/// An address as the maps have it.
pub(crate) fn addr(text: &str) -> Addr {
    match text.parse().unwrap() {
        std::net::IpAddr::V4(ip) => ip.to_ipv6_mapped().octets(),
        std::net::IpAddr::V6(ip) => ip.octets(),
    }
}

/// A workload to be written: where and how far.
pub(crate) struct Placed<'a> {
    pub(crate) handle: u32,
    pub(crate) stage: Stage,
    pub(crate) ips: &'a [&'a str],
    /// Host-side interface when it is attached here.
    pub(crate) ifindex: Option<u32>,
    pub(crate) local: bool,
}

/// Writes a workload, its addresses, and its endpoint when it is attached.
pub(crate) fn place(maps: &Maps, of: &Placed<'_>) {
    let mut flags = workload_flags::LIVE;
    if of.local {
        flags |= workload_flags::LOCAL;
    }
    if of.ifindex.is_some() {
        flags |= workload_flags::ATTACHED;
    }
    let workload =
        Workload { class: [of.handle; 2], ifindex: of.ifindex.unwrap_or(0), node: 1, stage: of.stage as u8, flags };
    maps.set_workload(of.handle, &workload).unwrap();
    for ip in of.ips {
        let entry = AddrEntry { handle: of.handle, kind: AddrKind::Workload as u8, _pad: [0; 3], class: [0; 2] };
        maps.set_addr(&addr(ip), &entry).unwrap();
    }
    if let Some(ifindex) = of.ifindex {
        maps.init_use(ifindex).unwrap();
        maps.set_endpoint(ifindex, &endpoint(of.handle, of.stage)).unwrap();
    }
}

/// An endpoint with room.
pub(crate) fn endpoint(handle: u32, stage: Stage) -> Endpoint {
    Endpoint {
        handle,
        flags: kumiko_abi::map::endpoint_flags::FAST,
        max_pending: 64,
        max_flows: 1024,
        stage: stage as u8,
        ..Endpoint::default()
    }
}

/// A configuration with generation 1 and one shard.
pub(crate) fn config(agent_ifindex: u32) -> Config {
    Config {
        generation: 1,
        shards: 1,
        agent_ifindex,
        flags: kumiko_abi::config::config_flags::FAST_PATH,
        node_hash: [1, 2, 3, 4, 5, 6],
        ..Config::default()
    }
}
