//! What stands around the mesh on a node and is none of its business: sockets of other processes, SYN cookies, a
//! firewall that lets nothing through.

use std::collections::BTreeMap;
use std::io::Read;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use kumiko_lab::agents::agent_netns_name;
use kumiko_lab::spec::node_ips;
use kumiko_lab::{Family, Lab, LabSpec, Net, Netns, PodSpec, Stage, command};
use kumiko_tests::load::{Form, Load};
use kumiko_tests::twins::{self, FIRST_PORT, PORTS, Path, Side};
use kumiko_tests::{cases, harness};
use libtest_mimic::Arguments;
use nix::errno::Errno;
use socket2::{Domain, SockAddr, Socket, Type};

type Check = fn() -> Result<()>;

const CHECKS: &[(&str, Check)] = &[
    ("a_process_of_the_node_connects_throughout_20000_inbound_flows", host_process),
    ("syn_cookies_in_every_namespace", syn_cookies),
    ("routed::a_forward_chain_that_drops_everything", || forward_chain(Net::Routed)),
    ("bridged::a_forward_chain_that_drops_everything", || forward_chain(Net::Bridged)),
];
/// Local ports of the client and of the node's own processes alike.
const LOCAL_PORTS: std::ops::RangeInclusive<u16> = 30_000..=31_999;

fn main() -> ExitCode {
    let names: Vec<&str> = CHECKS.iter().map(|(name, _)| *name).collect();
    harness::main(&names, run)
}

fn run(args: &Arguments) -> Result<bool> {
    // Each has its own labs, one at a time.
    let args = Arguments { test_threads: Some(1), ..args.clone() };
    let trials = CHECKS.iter().map(|(name, check)| harness::trial(*name, check));
    Ok(harness::run_trials(&args, trials.collect()))
}

/// The standard lab with two pods a node that the mesh does not know; `prepare` comes before the agents do.
fn side(name: &str, net: Net, mesh: bool, prepare: impl Fn(&Lab) -> Result<()>) -> Result<Side> {
    let mesh = mesh && !harness::without_mesh();
    let name = format!("{name}-{net}-{}-{}", if mesh { "mesh" } else { "direct" }, std::process::id());
    let outsider = |name, node| PodSpec { workload: false, ..PodSpec::new(name, "outside", node) };
    let spec = LabSpec::standard(&name, 2, net, if mesh { Stage::Strict } else { Stage::Off })
        .with_ports(FIRST_PORT, PORTS)
        .with_pod(outsider("outsider-1", 1))
        .with_pod(outsider("outsider-1b", 1))
        .with_pod(outsider("outsider-2", 2));
    let mut lab = Lab::build(&spec)?;
    prepare(&lab)?;
    if mesh {
        lab.start_mesh()?;
    }
    Side::standing(lab)
}

/// The agents' namespaces of a lab.
fn agent_namespaces(lab: &Lab) -> impl Iterator<Item = Netns> + '_ {
    lab.nodes.iter().map(|node| {
        let name = agent_netns_name(&lab.state.id, node.number);
        let path: PathBuf = node.files.run_dir.join("netns").join(name);
        Netns::named(path.to_string_lossy())
    })
}

/// Every exchange on some paths, with the mesh and without.
fn compare(direct: &Side, mesh: &Side, paths: &[Path]) -> Result<()> {
    let capture = mesh.capture()?;
    for path in paths {
        for family in [Family::V4, Family::V6] {
            for case in cases::all() {
                twins::check(direct, mesh, &case, *path, family)
                    .with_context(|| format!("{} {family} {}", path.name(), case.name))
                    .map_err(|cause| cause.context(mesh.lab.evidence(20)))?;
            }
        }
    }
    let report = capture.finish()?;
    if harness::without_mesh() { Ok(()) } else { report.check() }
}

/// What a process that connects all the time was told.
#[derive(Debug, Default)]
struct Tries {
    well: u32,
    failures: BTreeMap<String, u32>,
}

