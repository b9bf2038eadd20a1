//! Namespaces, veths and pods for tests, taken down when dropped.

use std::fs;
use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use kumiko_kernel::agent_ns::AgentNs;
use kumiko_kernel::netns::Netns;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// Nothing here takes long; a hang should be a failure.
pub const SOON: Duration = Duration::from_secs(60);

static NEXT: AtomicU32 = AtomicU32::new(0);

/// Whether tests can run here; says why not.
pub fn root() -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        eprintln!("skipped: network namespaces need root");
    }
    root
}

/// Runs a command and returns what it printed.
pub fn run(program: &str, args: &str) -> String {
    let output = Command::new(program).args(args.split_whitespace()).output().expect(program);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {args}: {said}");
    String::from_utf8(output.stdout).unwrap()
}

/// A named namespace.
pub struct Space {
    pub name: String,
    pub netns: Netns,
}

impl Space {
    pub fn new(tag: &str) -> Self {
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("kk{}-{number}-{tag}", std::process::id());
        run("ip", &format!("netns add {name}"));
        let netns = Netns::open(format!("/run/netns/{name}")).unwrap();
        let space = Self { name, netns };
        space.ip("link set lo up");
        space
    }

    pub fn path(&self) -> PathBuf {
        PathBuf::from(format!("/run/netns/{}", self.name))
    }

    pub fn ip(&self, args: &str) -> String {
        run("ip", &format!("-n {} {args}", self.name))
    }

    pub fn sysctl(&self, key: &str, value: &str) {
        self.netns.within(|| fs::write(format!("/proc/sys/net/{key}"), value)).expect(key);
    }

    pub fn read_sysctl(&self, key: &str) -> String {
        read_sysctl(&self.netns, key)
    }

    pub fn ifindex(&self, link: &str) -> u32 {
        self.netns.within(|| Ok(nix::net::if_::if_nametoindex(link)?)).unwrap()
    }

    pub fn mac(&self, link: &str) -> [u8; 6] {
        let text = self.ip(&format!("-br link show {link}"));
        let text = text.split_whitespace().nth(2).unwrap();
        let bytes: Vec<u8> = text.split(':').map(|b| u8::from_str_radix(b, 16).unwrap()).collect();
        bytes.try_into().unwrap()
    }

    /// A listener in the namespace.
    pub fn listen(&self, address: &str) -> TcpListener {
        self.netns.within(|| TcpListener::bind(address)).unwrap()
    }

    /// Connects from the namespace, waiting for the outcome.
    pub fn connect(&self, to: SocketAddr) -> io::Result<TcpStream> {
        self.netns.within(|| TcpStream::connect_timeout(&to, SOON))
    }
}

impl Drop for Space {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "del", &self.name]).status();
    }
}

pub fn read_sysctl(netns: &Netns, key: &str) -> String {
    netns.within(|| fs::read_to_string(format!("/proc/sys/net/{key}"))).expect(key).trim().to_owned()
}

/// A node with an agent's namespace and a routed pod. What the programs do by redirection, plain routes do here:
/// `CLIENT` and `ELSEWHERE` lie behind `kumiko0`.
pub struct Node {
    pub agent: AgentNs,
    pub pod: Space,
    // Dropped before the host's namespace, which its removal needs.
    _run_dir: RunDir,
    pub host: Space,
}

/// A run directory, taken down with what the agent's namespace left in it; also when a test ends half way.
pub struct RunDir {
    pub folder: tempfile::TempDir,
    host: Netns,
}

impl RunDir {
    pub fn new(host: &Space) -> Self {
        Self { folder: tempfile::tempdir().unwrap(), host: host.netns.try_clone().unwrap() }
    }

    pub fn path(&self) -> &Path {
        self.folder.path()
    }
}

impl Drop for RunDir {
    fn drop(&mut self) {
        for name in ["kumiko", "one", "two", "mine"] {
            let _ = AgentNs::remove(self.path(), name, &self.host);
        }
    }
}

