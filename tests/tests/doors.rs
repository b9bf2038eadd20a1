//! Pods that knock at the agents' own doors: the tunnel port, the listeners in the agent's namespace, the metrics. What
//! they see is an ordinary refusal, or what they would see if no agent were there; it is counted where it was refused.

use std::collections::BTreeSet;
use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use kumiko_abi::Reason;
use kumiko_core::api::Status;
use kumiko_lab::agents::agent_netns_name;
use kumiko_lab::command::wait_for;
use kumiko_lab::spec::{node_ips, of_family};
use kumiko_lab::wire::TUNNEL_PORT;
use kumiko_lab::{Family, Lab, LabSpec, Net, Netns, PodSpec, Stage};
use kumiko_tests::forge::{Forged, flags, send};
use kumiko_tests::harness;
use libtest_mimic::Arguments;
use nix::errno::Errno;

const NETS: [Net; 2] = [Net::Routed, Net::Bridged];
const FAMILIES: [Family; 2] = [Family::V4, Family::V6];
/// Where the agents serve metrics, on loopback: for the node's own processes.
const METRICS: u16 = 9_464;
/// Until no answer is none.
const LIMIT: Duration = Duration::from_millis(700);
/// The longest until a refusal has been counted.
const COUNTED: Duration = Duration::from_secs(10);

type Check = (&'static str, fn(&World) -> Result<()>);

const CHECKS: &[Check] = &[
    ("pods_of_the_mesh_are_refused_at_the_tunnel_port", tunnel_port),
    ("other_pods_get_no_tunnel", no_tunnel),
    ("nothing_else_of_an_agent_listens", listeners),
    ("the_agents_listeners_are_no_place_to_connect_to", agents_ports),
    ("loopback_by_way_of_the_veth_leads_nowhere", loopback),
];

fn main() -> ExitCode {
    let names = names();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    harness::main(&names, run)
}

fn names() -> Vec<String> {
    NETS.iter().flat_map(|net| CHECKS.iter().map(move |(name, _)| format!("{net}::{name}"))).collect()
}

fn run(args: &Arguments) -> Result<bool> {
    if harness::without_mesh() {
        return Ok(true);
    }
    // They look at the same counters.
    let args = Arguments { test_threads: Some(1), ..args.clone() };
    let mut well = true;
    for net in NETS {
        let world = std::sync::Arc::new(World::new(net)?);
        let trials = CHECKS.iter().map(|(name, check)| {
            let world = std::sync::Arc::clone(&world);
            harness::trial(format!("{net}::{name}"), move || check(&world))
        });
        let these = harness::run_trials(&args, trials.collect());
        if !these {
            eprintln!("{}", world.mesh.evidence(20));
        }
        well &= these;
    }
    Ok(well)
}

struct World {
    net: Net,
    direct: Lab,
    mesh: Lab,
}

impl World {
    fn new(net: Net) -> Result<Self> {
        let spec = |kind: &str, stage| {
            let name = format!("doors-{net}-{kind}-{}", std::process::id());
            let outsider = PodSpec { workload: false, ..PodSpec::new("outsider-1", "outside", 1) };
            LabSpec::standard(&name, 2, net, stage).with_pod(PodSpec::new("third-1", "demo", 1)).with_pod(outsider)
        };
        let mut meshed = spec("mesh", Stage::Strict);
        meshed.agent_args = vec!["--metrics".into(), format!("127.0.0.1:{METRICS}")];
        Ok(Self { net, direct: Lab::build(&spec("direct", Stage::Off))?, mesh: Lab::up(&meshed)? })
    }

    /// Addresses of the node that a pod of n1 sees as its gateway.
    fn gateway(&self, family: Family) -> Result<IpAddr> {
        Ok(match (self.net, family) {
            (Net::Routed, Family::V4) => "169.254.1.1",
            (Net::Bridged, Family::V4) => "10.244.1.1",
            // A link-local address needs a scope.
            (_, Family::V6) => "fd00:31::1",
        }
        .parse()?)
    }

    /// The namespace of n1's agent.
    fn agent(&self) -> Result<Netns> {
        let node = self.mesh.node(1)?;
        let path = node.files.run_dir.join("netns").join(agent_netns_name(&self.mesh.state.id, 1));
        Ok(Netns::named(path.to_string_lossy()))
    }

    /// What a pod's connect gives with the mesh, which must be what it gives without.
    fn same(&self, pod: &str, to: SocketAddr) -> Result<String> {
        // An answer that comes late on a busy machine is not none.
        wait_for("the same answer with the mesh and without", COUNTED, || {
            let [direct, mesh] = [&self.direct, &self.mesh].map(|lab| told(&lab.pod(pod)?.netns, to, LIMIT));
            let (direct, mesh) = (direct?, mesh?);
            ensure!(direct == mesh, "{pod} to {to}: {direct} without the mesh, {mesh} with it");
            Ok(mesh)
        })
    }

    /// Knocks; n1 must count one refusal more for the reason.
    fn refused<T>(&self, reason: Reason, knock: impl FnOnce() -> Result<T>) -> Result<T> {
        let before = self.count(reason)?;
        let told = knock()?;
        wait_for(&format!("a refusal is counted as {}", reason.name()), COUNTED, || {
            let now = self.count(reason)?;
            ensure!(now == before + 1, "{before} before, {now} now");
            Ok(())
        })?;
        Ok(told)
    }

    /// How often n1 has refused for a reason.
    fn count(&self, reason: Reason) -> Result<u64> {
        let status: Status = serde_json::from_value(self.mesh.admin(1, "/v1/status")?)?;
        Ok(status.refused.iter().filter(|one| one.reason == reason.name()).map(|one| one.count).sum())
    }
}

/// What `connect` in a namespace says.
fn told(ns: &Netns, to: SocketAddr, limit: Duration) -> Result<String> {
    ns.within(|| {
        Ok(match TcpStream::connect_timeout(&to, limit) {
            Ok(_) => "connected".to_owned(),
            Err(error) if error.kind() == ErrorKind::TimedOut => "no answer".to_owned(),
            Err(error) => error.raw_os_error().map_or(format!("{error}"), |n| format!("{:?}", Errno::from_raw(n))),
        })
    })
}

/// A TCP socket of a namespace: local address and port, remote ones, state.
type Row = (IpAddr, u16, IpAddr, u16, u8);

const LISTEN: u8 = 10;

/// TCP sockets of a namespace.
fn sockets(ns: &Netns) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    for file in ["tcp", "tcp6"] {
        let path = format!("/proc/thread-self/net/{file}");
        let text = ns.within(|| fs::read_to_string(&path).with_context(|| format!("reading {path}")))?;
        for line in text.lines().skip(1) {
            let mut fields = line.split_whitespace().skip(1);
            let mut next = || fields.next().context("a field of a socket");
            let ((local, port), (remote, far), state) = (address(next()?)?, address(next()?)?, next()?);
            rows.push((local, port, remote, far, u8::from_str_radix(state, 16)?));
        }
    }
    Ok(rows)
}

