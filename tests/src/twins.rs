//! The same exchange in two labs: one with the mesh, one without.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use kumiko_lab::peer::{ConnReport, Peer};
use kumiko_lab::wire::Capture;
use kumiko_lab::{Family, Lab, LabSpec, Net, Netns, PodSpec, ServiceSpec, Stage, command, topology};

use crate::cases::{Aim, Case, REJECTIONS};

/// First of the ports that servers and Services of these labs declare.
pub const FIRST_PORT: u16 = 20_000;
/// How many.
pub const PORTS: u16 = 160;
/// Those at the end that the pods of a [`Side::with_failures`] drop or reject; the first drops.
const FAILING_PORTS: u16 = 5;
const _: () = assert!(FAILING_PORTS as usize == 1 + REJECTIONS.len());
/// Those before them, for exchanges that last.
const KEPT_PORTS: u16 = 16;

/// Of the agents of a [`Side::with_failures`]: flows that were silent for so long are looked up.
pub const IDLE_CHECK: Duration = Duration::from_secs(2);

/// From which pod to which, and how it is called.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Path {
    /// A pod of the other node, by its address.
    CrossNode,
    /// A pod of the same node, by its address.
    SameNode,
    /// A pod of the other node, by its Service's address.
    ServiceCrossNode,
    /// A pod of the same node, by its Service's address.
    ServiceSameNode,
}

impl Path {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::CrossNode, Self::SameNode, Self::ServiceCrossNode, Self::ServiceSameNode];

    /// Its name in tests.
    pub fn name(self) -> &'static str {
        match self {
            Self::CrossNode => "cross_node",
            Self::SameNode => "same_node",
            Self::ServiceCrossNode => "service_cross_node",
            Self::ServiceSameNode => "service_same_node",
        }
    }

    /// The server pod.
    pub fn server(self) -> &'static str {
        match self {
            Self::CrossNode | Self::ServiceCrossNode => "server-2",
            Self::SameNode | Self::ServiceSameNode => "server-1",
        }
    }

    /// Whether it is called by its Service.
    pub fn by_service(self) -> bool {
        matches!(self, Self::ServiceCrossNode | Self::ServiceSameNode)
    }
}

/// A lab with a peer in each pod that tests use.
#[derive(Debug)]
pub struct Side {
    /// The lab.
    pub lab: Lab,
    /// In client-1.
    pub client: Peer,
    /// In server-1.
    pub near: Peer,
    /// In server-2.
    pub far: Peer,
    next_port: AtomicU16,
    next_kept: AtomicU16,
}

impl Side {
    /// Builds a lab of two nodes; with issuer and agents at `stage`, or without.
    pub fn new(name: &str, net: Net, mesh: Option<Stage>) -> Result<Self> {
        let name = format!("{name}-{}", std::process::id());
        Self::of(
            &LabSpec::standard(&name, 2, net, mesh.unwrap_or(Stage::Off)).with_ports(FIRST_PORT, PORTS),
            mesh.is_some(),
        )
    }

    /// The same, with pods and ports at which connections fail, and two SYNs everywhere before a client gives up.
    pub fn with_failures(name: &str, net: Net, mesh: Option<Stage>) -> Result<Self> {
        let name = format!("{name}-{}", std::process::id());
        let mut spec = LabSpec::standard(&name, 2, net, mesh.unwrap_or(Stage::Off));
        for node in 1..=2 {
            let gone = format!("gone-{node}");
            spec = spec.with_pod(PodSpec { gone: true, ..PodSpec::new(&gone, "demo", node) });
            let service = ServiceSpec { name: gone.clone(), namespace: "demo".into(), pods: vec![gone], ports: vec![] };
            spec.services.push(service);
        }
        spec = spec.with_ports(FIRST_PORT, PORTS);
        spec.agent_args = vec!["--idle-check".into(), IDLE_CHECK.as_secs().to_string()];
        let side = Self::of(&spec, mesh.is_some())?;
        // An error a second for each client, as by default, would not do for all that it tries at once.
        let answers_all = |ns: &Netns| {
            ["net.ipv4.icmp_ratelimit", "net.ipv6.icmp.ratelimit"].iter().try_for_each(|limit| ns.sysctl(limit, "0"))
        };
        for pod in side.lab.pods.iter().filter(|pod| pod.netns.exists()) {
            pod.netns.sysctl("net.ipv4.tcp_syn_retries", "1")?;
            answers_all(&pod.netns)?;
        }
        for node in 1..=2 {
            answers_all(&side.lab.node(node)?.netns)?;
            if mesh.is_some() {
                side.lab.agent_netns(node)?.sysctl("net.ipv4.tcp_syn_retries", "1")?;
            }
        }
        for server in ["server-1", "server-2"] {
            side.lab.pod(server)?.netns.within(|| command::run_with_input("nft", &["-f", "-"], &failing_ports()))?;
        }
        Ok(side)
    }

