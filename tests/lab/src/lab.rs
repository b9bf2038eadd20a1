//! A standing lab.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Child;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::agents::{self, NodeFiles};
use crate::command::wait_for;
use crate::guard::Guard;
use crate::manifests;
use crate::netns::Netns;
use crate::peer::Peer;
use crate::spec::{Family, LabSpec, Stage, of_family};
use crate::state::{self, LabState};
use crate::{admin, services, topology};

/// For a fault point's answer.
const ANSWER: Duration = Duration::from_secs(10);

/// A lab; taken down when dropped, unless it is to be kept.
#[derive(Debug)]
pub struct Lab {
    /// Its state file's content.
    pub state: LabState,
    /// Its nodes, in order.
    pub nodes: Vec<Node>,
    /// Its pods, in the spec's order.
    pub pods: Vec<Pod>,
    issuer: Option<Child>,
    guard: Option<Guard>,
}

/// A node of a lab.
#[derive(Debug)]
pub struct Node {
    /// From 1.
    pub number: u8,
    /// Its namespace.
    pub netns: Netns,
    /// Its files.
    pub files: NodeFiles,
    agent: Option<Child>,
}

/// A pod of a lab.
#[derive(Clone, Debug)]
pub struct Pod {
    /// Its name.
    pub name: String,
    /// Its namespace.
    pub netns: Netns,
    /// Its addresses.
    pub ips: [std::net::IpAddr; 2],
}

impl Pod {
    /// Its address of a family.
    pub fn ip(&self, family: Family) -> std::net::IpAddr {
        of_family(self.ips, family)
    }
}

impl Lab {
    /// Builds the network, without agents: the direct twin of every comparison.
    pub fn build(spec: &LabSpec) -> Result<Self> {
        let mut lab = Self::make(spec)?;
        lab.settle()?;
        Ok(lab)
    }

    /// The network. Until it is whole, it is guarded even if it is to stay: nothing is left of one that is interrupted.
    fn make(spec: &LabSpec) -> Result<Self> {
        spec.check()?;
        let state = LabState::create(spec)?;
        let id = state.id.clone();
        let dir = state::dir(&id);
        let guard = Some(Guard::start(&id)?);
        let nodes = (1..=spec.nodes)
            .map(|number| Node {
                number,
                netns: Netns::named(topology::netns_name(&id, &format!("n{number}"))),
                files: NodeFiles::new(&dir, number),
                agent: None,
            })
            .collect();
        let pods = spec.pods.iter().enumerate().map(|(index, pod)| Pod {
            name: pod.name.clone(),
            netns: Netns::named(topology::netns_name(&id, &pod.name)),
            ips: spec.pod_ips(index),
        });
        let mut lab = Self { state, nodes, pods: pods.collect(), issuer: None, guard };
        if let Err(cause) = lab.fill() {
            lab.take_down()?;
            return Err(cause.context("building the lab"));
        }
        Ok(lab)
    }

    fn fill(&mut self) -> Result<()> {
        let (id, spec) = (&self.state.id, &self.state.spec);
        topology::build(id, spec)?;
        services::install(id, spec)?;
        manifests::write(&self.manifests(), id, spec)?;
        for node in &self.nodes {
            node.files.prepare(id, node.number)?;
            if spec.own_folders {
                manifests::write(&node.files.manifests, id, spec)?;
            }
        }
        Ok(())
    }

    /// Builds the network and starts issuer and agents; returns when all are ready.
    pub fn up(spec: &LabSpec) -> Result<Self> {
        let mut lab = Self::make(spec)?;
        if let Err(cause) = lab.start_mesh() {
            // A kept lab without agents would only be in the way; its logs are in the error.
            lab.take_down()?;
            return Err(cause);
        }
        lab.settle()?;
        Ok(lab)
    }

    /// Leaves a lab that is to stay to itself.
    fn settle(&mut self) -> Result<()> {
        if self.state.spec.keep {
            self.state.owner = None;
            self.state.write()?;
            self.guard.take().into_iter().for_each(Guard::dismiss);
        }
        Ok(())
    }

