//! Ordinary health checkers through the mesh tell a dead backend from a live one, as they do without it.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write as _};
use std::net::{IpAddr, SocketAddr};
use std::os::unix::net::UnixStream;
use std::path::{Path as FilePath, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use kumiko_lab::command::wait_for;
use kumiko_lab::{Family, LabSpec, Net, Netns, PodSpec, Stage, state, topology};
use kumiko_tests::harness;
use kumiko_tests::programs::{self, Server, command};
use kumiko_tests::twins::{FIRST_PORT, PORTS, Path, Side};
use libtest_mimic::Arguments;

const NETS: [Net; 2] = [Net::Routed, Net::Bridged];
/// The pod that goes and comes back.
const VICTIM: &str = "victim-2";
/// The port that pods declare for probes.
const PROBED: u16 = 8080;
/// Ports of the trials: where somebody listens, where nobody does, where packets vanish.
const LIVE: u16 = FIRST_PORT;
const NOBODY: u16 = FIRST_PORT + 1;
const SILENT: u16 = FIRST_PORT + 2;
/// Where somebody listens now and then.
const FLAKY: u16 = FIRST_PORT + 3;
/// Where somebody listens until it is gone.
const MORTAL: u16 = FIRST_PORT + 4;
/// haproxy's backends that never answer.
const SILENT_ONES: [&str; 2] = ["silent", "no-pod"];
/// An address of node n2 that no pod has.
const NO_POD: &str = "10.244.2.250";
/// Until a checker must have seen a change.
const LIMIT: Duration = Duration::from_secs(60);

type Check = fn(&Side) -> Result<String>;

const CHECKS: &[(&str, Check)] =
    &[("haproxy_check", haproxy_check), ("nc_z", nc_z), ("kubelet_tcp_socket", kubelet_tcp_socket)];

fn main() -> ExitCode {
    let names: Vec<String> =
        NETS.iter().flat_map(|net| CHECKS.iter().map(move |(name, _)| format!("{net}::{name}"))).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    harness::main(&names, run)
}

fn run(args: &Arguments) -> Result<bool> {
    let stage = (!harness::without_mesh()).then_some(Stage::Strict);
    let mut well = true;
    for net in NETS {
        let direct = Arc::new(side(net, "direct", None)?);
        let mesh = Arc::new(side(net, "mesh", stage)?);
        let capture = mesh.capture()?;
        let trials = CHECKS.iter().map(|(name, check)| {
            let (direct, mesh) = (Arc::clone(&direct), Arc::clone(&mesh));
            harness::trial(format!("{net}::{name}"), move || {
                // Both at once: most of the time they wait.
                let (direct, mesh) = std::thread::scope(|scope| {
                    let other = scope.spawn(|| check(&direct).context("without the mesh"));
                    let mesh = check(&mesh).context("with the mesh");
                    (other.join(), mesh)
                });
                let direct = direct.unwrap_or_else(|_| Err(anyhow::anyhow!("the direct twin panicked")))?;
                let mesh = mesh?;
                ensure!(direct == mesh, "without the mesh:\n{direct}\nwith it:\n{mesh}");
                Ok(())
            })
        });
        let passed = harness::run_trials(args, trials.collect());
        if !passed {
            eprintln!("{}", mesh.lab.evidence(40));
        }
        well &= passed;
        well &= harness::run_afterwards(vec![harness::trial(format!("{net}::wire"), move || {
            let report = capture.finish()?;
            if stage.is_some() { report.check() } else { Ok(()) }
        })]);
    }
    Ok(well)
}

fn side(net: Net, what: &str, mesh: Option<Stage>) -> Result<Side> {
    let name = format!("health-{net}-{what}-{}", std::process::id());
    let spec = LabSpec::standard(&name, 2, net, mesh.unwrap_or(Stage::Off))
        .with_pod(PodSpec::new(VICTIM, "demo", 2))
        .with_ports(FIRST_PORT, PORTS);
    let side = Side::of(&spec, mesh.is_some())?;
    for pod in ["server-2", "server-1"] {
        let drops = format!(
            "table inet silent {{ chain input {{ type filter hook input priority 0; tcp dport {SILENT} drop\n }}\n}}\n"
        );
        let netns = &side.lab.pod(pod)?.netns;
        netns.within(|| kumiko_lab::command::run_with_input("nft", &["-f", "-"], &drops).map(drop))?;
    }
    Ok(side)
}

/// A web server in a pod that answers with its name.
fn web(side: &Side, pod: &str, port: u16, name: &str) -> Result<Server> {
    let dir = side.lab.dir().join(format!("web-{name}-{pod}-{port}"));
    fs::create_dir_all(&dir).with_context(|| format!("making {}", dir.display()))?;
    let pod = side.lab.pod(pod)?;
    let listen: String = pod.ips.iter().map(|ip| format!("listen {}; ", SocketAddr::new(*ip, port))).collect();
    let temporary: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .iter()
        .map(|what| format!("{what}_temp_path {}/{what}; ", dir.display()))
        .collect();
    let config = format!(
        "daemon off; master_process off; user root; pid {}/pid; error_log stderr;\nevents {{}}\n\
         http {{ access_log off; {temporary} server {{ {listen} location / {{ return 200 \"{name}\\n\"; }} }} }}\n",
        dir.display()
    );
    let file = dir.join("nginx.conf");
    fs::write(&file, config).context("writing nginx.conf")?;
    let mut nginx = command(&["nginx", "-c", &file.display().to_string(), "-p", &dir.display().to_string()]);
    Server::start(&pod.netns, &dir.join("log"), &mut nginx, &pod.ips.map(|_| port))
}

/// Takes the victim's link down, or up again.
fn victim(side: &Side, there: bool) -> Result<()> {
    let (node, veth) = (&side.lab.node(2)?.netns, topology::veth_name(VICTIM));
    if !there {
        return node.ip(&format!("link set {veth} down"));
    }
    node.ip(&format!("link set {veth} up"))?;
    if side.lab.state.spec.net == Net::Routed {
        // The kernel has forgotten it with the link.
        node.ip(&format!("route replace {} dev {veth}", side.lab.pod(VICTIM)?.ip(Family::V4)))?;
    }
    Ok(())
}

/// haproxy with its checks in a client's pod.
struct Haproxy {
    _server: Server,
    socket: PathBuf,
    port: u16,
}

impl Haproxy {
    fn start(side: &Side, backends: &[(&str, SocketAddr)]) -> Result<Self> {
        let (dir, port) = (side.lab.dir().join("haproxy"), 30_000);
        fs::create_dir_all(&dir).with_context(|| format!("making {}", dir.display()))?;
        let (socket, file) = (dir.join("sock"), dir.join("cfg"));
        // `inter` is also the longest that a check waits for its connect: long where something answers, on a busy machine
        // too. While a check runs, haproxy does not tell what the last one said.
        let pace = |name: &str| if SILENT_ONES.contains(&name) { "300ms" } else { "2s downinter 1s" };
        let servers: String = backends
            .iter()
            .map(|(name, to)| format!("  server {name} {to} check inter {} fall 1 rise 1\n", pace(name)))
            .collect();
        let config = format!(
            "global\n  stats socket {}\ndefaults\n  mode tcp\n  timeout connect 5s\n  timeout client 30s\n  \
             timeout server 30s\n  timeout check 5s\n  retries 0\nlisten all\n  bind 127.0.0.1:{port}\n  \
             balance roundrobin\n{servers}",
            socket.display()
        );
        fs::write(&file, config).context("writing haproxy's configuration")?;
        let mut haproxy = command(&["haproxy", "-db", "-f", &file.display().to_string()]);
        let netns = &side.lab.pod("client-1")?.netns;
        Ok(Self { _server: Server::start(netns, &dir.join("log"), &mut haproxy, &[port])?, socket, port })
    }

    /// What it thinks of each backend: its status, how its check ended, and in words.
    fn thinks(&self) -> Result<BTreeMap<String, [String; 3]>> {
        let said = ask(&self.socket, "show stat\n")?;
        let mut lines = said.lines().map(|line| line.split(',').collect::<Vec<_>>());
        let header = lines.next().context("haproxy says nothing")?;
        let column = |name: &str| header.iter().position(|at| at.trim_start_matches("# ") == name).context("no column");
        let columns = [column("status")?, column("check_status")?, column("last_chk")?];
        let name = column("svname")?;
        let get = |line: &[&str], at: usize| line.get(at).map(|field| (*field).to_owned()).unwrap_or_default();
        Ok(lines.map(|line| (get(&line, name), columns.map(|at| get(&line, at)))).collect())
    }

    /// Waits until it thinks so of backends, and returns what it thinks of them.
    fn wait(&self, what: &str, expected: &[(&str, &str)]) -> Result<String> {
        wait_for(what, LIMIT, || {
            let thinks = self.thinks()?;
            let mut answer = format!("{what}:\n");
            for (backend, wanted) in expected {
                let [status, check, words] = thinks.get(*backend).with_context(|| format!("no {backend}"))?;
                ensure!(format!("{status} {check}").starts_with(wanted), "{backend}: {status} {check} {words}");
                let said = if wanted.ends_with("L4") { "" } else { words.as_str() };
                answer += &format!("  {backend}: {wanted} {said}\n");
            }
            Ok(answer)
        })
    }

    /// Connections through it reach live backends only.
    fn serves(&self, side: &Side, by: &[&str]) -> Result<String> {
        let mut seen = Vec::new();
        for _ in 0..12 {
            let url = format!("http://127.0.0.1:{}/", self.port);
            let mut curl = command(&["curl", "-sS", "--fail", "--max-time", "30", &url]);
            seen.push(programs::run(&side.lab.pod("client-1")?.netns, &mut curl)?.well()?.trim().to_owned());
        }
        seen.sort();
        seen.dedup();
        ensure!(seen == by, "{seen:?} answered");
        Ok(format!("  {seen:?} answer\n"))
    }
}

fn ask(socket: &FilePath, question: &str) -> Result<String> {
    let mut stream = UnixStream::connect(socket).context("haproxy's socket")?;
    stream.write_all(question.as_bytes()).context("asking haproxy")?;
    let mut said = String::new();
    stream.read_to_string(&mut said).context("haproxy's answer")?;
    Ok(said)
}

fn haproxy_check(side: &Side) -> Result<String> {
    let pod = |name: &str, family| Ok::<_, anyhow::Error>(side.lab.pod(name)?.ip(family));
    let at = SocketAddr::new;
    let (far, far6) = (pod("server-2", Family::V4)?, pod("server-2", Family::V6)?);
    let service = side.address(Path::ServiceCrossNode, Family::V4)?;
    let no_pod: IpAddr = NO_POD.parse().context("an address")?;
    let backends = [
        ("live", at(far, LIVE)),
        ("live6", at(far6, LIVE)),
        ("live-service", at(service, LIVE)),
        ("nobody", at(far, NOBODY)),
        ("nobody6", at(far6, NOBODY)),
        ("nobody-service", at(service, NOBODY)),
        ("nobody-near", at(pod("server-1", Family::V4)?, NOBODY)),
        ("silent", at(far, SILENT)),
        ("no-pod", at(no_pod, LIVE)),
        ("flaky", at(far, FLAKY)),
        ("victim", at(pod(VICTIM, Family::V4)?, LIVE)),
    ];
    let _live = web(side, "server-2", LIVE, "live")?;
    let flaky = web(side, "server-2", FLAKY, "flaky")?;
    let _victim = web(side, VICTIM, LIVE, "victim")?;
    let haproxy = Haproxy::start(side, &backends)?;
    let steady = [
        ("live", "UP L4OK"),
        ("live6", "UP L4OK"),
        ("live-service", "UP L4OK"),
        ("nobody", "DOWN L4CON"),
        ("nobody6", "DOWN L4CON"),
        ("nobody-service", "DOWN L4CON"),
        ("nobody-near", "DOWN L4CON"),
        ("silent", "DOWN L4TOUT"),
        // Timed out or unreachable: routers tell the latter to some of the checks only.
        ("no-pod", "DOWN L4"),
    ];
    let with = |flaky, victim| -> Vec<(&str, &str)> {
        steady.iter().copied().chain([("flaky", flaky), ("victim", victim)]).collect()
    };
    let mut answer = haproxy.wait("all there", &with("UP L4OK", "UP L4OK"))?;
    answer += &haproxy.serves(side, &["flaky", "live", "victim"])?;
    drop(flaky);
    victim(side, false)?;
    answer += &haproxy.wait("two gone", &with("DOWN L4CON", "DOWN L4"))?;
    answer += &haproxy.serves(side, &["live"])?;
    victim(side, true)?;
    let _flaky = web(side, "server-2", FLAKY, "flaky")?;
    answer += &haproxy.wait("back again", &with("UP L4OK", "UP L4OK"))?;
    answer += &haproxy.serves(side, &["flaky", "live", "victim"])?;
    Ok(answer)
}

/// `nc -z`'s exit code and words.
fn nc(ns: &Netns, prefix: &[&str], to: SocketAddr) -> Result<String> {
    let (ip, port) = (to.ip().to_string(), to.port().to_string());
    let limit = if to.port() == SILENT { "2" } else { "30" };
    let nc = ["nc.openbsd", "-n", "-z", "-v", "-w", limit, &ip, &port];
    let words: Vec<&str> = prefix.iter().copied().chain(nc).collect();
    let said = programs::run(ns, &mut command(&words))?;
    Ok(format!("{:?}: {}\n", said.code, said.err.trim()))
}

fn nc_z(side: &Side) -> Result<String> {
    let client = &side.lab.pod("client-1")?.netns;
    let (live_far, live_near) = (web(side, "server-2", MORTAL, "nc")?, web(side, "server-1", MORTAL, "nc")?);
    let mut answer = String::new();
    let mut dead = Vec::new();
    for family in [Family::V4, Family::V6] {
        for path in Path::ALL {
            let address = side.address(path, family)?;
            for (port, code) in [(MORTAL, 0), (NOBODY, 1), (SILENT, 1)] {
                let said = nc(client, &[], SocketAddr::new(address, port))?;
                ensure!(said.starts_with(&format!("Some({code})")), "{} {family} {port}: {said}", path.name());
                answer += &said;
            }
            dead.push(SocketAddr::new(address, MORTAL));
        }
    }
    // From another pod: haproxy's checks have used up what a router tells this one.
    answer += &nc(&side.lab.pod("server-1")?.netns, &[], SocketAddr::new(NO_POD.parse().context("an address")?, LIVE))?;
    drop((live_far, live_near));
    for to in dead {
        let said = nc(client, &[], to)?;
        ensure!(said.starts_with("Some(1)") && said.contains("refused"), "{to} is dead: {said}");
        answer += &said;
    }
    Ok(answer)
}

/// A process of the node, in kubelet's cgroup, as `tcpSocket` does it: connect within a time-out, close.
fn kubelet_tcp_socket(side: &Side) -> Result<String> {
    let node = &side.lab.node(1)?.netns;
    let group = state::kubelet_cgroup(&side.lab.state.id, 1)?.join("cgroup.procs").display().to_string();
    let prefix = ["sh", "-c", "echo $$ > \"$0\" && exec \"$@\"", &group];
    let probe = |code: i32| -> Result<String> {
        let mut answer = String::new();
        for family in [Family::V4, Family::V6] {
            let to = SocketAddr::new(side.lab.pod("server-1")?.ip(family), PROBED);
            let said = nc(node, &prefix, to)?;
            ensure!(said.starts_with(&format!("Some({code})")), "a probe of {to} ends so: {said}");
            answer += &said;
        }
        Ok(answer)
    };
    let mut answer = probe(1)?;
    for _ in 0..3 {
        let live = web(side, "server-1", PROBED, "probed")?;
        answer += &probe(0)?;
        drop(live);
        answer += &probe(1)?;
    }
    Ok(answer)
}