/// `0100007F:1F90`: words in the machine's order.
fn address(text: &str) -> Result<(IpAddr, u16)> {
    let (ip, port) = text.split_once(':').context("no port")?;
    let mut bytes = Vec::new();
    for at in (0..ip.len()).step_by(8) {
        let word = u32::from_str_radix(ip.get(at..at + 8).context("a word")?, 16)?;
        bytes.extend(word.to_ne_bytes());
    }
    let ip = match <[u8; 4]>::try_from(bytes.as_slice()) {
        Ok(v4) => IpAddr::from(v4),
        Err(_) => IpAddr::from(<[u8; 16]>::try_from(bytes.as_slice())?),
    };
    Ok((ip, u16::from_str_radix(port, 16)?))
}

fn tunnel_port(world: &World) -> Result<()> {
    for family in FAMILIES {
        for node in [1, 2] {
            let to = SocketAddr::new(of_family(node_ips(node), family), TUNNEL_PORT);
            let client = &world.mesh.pod("client-1")?.netns;
            let told = world.refused(Reason::TunnelPortRefused, || told(client, to, COUNTED))?;
            ensure!(told == "ECONNREFUSED", "{to}: {told}");
        }
        world.same("client-1", SocketAddr::new(world.gateway(family)?, TUNNEL_PORT))?;
    }
    Ok(())
}

/// Who is outside may talk to the port, as from any other machine; but not TLS without a certificate.
fn no_tunnel(world: &World) -> Result<()> {
    for family in FAMILIES {
        let to = SocketAddr::new(of_family(node_ips(1), family), TUNNEL_PORT);
        let outsider = &world.mesh.pod("outsider-1")?.netns;
        world.refused(Reason::NotTls, || {
            let mut stream =
                outsider.within(|| TcpStream::connect_timeout(&to, COUNTED).with_context(|| format!("{to}")))?;
            stream.set_read_timeout(Some(COUNTED))?;
            stream.write_all(&[0x55; 64])?;
            let read = stream.read(&mut [0; 64]);
            let ended = match &read {
                Ok(read) => *read < 64,
                Err(error) => error.kind() == ErrorKind::ConnectionReset,
            };
            ensure!(ended, "{to}: {read:?}");
            Ok(())
        })?;
    }
    Ok(())
}

