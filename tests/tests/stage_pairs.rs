//! Clients at each stage call servers at each stage, with and without rules of either end: over TCP and UDP, on one node and
//! between two, over both families, by the pod's address and by its Service's. What should come of it is what the formula
//! says (docs/policy.md), written down here once more.

use std::net::{IpAddr, SocketAddr};
use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, Result, ensure};
use kumiko_lab::{Family, Lab, LabSpec, Net, PodSpec, ServiceSpec, Stage};
use kumiko_tests::echo::{Datagrams, Echo};
use kumiko_tests::probe::{self, Probe, Protocol, Refusal};
use kumiko_tests::{harness, in_force};
use libtest_mimic::Arguments;

const PORT: u16 = 20_000;
/// Below those that the kernel gives by itself.
const FIRST_PORT: u16 = 1024;
/// More than the probes of a pod.
const PORTS_OF_A_LOOK: u16 = 64;
const STAGES: [Stage; 4] = [Stage::Off, Stage::Observe, Stage::Permissive, Stage::Strict];
const FAMILIES: [Family; 2] = [Family::V4, Family::V6];

/// What rules say of a direction, of every namespace, whatever its stage.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Rule {
    /// Nothing.
    None,
    /// Everybody by name is let.
    Named,
    /// Everybody by name is let, without proof.
    Claimed,
    /// Nobody is let.
    Nobody,
    /// The platform denies everybody by name.
    Denied,
}

/// Rules of clients about where to go, and of servers about who may come.
const WORLDS: &[(&str, Rule, Rule)] = &[
    ("no_rules", Rule::None, Rule::None),
    ("out_by_name", Rule::Named, Rule::None),
    ("out_by_a_claim", Rule::Claimed, Rule::None),
    ("out_to_nobody", Rule::Nobody, Rule::None),
    ("out_denied_by_the_platform", Rule::Denied, Rule::None),
    ("in_by_name", Rule::None, Rule::Named),
    ("in_by_a_claim", Rule::None, Rule::Claimed),
    ("in_from_nobody", Rule::None, Rule::Nobody),
    ("in_denied_by_the_platform", Rule::None, Rule::Denied),
    ("both_by_name", Rule::Named, Rule::Named),
    ("both_by_a_claim", Rule::Claimed, Rule::Claimed),
    ("out_by_a_claim_in_by_name", Rule::Claimed, Rule::Named),
    ("let_out_and_not_in", Rule::Claimed, Rule::Denied),
];

/// One call.
#[derive(Clone, Copy, Debug)]
struct Way {
    client: Stage,
    server: Stage,
    /// On one node.
    near: bool,
    udp: bool,
}

/// Whether a call is let: both ends must, as far as they are enforced.
fn lets(way: Way, out: Rule, into: Rule) -> bool {
    let Way { client, server, near, udp } = way;
    let enforced = |stage| matches!(stage, Stage::Permissive | Stage::Strict);
    // By TLS or by both veths; of datagrams between nodes there is a claim only.
    let meshed = enforced(client) && enforced(server) && (near || !udp);
    // Who only observes has its veth speak for it.
    let proved = |peer| meshed || (near && peer == Stage::Observe);
    let (client_proved, server_proved) = (proved(client), proved(server));
    let rules = |rule, stage, proved: bool| match rule {
        Rule::None | Rule::Claimed => true,
        Rule::Named => proved || stage == Stage::Permissive,
        Rule::Nobody | Rule::Denied => false,
    };
    let proof = client_proved || server == Stage::Permissive || into == Rule::Claimed;
    let goes = !enforced(client) || rules(out, client, server_proved);
    let comes = !enforced(server) || (rules(into, server, client_proved) && proof);
    goes && comes
}

fn namespace(stage: Stage) -> String {
    // A bare `off` is a boolean in YAML.
    format!("at-{stage}")
}

/// All namespaces' rules.
fn documents(out: Rule, into: Rule) -> String {
    let peers: Vec<String> = STAGES.iter().map(|stage| format!("{{namespace: {}}}", namespace(*stage))).collect();
    let peers = peers.join(", ");
    let mut text = String::new();
    for own in STAGES.map(namespace) {
        for (direction, side, rule) in [("egress", "to", out), ("ingress", "from", into)] {
            let list = match rule {
                Rule::None => continue,
                Rule::Named | Rule::Denied => format!("[{{name: all, {side}: [{peers}]}}]"),
                Rule::Claimed => format!("[{{name: all, {side}: [{peers}], unauthenticated: true}}]"),
                Rule::Nobody => "[]".to_owned(),
            };
            text += &if rule == Rule::Denied {
                format!(
                    "---\napiVersion: kumiko.dev/v1alpha1\nkind: MeshBaseline\nmetadata: {{name: {own}-{direction}}}\nspec:\n  \
                     subject: {{namespace: {own}}}\n  {direction}: {{deny: {list}}}\n"
                )
            } else {
                format!(
                    "---\napiVersion: kumiko.dev/v1alpha1\nkind: MeshPolicy\nmetadata: {{name: {direction}, namespace: {own}}}\n\
                     spec:\n  subject: {{}}\n  {direction}: {list}\n"
                )
            };
        }
    }
    text
}

