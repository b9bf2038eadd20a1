//! The lab itself: what it prints, that labs do not meet, and that nothing stays of one whose maker is killed.

use std::io::{BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::process::{Command, ExitCode, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use kumiko_lab::command::wait_for;
use kumiko_lab::netns::NETNS_DIR;
use kumiko_lab::pattern::{CLEAR, Pattern};
use kumiko_lab::peer::Step;
use kumiko_lab::state::{self, LabState, dir};
use kumiko_lab::{Family, Lab, LabSpec, Net, Stage, status};
use kumiko_tests::harness;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

/// Set for the copy of this program that makes a lab and is killed.
const CHILD: &str = "KUMIKO_TEST_LAB_CHILD";
/// Set beside it for a lab that is to stay.
const KEEP: &str = "KUMIKO_TEST_LAB_KEEP";

type Check = fn() -> Result<()>;

const CHECKS: &[(&str, Check)] = &[
    ("status_has_the_promised_fields", status_fields),
    ("two_labs_side_by_side_do_not_meet", side_by_side),
    ("a_killed_owners_lab_goes", || killed(false)),
    ("a_killed_owners_lab_goes_even_without_its_guard", || killed(true)),
    ("a_lab_that_is_to_stay_goes_when_its_making_is_interrupted", interrupted),
];

fn main() -> ExitCode {
    if let Some(name) = std::env::var_os(CHILD) {
        return child(&name.to_string_lossy());
    }
    let names: Vec<&str> = CHECKS.iter().map(|(name, _)| *name).collect();
    harness::main(&names, |args| {
        Ok(harness::run_trials(args, CHECKS.iter().map(|(name, check)| harness::trial(*name, check)).collect()))
    })
}

fn spec(what: &str, net: Net) -> LabSpec {
    LabSpec::standard(&format!("{what}-{}", std::process::id()), 2, net, Stage::Off)
}

fn status_fields() -> Result<()> {
    let lab = Lab::build(&spec("status", Net::Bridged))?;
    let shown = serde_json::to_value(status::of(&lab.state))?;
    ensure!(shown.pointer("/source").and_then(Value::as_str).is_some(), "{shown}");
    for (node, first) in [(0, "client-1"), (1, "client-2")] {
        let text = |field: &str| shown.pointer(&format!("/nodes/{node}/{field}")).and_then(Value::as_str);
        ensure!(text("name").is_some() && text("netns").is_some(), "{shown}");
        ensure!(text("socket").is_some() && text("wire").is_some(), "{shown}");
        ensure!(shown.pointer(&format!("/nodes/{node}/pid")).is_some(), "{shown}");
        ensure!(text("pods/0/name") == Some(first) && text("pods/0/namespace") == Some("demo"), "{shown}");
        ensure!(text("pods/0/serviceAccount") == Some("client"), "{shown}");
        let netns = text("pods/1/netns").context("a pod's netns")?;
        let ip = text("pods/1/ips/1").context("a pod's second address")?;
        let seen =
            kumiko_lab::command::run("ip", &["netns", "exec", netns, "ip", "-6", "addr", "show", "dev", "eth0"])?;
        ensure!(seen.contains(ip), "{ip} is not in {netns}: {seen}");
    }
    Ok(())
}

/// The same addresses in both, and each server is reached from its own lab only.
fn side_by_side() -> Result<()> {
    let labs = [Lab::build(&spec("left", Net::Routed))?, Lab::build(&spec("right", Net::Routed))?];
    let [left, right] = &labs;
    let address = SocketAddr::new(left.pod("server-2")?.ip(Family::V4), 8080);
    ensure!(left.pod("server-2")?.ips == right.pod("server-2")?.ips, "the labs have other addresses");
    let server = left.peer("server-2")?;
    server.listen(address)?;
    let pattern = Pattern::new(CLEAR, 1);
    let serving = server.serve(8080, 1, vec![Step::Recv { bytes: 9, pattern: pattern.clone() }, Step::Close])?;
    let send = vec![Step::Send { bytes: 9, pattern }, Step::Close];
    let other = right.peer("client-1")?.connect(address, 1, send.clone())?.report()?;
    ensure!(other.connect.as_deref() == Some("ECONNREFUSED"), "the other lab's server answered: {other:?}");
    let own = left.peer("client-1")?.connect(address, 1, send)?.report()?;
    ensure!(own.connect.is_none(), "{own:?}");
    serving.report().map(drop)
}

/// Makes a lab, says its id, and waits to be killed.
fn child(name: &str) -> ExitCode {
    let keep = std::env::var_os(KEEP).is_some();
    match Lab::build(&LabSpec { keep, ..LabSpec::standard(name, if keep { 4 } else { 1 }, Net::Routed, Stage::Off) }) {
        Ok(lab) => {
            println!("{}", lab.state.id);
            let _ = std::io::stdin().read(&mut [0]);
            ExitCode::SUCCESS
        }
        Err(cause) => {
            eprintln!("{cause:#}");
            ExitCode::FAILURE
        }
    }
}

fn killed(guard_too: bool) -> Result<()> {
    let name = format!("killed-{guard_too}-{}", std::process::id());
    let mut child = Command::new(std::env::current_exe()?)
        .env(CHILD, &name)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .context("starting a lab's maker")?;
    let mut id = String::new();
    BufReader::new(child.stdout.take().context("its output")?).read_line(&mut id)?;
    let id = id.trim();
    ensure!(!left_of(id).is_empty(), "lab {id:?} was not made");
    if guard_too {
        let guard = guard_of(id).context("the lab has no guard")?;
        kill(guard, Signal::SIGKILL)?;
    }
    child.kill()?;
    child.wait()?;
    if guard_too {
        // Nobody is left to do it: the next lab does.
        drop(Lab::build(&spec("next", Net::Routed))?);
    }
    wait_for("the lab is gone", Duration::from_secs(10), || {
        let left = left_of(id);
        ensure!(left.is_empty(), "left of lab {id}: {left:?}");
        Ok(())
    })
}

/// As Ctrl-C does it, while the lab is being made. By SIGTERM: a shell's background jobs ignore SIGINT, and so would the
/// maker in one.
fn interrupted() -> Result<()> {
    for attempt in 0..20 {
        let name = format!("interrupted-{attempt}-{}", std::process::id());
        let mut child = Command::new(std::env::current_exe()?)
            .env(CHILD, &name)
            .env(KEEP, "1")
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .context("starting a lab's maker")?;
        let id = wait_for("the lab is being made", Duration::from_secs(20), || {
            let lab = state::all().into_iter().find(|lab| lab.name == name).context("it has no state file")?;
            ensure!(left_of(&lab.id).len() > 1, "it has no namespace");
            Ok(lab.id)
        })?;
        let maker = Pid::from_raw(i32::try_from(child.id())?);
        // Stopped first, so that it is known whether the lab was whole already: its maker says then that it is to stay.
        kill(maker, Signal::SIGSTOP)?;
        wait_for("the maker stops", Duration::from_secs(20), || {
            let stat = std::fs::read_to_string(format!("/proc/{maker}/stat"))?;
            ensure!(stat.rsplit(") ").next().is_some_and(|rest| rest.starts_with('T')), "{stat}");
            Ok(())
        })?;
        let whole = LabState::read(&id)?.owner.is_none();
        kill(maker, if whole { Signal::SIGKILL } else { Signal::SIGTERM })?;
        kill(maker, Signal::SIGCONT)?;
        child.wait()?;
        if whole {
            let _lock = state::lock()?;
            state::remove(&id)?;
            continue;
        }
        return wait_for("the lab is gone", Duration::from_secs(60), || {
            let left = left_of(&id);
            ensure!(left.is_empty(), "left of lab {id}: {left:?}");
            Ok(())
        });
    }
    bail!("every lab was whole before its maker could be interrupted")
}

/// Names of a lab's namespaces, and its directory.
fn left_of(id: &str) -> Vec<String> {
    let prefix = format!("k{id}-");
    let entries = std::fs::read_dir(NETNS_DIR).into_iter().flatten().flatten();
    let mut left: Vec<String> = entries.filter_map(|entry| entry.file_name().into_string().ok()).collect();
    left.retain(|name| name.starts_with(&prefix));
    if dir(id).exists() {
        left.push(dir(id).display().to_string());
    }
    left
}

/// The process that guards a lab: `kumiko-peer guard ID`.
fn guard_of(id: &str) -> Option<Pid> {
    let entries = std::fs::read_dir("/proc").ok()?.flatten();
    let mut pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    let wanted = format!("guard\0{id}\0");
    pids.find(|pid| std::fs::read_to_string(format!("/proc/{pid}/cmdline")).is_ok_and(|line| line.ends_with(&wanted)))
        .map(Pid::from_raw)
}
