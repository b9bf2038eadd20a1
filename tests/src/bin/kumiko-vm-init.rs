//! `/init` of the virtual machines that try other kernels: builds a lab of two nodes there, carries one flow between
//! the nodes and one inside a node, sets the clock under an exception (which no test may do to the machine that it runs on), says
//! how it went, and powers off.

use std::fs::{self, File};
use std::io::ErrorKind;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use k8s_openapi::jiff::Timestamp;
use kumiko_lab::agents::binary;
use kumiko_lab::command::wait_for;
use kumiko_lab::pattern::{CAPTURED, Pattern};
use kumiko_lab::peer::{Peer, Step};
use kumiko_lab::{Family, Lab, LabSpec, Net, Stage};
use nix::errno::Errno;
use nix::kmod::{ModuleInitFlags, finit_module};
use nix::mount::{MsFlags, mount};
use nix::sys::reboot::{RebootMode, reboot};
use nix::sys::time::TimeSpec;
use nix::time::{ClockId, clock_settime};
use serde_json::Value;

/// Programs that must be loaded: all that the object has.
const PROGRAMS: usize = 5;
const BYTES: u64 = 300_000;
/// For anything to come about, where processors are real.
const WITHIN: Duration = Duration::from_secs(15);
/// For a connect to end.
const CONNECT: Duration = Duration::from_secs(60);
/// How long the exception is to last when it is made, and what of that is left after a step.
const LASTS: i64 = 3_600;
const LEFT: i64 = 10;
/// Ends at `{expires}`.
const EXCEPTION: &str = "
apiVersion: kumiko.dev/v1alpha1
kind: MeshBaseline
metadata: {name: closed}
spec:
  subject: {namespace: demo}
  ingress: {deny: [{name: own, from: [{namespace: demo}]}]}
---
apiVersion: kumiko.dev/v1alpha1
kind: MeshException
metadata: {name: for-a-while}
spec:
  suspends: [{baseline: closed, rules: [ingress.deny.own]}]
  subject: {namespace: demo}
  peers: [{namespace: demo}]
  owner: somebody
  expires: \"{expires}\"
";

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
    let mut lab = Lab::up(&spec)?;
    flows(&lab).and_then(|()| clock(&mut lab)).map_err(|cause| cause.context(lab.logs(40)))
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

/// An exception ends by the clock that people set, whoever sets it: with an agent and, in the kernel, without one.
fn clock(lab: &mut Lab) -> Result<()> {
    let server = lab.pod("server-1")?;
    let at = SocketAddr::new(server.ip(Family::V4), 8080);
    let listener = server.netns.within(|| TcpListener::bind(at).context("listening"))?;
    std::thread::spawn(move || listener.incoming().for_each(drop));
    let expires = Timestamp::from_second(unix() + LASTS)?;
    let file = lab.dir().join("exception.yaml");
    fs::write(&file, EXCEPTION.replace("{expires}", &expires.to_string()))?;
    let mut command = Command::new(binary("kumiko")?);
    command.arg("--socket").arg(lab.node(1)?.files.socket()).args(["policy", "apply", "--wait"]).arg(&file);
    let applied = command.output().context("kumiko policy apply")?;
    ensure!(applied.status.success(), "{applied:?}");
    comes(lab, at, true).context("an exception of an hour")?;
    step(lab, LASTS)?;
    comes(lab, at, false).context("the clock was set to after its end")?;
    step(lab, -LASTS)?;
    comes(lab, at, true).context("the clock was set back to before its end")?;
    step(lab, expires.as_second() - LEFT - unix())?;
    lab.kill_agent(1)?;
    comes(lab, at, false).context("its end without an agent, after the clock was set to shortly before")?;
    println!("kumiko-vm: an exception ends by the clock that is set");
    Ok(())
}

/// Waits until client-1 is served, or refused.
fn comes(lab: &Lab, at: SocketAddr, served: bool) -> Result<()> {
    let netns = &lab.pod("client-1")?.netns;
    wait_for("the verdict changes", WITHIN, || {
        let told = netns.within(|| match TcpStream::connect_timeout(&at, CONNECT) {
            Ok(_) => Ok(true),
            Err(error) if error.kind() == ErrorKind::ConnectionRefused => Ok(false),
            Err(error) => bail!("{at}: {error}"),
        })?;
        ensure!(told == served, "served: {told}");
        Ok(())
    })
}

fn unix() -> i64 {
    Timestamp::now().as_second()
}

/// Sets the clock so many seconds on, or back, and waits until the agent has seen it.
fn step(lab: &Lab, seconds: i64) -> Result<()> {
    let epoch = || -> Result<u64> {
        let status = lab.admin(1, "/v1/status")?;
        status.pointer("/policy/epoch").and_then(Value::as_u64).context("no epoch")
    };
    let before = epoch()?;
    clock_settime(ClockId::CLOCK_REALTIME, TimeSpec::new(unix() + seconds, 0)).context("setting the clock")?;
    wait_for("the agent sees that the clock was set", WITHIN, || {
        let now = epoch()?;
        ensure!(now > before, "epoch {now}");
        Ok(())
    })
}