fn client(stage: Stage) -> String {
    format!("c-{stage}-1")
}

fn server(stage: Stage, node: u8) -> String {
    format!("s-{stage}-{node}")
}

fn spec() -> LabSpec {
    let mut spec = LabSpec::standard(&format!("pairs-{}", std::process::id()), 2, Net::Routed, Stage::Off);
    (spec.pods, spec.services, spec.datagrams) = (Vec::new(), Vec::new(), true);
    spec.namespaces = STAGES.map(|stage| (namespace(stage), stage)).to_vec();
    for stage in STAGES {
        spec.pods.push(PodSpec::new(&client(stage), &namespace(stage), 1));
        for node in [1, 2] {
            let name = server(stage, node);
            spec.pods.push(PodSpec::new(&name, &namespace(stage), node));
            let (namespace, pods) = (namespace(stage), vec![name.clone()]);
            spec.services.push(ServiceSpec { name, namespace, pods, ports: vec![(PORT, PORT)] });
        }
    }
    spec
}

struct World {
    lab: Lab,
    /// The next source port for datagrams.
    next_port: u16,
    _echoes: Vec<Echo>,
    _datagrams: Vec<Datagrams>,
}

impl World {
    fn up() -> Result<Self> {
        let lab = Lab::up(&spec())?;
        for node in [1, 2] {
            // Whose kernel tells of refused datagrams: of each one here.
            let netns = lab.agent_netns(node)?;
            netns.sysctl("net.ipv4.icmp_ratelimit", "0")?;
            netns.sysctl("net.ipv6.icmp.ratelimit", "0")?;
        }
        let (mut echoes, mut datagrams) = (Vec::new(), Vec::new());
        for name in STAGES.iter().flat_map(|stage| [1, 2].map(|node| server(*stage, node))) {
            let pod = lab.pod(&name)?;
            for family in FAMILIES {
                echoes.push(Echo::start(&pod.netns, SocketAddr::new(pod.ip(family), PORT))?);
                datagrams.push(Datagrams::start(&pod.netns, SocketAddr::new(pod.ip(family), PORT))?);
            }
        }
        Ok(Self { lab, next_port: FIRST_PORT, _echoes: echoes, _datagrams: datagrams })
    }

    fn check(&mut self, out: Rule, into: Rule) -> Result<()> {
        let file = self.lab.manifests().join("policy.yaml");
        let text = documents(out, into);
        if std::fs::read_to_string(&file).unwrap_or_default() != text {
            in_force::after(&self.lab, || std::fs::write(&file, &text).context("the policy's file"))?;
        }
        for protocol in [Protocol::Tcp, Protocol::Udp(Refusal::Told)] {
            let mut probes = Vec::new();
            for stage in STAGES {
                let own = self.probes(stage, protocol != Protocol::Tcp, out, into)?;
                probes.push((&self.lab.pod(&client(stage))?.netns, own));
            }
            self.next_port += PORTS_OF_A_LOOK;
            let all = probes.iter().map(|(_, own)| own.len()).sum::<usize>();
            let wrong = probe::wrong(protocol, &probes)?;
            ensure!(wrong.is_empty(), "{protocol:?}: {} of {all} are wrong:\n{}", wrong.len(), wrong.join("\n"));
        }
        Ok(())
    }

    fn probes(&self, stage: Stage, udp: bool, out: Rule, into: Rule) -> Result<Vec<Probe>> {
        let mut own = Vec::new();
        for (to, node, family) in STAGES
            .iter()
            .flat_map(|to| [1, 2].map(|node| (*to, node)))
            .flat_map(|(to, node)| FAMILIES.map(|family| (to, node, family)))
        {
            let name = server(to, node);
            let reaches = lets(Way { client: stage, server: to, near: node == 1, udp }, out, into);
            let ips: [(&str, IpAddr); 2] =
                [("pod", self.lab.pod(&name)?.ip(family)), ("Service", self.lab.service_ip(&name, family)?)];
            for (by, ip) in ips {
                let from_port = self.next_port + u16::try_from(own.len())?;
                let what = format!("{} to {name}, {family}, by {by}", client(stage));
                own.push(Probe { what, to: SocketAddr::new(ip, PORT), from_port, reaches });
            }
        }
        Ok(own)
    }
}

fn main() -> ExitCode {
    let names: Vec<&str> = WORLDS.iter().map(|(name, ..)| *name).collect();
    harness::main(&names, run)
}

/// One after another in the same lab.
fn run(args: &Arguments) -> Result<bool> {
    if harness::without_mesh() {
        eprintln!("skipped: without a mesh there are no stages");
        return Ok(true);
    }
    let world = Arc::new(Mutex::new(World::up()?));
    let trial = |(name, out, into): &(&str, Rule, Rule)| {
        let (world, out, into) = (Arc::clone(&world), *out, *into);
        harness::trial(*name, move || {
            let mut world = world.lock().unwrap_or_else(PoisonError::into_inner);
            world.check(out, into).map_err(|cause| cause.context(world.lab.logs(5)))
        })
    };
    let trials = WORLDS.iter().map(trial).collect();
    Ok(harness::run_trials(&Arguments { test_threads: Some(1), ..args.clone() }, trials))
}