/// A process of n2, which has a server pod, connects to n1 until it is told to stop.
fn connects(side: &Side, port: u16, enough: &AtomicBool) -> Result<Tries> {
    let [address, _] = node_ips(1);
    let to = SocketAddr::new(address, port);
    let listener = side.lab.node(1)?.netns.within(|| TcpListener::bind(to).context("listening on n1"))?;
    let mut tries = Tries::default();
    std::thread::scope(|scope| {
        scope.spawn(|| listener.incoming().take_while(|_| !enough.load(Ordering::Acquire)).for_each(drop));
        side.lab.node(2)?.netns.within(|| {
            while !enough.load(Ordering::Acquire) {
                let connected = TcpStream::connect_timeout(&to, Duration::from_secs(20));
                match connected.and_then(|mut stream| stream.read(&mut [0])) {
                    Ok(_) => tries.well += 1,
                    Err(error) => {
                        let what =
                            error.raw_os_error().map_or(format!("{error}"), |n| format!("{:?}", Errno::from_raw(n)));
                        *tries.failures.entry(what).or_default() += 1;
                    }
                }
                std::thread::sleep(Duration::from_millis(2));
            }
            // Wakes the listener, unless it ended with the last one: nobody answers then, so nothing is read.
            let _ = TcpStream::connect_timeout(&to, Duration::from_secs(20));
            Ok(())
        })
    })?;
    Ok(tries)
}

fn host_process() -> Result<()> {
    let range = format!("{} {}", LOCAL_PORTS.start(), LOCAL_PORTS.end());
    let (direct, mesh) = (side("host", Net::Routed, false, |_| Ok(()))?, side("host", Net::Routed, true, |_| Ok(()))?);
    let report = |side: &Side| -> Result<Tries> {
        for ns in [&side.lab.pod("client-1")?.netns, &side.lab.node(2)?.netns] {
            ns.sysctl("net.ipv4.ip_local_port_range", &range)?;
            ns.sysctl("net.ipv4.tcp_tw_reuse", "1")?;
        }
        let ports: Vec<u16> = (0..16).map(|_| side.port()).collect();
        let server = side.lab.pod("server-2")?;
        let to: Vec<SocketAddr> = ports.iter().map(|port| SocketAddr::new(server.ip(Family::V4), *port)).collect();
        let load = Load { form: Form::ClientFirst, at: to.clone(), to, rate: 2_000, count: 20_000 };
        let enough = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let trying = scope.spawn(|| connects(side, side.port(), &enough));
            let loaded = load.run(&side.lab.pod("client-1")?.netns, &server.netns);
            enough.store(true, Ordering::Release);
            let tries = trying.join().map_err(|_| anyhow::anyhow!("a thread panicked"))??;
            let loaded = loaded?;
            eprintln!("{}: {loaded}; the node's process: {tries:?}", side.lab.state.name);
            ensure!(loaded.client.well == load.count && loaded.server.well == load.count, "{loaded}");
            Ok(tries)
        })
    };
    for tries in [report(&direct)?, report(&mesh)?] {
        ensure!(tries.failures.is_empty() && tries.well > 100, "{tries:?}");
    }
    // What it looks for shows: ports that are bound, to whatever address, are not to be had by connecting.
    direct.lab.node(2)?.netns.within(|| {
        let bound = |port| -> Result<Socket> {
            let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
            socket.set_reuse_address(true)?;
            socket.set_ip_transparent_v4(true)?;
            let client = SocketAddr::new(direct.lab.pod("client-1")?.ip(Family::V4), port);
            socket.bind(&SockAddr::from(client)).with_context(|| format!("binding {client}"))?;
            Ok(socket)
        };
        let _all = LOCAL_PORTS.map(bound).collect::<Result<Vec<_>>>()?;
        let [address, _] = node_ips(1);
        let told = TcpStream::connect((address, FIRST_PORT)).err().and_then(|error| error.raw_os_error());
        ensure!(told == Some(Errno::EADDRNOTAVAIL as i32), "{told:?} without a port to be had");
        Ok(())
    })
}

