//! `/init` of the virtual machines that try other kernels: builds a lab of two nodes there, carries one flow between
//! the nodes and one inside a node, says how it went, and powers off.

use std::fs::{self, File};
use std::net::SocketAddr;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use kumiko_lab::pattern::{CAPTURED, Pattern};
use kumiko_lab::peer::{Peer, Step};
use kumiko_lab::{Family, Lab, LabSpec, Net, Stage};
use nix::errno::Errno;
use nix::kmod::{ModuleInitFlags, finit_module};
use nix::mount::{MsFlags, mount};
use nix::sys::reboot::{RebootMode, reboot};
use serde_json::Value;

/// Programs that must be loaded: all that the object has.
const PROGRAMS: usize = 5;
const BYTES: u64 = 300_000;

fn main() {
    match run() {
        Ok(()) => println!("kumiko-vm: ok"),
        Err(cause) => println!("kumiko-vm: failed: {cause:#}"),
    }
    nix::unistd::sync();
    // Only returns when it fails, and then the kernel panics: init has ended. The harness sees that too.
    let _ = reboot(RebootMode::RB_POWER_OFF);
}

fn run() -> Result<()> {
    prepare()?;
    let spec = LabSpec { services: Vec::new(), ..LabSpec::standard("vm", 2, Net::Routed, Stage::Strict) };
    let lab = Lab::up(&spec)?;
    flows(&lab).map_err(|cause| cause.context(lab.logs(40)))
}

fn prepare() -> Result<()> {
    for (kind, at) in [
        ("proc", "/proc"),
        ("sysfs", "/sys"),
        ("devtmpfs", "/dev"),
        ("tmpfs", "/run"),
        ("tmpfs", "/tmp"),
        ("cgroup2", "/sys/fs/cgroup"),
    ] {
        fs::create_dir_all(at).with_context(|| format!("making {at}"))?;
        mount(Some(kind), at, Some(kind), MsFlags::empty(), None::<&str>).with_context(|| format!("mounting {at}"))?;
    }
    let list = fs::read_to_string("/modules/order").context("reading the order of modules")?;
    for name in list.lines() {
        let file = File::open(Path::new("/modules").join(name)).with_context(|| format!("opening module {name}"))?;
        match finit_module(&file, c"", ModuleInitFlags::empty()) {
            Ok(()) | Err(Errno::EEXIST) => {}
            Err(errno) => return Err(errno).with_context(|| format!("inserting module {name}")),
        }
    }
    Ok(())
}

fn flows(lab: &Lab) -> Result<()> {
    let status = lab.admin(1, "/v1/status")?;
    let kernel = status.get("kernel").context("a status without a kernel")?;
    println!("kumiko-vm: {kernel}");
    let loaded = kernel.get("instructions").and_then(Value::as_object).map_or(0, serde_json::Map::len);
    ensure!(loaded >= PROGRAMS, "{loaded} of {PROGRAMS} programs are loaded");
    let client = lab.peer("client-1")?;
    for (pod, path, family) in [("server-2", "tunnel", Family::V4), ("server-1", "fast", Family::V6)] {
        carry(lab, &client, pod, family).with_context(|| format!("a flow to {pod}"))?;
        let flows = lab.admin(1, "/v1/flows")?;
        let taken =
            flows.as_array().into_iter().flatten().any(|flow| flow.get("path").and_then(Value::as_str) == Some(path));
        ensure!(taken, "no flow took the path {path}: {flows}");
        println!("kumiko-vm: {family} to {pod}: {path}");
    }
    Ok(())
}

fn carry(lab: &Lab, client: &Peer, pod: &str, family: Family) -> Result<()> {
    let server = lab.peer(pod)?;
    let address = SocketAddr::new(lab.pod(pod)?.ip(family), 8080);
    server.listen(address)?;
    let duplex = |sent, received| Step::Duplex {
        send: BYTES,
        sent: Pattern::new(CAPTURED, sent),
        received: Pattern::new(CAPTURED, received),
    };
    let serving = server.serve(8080, 1, vec![duplex(2, 1), Step::Close])?;
    let client = client.connect(address, 1, vec![duplex(1, 2), Step::Close])?.report()?;
    let server = serving.report()?;
    for end in [&client, &server] {
        let step = end.steps.first().with_context(|| format!("nothing happened: {end:?}"))?;
        ensure!(step.error.is_none() && step.intact && step.bytes == BYTES, "{end:?}");
    }
    ensure!(server.peer == client.local, "the server sees {:?}, the client is {:?}", server.peer, client.local);
    Ok(())
}
