//! Each kind of rule, and whom it lets: TCP and UDP, on one node and between two, and with who is no workload.

mod tables;

use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use kumiko_lab::spec::{node_ips, of_family};
use kumiko_lab::topology::{ISSUER_HOST, netns_name};
use kumiko_lab::{Family, Net, Netns, Stage};
use kumiko_tests::echo::{Datagrams, Echo};
use socket2::{Domain, Socket, Type};

use super::changes::edit;
use super::datagrams::Exchange;
use super::documents::LEAST;
use super::world::{OPEN, SHUT, World, within};

const FAMILIES: [Family; 2] = [Family::V4, Family::V6];
/// For one connect, which takes milliseconds.
const WITHIN: Duration = Duration::from_secs(20);
/// Addresses of a host outside of the cluster: it has two of each family, so that rules can mean one and not the other.
const OUTSIDE: [[&str; 2]; 2] = [["192.0.2.7", "2001:db8::7"], ["192.0.2.200", "2001:db8::200"]];

/// Over which protocols something is tried.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Over {
    Tcp,
    Udp,
    Both,
}
use Over::{Both, Tcp, Udp};

/// Over what, who, to whom, at which port, and whether that is let. Who is a pod, or a process of a node (`n1`), or the
/// host outside by one of its addresses (`outside`, `barred`).
type Try = (Over, &'static str, &'static str, u16, bool);

