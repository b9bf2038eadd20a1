//! Named network namespaces, as `ip netns` knows them.

use std::fs::File;
use std::path::PathBuf;
use std::process::{Child, Command};

use anyhow::{Context, Result, bail};
use nix::sched::{CloneFlags, setns};

use crate::command;

/// Where `ip netns` keeps its namespaces.
pub const NETNS_DIR: &str = "/run/netns";

/// A namespace by its name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Netns {
    /// The name that `ip netns exec` takes.
    pub name: String,
}

impl Netns {
    /// Names a namespace; does not make it.
    pub fn named(name: impl Into<String>) -> Self {
        Self { name: name.into() }
    }

    /// Makes the namespace with loopback up and everything that every namespace of a lab has.
    pub fn create(name: impl Into<String>) -> Result<Self> {
        let ns = Self::named(name);
        command::run("ip", &["netns", "add", &ns.name])?;
        // BBR, which new namespaces may inherit, halves throughput on veths and hides every other cost.
        ns.sysctl("net.ipv4.tcp_congestion_control", "reno")?;
        // Duplicate address detection would keep IPv6 addresses unusable for seconds.
        for scope in ["default", "all"] {
            ns.sysctl(&format!("net.ipv6.conf.{scope}.accept_dad"), "0")?;
            ns.sysctl(&format!("net.ipv6.conf.{scope}.accept_ra"), "0")?;
        }
        ns.sysctl("net.ipv6.conf.default.dad_transmits", "0")?;
        ns.ip("link set lo up")?;
        Ok(ns)
    }

    /// Its file.
    pub fn path(&self) -> PathBuf {
        PathBuf::from(NETNS_DIR).join(&self.name)
    }

    /// Whether it is there.
    pub fn exists(&self) -> bool {
        self.path().exists()
    }

    /// Runs lines of `ip` in it (each line what follows `ip`).
    pub fn ip(&self, lines: &str) -> Result<()> {
        command::run_with_input("ip", &["-n", &self.name, "-batch", "-"], lines).map(drop)
    }

    /// Sets a sysctl in it, by its dotted name.
    pub fn sysctl(&self, name: &str, value: &str) -> Result<()> {
        let path = PathBuf::from("/proc/sys").join(name.replace('.', "/"));
        self.within(|| std::fs::write(&path, value).with_context(|| format!("setting {name}={value}")))
    }

    /// A counter of its TCP, by the name that `nstat` has for it without `TcpExt`.
    pub fn tcp_counter(&self, name: &str) -> Result<u64> {
        let text =
            self.within(|| std::fs::read_to_string("/proc/thread-self/net/netstat").context("reading counters"))?;
        let mut lines = text.lines().filter_map(|line| line.strip_prefix("TcpExt:"));
        let (Some(names), Some(values)) = (lines.next(), lines.next()) else { bail!("no counters of TCP: {text}") };
        let mut found = names.split_whitespace().zip(values.split_whitespace());
        let (_, value) = found.find(|(one, _)| *one == name).with_context(|| format!("no counter {name}"))?;
        value.parse().with_context(|| format!("counter {name}"))
    }

    /// Runs `work` on a thread that lives in this namespace.
    pub fn within<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        let file = File::open(self.path()).with_context(|| format!("opening namespace {}", self.name))?;
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                setns(&file, CloneFlags::CLONE_NEWNET).with_context(|| format!("entering namespace {}", self.name))?;
                work()
            });
            match thread.join() {
                Ok(result) => result.with_context(|| format!("in namespace {}", self.name)),
                Err(_) => bail!("a thread in namespace {} panicked", self.name),
            }
        })
    }

    /// Starts a process in it. Its mounts are the machine's, unlike with `ip netns exec`: what it bind-mounts (the
    /// agent's own namespace) must outlive it.
    pub fn spawn(&self, command: &mut Command) -> Result<Child> {
        let what = format!("{command:?}");
        self.within(|| command.spawn().with_context(|| format!("starting {what}")))
    }

    /// Runs a command in it to its end; its standard output, or an error with its standard error.
    pub fn run(&self, program: &str, args: &[&str]) -> Result<String> {
        self.within(|| command::run(program, args))
    }

    /// Processes in it, as `ip netns pids` finds them.
    pub fn pids(&self) -> Vec<i32> {
        command::run("ip", &["netns", "pids", &self.name])
            .map(|text| text.split_whitespace().filter_map(|pid| pid.parse().ok()).collect())
            .unwrap_or_default()
    }

    /// Removes its name; it goes when nothing is left in it.
    pub fn delete(&self) -> Result<()> {
        command::run("ip", &["netns", "del", &self.name]).map(drop)
    }
}