/// The pod.
pub const POD: [&str; 2] = ["10.1.0.2", "fd00:1::2"];
/// A client whose address the agent uses towards the pod.
pub const CLIENT: [&str; 2] = ["10.2.0.9", "fd00:2::9"];
/// An address for which the pod's packets go to the agent.
pub const ELSEWHERE: [&str; 2] = ["10.3.0.7", "fd00:3::7"];
/// An address for which packets vanish.
pub const NOWHERE: [&str; 2] = ["10.4.0.7", "fd00:4::7"];
/// An address for which the host answers "unreachable".
pub const UNREACHABLE: [&str; 2] = ["10.5.0.7", "fd00:5::7"];

pub fn addr(address: &str, port: u16) -> SocketAddr {
    SocketAddr::new(address.parse::<IpAddr>().unwrap(), port)
}

impl Node {
    /// None when not root.
    pub fn new(tag: &str) -> Option<Self> {
        if !root() {
            return None;
        }
        let host = Space::new(&format!("{tag}h"));
        let pod = Space::new(&format!("{tag}p"));
        let run_dir = RunDir::new(&host);
        let agent = AgentNs::ensure(run_dir.path(), "kumiko", &host.netns).unwrap();
        let node = Self { agent, pod, _run_dir: run_dir, host };
        for key in ["ipv4/ip_forward", "ipv6/conf/all/forwarding"] {
            node.host.sysctl(key, "1");
        }
        for (key, value) in [("ipv4/conf/all/rp_filter", "0"), ("ipv4/conf/kumiko0/rp_filter", "0")] {
            node.host.sysctl(key, value);
        }
        // The programs redirect into kumiko0, so the product switches its IPv6 off; routing needs it.
        node.host.sysctl("ipv6/conf/kumiko0/addr_gen_mode", "1");
        node.host.sysctl("ipv6/conf/kumiko0/accept_dad", "0");
        node.host.sysctl("ipv6/conf/kumiko0/disable_ipv6", "0");
        node.host.ip(&format!("link add vpod type veth peer name eth0 netns {}", node.pod.name));
        node.host.ip("addr add 192.0.2.1/32 dev lo");
        node.host.ip("link set vpod up");
        node.pod.ip("link set eth0 up");
        for (family, gateway) in ["10.1.0.1", "fd00:1::1"].into_iter().enumerate() {
            let prefix = if family == 0 { 24 } else { 64 };
            node.host.ip(&format!("addr add {gateway}/{prefix} dev vpod {}", nodad(family)));
            node.pod.ip(&format!("addr add {}/{prefix} dev eth0 {}", POD[family], nodad(family)));
            node.pod.ip(&format!("route add default via {gateway}"));
            let mac = "02:6b:75:6d:69:02";
            for behind in [CLIENT[family], ELSEWHERE[family]] {
                node.host.ip(&format!("route add {behind} dev kumiko0"));
                node.host.ip(&format!("neigh replace {behind} lladdr {mac} dev kumiko0 nud permanent"));
            }
            node.host.ip(&format!("route add blackhole {}", NOWHERE[family]));
            node.host.ip(&format!("route add unreachable {}", UNREACHABLE[family]));
        }
        Some(node)
    }
}

fn nodad(family: usize) -> &'static str {
    if family == 0 { "" } else { "nodad" }
}

/// Waits until a descriptor has something, or fails.
pub fn wait_for(fd: &impl AsFd, flags: PollFlags) {
    let mut fds = [PollFd::new(fd, flags)];
    let within = Timespec { tv_sec: 10, tv_nsec: 0 };
    assert_eq!(poll(&mut fds, Some(&within)).unwrap(), 1, "nothing came of it in time");
}

/// The outcome of a connect in progress: an errno, or none.
pub fn outcome(stream: &TcpStream) -> Option<i32> {
    wait_for(stream, PollFlags::OUT);
    kumiko_kernel::sockets::take_error(stream).unwrap()
}

/// Waits until `question` says yes, asking again every few milliseconds.
pub fn eventually(what: &str, mut question: impl FnMut() -> bool) {
    let start = std::time::Instant::now();
    while !question() {
        assert!(start.elapsed() < SOON, "never: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}
