//! ICMP keeps to the rules: where a team or a ceiling says anything, it passes if a rule has it.

use std::io::ErrorKind;
use std::mem::MaybeUninit;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use kumiko_lab::command::wait_for;
use kumiko_lab::{Family, Net};
use serde_json::Value;
use socket2::{Domain, Protocol, Socket, Type};

use super::world::{World, within};

/// An echo is asked for again after so long.
const AGAIN: Duration = Duration::from_millis(300);
/// For a record.
const PATIENCE: Duration = Duration::from_secs(30);
/// So often; nobody loses packets here.
const TIMES: u32 = 100;

/// A socket that asks for echoes; the kernel gives it its identifier.
struct Pinger {
    what: String,
    socket: Socket,
    v6: bool,
}

impl Pinger {
    fn new(world: &World, from: &str, to: &str, family: Family) -> Result<Self> {
        let ip = world.lab.pod(to)?.ip(family);
        let v6 = ip.is_ipv6();
        let socket = world.lab.pod(from)?.netns.within(|| {
            // Of this namespace; the second family keeps to it, too.
            std::fs::write("/proc/sys/net/ipv4/ping_group_range", "0 0")?;
            let (domain, protocol) =
                if v6 { (Domain::IPV6, Protocol::ICMPV6) } else { (Domain::IPV4, Protocol::ICMPV4) };
            let socket = Socket::new(domain, Type::DGRAM, Some(protocol))?;
            socket.connect(&SocketAddr::new(ip, 0).into())?;
            socket.set_read_timeout(Some(AGAIN))?;
            Ok(socket)
        })?;
        Ok(Self { what: format!("{from} to {to} ({ip})"), socket, v6 })
    }

    /// Asks once; whether it was answered within [`AGAIN`].
    fn ask(&self) -> Result<bool> {
        let request = [if self.v6 { 128 } else { 8 }, 0, 0, 0, 0, 0, 0, 1, 7];
        self.socket.send(&request).with_context(|| self.what.clone())?;
        let mut answer = [MaybeUninit::uninit(); 64];
        match self.socket.recv(&mut answer) {
            Ok(_) => Ok(true),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => Ok(false),
            Err(error) => bail!("{}: {error}", self.what),
        }
    }

    fn answered(&self) -> Result<()> {
        for _ in 0..TIMES {
            if self.ask()? {
                return Ok(());
            }
        }
        bail!("{}: no echo", self.what)
    }
}

/// Both families; a refused echo is silence, so its record is waited for.
fn check(world: &World, from: &str, to: &str, refused: Option<&str>) -> Result<()> {
    for family in [Family::V4, Family::V6] {
        let pinger = Pinger::new(world, from, to, family)?;
        let Some(reason) = refused else {
            pinger.answered()?;
            continue;
        };
        let ips = [world.lab.pod(from)?.ip(family), world.lab.pod(to)?.ip(family)];
        ensure!(!pinger.ask()?, "{}: an echo", pinger.what);
        let what = format!("a record of {} as {reason}", pinger.what);
        wait_for(&what, PATIENCE, || {
            // A packet may be lost on its way, as any other.
            ensure!(!pinger.ask()?, "{}: an echo", pinger.what);
            ensure_told(world, ips, reason)
        })?;
    }
    Ok(())
}

/// One of the nodes tells the echo between two addresses as refused.
fn ensure_told(world: &World, [from, to]: [IpAddr; 2], reason: &str) -> Result<()> {
    let mut seen = String::new();
    for node in [1, 2] {
        let flows = world.lab.admin(node, &format!("/v1/flows?from={from}&to={to}"))?;
        let is = |flow: &Value| {
            let field = |at| flow.pointer(at).and_then(Value::as_str);
            field("/protocol") == Some("icmp") && field("/verdict") == Some("deny") && field("/reason") == Some(reason)
        };
        seen += &flows.to_string();
        if flows.as_array().is_some_and(|flows| flows.iter().any(is)) {
            return Ok(());
        }
    }
    bail!("no such record: {seen}")
}

const UNLISTED: &str = "
apiVersion: kumiko.dev/v1alpha1
kind: MeshPolicy
metadata: {name: server, namespace: demo}
spec:
  subject: {labels: {app: server}}
  ingress:
    - {name: own, from: [{namespace: demo}], unauthenticated: true, ports: [{port: 20000}, {protocol: UDP, port: 20000}]}
";

const LISTED: &str = "
apiVersion: kumiko.dev/v1alpha1
kind: MeshPolicy
metadata: {name: server, namespace: demo}
spec:
  subject: {labels: {app: server}}
  ingress:
    - {name: own, from: [{namespace: demo}], unauthenticated: true, ports: [{protocol: ICMP}]}
    - {name: other, from: [{namespace: other}], ports: [{protocol: ICMP}]}
";

const CEILING: &str = "
apiVersion: kumiko.dev/v1alpha1
kind: MeshBaseline
metadata: {name: base}
spec:
  subject: {namespace: demo}
  egress:
    allow: [{name: web, to: [{namespace: demo}], ports: [{port: 20000}]}]
";

pub(super) fn rules() -> Result<()> {
    within("echoes", Net::Routed, |world| {
        // Nothing is said of them: they pass, whoever sends them.
        for from in ["client-1", "other-1", "clear-1"] {
            check(world, from, "server-1", None).context("without a rule")?;
            check(world, from, "server-2", None).context("without a rule")?;
        }
        world.apply(UNLISTED)?;
        check(world, "client-1", "server-1", Some("team_default")).context("unlisted")?;
        check(world, "client-1", "server-2", Some("team_default")).context("unlisted")?;
        check(world, "client-1", "other-2", None).context("of whom no rule is")?;
        world.apply(LISTED)?;
        check(world, "client-1", "server-1", None).context("listed")?;
        check(world, "client-1", "server-2", None).context("listed")?;
        // On one node the veth proves who it is, between nodes nothing does.
        check(world, "other-1", "server-1", None).context("listed, proved")?;
        check(world, "other-1", "server-2", Some("team_default")).context("listed, claimed")?;
        check(world, "clear-1", "server-1", Some("team_default")).context("listed, for others")?;
        world.apply(CEILING)?;
        check(world, "client-1", "server-1", Some("above_ceiling")).context("under a ceiling")?;
        check(world, "other-1", "server-1", None).context("a ceiling for going out")
    })
}