/// What is tried, its documents, and whom they let.
struct Case(&'static str, String, Vec<Try>);

/// The host outside, and what answers there and on the nodes.
struct Others {
    outside: Netns,
    _echoes: Vec<Echo>,
    _datagrams: Vec<Datagrams>,
}

impl Others {
    /// The issuer's host is on the nodes' network; here it is a router to addresses beyond.
    fn up(world: &World) -> Result<Self> {
        let outside = Netns::named(netns_name(&world.lab.state.id, "issuer"));
        let mut lines = String::new();
        for [v4, v6] in OUTSIDE {
            lines += &format!("addr add {v4}/32 dev lo\naddr add {v6}/128 dev lo nodad\n");
        }
        for node in 1..=2 {
            let [v4, v6] = node_ips(node);
            lines += &format!("route add 10.244.{node}.0/24 via {v4}\nroute add fd00:244:{node}::/64 via {v6}\n");
            let [v4, v6] = node_ips(ISSUER_HOST);
            world
                .lab
                .node(node)?
                .netns
                .ip(&format!("route add 192.0.2.0/24 via {v4}\nroute add 2001:db8::/64 via {v6}"))?;
        }
        outside.ip(&format!("link set lo up\n{lines}"))?;
        let mut others = Self { outside, _echoes: Vec::new(), _datagrams: Vec::new() };
        for name in ["outside", "barred", "n1", "n2"] {
            let netns = others.netns(world, name)?.clone();
            for (family, port) in FAMILIES.into_iter().flat_map(|family| [(family, OPEN), (family, SHUT)]) {
                let at = SocketAddr::new(ip(world, name, family)?, port);
                others._echoes.push(Echo::start(&netns, at)?);
                others._datagrams.push(Datagrams::start(&netns, at)?);
            }
        }
        Ok(others)
    }

    fn netns<'a>(&'a self, world: &'a World, name: &str) -> Result<&'a Netns> {
        match name {
            "outside" | "barred" => Ok(&self.outside),
            "n1" => Ok(&world.lab.node(1)?.netns),
            "n2" => Ok(&world.lab.node(2)?.netns),
            pod => Ok(&world.lab.pod(pod)?.netns),
        }
    }

    /// By each address that the other end has, its Service's among them.
    fn check(&self, world: &World, (over, from, to, port, allowed): Try) -> Result<()> {
        let netns = self.netns(world, from)?;
        for family in FAMILIES {
            let own = ip(world, from, family)?;
            let mut addresses = vec![ip(world, to, family)?];
            // From a pod only: who comes from a node is judged by an address, whatever the one that it called.
            let has_service =
                world.lab.state.spec.services.iter().any(|one| one.name == to && one.ports.contains(&(port, port)));
            if has_service && world.lab.pod(from).is_ok() {
                addresses.push(world.lab.service_ip(to, family)?);
            }
            for address in addresses.into_iter().map(|ip| SocketAddr::new(ip, port)) {
                let what = format!("{from} to {to}:{port} ({address})");
                if over != Udp {
                    let told = netns.within(|| {
                        let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
                        socket.bind(&SocketAddr::new(own, world.ports.next()).into()).with_context(|| what.clone())?;
                        Ok(socket.connect_timeout(&address.into(), WITHIN).map_err(|error| error.kind()))
                    })?;
                    let wanted = if allowed { Ok(()) } else { Err(ErrorKind::ConnectionRefused) };
                    ensure!(told == wanted, "{what}: {told:?}; to be allowed: {allowed}");
                }
                if over != Tcp {
                    let from = SocketAddr::new(own, world.ports.next());
                    Exchange::between(what, netns, from, address)?.check(allowed).context("UDP")?;
                }
            }
        }
        Ok(())
    }
}

fn ip(world: &World, name: &str, family: Family) -> Result<IpAddr> {
    let [outside, barred] = OUTSIDE;
    let own = |[v4, v6]: [&str; 2]| if family == Family::V4 { v4.parse() } else { v6.parse() };
    Ok(match name {
        "outside" => own(outside)?,
        "barred" => own(barred)?,
        "n1" => of_family(node_ips(1), family),
        "n2" => of_family(node_ips(2), family),
        pod => world.lab.pod(pod)?.ip(family),
    })
}

pub(super) fn decide() -> Result<()> {
    within("kinds", Net::Routed, |world| {
        let others = Others::up(world)?;
        for (server, port) in [("server-1", OPEN), ("server-2", SHUT)] {
            let (before, named) = (format!("{{name: p{port},"), "{name: named,");
            edit(world, &format!("workload-{server}.yaml"), |text| text.replacen(&before, named, 1))?;
        }
        for Case(what, documents, tries) in tables::all() {
            world.apply(&documents).context(what)?;
            tries.into_iter().try_for_each(|one| others.check(world, one)).context(what)?;
        }
        least(world, &others).context("minStage")
    })
}

/// The platform's lowest stage counts, whatever a namespace's own label says.
fn least(world: &World, others: &Others) -> Result<()> {
    let check = |strict: bool| {
        [
            // Only an address speaks for it.
            (Both, "outside", "clear-1", OPEN, !strict),
            // It is proved by the tunnel that it has now.
            (Tcp, "clear-1", "server-1", OPEN, strict),
            (Tcp, "clear-1", "server-2", OPEN, strict),
            (Tcp, "client-2", "clear-1", OPEN, true),
        ]
        .into_iter()
        .try_for_each(|one| others.check(world, one))
    };
    world.apply("")?;
    let marked = "  labels:\n    platform.test/tier: prod\n";
    edit(world, "namespace-clear.yaml", |text| text.replacen("  labels:\n", marked, 1))?;
    check(false).context("as it is labelled")?;
    world.put(LEAST)?;
    world.lab.wait_stage("clear", Stage::Strict)?;
    // Who has not the platform's label stays where it was.
    world.lab.wait_stage("other", Stage::Permissive)?;
    check(true).context("raised")?;
    let status = world.lab.admin(1, "/v1/status")?;
    let told = status.pointer("/source/diagnostics").context("no diagnostics")?.to_string();
    let why = "Namespace clear: its stage off is below strict, the lowest that MeshSettings' minStage lets it have";
    ensure!(told.contains(why), "{told}");
    world.lab.set_stage("clear", Stage::Off)?;
    world.lab.wait_stage("clear", Stage::Off)?;
    // Another word about those that have it, and all that is said is in force.
    world.apply(&LEAST.replace("stage: strict", "stage: permissive"))?;
    // Its hooks stay while they drain, so on its node it may still be proved; that it takes plaintext is what tells.
    others.check(world, (Both, "outside", "clear-1", OPEN, true)).context("without the platform's label")
}