/// In the node's namespace the tunnel port and what was asked for; in the agent's, loopback.
fn listeners(world: &World) -> Result<()> {
    let of_node: BTreeSet<(IpAddr, u16)> = listening(&world.mesh.node(1)?.netns)?;
    let [v4, v6] = node_ips(1);
    let wanted = [(v4, TUNNEL_PORT), (v6, TUNNEL_PORT), ("127.0.0.1".parse()?, METRICS)];
    ensure!(of_node == wanted.into(), "the node listens on {of_node:?}");
    let of_agent = listening(&world.agent()?)?;
    ensure!(!of_agent.is_empty() && of_agent.iter().all(|(ip, _)| ip.is_loopback()), "the agent's: {of_agent:?}");
    let metrics = told(&world.mesh.node(1)?.netns, SocketAddr::new("127.0.0.1".parse()?, METRICS), COUNTED)?;
    ensure!(metrics == "connected", "the node's own processes read no metrics: {metrics}");
    for to in [v4, world.gateway(Family::V4)?] {
        let told = world.same("client-1", SocketAddr::new(to, METRICS))?;
        ensure!(told == "ECONNREFUSED", "metrics at {to}: {told}");
    }
    Ok(())
}

fn listening(ns: &Netns) -> Result<BTreeSet<(IpAddr, u16)>> {
    let all = sockets(ns)?.into_iter().filter(|(.., state)| *state == LISTEN);
    Ok(all.map(|(ip, port, ..)| (ip, port)).collect())
}

/// The agent's own link-local and unique local address, its node, and any pod, at the ports that its listeners have.
fn agents_ports(world: &World) -> Result<()> {
    let own: [IpAddr; 2] = ["169.254.107.1".parse()?, "fd6b:756d:696b::1".parse()?];
    for (ip, port) in listening(&world.agent()?)? {
        let family = if ip.is_ipv4() { Family::V4 } else { Family::V6 };
        let pod = |name: &str| world.mesh.pod(name).map(|pod| pod.ip(family));
        let others = [of_family(node_ips(1), family), world.gateway(family)?, pod("server-2")?, pod("server-1")?];
        for to in others.into_iter().chain([of_family(own, family)]) {
            let told = world.same("client-1", SocketAddr::new(to, port))?;
            ensure!(told != "connected", "client-1 is connected to {to}, port {port}");
        }
        // A refused SYN goes where the listeners are.
        let to = SocketAddr::new(pod("client-1")?, port);
        let outsider = &world.mesh.pod("outsider-1")?.netns;
        let told = world.refused(Reason::PlaintextRefused, || told(outsider, to, COUNTED))?;
        ensure!(told == "ECONNREFUSED", "outsider-1 to {to}: {told}");
    }
    strangers(world)
}

/// No socket of the agent's namespace talks to one of the pods that knocked.
fn strangers(world: &World) -> Result<()> {
    let found: Vec<Row> = sockets(&world.agent()?)?.into_iter().filter(|(.., state)| *state != LISTEN).collect();
    ensure!(found.is_empty(), "the agent has {found:?}");
    Ok(())
}

/// A pod may route loopback addresses out of its veth: root in it can do anything there.
fn loopback(world: &World) -> Result<()> {
    for lab in [&world.direct, &world.mesh] {
        let ns = &lab.pod("third-1")?.netns;
        for scope in ["all", "eth0"] {
            ns.sysctl(&format!("net/ipv4/conf/{scope}/route_localnet"), "1")?;
        }
        let (v4, v6) = match world.net {
            Net::Routed => ("169.254.1.1", "fe80::1"),
            Net::Bridged => ("10.244.1.1", "fd00:244:1::1"),
        };
        ns.ip(&format!(
            "route del local 127.0.0.1 dev lo table local\nroute del local 127.0.0.0/8 dev lo table local\n\
             route add 127.0.0.1 via {v4} dev eth0\nroute del local ::1 dev lo table local\n\
             route add ::1 via {v6} dev eth0"
        ))?;
    }
    for (ip, port) in listening(&world.agent()?)? {
        let to = SocketAddr::new(ip, port);
        let told = world.same("third-1", to)?;
        ensure!(told != "connected", "third-1 is connected to {to}");
        // What begins nothing goes into the agent's namespace, to be reset there.
        let family = if ip.is_ipv4() { Family::V4 } else { Family::V6 };
        let third = world.mesh.pod("third-1")?;
        for flags in [flags::SYN | flags::ACK, flags::ACK, flags::ACK | flags::PSH] {
            let from = SocketAddr::new(third.ip(family), 40_000);
            let packet = Forged { from, to, seq: 1, ack: 1, flags, options: &[], payload: b"" }.packet()?;
            send(&third.netns, ip, &packet)?;
        }
    }
    strangers(world)
}
