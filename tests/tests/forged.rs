//! Who forges packets into the flows of others, with every address, port and sequence number right, changes nothing and
//! is counted: from another pod of the node, in the mesh or not, and from the wire.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use kumiko_core::api::Status;
use kumiko_lab::command::wait_for;
use kumiko_lab::spec::node_ips;
use kumiko_lab::topology::{WIRE, veth_name};
use kumiko_lab::{Family, Lab, LabSpec, Net, PodSpec, Stage};
use kumiko_tests::forge::{Ears, Forged, flags, icmp_error, send};
use kumiko_tests::harness;
use kumiko_tests::twins::{FIRST_PORT, PORTS, Side};
use libtest_mimic::{Arguments, Trial};
use socket2::SockRef;

const NETS: [Net; 2] = [Net::Routed, Net::Bridged];
const FAMILIES: [Family; 2] = [Family::V4, Family::V6];
/// What is known to be wrong when a read waits so long.
const LIMIT: Duration = Duration::from_secs(10);
/// A path MTU that no wire has.
const TINY: u16 = 1_280;

/// Between which pods a flow runs, and whether it was asked for by the Service's address.
type Way = (&'static str, &'static str, bool);

const WAYS: &[Way] = &[
    ("cross_node", "server-2", false),
    ("same_node", "server-1", false),
    // A limit on its veth keeps it from the fast path: in the clear through the host's stack.
    ("same_node_in_the_clear", "slow-1", false),
    ("service_cross_node", "server-2", true),
    ("service_same_node", "server-1", true),
];

/// Where forged packets come from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum By {
    /// Another pod of the victim's node, in the mesh.
    MeshedPod,
    /// One that the mesh does not know.
    OtherPod,
    /// Another node.
    Wire,
}

const BYS: [(&str, By); 3] =
    [("a_pod_of_the_mesh", By::MeshedPod), ("a_pod_outside_it", By::OtherPod), ("the_wire", By::Wire)];

fn main() -> ExitCode {
    let names: Vec<String> = cases().map(|(net, family, way, by)| name(net, family, way, by)).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    harness::main(&names, run)
}

fn cases() -> impl Iterator<Item = (Net, Family, &'static Way, (&'static str, By))> {
    let of = |net| FAMILIES.into_iter().map(move |family| (net, family));
    let ways = |(net, family)| WAYS.iter().map(move |way| (net, family, way));
    NETS.into_iter()
        .flat_map(of)
        .flat_map(ways)
        .flat_map(|(net, family, way)| BYS.into_iter().map(move |by| (net, family, way, by)))
}

fn name(net: Net, family: Family, way: &Way, by: (&str, By)) -> String {
    format!("{net}::{}::{family}::from_{}", way.0, by.0)
}

fn run(args: &Arguments) -> Result<bool> {
    // They look at the same counters.
    let args = Arguments { test_threads: Some(1), ..args.clone() };
    let mut sides = Vec::new();
    for net in NETS {
        sides.push((net, Arc::new(side(net, !harness::without_mesh())?)));
    }
    let of = |wanted: Net| sides.iter().find(|(net, _)| *net == wanted).map(|(_, side)| Arc::clone(side));
    let trials = cases().filter_map(|(net, family, way, by)| {
        let side = of(net)?;
        Some(harness::trial(name(net, family, way, by), move || unharmed(&side, family, way, by.1)))
    });
    let trials: Vec<Trial> = trials.collect();
    let mut well = harness::run_trials(&args, trials);
    well &= harness::run_afterwards(vec![harness::trial("without_the_mesh_they_do_harm", || {
        let direct = side(Net::Routed, false)?;
        BYS.iter().try_for_each(|(name, by)| harmed(&direct, *by).with_context(|| (*name).to_owned()))
    })]);
    if !well {
        sides.iter().for_each(|(_, side)| eprintln!("{}", side.lab.evidence(20)));
    }
    Ok(well)
}

/// The standard pods, on node 1 a slow one, and on each node two that forge.
fn side(net: Net, mesh: bool) -> Result<Side> {
    let name = format!("forged-{net}-{}-{}", if mesh { "mesh" } else { "direct" }, std::process::id());
    let mut spec = LabSpec::standard(&name, 2, net, if mesh { Stage::Strict } else { Stage::Off })
        .with_pod(PodSpec::new("slow-1", "demo", 1));
    for node in [1, 2] {
        spec = spec
            .with_pod(PodSpec::new(&format!("third-{node}"), "demo", node))
            .with_pod(PodSpec { workload: false, ..PodSpec::new(&format!("outsider-{node}"), "outside", node) });
    }
    let mut lab = Lab::build(&spec.with_ports(FIRST_PORT, PORTS))?;
    prepare(&lab)?;
    if mesh {
        lab.start_mesh()?;
    }
    Side::standing(lab)
}

