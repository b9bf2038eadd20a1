//! What becomes of rights when pods, namespaces and addresses are others than before.

use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use kumiko_core::api::Status;
use kumiko_lab::command::wait_for;
use kumiko_lab::manifests::set_stage;
use kumiko_lab::{Family, Net, Stage, state};
use kumiko_tests::in_force;
use socket2::{Domain, SockAddr, Socket, Type};

use super::datagrams::{self, Exchange};
use super::documents::TEAM;
use super::world::{OPEN, Open, SHUT, Try, World, within};

const FAMILIES: [Family; 2] = [Family::V4, Family::V6];

/// Lets in whom `{peers}` says, at one port, over TCP and UDP.
const RULE: &str = "
apiVersion: kumiko.dev/v1alpha1
kind: MeshPolicy
metadata: {name: server, namespace: demo}
spec:
  subject: {labels: {app: server}}
  ingress:
    - {name: some, from: [{peers}], unauthenticated: true, ports: [{port: 20000}, {protocol: UDP, port: 20000}]}
";
const PORTS: &str = ", ports: [{port: 20000}, {protocol: UDP, port: 20000}]";
/// Where nothing answers datagrams.
const SINK: u16 = 20_002;

fn rule(peers: &str) -> String {
    RULE.replace("{peers}", peers)
}

/// What a pod has open to two servers: one on its own node, one on the other.
struct Held {
    tries: [Try; 2],
    open: Vec<Open>,
    exchanges: Vec<Exchange>,
}

impl Held {
    fn new(world: &World, tries: [Try; 2]) -> Result<Self> {
        let (mut open, mut exchanges) = (Vec::new(), Vec::new());
        for one in tries {
            open.extend(world.open(one, false)?);
            for family in FAMILIES {
                let exchange = Exchange::new(world, one, world.lab.pod(one.1)?.ip(family))?;
                exchange.check(true)?;
                exchanges.push(exchange);
            }
        }
        Ok(Self { tries, open, exchanges })
    }

    /// All of it is cut, and nothing new is let.
    fn is_lost(&mut self, world: &World) -> Result<()> {
        self.open.iter_mut().try_for_each(Open::check)?;
        self.exchanges.iter().try_for_each(|exchange| exchange.check(false)).context("an exchange that was open")?;
        says(world, self.tries, false)
    }
}

/// What new connections and exchanges are told.
fn says(world: &World, tries: [Try; 2], allowed: bool) -> Result<()> {
    world.all(&tries.map(|one| (one, allowed)))?;
    tries.iter().try_for_each(|one| datagrams::check(world, *one, allowed))
}

/// Changes a document of the folder; in force when this returns.
pub(super) fn edit(world: &World, file: &str, change: impl FnOnce(String) -> String) -> Result<()> {
    let path = world.lab.manifests().join(file);
    let text = std::fs::read_to_string(&path).with_context(|| format!("reading {file}"))?;
    let changed = change(text.clone());
    ensure!(changed != text, "{file} stays as it is: {text}");
    in_force::after(&world.lab, || state::replace(&path, changed.as_bytes()))
}

fn put(world: &World, file: &str, text: &str) -> Result<()> {
    in_force::after(&world.lab, || state::replace(&world.lab.manifests().join(file), text.as_bytes()))
}

/// Takes a document away; what was in it.
fn take(world: &World, file: &str) -> Result<String> {
    let path = world.lab.manifests().join(file);
    let text = std::fs::read_to_string(&path).with_context(|| format!("reading {file}"))?;
    in_force::after(&world.lab, || std::fs::remove_file(&path).with_context(|| format!("removing {file}")))?;
    Ok(text)
}

const OWN: [Try; 2] = [("client-1", "server-1", OPEN), ("client-1", "server-2", OPEN)];
const OTHERS: [Try; 2] = [("other-1", "server-1", OPEN), ("other-1", "server-2", OPEN)];

pub(super) fn relabelled() -> Result<()> {
    within("relabel", Net::Routed, |world| {
        const FILE: &str = "workload-client-1.yaml";
        let (plain, marked) = ("  labels:\n", "  labels:\n    right: \"yes\"\n");
        world.apply(&rule("{namespace: demo, labels: {right: \"yes\"}}"))?;
        says(world, OWN, false).context("without the label")?;
        for round in 0..2 {
            edit(world, FILE, |text| text.replacen(plain, marked, 1))?;
            says(world, OWN, true).with_context(|| format!("with the label, {round}"))?;
            let mut held = Held::new(world, OWN)?;
            edit(world, FILE, |text| text.replacen(marked, plain, 1))?;
            held.is_lost(world).with_context(|| format!("the label is gone, {round}"))?;
        }
        Ok(())
    })
}