fn syn_cookies() -> Result<()> {
    let always = |lab: &Lab| -> Result<()> {
        let nodes = lab.nodes.iter().map(|node| &node.netns);
        nodes.chain(lab.pods.iter().map(|pod| &pod.netns)).try_for_each(|ns| ns.sysctl("net.ipv4.tcp_syncookies", "2"))
    };
    let (direct, mesh) = (side("cookies", Net::Routed, false, always)?, side("cookies", Net::Routed, true, always)?);
    compare(&direct, &mesh, &Path::ALL)?;
    if harness::without_mesh() {
        return Ok(());
    }
    // Both the agents, which answer clients, and the pods have sent some.
    let pods = mesh.lab.pods.iter().filter(|pod| pod.name.starts_with("server")).map(|pod| pod.netns.clone());
    for ns in agent_namespaces(&mesh.lab).take(1).chain(pods) {
        let sent = ns.tcp_counter("SyncookiesSent")?;
        ensure!(sent > 0, "no SYN cookies were sent in {}", ns.name);
    }
    Ok(())
}

/// A chain that drops all that is forwarded, but lets neighbours find each other.
const FORWARD: &str = "table inet dropper { chain forward { type filter hook forward priority 0; policy drop; \
     icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert } accept; counter; }; }\n";
/// The same for what a bridge forwards.
const BRIDGE_FORWARD: &str = "table bridge dropper { chain forward { type filter hook forward priority 0; policy drop; \
     ether type arp accept; icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert } accept; counter; }; }\n";

fn forward_chain(net: Net) -> Result<()> {
    let (direct, mesh) = (side("forward", net, false, |_| Ok(()))?, side("forward", net, true, |_| Ok(()))?);
    let (inet, bridge) = ("table inet dropper", "table bridge dropper");
    let mut kinds = vec![(FORWARD, inet)];
    if net == Net::Bridged {
        kinds.push((BRIDGE_FORWARD, bridge));
    }
    for (rules, table) in kinds {
        for node in &mesh.lab.nodes {
            node.netns.within(|| command::run_with_input("nft", &["-f", "-"], rules).map(drop))?;
        }
        for (from, to) in dropped(net, table == bridge) {
            ensure!(
                !passes(&mesh, from, to, Duration::from_millis(700))?,
                "{table} does not stop what {from} sends {to}"
            );
        }
        if !harness::without_mesh() {
            compare(&direct, &mesh, &Path::ALL).with_context(|| table.to_owned())?;
        }
        for node in &mesh.lab.nodes {
            node.netns.run("nft", &[&format!("delete {table}")])?;
        }
        for (from, to) in dropped(net, table == bridge) {
            ensure!(
                passes(&mesh, from, to, Duration::from_secs(20))?,
                "without {table} nothing passes from {from} to {to} either"
            );
        }
    }
    Ok(())
}

/// What of the pods outside the mesh meets the chain.
fn dropped(net: Net, bridge: bool) -> Vec<(&'static str, &'static str)> {
    match (net, bridge) {
        (Net::Routed, _) => vec![("outsider-1", "outsider-1b"), ("outsider-1", "outsider-2")],
        // By bridge-nf-call-iptables, which the lab sets.
        (Net::Bridged, false) => vec![("outsider-1", "outsider-1b"), ("outsider-1", "outsider-2")],
        (Net::Bridged, true) => vec![("outsider-1", "outsider-1b")],
    }
}

/// Whether one pod can connect to another within so long.
fn passes(side: &Side, from: &str, to: &str, limit: Duration) -> Result<bool> {
    let server = side.lab.pod(to)?;
    let at = SocketAddr::new(server.ip(Family::V4), FIRST_PORT);
    let listener = server.netns.within(|| TcpListener::bind(at).context("listening"))?;
    let connected = side.lab.pod(from)?.netns.within(|| Ok(TcpStream::connect_timeout(&at, limit).is_ok()))?;
    drop(listener);
    Ok(connected)
}