fn prepare(lab: &Lab) -> Result<()> {
    let limit = ["qdisc", "add", "dev", &veth_name("slow-1"), "root", "tbf", "rate", "1gbit", "burst", "1mb"];
    lab.node(1)?.netns.run("tc", &[limit.as_slice(), &["latency", "100ms"]].concat())?;
    for node in &lab.nodes {
        let here = lab.state.spec.pods.iter().filter(|pod| pod.node == node.number).map(|pod| veth_name(&pod.name));
        // The host's own check of sources would hide what is tested here.
        for link in here.chain(["all", WIRE].map(str::to_owned)) {
            node.netns.sysctl(&format!("net/ipv4/conf/{link}/rp_filter"), "0")?;
        }
    }
    Ok(())
}

/// One end of a flow, as its own pod sees it.
struct End {
    pod: String,
    node: u8,
    stream: TcpStream,
    here: SocketAddr,
    there: SocketAddr,
    ears: Ears,
    /// Sequence numbers that come next from here and from there.
    next: (u32, u32),
}

impl End {
    fn new(side: &Side, pod: &str, stream: TcpStream, ears: Ears) -> Result<Self> {
        stream.set_read_timeout(Some(LIMIT))?;
        stream.set_nodelay(true)?;
        let (here, there) = (stream.local_addr()?, stream.peer_addr()?);
        let node = side.lab.state.spec.pods.iter().find(|one| one.name == pod).context("no such pod")?.node;
        Ok(Self { pod: pod.to_owned(), node, stream, here, there, ears, next: (0, 0) })
    }
}

/// A flow: the client's end, the server's.
struct Flow([End; 2]);

impl Flow {
    fn new(side: &Side, family: Family, (_, pod, service): &Way) -> Result<Self> {
        let port = side.port();
        let (client, server) = (side.lab.pod("client-1")?, side.lab.pod(pod)?);
        let to = if *service { side.lab.service_ip(pod, family)? } else { server.ip(family) };
        let at = SocketAddr::new(server.ip(family), port);
        let ears = (Ears::open(&client.netns)?, Ears::open(&server.netns)?);
        let listener = server.netns.within(|| TcpListener::bind(at).context("listening"))?;
        let near = client.netns.within(|| TcpStream::connect((to, port)).context("connecting"))?;
        let far = listener.accept().context("accepting")?.0;
        let mut flow = Self([End::new(side, "client-1", near, ears.0)?, End::new(side, pod, far, ears.1)?]);
        flow.talk(1)?;
        for end in &mut flow.0 {
            end.next = end.ears.numbers(end.here, end.there)?;
        }
        Ok(flow)
    }

    /// A message each way, which must come as it was sent.
    fn talk(&mut self, tag: u8) -> Result<()> {
        let [client, server] = &mut self.0;
        pass(tag, &mut client.stream, &mut server.stream).context("to the server")?;
        pass(tag.wrapping_add(100), &mut server.stream, &mut client.stream).context("to the client")
    }

    /// Ends it in order; nothing but the end must come.
    fn close(self) -> Result<()> {
        let [mut client, mut server] = self.0;
        client.stream.shutdown(std::net::Shutdown::Write)?;
        ensure!(server.stream.read(&mut [0]).context("reading to the end")? == 0, "bytes instead of the server's end");
        drop(server);
        ensure!(client.stream.read(&mut [0]).context("reading to the end")? == 0, "bytes instead of the client's end");
        Ok(())
    }
}

fn pass(tag: u8, from: &mut TcpStream, to: &mut TcpStream) -> Result<()> {
    let sent = [tag; 3_000];
    from.write_all(&sent).context("writing")?;
    let mut read = [0; 3_000];
    to.read_exact(&mut read).context("reading")?;
    ensure!(read == sent, "other bytes than were sent: {:?}...", read.get(..16));
    Ok(())
}

/// Every packet that could do harm to this end, as if from the other one.
fn forgeries(end: &End, by: IpAddr) -> Result<Vec<(&'static str, Vec<u8>)>> {
    let (sent, received) = end.next;
    let forged = |seq, flags, payload| {
        Forged { from: end.there, to: end.here, seq, ack: sent, flags, options: &[], payload }.packet()
    };
    // What this end would have sent next.
    let quoted = Forged {
        from: end.here,
        to: end.there,
        seq: sent,
        ack: received,
        flags: flags::ACK,
        options: &[],
        payload: &[],
    };
    let quoted = quoted.packet()?;
    Ok(vec![
        ("too big", icmp_error(by, end.here.ip(), Some(TINY), &quoted)?),
        ("unreachable", icmp_error(by, end.here.ip(), None, &quoted)?),
        ("SYN", forged(received.wrapping_add(100_000), flags::SYN, &[])?),
        ("SYN-ACK", forged(received.wrapping_add(100_000), flags::SYN | flags::ACK, &[])?),
        ("data", forged(received, flags::PSH | flags::ACK, b"forged by somebody")?),
        ("FIN", forged(received, flags::FIN | flags::ACK, &[])?),
        ("RST", forged(received, flags::RST, &[])?),
    ])
}

