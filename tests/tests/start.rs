//! Starts that cannot be, and what an agent does when a part of it is taken away.

use std::fs;
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, ExitCode, Output, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use kumiko_lab::command::wait_for;
use kumiko_lab::netns::Netns;
use kumiko_lab::{Lab, LabSpec, Net, Stage, agents, status};
use kumiko_tests::harness;
use libtest_mimic::Arguments;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

type Check = fn(&mut Lab) -> Result<()>;

const CHECKS: &[(&str, Check)] = &[
    ("a_second_agent_is_refused_and_takes_nothing", second),
    ("an_agent_started_by_hand_is_the_labs", by_hand),
    ("an_agent_whose_veth_is_removed_ends_and_the_next_one_heals", veth_removed),
    ("signals_end_an_agent_that_waits_for_its_source", waiting),
    ("a_start_that_fails_leaves_nothing", fails),
];

fn main() -> ExitCode {
    let names: Vec<&str> = CHECKS.iter().map(|(name, _)| *name).collect();
    harness::main(&names, run)
}

fn run(args: &Arguments) -> Result<bool> {
    let name = format!("start-{}", std::process::id());
    let lab = Arc::new(Mutex::new(Lab::up(&LabSpec::standard(&name, 1, Net::Routed, Stage::Strict))?));
    // They share the agent: one at a time.
    let args = Arguments { test_threads: Some(1), ..args.clone() };
    let trials = CHECKS.iter().map(|(name, check)| {
        let lab = Arc::clone(&lab);
        harness::trial(*name, move || {
            let mut lab = lab.lock().unwrap_or_else(PoisonError::into_inner);
            check(&mut lab).with_context(|| lab.logs(20))
        })
    });
    Ok(harness::run_trials(&args, trials.collect()))
}

/// The running agent, as `lab status` tells it.
fn pid(lab: &Lab) -> Result<i32> {
    let status = status::of(&lab.state);
    status.nodes.first().and_then(|node| node.pid).context("lab status shows no agent")
}

/// Its command line.
fn command_line(pid: i32) -> Result<Vec<String>> {
    let line = fs::read_to_string(format!("/proc/{pid}/cmdline"))?;
    Ok(line.split_terminator('\0').map(str::to_owned).collect())
}

/// The same with other values of some options; one that is not there is added.
fn with(line: &[String], changes: &[(&str, &str)]) -> Vec<String> {
    let mut line = line.to_vec();
    for (option, value) in changes {
        match line.iter().position(|word| word == option) {
            Some(at) => line.splice(at + 1..at + 2, [(*value).to_owned()]).for_each(drop),
            None => line.extend([(*option).to_owned(), (*value).to_owned()]),
        }
    }
    line
}

fn command(line: &[String]) -> Result<Command> {
    let (program, args) = line.split_first().context("an empty command line")?;
    let mut command = Command::new(program);
    command.args(args).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    Ok(command)
}

/// Runs an agent that is to fail; what it said.
fn refused(ns: &Netns, line: &[String]) -> Result<String> {
    let Output { status, stderr, .. } = ns.spawn(&mut command(line)?)?.wait_with_output()?;
    let said = String::from_utf8_lossy(&stderr).into_owned();
    ensure!(status.code() == Some(1), "{line:?} ended with {status}: {said}");
    Ok(said)
}

fn text(path: &Path) -> Result<&str> {
    path.to_str().context("a path of a lab is text")
}

fn second(lab: &mut Lab) -> Result<()> {
    let (ns, issuer) = (lab.node(1)?.netns.clone(), Netns::named(format!("k{}-issuer", lab.state.id)));
    let line = command_line(pid(lab)?)?;
    let links = ns.run("ip", &["-o", "link"])?;
    let (own_run, own_bpf) = (lab.dir().join("second"), lab.dir().join("second-bpf"));
    let own_run = text(&own_run)?;
    kumiko_lab::command::run("mkdir", &["-p", text(&own_bpf)?])?;
    kumiko_lab::command::run("mount", &["-t", "bpf", "bpf", text(&own_bpf)?])?;
    let separate = [("--run-dir", own_run), ("--bpffs", text(&own_bpf)?)];

    let said = refused(&ns, &line)?;
    ensure!(said.contains("another agent") && said.contains(&pid(lab)?.to_string()), "{said}");
    // Its own run directory and pins: the tunnels' port, the pods and the veth are the first one's all the same.
    let said = refused(&ns, &with(&line, &separate))?;
    ensure!(said.contains("runs in this network namespace"), "{said}");
    // Another host, the same pins.
    let said = refused(&issuer, &with(&line, &[("--run-dir", own_run), ("--netns-name", "second")]))?;
    ensure!(said.contains("--bpffs"), "{said}");

    ensure!(ns.run("ip", &["-o", "link"])? == links, "an interface was changed");
    let now = lab.admin(1, "/v1/status")?;
    ensure!(now.get("ready") == Some(&true.into()), "{now}");
    Ok(())
}

fn by_hand(lab: &mut Lab) -> Result<()> {
    let ns = lab.node(1)?.netns.clone();
    let line = command_line(pid(lab)?)?;
    lab.kill_agent(1)?;
    for _ in 0..5 {
        let mut child = ns.spawn(command(&line)?.stderr(Stdio::null()))?;
        agents::wait_ready(&mut child, &lab.node(1)?.files)?;
        let id = i32::try_from(child.id())?;
        ensure!(pid(lab)? == id, "lab status does not show the agent that runs");
        // Nobody waits until it is gone: the next one starts while it is being taken apart.
        kill(Pid::from_raw(id), Signal::SIGKILL)?;
        std::thread::spawn(move || child.wait());
    }
    lab.start_agent(1)?;
    pid(lab).map(drop)
}