    /// Builds a lab from a spec that has the standard pods.
    pub fn of(spec: &LabSpec, mesh: bool) -> Result<Self> {
        Self::standing(if mesh { Lab::up(spec)? } else { Lab::build(spec)? })
    }

    /// Takes a lab that stands, and has the standard pods.
    pub fn standing(lab: Lab) -> Result<Self> {
        let (client, near, far) = (lab.peer("client-1")?, lab.peer("server-1")?, lab.peer("server-2")?);
        Ok(Self { lab, client, near, far, next_port: AtomicU16::new(0), next_kept: AtomicU16::new(0) })
    }

    /// A capture between the nodes, of everything that the pods of namespace `demo` send.
    pub fn capture(&self) -> Result<Capture> {
        let pods = self.lab.state.spec.pods.iter().zip(&self.lab.pods).filter(|(spec, _)| spec.namespace == "demo");
        Capture::start(&self.lab.node(1)?.netns, topology::WIRE, pods.flat_map(|(_, pod)| pod.ips).collect())
    }

    /// A port that no other exchange of this lab uses now.
    pub fn port(&self) -> u16 {
        FIRST_PORT + self.next_port.fetch_add(1, Ordering::Relaxed) % (PORTS - FAILING_PORTS - KEPT_PORTS)
    }

    /// A port for an exchange that outlives many others: [`Self::port`] does not give it.
    pub fn kept_port(&self) -> u16 {
        let first = FIRST_PORT + PORTS - FAILING_PORTS - KEPT_PORTS;
        first + self.next_kept.fetch_add(1, Ordering::Relaxed) % KEPT_PORTS
    }

    /// The peer in a path's server pod.
    pub fn server(&self, path: Path) -> &Peer {
        if path.server() == "server-1" { &self.near } else { &self.far }
    }

    /// Where a client of a case goes on a path: `port`, unless the case has one of its own.
    fn target(&self, case: &Case, path: Path, family: Family, port: u16) -> Result<SocketAddr> {
        let first = FIRST_PORT + PORTS - FAILING_PORTS;
        let of_pod = self.address(path, family);
        Ok(match case.aim {
            Aim::Server => SocketAddr::new(of_pod?, port),
            Aim::Hole => SocketAddr::new(of_pod?, first),
            Aim::Rejected(with) => {
                let found = (first + 1..).zip(REJECTIONS).find(|(_, one)| *one == with);
                SocketAddr::new(of_pod?, found.context("no such rejection")?.0)
            }
            Aim::Gone => {
                let name = path.server().replace("server", "gone");
                let by_pod = || Ok(self.lab.pod(&name)?.ip(family));
                let ip = if path.by_service() { self.lab.service_ip(&name, family) } else { by_pod() };
                SocketAddr::new(ip?, port)
            }
            // The last of the server's network.
            Aim::Nobody => match self.lab.pod(path.server())?.ip(family) {
                IpAddr::V4(ip) => SocketAddr::new((ip | Ipv4Addr::new(0, 0, 0, 250)).into(), port),
                IpAddr::V6(ip) => SocketAddr::new((ip | Ipv6Addr::from_bits(0xfa00)).into(), port),
            },
        })
    }

    /// Address that a client uses on a path.
    pub fn address(&self, path: Path, family: Family) -> Result<std::net::IpAddr> {
        if path.by_service() {
            self.lab.service_ip(path.server(), family)
        } else {
            Ok(self.lab.pod(path.server())?.ip(family))
        }
    }

    /// Runs one exchange: the client's report, and the server's if it has a script.
    pub fn exchange(
        &self,
        case: &Case,
        path: Path,
        family: Family,
        port: u16,
    ) -> Result<(ConnReport, Option<ConnReport>)> {
        let to = self.target(case, path, family, port)?;
        let server = self.server(path);
        let Some(script) = &case.server else {
            let client = &self.lab.pod("client-1")?.netns;
            let nft = |rules: &str| client.within(|| command::run_with_input("nft", &["-f", "-"], rules)).map(drop);
            if case.first_error_lost {
                nft(&first_error_lost(port))?;
            }
            let connecting = match case.within {
                Some(within) => self.client.connect_within(to, within, case.client.clone()),
                None => self.client.connect(to, 1, case.client.clone()),
            };
            let report = connecting?.report()?;
            if case.first_error_lost {
                // The port may be another exchange's next.
                nft(&format!("delete table inet lost_{port}"))?;
            }
            return Ok((report, None));
        };
        server.listen(SocketAddr::new(self.lab.pod(path.server())?.ip(family), port))?;
        let serving = server.serve(port, 1, script.clone())?;
        let client = self.client.connect(to, 1, case.client.clone())?.report()?;
        if client.connect.is_some() {
            // Nobody will come: the accept must not be waited for.
            return Ok((client, None));
        }
        let report = serving.report()?;
        server.unlisten(port)?;
        Ok((client, Some(report)))
    }
}

