//! The lab that policies are tried in, and connections in it.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use kumiko_lab::command::wait_for;
use kumiko_lab::{Family, Lab, LabSpec, Net, PodSpec, ServiceSpec, Stage};
use kumiko_tests::echo::{Datagrams, Echo};
use kumiko_tests::in_force;
use kumiko_tests::own_port::{self, OwnPorts};
use serde_json::Value;

/// Ports that the servers listen on, and their Services.
const PORTS: [u16; 2] = [20_000, 20_001];
/// The port that pods declare for probes.
pub(super) const PROBED: u16 = 8080;
/// For one connect, which takes milliseconds.
const CONNECT_WITHIN: Duration = Duration::from_secs(20);

/// The port that rules let through, and the other one.
pub(super) const OPEN: u16 = PORTS[0];
pub(super) const SHUT: u16 = PORTS[1];

/// Runs a test in a lab of its own.
pub(super) fn within(name: &str, net: Net, test: impl FnOnce(&mut World) -> Result<()>) -> Result<()> {
    let mut world = World::up(name, net)?;
    test(&mut world).map_err(|cause| cause.context(world.lab.evidence(60)))
}

/// The lab, with what changes in it.
pub(super) struct World {
    pub(super) lab: Lab,
    /// Of connections and exchanges, so that none is another one's at the pod behind a Service.
    pub(super) ports: OwnPorts,
    _echoes: Vec<Echo>,
    _datagrams: Vec<Datagrams>,
}

/// A connect that is tried: who, to whom, at which port.
pub(super) type Try = (&'static str, &'static str, u16);

impl World {
    fn up(test: &str, net: Net) -> Result<Self> {
        let name = format!("policy-{test}-{}", std::process::id());
        let mut spec = LabSpec::standard(&name, 2, net, Stage::Strict)
            .with_pod(PodSpec::new("other-1", "other", 1))
            .with_pod(PodSpec::new("other-2", "other", 2))
            .with_pod(PodSpec::new("watched-1", "watched", 1))
            .with_pod(PodSpec::new("clear-1", "clear", 1))
            .with_ports(PORTS[0], 2);
        for (name, namespace) in [("other-2", "other"), ("clear-1", "clear")] {
            spec.services.push(ServiceSpec {
                name: name.into(),
                namespace: namespace.into(),
                pods: vec![name.into()],
                ports: PORTS.map(|port| (port, port)).to_vec(),
            });
        }
        spec.datagrams = true;
        let lab = Lab::up(&spec)?;
        for (namespace, stage) in [("other", Stage::Permissive), ("watched", Stage::Observe), ("clear", Stage::Off)] {
            lab.set_stage(namespace, stage)?;
            lab.wait_stage(namespace, stage)?;
        }
        for node in 1..=2 {
            // Whose kernel tells of refused datagrams: of each one here, not of one a second.
            lab.agent_netns(node)?.sysctl("net.ipv4.icmp_ratelimit", "0")?;
            lab.agent_netns(node)?.sysctl("net.ipv6.icmp.ratelimit", "0")?;
        }
        let (mut echoes, mut datagrams) = (Vec::new(), Vec::new());
        for server in ["server-1", "server-2", "other-2", "clear-1"] {
            let pod = lab.pod(server)?;
            for family in [Family::V4, Family::V6] {
                for port in PORTS.into_iter().chain([PROBED]) {
                    echoes.push(Echo::start(&pod.netns, SocketAddr::new(pod.ip(family), port))?);
                    datagrams.push(Datagrams::start(&pod.netns, SocketAddr::new(pod.ip(family), port))?);
                }
            }
        }
        Ok(Self { lab, ports: OwnPorts::default(), _echoes: echoes, _datagrams: datagrams })
    }

    /// Epochs of the verdicts that open flows were looked at by, of both nodes.
    pub(super) fn judged(&self) -> Result<[u64; 2]> {
        let epoch = |node| {
            let status = self.lab.admin(node, "/v1/status")?;
            status.pointer("/policy/epoch").and_then(Value::as_u64).context("no policy.epoch")
        };
        Ok([epoch(1)?, epoch(2)?])
    }

    /// Waits until nothing of a pod is open that any node knows. What is open is not asked: that would tell of its end, too.
    pub(super) fn wait_closed(&self, from: &str) -> Result<()> {
        wait_for("what is open is closed", Duration::from_secs(40), || {
            for node in 1..=2 {
                let flows = self.lab.admin(node, "/v1/flows?limit=1000")?;
                let field = |flow: &Value, at: &str| flow.pointer(at).and_then(Value::as_str).map(str::to_owned);
                let live = |flow: &&Value| {
                    field(flow, "/state").as_deref() == Some("open")
                        && field(flow, "/source/name").as_deref() == Some(from)
                };
                let open = flows.as_array().into_iter().flatten().filter(live).count();
                ensure!(open == 0, "{open} flows are open on n{node}");
            }
            Ok(())
        })
    }