/// Packets as if this end had sent them: what a pod of the mesh sends goes to the agent, if the flow is captured.
fn in_its_name(end: &End) -> Result<Vec<(&'static str, Vec<u8>)>> {
    let (seq, ack) = end.next;
    let forged =
        |flags, payload| Forged { from: end.here, to: end.there, seq, ack, flags, options: &[], payload }.packet();
    Ok(vec![
        ("data", forged(flags::PSH | flags::ACK, b"forged by somebody")?),
        ("FIN", forged(flags::FIN | flags::ACK, &[])?),
        ("RST", forged(flags::RST, &[])?),
    ])
}

/// Sends all of it to both ends; what, and on which node it is to be counted.
fn forge(side: &Side, flow: &Flow, family: Family, by: By) -> Result<Vec<(u8, &'static str)>> {
    let mut sent = Vec::new();
    for end in &flow.0 {
        let (ns, address) = match by {
            By::MeshedPod | By::OtherPod => {
                let pod = if by == By::MeshedPod { "third" } else { "outsider" };
                let pod = side.lab.pod(&format!("{pod}-{}", end.node))?;
                (&pod.netns, pod.ip(family))
            }
            By::Wire => {
                let [v4, v6] = node_ips(3 - end.node);
                (&side.lab.node(3 - end.node)?.netns, if family == Family::V4 { v4 } else { v6 })
            }
        };
        for (what, packet) in forgeries(end, address)? {
            send(ns, end.here.ip(), &packet).with_context(|| format!("{what} to {}", end.pod))?;
            sent.push((end.node, what));
        }
        if by == By::MeshedPod {
            for (what, packet) in in_its_name(end)? {
                send(ns, end.there.ip(), &packet).with_context(|| format!("{what} as {}", end.pod))?;
                sent.push((end.node, what));
            }
        }
    }
    Ok(sent)
}

/// Packets that a node says it has stopped.
fn stopped(side: &Side, node: u8) -> Result<u64> {
    let status: Status = serde_json::from_value(side.lab.admin(node, "/v1/status")?)?;
    let of = |name: &str| status.stats.get(name).copied().unwrap_or(0);
    Ok(of("wrong_interface") + of("egress_captured") + of("spoofed"))
}

fn unharmed(side: &Side, family: Family, way: &Way, by: By) -> Result<()> {
    let mut flow = Flow::new(side, family, way)?;
    if harness::without_mesh() {
        return flow.close();
    }
    let sizes = mss(&flow)?;
    let before = [stopped(side, 1)?, stopped(side, 2)?];
    let sent = forge(side, &flow, family, by)?;
    let counted = |node: u8, before: u64| {
        let forged = sent.iter().filter(|(to, _)| *to == node).count() as u64;
        wait_for("what was forged is counted", LIMIT, || {
            let now = stopped(side, node)? - before;
            ensure!(now >= forged, "n{node}: {forged} were forged, {now} counted");
            Ok(())
        })
    };
    let [first, second] = before;
    let all_counted = counted(1, first).and_then(|()| counted(2, second));
    flow.talk(2).context("after it")?;
    ensure!(mss(&flow)? == sizes, "segments of {sizes:?} bytes became {:?}", mss(&flow)?);
    flow.close().context("at the end")?;
    all_counted
}

/// Largest segments of both ends.
fn mss(flow: &Flow) -> Result<[u32; 2]> {
    let [client, server] = &flow.0;
    Ok([SockRef::from(&client.stream).tcp_mss()?, SockRef::from(&server.stream).tcp_mss()?])
}

/// The same packets end a flow that nobody looks after: what the test sends is what it says.
fn harmed(side: &Side, by: By) -> Result<()> {
    let way = WAYS.first().context("no way")?;
    for family in FAMILIES {
        let mut flow = Flow::new(side, family, way)?;
        for end in &flow.0 {
            end.stream.set_read_timeout(Some(Duration::from_millis(500)))?;
        }
        forge(side, &flow, family, by)?;
        ensure!(flow.talk(2).is_err(), "{} {family}: nothing happens to it", way.0);
    }
    Ok(())
}