/// Rules by which a pod drops or rejects what comes to its failing ports.
fn failing_ports() -> String {
    let first = FIRST_PORT + PORTS - FAILING_PORTS;
    let mut rules = format!("    tcp dport {first} drop\n");
    for (port, with) in (first + 1..).zip(REJECTIONS) {
        rules += &format!("    tcp dport {port} reject with icmpx type {with}\n");
    }
    format!("table inet failing {{\n  chain input {{\n    type filter hook input priority 0;\n{rules}  }}\n}}\n")
}

/// Rules by which a pod loses every other ICMP error about a connection to a port, the first one first.
fn first_error_lost(port: u16) -> String {
    // Behind ICMP's header the error quotes an IP header and the ports: the second is the one that was asked.
    let [v4, v6] = [20, 40].map(|header| (8 + header + 2) * 8);
    let lost = "numgen inc mod 2 0 drop";
    format!(
        "table inet lost_{port} {{\n  chain input {{\n    type filter hook input priority 0;\n    \
         icmp type destination-unreachable @th,{v4},16 {port} {lost}\n    \
         icmpv6 type destination-unreachable @th,{v6},16 {port} {lost}\n  }}\n}}\n"
    )
}

/// Compares what an exchange gave with the mesh and without.
pub fn compare(
    case: &Case,
    direct: &(ConnReport, Option<ConnReport>),
    mesh: &(ConnReport, Option<ConnReport>),
) -> Result<()> {
    let mut wrong = Vec::new();
    one_end("client", case, Some(&direct.0), Some(&mesh.0), &mut wrong);
    one_end("server", case, direct.1.as_ref(), mesh.1.as_ref(), &mut wrong);
    if direct.0.peer != mesh.0.peer {
        wrong.push(format!("client's getpeername: {:?} without the mesh, {:?} with it", direct.0.peer, mesh.0.peer));
    }
    if let Some(server) = &mesh.1
        && server.peer != mesh.0.local
    {
        wrong.push(format!("the server sees {:?} as its peer, the client is {:?}", server.peer, mesh.0.local));
    }
    if wrong.is_empty() { Ok(()) } else { bail!("{}", wrong.join("\n")) }
}

fn one_end(end: &str, case: &Case, direct: Option<&ConnReport>, mesh: Option<&ConnReport>, wrong: &mut Vec<String>) {
    let (Some(direct), Some(mesh)) = (direct, mesh) else {
        if direct.is_some() != mesh.is_some() {
            wrong.push(format!("{end}: {direct:?} without the mesh, {mesh:?} with it"));
        }
        return;
    };
    // What a network answers for a pod that is gone is the network's; the mesh knows which pod it was.
    let alike = |error: &Option<String>| error.as_deref().is_some_and(|error| case.connect.contains(&error));
    let both = case.aim == Aim::Gone && alike(&direct.connect) && alike(&mesh.connect);
    if direct.connect != mesh.connect && !both {
        wrong.push(format!("{end}'s connect: {:?} without the mesh, {:?} with it", direct.connect, mesh.connect));
    }
    if direct.steps.len() != mesh.steps.len() {
        wrong.push(format!("{end}: {} steps without the mesh, {} with it", direct.steps.len(), mesh.steps.len()));
    }
    for (number, (one, other)) in direct.steps.iter().zip(&mesh.steps).enumerate() {
        let mut other = other.clone();
        if case.prefix {
            other.bytes = one.bytes;
        }
        if *one != other {
            wrong.push(format!("{end}, step {number}: {one:?} without the mesh, {other:?} with it"));
        }
    }
}

/// Runs the exchange in both labs and compares.
pub fn check(direct: &Side, mesh: &Side, case: &Case, path: Path, family: Family) -> Result<()> {
    let port = direct.port();
    let one = direct.exchange(case, path, family, port).context("without the mesh")?;
    sane(case, &one)?;
    let other = mesh.exchange(case, path, family, port).context("with the mesh")?;
    compare(case, &one, &other)
}

/// The twin itself must be what the case means, or comparing proves nothing.
fn sane(case: &Case, (client, server): &(ConnReport, Option<ConnReport>)) -> Result<()> {
    let expected = client.connect.as_deref().map_or(case.connect.is_empty(), |error| case.connect.contains(&error));
    if !expected {
        bail!("without the mesh, connect gave {:?}", client.connect);
    }
    let broken = [Some(client), server.as_ref()].into_iter().flatten().any(|end| end.steps.iter().any(|s| !s.intact));
    if broken && case.name != "urgent_byte" {
        bail!("without the mesh, bytes were wrong: {client:?} {server:?}");
    }
    Ok(())
}