    /// Writes other documents than before, be they good or bad.
    pub(super) fn put(&self, text: &str) -> Result<()> {
        std::fs::write(self.lab.manifests().join("policy.yaml"), text).context("the policy's file")
    }

    /// Writes other documents than before and waits until they are what both nodes judge by.
    pub(super) fn apply(&self, text: &str) -> Result<()> {
        in_force::after(&self.lab, || self.put(text))
    }

    /// What `connect()` says, over both families, by the pod's address and by its Service's.
    fn check(&self, one: Try, allowed: bool) -> Result<()> {
        self.check_by_pod(one, allowed)?;
        let (_, to, _) = one;
        [Family::V4, Family::V6]
            .iter()
            .try_for_each(|family| self.connect(one, self.lab.service_ip(to, *family)?, allowed))
    }

    pub(super) fn check_by_pod(&self, one: Try, allowed: bool) -> Result<()> {
        let (_, to, _) = one;
        [Family::V4, Family::V6].iter().try_for_each(|family| self.connect(one, self.lab.pod(to)?.ip(*family), allowed))
    }

    fn connect(&self, (from, to, port): Try, ip: IpAddr, allowed: bool) -> Result<()> {
        let address = SocketAddr::new(ip, port);
        let client = &self.lab.pod(from)?.netns;
        let result = client.within(|| Ok(own_port::connect(self.ports.next(), address, CONNECT_WITHIN)))?;
        let (said, right) = match &result {
            Ok(_) => ("connected".to_owned(), allowed),
            Err(error) => (error.to_string(), !allowed && error.kind() == ErrorKind::ConnectionRefused),
        };
        ensure!(right, "{from} to {to}:{port} ({address}): {said}; to be allowed: {allowed}");
        Ok(())
    }

    pub(super) fn all(&self, tries: &[(Try, bool)]) -> Result<()> {
        tries.iter().try_for_each(|(one, allowed)| self.check(*one, *allowed))
    }
}

/// A connection that is open, and whether it is to stay.
pub(super) struct Open {
    what: String,
    stream: TcpStream,
    pub(super) by_service: bool,
    pub(super) stays: bool,
}

impl Open {
    /// Asks the server something, with a byte in each direction. The error is what the client is told.
    fn ask(&mut self) -> std::io::Result<()> {
        let mut byte = [7];
        self.stream.write_all(&byte)?;
        match self.stream.read(&mut byte)? {
            0 => Err(std::io::Error::other("a clean end")),
            _ => Ok(()),
        }
    }

    pub(super) fn check(&mut self) -> Result<()> {
        let result = self.ask();
        ensure!(result.is_ok() == self.stays, "{}: {result:?}; to stay: {}", self.what, self.stays);
        if let Err(error) = result {
            let kinds = [ErrorKind::ConnectionReset, ErrorKind::ConnectionAborted, ErrorKind::BrokenPipe];
            ensure!(kinds.contains(&error.kind()), "{}: {error}", self.what);
        }
        Ok(())
    }
}

impl World {
    /// Opens connections over both families, by the pod's address and by its Service's; half of them never say anything
    /// before they are looked at.
    pub(super) fn open(&self, (from, to, port): Try, stays: bool) -> Result<Vec<Open>> {
        let client = &self.lab.pod(from)?.netns;
        let mut all = Vec::new();
        for family in [Family::V4, Family::V6] {
            for (by, ip) in [("pod", self.lab.pod(to)?.ip(family)), ("Service", self.lab.service_ip(to, family)?)] {
                for idle in [false, true] {
                    let what = format!("{from} to {to}:{port}, {family}, by {by}, idle: {idle}");
                    let address = SocketAddr::new(ip, port);
                    let stream = client.within(|| Ok(own_port::connect(self.ports.next(), address, CONNECT_WITHIN)?));
                    let stream = stream.with_context(|| what.clone())?;
                    stream.set_read_timeout(Some(CONNECT_WITHIN))?;
                    let mut open = Open { what, stream, by_service: by == "Service", stays };
                    if !idle {
                        open.ask().with_context(|| open.what.clone())?;
                    }
                    all.push(open);
                }
            }
        }
        Ok(all)
    }
}