pub(super) fn recreated() -> Result<()> {
    within("recreated", Net::Routed, |world| {
        const FILE: &str = "namespace-other.yaml";
        let label = |text: String| text.replacen("  labels:\n", "  labels:\n    team: blue\n", 1);
        world.apply(&rule("{namespaceLabels: {team: blue}}"))?;
        edit(world, FILE, label)?;
        let mut held = Held::new(world, OTHERS)?;
        let pods = ["workload-other-1.yaml", "workload-other-2.yaml"];
        let texts = pods.iter().map(|file| take(world, file)).collect::<Result<Vec<_>>>()?;
        take(world, FILE)?;
        held.is_lost(world).context("the namespace is gone")?;
        in_force::after(&world.lab, || set_stage(&world.lab.manifests(), "other", Stage::Permissive))?;
        for (file, text) in pods.iter().zip(&texts) {
            let other = text.replacen("uid: 0000", "uid: 1111", 1);
            ensure!(other != *text, "{text}");
            put(world, file, &other)?;
        }
        world.lab.wait_stage("other", Stage::Permissive)?;
        says(world, OTHERS, false).context("another one of its name")?;
        edit(world, FILE, label)?;
        says(world, OTHERS, true).context("with the label of the one before")
    })
}

/// The address passes to a pod of another namespace with the same service account and labels.
pub(super) fn inherited() -> Result<()> {
    within("inherited", Net::Routed, |world| {
        in_force::after(&world.lab, || set_stage(&world.lab.manifests(), "third", Stage::Strict))?;
        world.apply(&rule("{namespace: demo}"))?;
        let mut held = Held::new(world, OWN)?;
        edit(world, "workload-client-1.yaml", |text| {
            text.replacen("uid: 0000", "uid: 1111", 1).replacen("name: client-1", "name: heir-1", 1).replacen(
                "namespace: demo",
                "namespace: third",
                1,
            )
        })?;
        world.lab.wait_stage("third", Stage::Strict)?;
        held.is_lost(world).context("the heir has nothing")?;
        world.apply(&rule("{namespace: third}"))?;
        says(world, OWN, true).context("but what it is let by its own name")
    })
}

/// A pod that may not call sends from the address of one that may.
pub(super) fn forged() -> Result<()> {
    within("forging", Net::Routed, |world| {
        let any_port = rule("{namespace: demo, serviceAccount: client}").replace(PORTS, "");
        world.apply(&any_port)?;
        says(world, OWN, true)?;
        says(world, OTHERS, false)?;
        let victim = world.lab.pod("client-1")?.ip(Family::V4);
        let forger = &world.lab.pod("other-1")?.netns;
        forger.ip(&format!("addr add {victim}/32 dev lo"))?;
        let before = spoofed(world)?;
        let (mut sinks, mut calls) = (Vec::new(), Vec::new());
        for (_, server, _) in OWN {
            let pod = world.lab.pod(server)?;
            let to = SocketAddr::new(pod.ip(Family::V4), SINK);
            let sink = pod.netns.within(|| UdpSocket::bind(to).context("a sink"))?;
            sink.set_read_timeout(Some(Duration::from_secs(20)))?;
            calls.push(forger.within(|| call(victim, to))?);
            sinks.push((sink, to));
        }
        wait_for("all of it is stopped", Duration::from_secs(20), || {
            let now = spoofed(world)? - before;
            ensure!(now >= 2 * OWN.len() as u64, "{now} packets were stopped");
            Ok(())
        })?;
        for (sink, to) in &sinks {
            // The first that comes is the victim's own.
            world.lab.pod("client-1")?.netns.within(|| {
                let socket = UdpSocket::bind((victim, 0))?;
                socket.send_to(&[2], to).context("sending")
            })?;
            let mut byte = [0];
            let (_, from) = sink.recv_from(&mut byte)?;
            ensure!(byte == [2], "{byte:?} came from {from}");
        }
        // And it did the victim no harm.
        says(world, OWN, true)
    })
}

/// A datagram and a SYN from an address; the socket that waits for an answer.
fn call(from: IpAddr, to: SocketAddr) -> Result<Socket> {
    let datagram = UdpSocket::bind((from, 0)).context("somebody's address")?;
    datagram.send_to(&[1], to).context("sending")?;
    let stream = Socket::new(Domain::for_address(to), Type::STREAM, None)?;
    stream.bind(&SockAddr::from(SocketAddr::new(from, 0)))?;
    stream.set_nonblocking(true)?;
    let _ = stream.connect(&SockAddr::from(to));
    Ok(stream)
}

/// Packets that node 1 stopped for the address that they came from.
fn spoofed(world: &World) -> Result<u64> {
    let status: Status = serde_json::from_value(world.lab.admin(1, "/v1/status")?)?;
    Ok(status.stats.get("spoofed").copied().unwrap_or(0))
}

const CUT: &str = "{action: cut}";
const KEEP: &str = "{action: keep}";
const LONG: &str = "{action: grace, seconds: 3600}";
const SHORT: &str = "{action: grace, seconds: 1}";
const WHILE: &str = "{action: grace, seconds: 10}";