fn veth_removed(lab: &mut Lab) -> Result<()> {
    let ns = lab.node(1)?.netns.clone();
    let links = ns.run("ip", &["-o", "link"])?;
    let name =
        links.split_whitespace().find_map(|word| word.strip_suffix("@if2:").filter(|name| name.starts_with('k')));
    ns.run("ip", &["link", "del", name.context(links.clone())?])?;
    let before = pid(lab)?;
    wait_for("the agent ends", Duration::from_secs(10), || {
        ensure!(pid(lab).ok() != Some(before), "it goes on without a way into its namespace");
        Ok(())
    })?;
    let ended = lab.stop_agent(1)?;
    ensure!(!ended.success(), "it ended as if all were well");
    lab.start_agent(1)?;
    ensure!(ns.run("ip", &["-o", "link"])?.contains(name.unwrap_or_default()), "the veth did not come back");
    Ok(())
}

fn waiting(lab: &mut Lab) -> Result<()> {
    let ns = lab.node(1)?.netns.clone();
    let line = command_line(pid(lab)?)?;
    lab.stop_agent(1)?;
    let nowhere = format!("dir:{}", lab.dir().join("nowhere").display());
    let line = with(&line, &[("--source", &nowhere)]);
    // Whoever runs the tests may ignore some of them, and children inherit that.
    let plain = [&["env", "--default-signal=TERM,INT,HUP"].map(str::to_owned), line.as_slice()].concat();
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
        let mut child = ready(&ns, &plain, signal)?;
        ended_by(&mut child, signal)?;
    }
    // Whoever starts it with nohup wants it to outlive the terminal.
    let mut outliving = ready(&ns, &[&["nohup".to_owned()], line.as_slice()].concat(), Signal::SIGTERM)?;
    kill(Pid::from_raw(i32::try_from(outliving.id())?), Signal::SIGHUP)?;
    // That nothing happens cannot be waited for: without the mend it ended within this time.
    std::thread::sleep(Duration::from_millis(500));
    let lives = outliving.try_wait()?.is_none();
    ended_by(&mut outliving, Signal::SIGTERM)?;
    ensure!(lives, "an agent under nohup was ended by SIGHUP");
    lab.start_agent(1)
}

/// Starts an agent that waits for its source, and waits until a signal finds it ready.
fn ready(ns: &Netns, line: &[String], signal: Signal) -> Result<Child> {
    let child = ns.spawn(command(line)?.stdout(Stdio::null()).stderr(Stdio::null()))?;
    wait_for("the agent has its place", Duration::from_secs(20), || {
        let caught = fs::read_to_string(format!("/proc/{}/status", child.id()))?;
        let caught = caught.lines().find_map(|line| line.strip_prefix("SigCgt:")).unwrap_or_default().trim();
        let caught = u64::from_str_radix(caught, 16)?;
        ensure!(caught & (1 << (signal as u32 - 1)) != 0, "{signal} is not caught yet");
        Ok(())
    })?;
    Ok(child)
}

fn ended_by(child: &mut Child, signal: Signal) -> Result<()> {
    kill(Pid::from_raw(i32::try_from(child.id())?), signal)?;
    let ended = wait_for("the agent ends", Duration::from_secs(10), || child.try_wait()?.context("it goes on"));
    if ended.is_err() {
        child.kill()?;
    }
    ensure!(ended?.success(), "{signal}: it failed");
    Ok(())
}

fn fails(lab: &mut Lab) -> Result<()> {
    let node = lab.node(1)?;
    let (ns, files, dir) = (node.netns.clone(), node.files.clone(), lab.dir());
    let line = command_line(pid(lab)?)?;
    lab.stop_agent(1)?;
    lab.cleanup(1)?;
    let links = ns.run("ip", &["-o", "link"])?;
    let missing = dir.join("missing");
    let missing = text(&missing)?;
    let listener = ns.within(|| TcpListener::bind("127.0.0.1:0").context("a listener in the way"))?;
    let busy = listener.local_addr()?.to_string();
    let busy = busy.as_str();
    let cases: &[(&str, &str, &[&str])] = &[
        ("--bpffs", text(&dir)?, &["no bpf file system", "mount -t bpf"]),
        ("--bpffs", missing, &[missing, "No such file"]),
        ("--issuer-root", missing, &["--issuer-root", missing]),
        ("--issuer-root", text(&files.token)?, &["--issuer-root", "PEM"]),
        ("--join-token", missing, &["--join-token", missing]),
        ("--kubelet-cgroup", missing, &["--kubelet-cgroup", missing]),
        ("--bpf-object", missing, &[missing]),
        ("--trust-domain", "Not A Domain", &["--trust-domain"]),
        ("--metrics", busy, &["--metrics", busy]),
    ];
    for (option, value, needles) in cases {
        let said = refused(&ns, &with(&line, &[(option, value)]))?;
        ensure!(needles.iter().all(|needle| said.contains(needle)), "{option} {value}: {said}");
        let cause = said.lines().last().unwrap_or_default();
        ensure!(cause.matches("os error").count() < 2, "it says the same twice: {said}");
        ensure!(ns.run("ip", &["-o", "link"])? == links, "{option} {value}: an interface is left");
        ensure!(!files.bpffs.join("kumiko/v1/FLOWS").exists(), "{option} {value}: maps are left");
        ensure!(!files.run_dir.join("netns").exists(), "{option} {value}: a namespace is left");
    }
    // Root in name only.
    let mut line = line;
    line.splice(0..0, ["setpriv", "--bounding-set=-all", "--inh-caps=-all"].map(str::to_owned));
    let said = refused(&ns, &line)?;
    ensure!(said.contains("CAP_SYS_ADMIN") && said.contains("root"), "{said}");
    lab.start_agent(1)
}