    /// Starts the issuer and every agent.
    pub fn start_mesh(&mut self) -> Result<()> {
        self.start_issuer()?;
        for node in 1..=self.state.spec.nodes {
            self.spawn_agent(node)?;
        }
        (1..=self.state.spec.nodes).try_for_each(|node| self.wait_agent(node))
    }

    fn start_issuer(&mut self) -> Result<()> {
        let ns = Netns::named(topology::netns_name(&self.state.id, "issuer"));
        let dir = self.dir();
        self.issuer = Some(agents::start_issuer(&dir, &ns, &self.state.spec.svid_ttl)?);
        for node in &self.nodes {
            agents::write_token(&dir, &node.files, node.number)?;
        }
        Ok(())
    }

    /// Starts the agent of a node (from 1) and waits until it is ready.
    pub fn start_agent(&mut self, node: u8) -> Result<()> {
        self.spawn_agent(node)?;
        self.wait_agent(node)
    }

    /// Starts the agent of a node without waiting.
    pub fn spawn_agent(&mut self, number: u8) -> Result<()> {
        let (dir, state) = (self.dir(), self.state.clone());
        let node = self.node_mut(number)?;
        if node.agent.is_some() {
            bail!("the agent of n{number} runs already");
        }
        let child = agents::start_agent(&dir, &state, number, &node.netns)?;
        node.agent = Some(child);
        Ok(())
    }

    /// Waits until the agent of a node is ready.
    pub fn wait_agent(&mut self, number: u8) -> Result<()> {
        let node = self.node_mut(number)?;
        let child = node.agent.as_mut().with_context(|| format!("the agent of n{number} was not started"))?;
        agents::wait_ready(child, &node.files).with_context(|| format!("agent of n{number}"))
    }

    /// Sends a signal to the agent of a node.
    pub fn signal_agent(&self, number: u8, signal: Signal) -> Result<()> {
        kill(Pid::from_raw(i32::try_from(self.agent_pid(number)?)?), signal).context("signalling the agent")?;
        if signal != Signal::SIGSTOP {
            return Ok(());
        }
        // A thread on another processor goes on for a moment, and may take a connection in it.
        wait_for("the agent has stopped", Duration::from_secs(10), || {
            for task in fs::read_dir(format!("/proc/{}/task", self.agent_pid(number)?))? {
                let stat = fs::read_to_string(task?.path().join("stat"))?;
                let state = stat.rsplit(')').next().and_then(|rest| rest.trim_start().chars().next());
                ensure!(state == Some('T'), "a thread is in state {state:?}");
            }
            Ok(())
        })
    }

    /// The pid of a node's agent.
    pub fn agent_pid(&self, number: u8) -> Result<u32> {
        let agent = self.node(number)?.agent.as_ref().with_context(|| format!("no agent runs on n{number}"))?;
        Ok(agent.id())
    }

    /// The state of a node's agent as `ps` shows it: `R`, `S`, `T`, ...
    pub fn agent_state(&self, number: u8) -> Result<char> {
        let stat =
            fs::read_to_string(format!("/proc/{}/stat", self.agent_pid(number)?)).context("looking at the agent")?;
        // pid (name) state: the name may hold anything.
        stat.rsplit_once(") ").and_then(|(_, rest)| rest.chars().next()).context("a process without a state")
    }

    /// Kills the agent of a node with SIGKILL; returns when it is gone.
    pub fn kill_agent(&mut self, number: u8) -> Result<()> {
        self.signal_agent(number, Signal::SIGKILL)?;
        self.reap_agent(number).map(drop)
    }

    /// Stops the agent of a node with SIGTERM; its exit status.
    pub fn stop_agent(&mut self, number: u8) -> Result<std::process::ExitStatus> {
        self.signal_agent(number, Signal::SIGTERM)?;
        self.reap_agent(number)
    }

    /// Runs `kumiko-agent cleanup` on a node whose agent does not run.
    pub fn cleanup(&self, number: u8) -> Result<()> {
        agents::cleanup(&self.dir(), &self.state.id, number, &self.node(number)?.netns)
    }