/// What becomes of what is open.
#[derive(Clone, Copy, Debug)]
enum Fate {
    Stays,
    /// By the time that this is in force.
    Ends,
    /// In a while.
    Later,
}
use Fate::{Ends, Later, Stays};

/// What objects say that are all about a server, one version after the other, and what then becomes of who is let by none.
const OTHERWISE: [&[(&[&str], Fate)]; 12] = [
    &[(&[CUT], Ends)],
    &[(&[SHORT], Later)],
    &[(&[KEEP], Stays), (&[CUT], Ends)],
    &[(&[KEEP], Stays), (&[SHORT], Later)],
    &[(&[KEEP], Stays), (&[LONG], Stays), (&[SHORT], Later)],
    &[(&[LONG], Stays), (&[CUT], Ends)],
    &[(&[LONG], Stays), (&[SHORT], Later)],
    &[(&[LONG], Stays), (&[KEEP], Stays), (&[CUT], Ends)],
    // The strictest one counts.
    &[(&[KEEP, CUT], Ends)],
    &[(&[CUT, KEEP], Ends)],
    &[(&[KEEP, LONG], Stays), (&[SHORT, LONG], Later)],
    &[(&[KEEP], Stays), (&[KEEP, CUT], Ends)],
];

/// Each way to end, and what is said next.
pub(super) fn revoked_otherwise() -> Result<()> {
    within("otherwise", Net::Routed, |world| {
        let said = |ways: &[&str]| -> String {
            let one = |(number, way): (usize, &&str)| {
                let named = TEAM.replace("name: server,", &format!("name: server-{number},"));
                format!("---{}", named.replace("spec:", &format!("spec:\n  onRevoke: {way}")))
            };
            ways.iter().enumerate().map(one).collect()
        };
        for versions in OTHERWISE {
            let mut open = OTHERS.iter().map(|one| world.open(*one, true)).collect::<Result<Vec<_>>>()?;
            for (number, (ways, fate)) in versions.iter().enumerate() {
                let what = || format!("version {number} of {versions:?}");
                world.apply(&said(ways))?;
                if matches!(fate, Later) {
                    world.wait_closed("other-1").with_context(what)?;
                }
                open.iter_mut().flatten().for_each(|open| open.stays = matches!(fate, Stays));
                open.iter_mut().flatten().try_for_each(Open::check).with_context(what)?;
                world.all(&OTHERS.map(|one| (one, false))).with_context(what)?;
            }
            world.apply("")?;
        }
        kept_in_time(world)
    })
}

/// A while that has begun ends nothing once its object says otherwise. That it would be over is told by another one.
fn kept_in_time(world: &World) -> Result<()> {
    const CALLS: [Try; 2] = [("other-1", "server-1", OPEN), ("client-1", "server-1", OPEN)];
    let shut = |namespace: &str, subject: &str, way: &str| {
        format!(
            "---\napiVersion: kumiko.dev/v1alpha1\nkind: MeshPolicy\nmetadata: {{name: shut, namespace: {namespace}}}\n\
             spec: {{subject: {{serviceAccount: {subject}}}, onRevoke: {way}, egress: []}}\n"
        )
    };
    let both = |way: &str| shut("other", "other", way) + &shut("demo", "client", WHILE);
    let mut open = CALLS.iter().map(|one| world.open(*one, true)).collect::<Result<Vec<_>>>()?;
    world.apply(&both(WHILE))?;
    world.apply(&both(KEEP))?;
    open.iter_mut().flatten().try_for_each(Open::check).context("with a while left")?;
    world.wait_closed("client-1")?;
    for (open, stays) in open.iter_mut().zip([true, false]) {
        open.iter_mut().for_each(|open| open.stays = stays);
        open.iter_mut().try_for_each(Open::check).context("after the while")?;
    }
    Ok(())
}

/// While the agent comes back somebody connects all the time: none of it is let by the rules that were.
pub(super) fn meanwhile() -> Result<()> {
    within("meanwhile", Net::Routed, |world| {
        for (node, one) in [(2, ("other-1", "server-2", OPEN)), (2, ("client-1", "server-2", SHUT))] {
            world.all(&[(one, true)])?;
            world.lab.kill_agent(node)?;
            world.put(TEAM)?;
            world.lab.spawn_agent(node)?;
            let (from, to, port) = one;
            let to = SocketAddr::new(world.lab.pod(to)?.ip(Family::V4), port);
            let client = world.lab.pod(from)?.netns.clone();
            wait_for("the agent is back", Duration::from_secs(20), || {
                let connected = client.within(|| Ok(TcpStream::connect_timeout(&to, Duration::from_secs(1))))?;
                ensure!(connected.is_err(), kumiko_lab::command::Never(format!("{from} was connected to {to}")));
                let ready = world.lab.admin(node, "/v1/status")?.get("ready").cloned();
                ensure!(ready == Some(true.into()), "{ready:?}");
                Ok(())
            })?;
            world.lab.wait_agent(node)?;
            world.all(&[(one, false)])?;
            world.apply("")?;
        }
        Ok(())
    })
}
