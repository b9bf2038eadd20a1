//! The three forms that are measured side by side, each in a lab of its own.

use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result};
use kumiko_lab::command::wait_for;
use kumiko_lab::spec::node_ips;
use kumiko_lab::{Family, Lab, LabSpec, Net, Netns, Stage, agents, status};

use crate::load::{Mode, Sample};

/// Port of the load's server in its pod.
const SERVER_PORT: u16 = 8080;
/// Ports of the plain relays.
const RELAY_PORT: u16 = 9000;

/// What stands between client and server.
#[derive(Clone, Copy, PartialEq, Eq, Debug, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Form {
    /// Nothing.
    Direct,
    /// A process a node that copies, without TLS.
    PlainRelay,
    /// kumiko at strict.
    Kumiko,
}

impl Form {
    /// All of them, in the order of each round.
    pub const ALL: [Self; 3] = [Self::Direct, Self::PlainRelay, Self::Kumiko];

    /// Its name in tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::PlainRelay => "plain relay",
            Self::Kumiko => "kumiko",
        }
    }
}

/// A lab with servers, and with what stands between.
#[derive(Debug)]
pub struct Bed {
    /// Which form.
    pub form: Form,
    lab: Lab,
    children: Vec<Child>,
    /// Pids whose CPU time is the form's.
    relays: Vec<i32>,
}

impl Bed {
    /// Builds it.
    pub fn new(form: Form, net: Net) -> Result<Self> {
        let name = format!("bench-{}-{}", form.name().replace(' ', "-"), std::process::id());
        let spec = LabSpec::standard(&name, 2, net, Stage::Strict);
        let lab = if form == Form::Kumiko { Lab::up(&spec)? } else { Lab::build(&spec)? };
        let mut bed = Self { form, lab, children: Vec::new(), relays: Vec::new() };
        for pod in ["server-1", "server-2"] {
            let server = SocketAddr::new(bed.lab.pod(pod)?.ip(Family::V4), SERVER_PORT);
            let ns = bed.lab.pod(pod)?.netns.clone();
            bed.spawn(&ns, &["serve", "--listen", &server.to_string()], server)?;
        }
        match form {
            Form::Direct => {}
            Form::PlainRelay => bed.start_relays()?,
            Form::Kumiko => {
                bed.relays = status::of(&bed.lab.state).nodes.iter().filter_map(|node| node.pid).collect();
            }
        }
        Ok(bed)
    }

    /// One on each node for the way between them, and one on n1 for the way inside it.
    fn start_relays(&mut self) -> Result<()> {
        let at = |node: u8, offset: u16| {
            let [v4, _] = node_ips(node);
            SocketAddr::new(v4, RELAY_PORT + offset)
        };
        let server = |pod: &str| anyhow::Ok(SocketAddr::new(self.lab.pod(pod)?.ip(Family::V4), SERVER_PORT));
        let (near, far) = (server("server-1")?, server("server-2")?);
        for (node, listen, to) in [(2, at(2, 1), far), (1, at(1, 0), at(2, 1)), (1, at(1, 2), near)] {
            let ns = self.lab.node(node)?.netns.clone();
            let pid = self.spawn(&ns, &["relay", "--listen", &listen.to_string(), "--to", &to.to_string()], listen)?;
            self.relays.push(pid);
        }
        Ok(())
    }

    /// Starts this program in a namespace and waits until it listens.
    fn spawn(&mut self, ns: &Netns, args: &[&str], listens: SocketAddr) -> Result<i32> {
        let mut command = Command::new(agents::binary("kumiko-bench")?);
        let child = ns.spawn(command.args(args).stdin(Stdio::null()))?;
        let pid = i32::try_from(child.id()).context("a pid")?;
        self.children.push(child);
        wait_for(&format!("{args:?} listens"), Duration::from_secs(10), || {
            ns.within(|| std::net::TcpStream::connect(listens).map(drop).context("connecting"))
        })?;
        Ok(pid)
    }

    /// Loads the way to the other node, or the one inside n1; the sample and the form's CPU seconds.
    pub fn load(&self, cross_node: bool, mode: Mode, at_once: usize, time: Duration) -> Result<(Sample, f64)> {
        let to = match (self.form, cross_node) {
            (Form::PlainRelay, true) => SocketAddr::new(node_ips(1)[0], RELAY_PORT),
            (Form::PlainRelay, false) => SocketAddr::new(node_ips(1)[0], RELAY_PORT + 2),
            (_, cross) => {
                let pod = if cross { "server-2" } else { "server-1" };
                SocketAddr::new(self.lab.pod(pod)?.ip(Family::V4), SERVER_PORT)
            }
        };
        let before = self.cpu_seconds()?;
        let mode = match mode {
            Mode::Stream => "stream",
            Mode::Connect => "connect",
            Mode::Request => "request",
        };
        let program = agents::binary("kumiko-bench")?;
        let text = self.lab.pod("client-1")?.netns.run(
            &program.to_string_lossy(),
            &[
                "load",
                "--to",
                &to.to_string(),
                "--mode",
                mode,
                "--at-once",
                &at_once.to_string(),
                "--millis",
                &time.as_millis().to_string(),
            ],
        )?;
        let sample = serde_json::from_str(&text).with_context(|| format!("not a sample: {text}"))?;
        Ok((sample, self.cpu_seconds()? - before))
    }

    fn cpu_seconds(&self) -> Result<f64> {
        let tick = nix::unistd::sysconf(nix::unistd::SysconfVar::CLK_TCK)?.unwrap_or(100);
        let mut ticks = 0u64;
        for pid in &self.relays {
            let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).context("a relay's CPU time")?;
            let rest = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
            // utime and stime: fields 14 and 15 of the whole line
            ticks +=
                rest.split_whitespace().skip(11).take(2).filter_map(|field| field.parse::<u64>().ok()).sum::<u64>();
        }
        Ok(ticks as f64 / tick as f64)
    }
}

impl Drop for Bed {
    fn drop(&mut self) {
        for child in &mut self.children {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}