    fn reap_agent(&mut self, number: u8) -> Result<std::process::ExitStatus> {
        let node = self.node_mut(number)?;
        let mut child = node.agent.take().with_context(|| format!("no agent runs on n{number}"))?;
        child.wait().context("waiting for the agent's end")
    }

    /// Moves a namespace to a stage.
    pub fn set_stage(&self, namespace: &str, stage: Stage) -> Result<()> {
        manifests::set_stage(&self.manifests(), namespace, stage)
    }

    /// Waits until every agent has a namespace's local workloads at a stage, hooked as the stage asks.
    pub fn wait_stage(&self, namespace: &str, stage: Stage) -> Result<()> {
        self.nodes.iter().try_for_each(|node| {
            wait_for(&format!("{stage} is in force on n{}", node.number), Duration::from_secs(20), || {
                let workloads = self.admin(node.number, "/v1/workloads")?;
                let local = workloads.as_array().into_iter().flatten().filter(|workload| {
                    workload.get("local") == Some(&Value::Bool(true))
                        && workload.get("namespace").and_then(Value::as_str) == Some(namespace)
                });
                for workload in local {
                    let text = |field: &str| workload.get(field).and_then(Value::as_str).unwrap_or_default().to_owned();
                    let hooked = stage == Stage::Off || text("attachment") == "attached";
                    ensure!(text("stage") == stage.to_string() && hooked, "{workload}");
                }
                Ok(())
            })
        })
    }

    /// Its directory.
    pub fn dir(&self) -> PathBuf {
        state::dir(&self.state.id)
    }

    /// The watched folder: of the issuer, and of every agent unless they have [`LabSpec::own_folders`].
    pub fn manifests(&self) -> PathBuf {
        self.dir().join("manifests")
    }

    /// A node by its number, from 1.
    pub fn node(&self, number: u8) -> Result<&Node> {
        self.nodes.iter().find(|node| node.number == number).with_context(|| format!("the lab has no node n{number}"))
    }

    fn node_mut(&mut self, number: u8) -> Result<&mut Node> {
        let found = self.nodes.iter_mut().find(|node| node.number == number);
        found.with_context(|| format!("the lab has no node n{number}"))
    }

    /// The agent's own namespace on a node, while it is there.
    pub fn agent_netns(&self, number: u8) -> Result<Netns> {
        let name = agents::agent_netns_name(&self.state.id, number);
        let path = self.node(number)?.files.run_dir.join("netns").join(name);
        Ok(Netns::named(path.to_string_lossy()))
    }

    /// A pod by its name.
    pub fn pod(&self, name: &str) -> Result<&Pod> {
        self.pods.iter().find(|pod| pod.name == name).with_context(|| format!("the lab has no pod {name}"))
    }

    /// Cluster address of a Service.
    pub fn service_ip(&self, name: &str, family: Family) -> Result<std::net::IpAddr> {
        let index = self.state.spec.services.iter().position(|service| service.name == name);
        Ok(of_family(LabSpec::service_ips(index.with_context(|| format!("the lab has no Service {name}"))?), family))
    }

    /// Starts a scripted peer in a pod.
    pub fn peer(&self, pod: &str) -> Result<Peer> {
        Peer::start(&self.pod(pod)?.netns, &self.dir().join(format!("peer-{pod}.log")))
    }

    /// Asks the admin API of a node's agent.
    pub fn admin(&self, node: u8, path: &str) -> Result<Value> {
        admin::get_json(&self.node(node)?.files.socket(), path)
    }

    /// Tells the fault points of a node's agent (see the crate `kumiko-fault`) to do something.
    pub fn fault(&self, node: u8, demand: &str) -> Result<String> {
        let path = self.node(node)?.files.faults();
        let mut stream = UnixStream::connect(&path).with_context(|| format!("connecting to {}", path.display()))?;
        // One that is stopped does not answer.
        stream.set_read_timeout(Some(ANSWER))?;
        writeln!(stream, "{demand}").context("asking the fault points")?;
        let mut answer = String::new();
        BufReader::new(stream).read_line(&mut answer).context("the answer of the fault points")?;
        let answer = answer.trim();
        ensure!(!answer.is_empty() && !answer.starts_with("error"), "{demand}: {answer}");
        Ok(answer.to_owned())
    }

