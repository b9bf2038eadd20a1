//! UDP keeps to the rules: an exchange that they refuse is told so at once, and answers to those that they let need none.

use std::cell::Cell;
use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use kumiko_lab::{Family, Net, Netns};
use kumiko_tests::own_port::any;

use super::world::{OPEN, SHUT, Try, World, within};

/// A datagram is sent again after so long; refusals are told at the kernel's own pace, one a second.
const AGAIN: Duration = Duration::from_millis(300);
/// Nobody waits longer.
const PATIENCE: Duration = Duration::from_secs(30);

/// One end of an exchange.
pub(super) struct Exchange {
    what: String,
    socket: UdpSocket,
    /// What the last one asked consists of, to tell its answers from late ones to those before.
    asked: Cell<u8>,
}

impl Exchange {
    pub(super) fn new(world: &World, (from, to, port): Try, ip: IpAddr) -> Result<Self> {
        let address = SocketAddr::new(ip, port);
        let own = SocketAddr::new(any(address), world.ports.next());
        Self::between(format!("{from} to {to}:{port} ({address})"), &world.lab.pod(from)?.netns, own, address)
    }

    /// From an address of a namespace's own.
    pub(super) fn between(what: String, netns: &Netns, from: SocketAddr, to: SocketAddr) -> Result<Self> {
        let socket = netns.within(|| {
            let socket = UdpSocket::bind(from)?;
            socket.connect(to)?;
            socket.set_read_timeout(Some(AGAIN))?;
            Ok(socket)
        })?;
        Ok(Self { what, socket, asked: Cell::new(0) })
    }

    /// Asks until there is an answer, or a refusal (false).
    fn ask(&self, size: usize) -> Result<bool> {
        let begun = Instant::now();
        self.asked.set(self.asked.get().wrapping_add(1));
        let payload = vec![self.asked.get(); size];
        let mut answer = vec![0; usize::from(u16::MAX)];
        let mut waits = false;
        while begun.elapsed() < PATIENCE {
            let asked = if waits { Ok(()) } else { self.socket.send(&payload).map(drop) };
            waits = false;
            match asked.and_then(|()| self.socket.recv(&mut answer)) {
                Ok(read) if answer.get(..read) == Some(payload.as_slice()) => return Ok(true),
                Ok(read) => {
                    // Whoever is late answers what was sent twice twice.
                    let late = answer.first().is_some_and(|first| *first != self.asked.get());
                    ensure!(late, "{}: another answer, of {read} bytes", self.what);
                    waits = true;
                }
                Err(error) if error.kind() == ErrorKind::ConnectionRefused => return Ok(false),
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
                Err(error) => bail!("{}: {error}", self.what),
            }
        }
        bail!("{}: neither an answer nor a refusal", self.what)
    }

    pub(super) fn check(&self, allowed: bool) -> Result<()> {
        // What was refused before this may have been told twice.
        self.socket.take_error().with_context(|| self.what.clone())?;
        for size in [1, 1_000, 9_000] {
            let answered = self.ask(size)?;
            ensure!(answered == allowed, "{}, {size} bytes: answered: {answered}; allowed: {allowed}", self.what);
        }
        Ok(())
    }
}

pub(super) fn check(world: &World, one: Try, allowed: bool) -> Result<()> {
    let (_, to, _) = one;
    for family in [Family::V4, Family::V6] {
        Exchange::new(world, one, world.lab.pod(to)?.ip(family))?.check(allowed)?;
        Exchange::new(world, one, world.lab.service_ip(to, family)?)?.check(allowed).context("by Service")?;
    }
    Ok(())
}

fn all(world: &World, tries: &[(Try, bool)]) -> Result<()> {
    tries.iter().try_for_each(|(one, allowed)| check(world, *one, *allowed))
}

/// Between nodes only an address speaks for a peer: a rule says whether that is enough.
const DATAGRAMS: &str = "
apiVersion: kumiko.dev/v1alpha1
kind: MeshPolicy
metadata: {name: datagrams, namespace: demo}
spec:
  subject: {labels: {app: server}}
  ingress:
    - {name: own, from: [{namespace: demo}], unauthenticated: true, ports: [{protocol: UDP, port: 20000}]}
";

const OUT: &str = "
apiVersion: kumiko.dev/v1alpha1
kind: MeshPolicy
metadata: {name: client, namespace: demo}
spec:
  subject: {serviceAccount: client}
  egress:
    - {name: open, to: [{namespace: other}], unauthenticated: true, ports: [{protocol: UDP, port: 20001}]}
";

pub(super) fn rules() -> Result<()> {
    within("datagrams", Net::Routed, |world| {
        // Strict takes what a veth proves, and nothing of which only an address speaks.
        all(
            world,
            &[
                (("client-1", "server-1", OPEN), true),
                (("client-1", "server-2", OPEN), false),
                (("clear-1", "server-1", OPEN), false),
                (("client-1", "other-2", OPEN), true),
                (("clear-1", "other-2", OPEN), true),
            ],
        )
        .context("without a rule")?;
        world.apply(DATAGRAMS)?;
        all(
            world,
            &[
                (("client-1", "server-1", OPEN), true),
                (("client-1", "server-2", OPEN), true),
                (("client-1", "server-1", SHUT), false),
                (("client-1", "server-2", SHUT), false),
                (("other-1", "server-1", OPEN), false),
                (("other-1", "server-2", OPEN), false),
                (("clear-1", "server-2", OPEN), false),
            ],
        )
        .context("a rule that takes addresses of its namespace")?;
        world.apply(OUT)?;
        all(
            world,
            &[
                (("client-1", "other-2", SHUT), true),
                (("client-1", "other-2", OPEN), false),
                (("client-1", "server-1", OPEN), false),
                (("other-1", "server-1", OPEN), true),
            ],
        )
        .context("a rule about where to go")
    })
}

pub(super) fn open() -> Result<()> {
    within("exchanges", Net::Routed, |world| {
        world.apply(DATAGRAMS)?;
        let mut open = Vec::new();
        for to in ["server-1", "server-2"] {
            for family in [Family::V4, Family::V6] {
                for ip in [world.lab.pod(to)?.ip(family), world.lab.service_ip(to, family)?] {
                    let exchange = Exchange::new(world, ("client-1", to, OPEN), ip)?;
                    exchange.check(true)?;
                    open.push(exchange);
                }
            }
        }
        world.apply(&DATAGRAMS.replace("20000", "20001"))?;
        open.iter().try_for_each(|exchange| exchange.check(false)).context("the right is gone")?;
        world.apply(DATAGRAMS)?;
        open.iter().try_for_each(|exchange| exchange.check(true)).context("and given again")?;
        // The agent is not needed for any of it.
        world.lab.kill_agent(2)?;
        open.iter().try_for_each(|exchange| exchange.check(true)).context("without an agent")?;
        check(world, ("client-1", "server-2", SHUT), false).context("without an agent")
    })
}