    /// Whether no agent runs on a node.
    pub fn agent_has_ended(&mut self, number: u8) -> Result<bool> {
        match &mut self.node_mut(number)?.agent {
            Some(agent) => Ok(agent.try_wait().context("asking for the agent")?.is_some()),
            None => Ok(true),
        }
    }

    /// Starts the agent of a node again if it has ended.
    pub fn revive_agent(&mut self, number: u8) -> Result<()> {
        if self.agent_has_ended(number)? {
            self.node_mut(number)?.agent = None;
            self.start_agent(number)?;
        }
        Ok(())
    }

    /// Waits for an agent to be ended by a fault point; its exit status.
    pub fn await_end(&mut self, number: u8) -> Result<std::process::ExitStatus> {
        let node = self.node_mut(number)?;
        let agent = node.agent.as_mut().with_context(|| format!("no agent runs on n{number}"))?;
        let status = wait_for(&format!("the agent of n{number} ends"), Duration::from_secs(30), || {
            agent.try_wait().context("asking for the agent")?.context("it still runs")
        })?;
        node.agent = None;
        Ok(status)
    }

    /// The ends of all agents' logs, for a failure's message.
    pub fn logs(&self, lines: usize) -> String {
        let tails = self.nodes.iter().map(|node| {
            format!(
                "--- agent of n{} ({})\n{}",
                node.number,
                node.files.log.display(),
                agents::tail(&node.files.log, lines)
            )
        });
        tails.collect::<Vec<_>>().join("\n")
    }

    /// What a failure's message should show: refused flows of every node, what its kernel programs and finished flows were
    /// counted under, and the ends of the agents' logs.
    pub fn evidence(&self, lines: usize) -> String {
        let mut text = String::new();
        for node in &self.nodes {
            let flows = self.admin(node.number, "/v1/flows?verdict=deny").unwrap_or_default();
            let last =
                flows.as_array().map_or(&[][..], |all| all.get(all.len().saturating_sub(5)..).unwrap_or_default());
            for flow in last {
                text += &format!("--- refused on n{}: {flow}\n", node.number);
            }
            let metrics = admin::get(&node.files.socket(), "/metrics").unwrap_or_default();
            let told = |line: &&str| {
                ["kumiko_kernel", "kumiko_flows_closed"].iter().any(|name| line.starts_with(name))
                    && !line.ends_with(" 0")
            };
            for line in metrics.lines().filter(told) {
                text += &format!("--- counted on n{}: {line}\n", node.number);
            }
        }
        text + &self.logs(lines)
    }

    /// Removes every trace of it.
    pub fn take_down(&mut self) -> Result<()> {
        {
            let _lock = state::lock()?;
            state::remove(&self.state.id)?;
        }
        if let Some(guard) = self.guard.take() {
            guard.dismiss();
        }
        // Reap: zombies of a long test run would add up.
        for child in self.nodes.iter_mut().filter_map(|node| node.agent.as_mut()).chain(self.issuer.as_mut()) {
            let _ = child.wait();
        }
        Ok(())
    }

    /// Copies all logs into `to`, before the lab goes.
    pub fn save_logs(&self, to: &Path) -> Result<()> {
        fs::create_dir_all(to).with_context(|| format!("making {}", to.display()))?;
        for node in &self.nodes {
            let _ = fs::copy(&node.files.log, to.join(format!("agent-n{}.log", node.number)));
        }
        let _ = fs::copy(self.dir().join("issuer.log"), to.join("issuer.log"));
        Ok(())
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if !self.state.spec.keep
            && let Err(cause) = self.take_down()
        {
            eprintln!("lab: {cause:#}");
        }
    }
}
