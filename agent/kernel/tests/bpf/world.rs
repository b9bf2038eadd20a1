//! A node with two pods, a stranger outside and the agent's namespace, on real veths. Each family of addresses works.

use std::{
    fs, io,
    net::{SocketAddr, TcpListener, TcpStream},
    os::fd::AsFd,
    path::Path,
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use kumiko_abi::{Config, Event, Flow, FlowKey, Stage, SynRecord, flow::TCP};
use kumiko_kernel::{
    agent_ns::AgentNs,
    bpf::{Datapath, EventRing, SynRing},
    inject::Injector,
    netns::Netns,
    sockets::transparent_listener,
};
use nix::net::if_::if_nametoindex;

use crate::fixture::{Placed, addr, config, ip, load, place};

/// How pods hang on the node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Net {
    Routed,
    Bridged,
}

/// Addresses of one family: pods a and b, the remote meshed pod, the stranger, the node towards the pods.
pub(crate) struct Family {
    pub(crate) a: &'static str,
    pub(crate) b: &'static str,
    pub(crate) remote: &'static str,
    pub(crate) outside: &'static str,
    pub(crate) v6: bool,
}

pub(crate) const FAMILIES: [Family; 2] = [
    Family { a: "10.1.0.1", b: "10.1.0.3", remote: "10.2.0.2", outside: "192.0.2.1", v6: false },
    Family { a: "fd00:1::1", b: "fd00:1::3", remote: "fd00:2::2", outside: "fd00:9::1", v6: true },
];

pub(crate) struct World {
    pub(crate) datapath: Datapath,
    pub(crate) agent: AgentNs,
    pub(crate) listeners: Vec<TcpListener>,
    pub(crate) injector: Injector,
    pub(crate) syns: SynRing,
    pub(crate) events: EventRing,
    pub(crate) a: u32,
    pub(crate) b: u32,
}

const LONG: Duration = Duration::from_secs(30);

fn sysctl(name: &str, value: &str) {
    fs::write(format!("/proc/sys/net/{name}"), value).unwrap_or_else(|e| panic!("{name}: {e}"));
}

fn pod(name: &str, net: Net, v4: &str, v6: &str) -> u32 {
    ip(&format!("netns add {name}"));
    ip(&format!("link add v{name} type veth peer name eth0 netns {name}"));
    ip(&format!("-n {name} link set lo up"));
    let (p4, p6) = if net == Net::Bridged { (24, 64) } else { (32, 128) };
    ip(&format!("-n {name} addr add {v4}/{p4} dev eth0"));
    ip(&format!("-n {name} addr add {v6}/{p6} dev eth0 nodad"));
    if net == Net::Bridged {
        ip(&format!("link set v{name} master br0"));
    }
    ip(&format!("link set v{name} up"));
    ip(&format!("-n {name} link set eth0 up"));
    if net == Net::Routed {
        ip(&format!("addr add 169.254.1.1/32 dev v{name}"));
        ip(&format!("addr add fe80::1/64 dev v{name} nodad"));
        ip(&format!("route add {v4} dev v{name}"));
        ip(&format!("-6 route add {v6} dev v{name}"));
        ip(&format!("-n {name} route add 169.254.1.1 dev eth0"));
        ip(&format!("-n {name} route add default via 169.254.1.1"));
        ip(&format!("-n {name} -6 route add default via fe80::1 dev eth0"));
    } else {
        ip(&format!("-n {name} route add default via 10.1.0.254"));
        ip(&format!("-n {name} -6 route add default via fd00:1::fe"));
    }
    if_nametoindex(format!("v{name}").as_str()).unwrap()
}

pub(crate) fn mac(netns: Option<&str>, link: &str) -> [u8; 6] {
    let mut words: Vec<String> = netns.map(|n| vec!["-n".to_owned(), n.to_owned()]).unwrap_or_default();
    words.extend(["-o".to_owned(), "link".to_owned(), "show".to_owned(), link.to_owned()]);
    let output = std::process::Command::new("ip").args(&words).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let mac = text.split("link/ether ").nth(1).unwrap().split(' ').next().unwrap();
    let bytes: Vec<u8> = mac.split(':').map(|b| u8::from_str_radix(b, 16).unwrap()).collect();
    bytes.try_into().unwrap()
}

impl World {
    /// Both pods at `stage`, everything attached, an agent with one shard.
    pub(crate) fn new(dir: &Path, net: Net, stage: Stage) -> Self {
        for name in ["ipv4/ip_forward", "ipv6/conf/all/forwarding"] {
            sysctl(name, "1");
        }
        // Otherwise a new bridge is mute for two seconds: its neighbour solicitations wait for its own address.
        sysctl("ipv6/conf/default/accept_dad", "0");
        if net == Net::Bridged {
            ip("link add br0 type bridge");
            ip("addr add 10.1.0.254/24 dev br0");
            ip("addr add fd00:1::fe/64 dev br0 nodad");
            ip("link set br0 up");
        }
        let [v4, v6] = &FAMILIES;
        let a = pod("a", net, v4.a, v6.a);
        let b = pod("b", net, v4.b, v6.b);
        ip("netns add out");
        ip("link add vout type veth peer name eth0 netns out");
        ip("addr add 192.0.2.254/24 dev vout");
        ip("addr add fd00:9::fe/64 dev vout nodad");
        ip("link set vout up");
        ip("-n out addr add 192.0.2.1/24 dev eth0");
        ip("-n out addr add fd00:9::1/64 dev eth0 nodad");
        ip("-n out link set eth0 up");
        ip("-n out route add default via 192.0.2.254");
        ip("-n out -6 route add default via fd00:9::fe");

        let host = Netns::current().unwrap();
        let run = dir.join("run");
        let agent = AgentNs::ensure(&run, "kumiko", &host).unwrap();
        let datapath = load(dir);
        let maps = datapath.maps();
        maps.set_config(&Config { agent_mac: agent.agent_mac, ..config(agent.host_ifindex) }).unwrap();
        let (ips_a, ips_b, far) = ([v4.a, v6.a], [v4.b, v6.b], [v4.remote, v6.remote]);
        let local = |handle, ips, ifindex| Placed { handle, stage, ips, ifindex: Some(ifindex), local: true };
        place(&maps, &local(1, &ips_a, a));
        place(&maps, &local(3, &ips_b, b));
        place(&maps, &Placed { handle: 2, stage: Stage::Strict, ips: &far, ifindex: None, local: false });
        for (ifindex, name) in [(a, "a"), (b, "b")] {
            let mut endpoint = maps.endpoint(ifindex).unwrap().unwrap();
            endpoint.pod_mac = mac(Some(name), "eth0");
            let gateway = if net == Net::Bridged { "br0".to_owned() } else { format!("v{name}") };
            endpoint.gateway_mac = mac(None, &gateway);
            maps.set_endpoint(ifindex, &endpoint).unwrap();
        }
        datapath.attach_agent_veth(agent.host_ifindex).unwrap();
        datapath.attach_lookup(agent.netns.as_fd()).unwrap();
        let mut listeners = Vec::new();
        for v6 in [false, true] {
            let listener = agent.netns.within(|| transparent_listener(v6)).unwrap();
            maps.set_listener(0, v6, listener.as_fd()).unwrap();
            listeners.push(listener);
        }
        datapath.attach_pod(a).unwrap();
        datapath.attach_pod(b).unwrap();
        let injector = Injector::new(agent.host_ifindex, agent.agent_mac).unwrap();
        let (syns, events) = (datapath.syn_ring(0).unwrap(), datapath.event_ring().unwrap());
        Self { datapath, agent, listeners, injector, syns, events, a, b }
    }

    /// Waits for the next parked SYN.
    pub(crate) fn syn(&mut self) -> SynRecord {
        wait("a parked SYN", || self.syns.next())
    }

    /// The next event of a flow, waiting for it.
    pub(crate) fn event(&mut self) -> Event {
        wait("an event", || self.events.next())
    }

    pub(crate) fn accept(&self, v6: bool) -> (TcpStream, SocketAddr) {
        let accepted = wait("a connection", || self.listeners[usize::from(v6)].accept().ok());
        accepted.0.set_nonblocking(false).unwrap();
        accepted.0.set_read_timeout(Some(LONG)).unwrap();
        accepted
    }

    pub(crate) fn flow(&self, from: SocketAddr, to: SocketAddr) -> Option<Flow> {
        self.datapath.flows().get(&key(from, to))
    }
}

pub(crate) fn key(from: SocketAddr, to: SocketAddr) -> FlowKey {
    let ip = |of: SocketAddr| addr(&of.ip().to_string());
    FlowKey::of_packet(&ip(from), from.port(), &ip(to), to.port(), TCP).0
}

/// Polls until there is something.
pub(crate) fn wait<T>(what: &str, mut ask: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + LONG;
    loop {
        if let Some(found) = ask() {
            return found;
        }
        assert!(Instant::now() < end, "waited in vain for {what}");
        thread::sleep(Duration::from_millis(2));
    }
}

pub(crate) fn netns(name: &str) -> Netns {
    Netns::open(format!("/run/netns/{name}")).unwrap()
}

pub(crate) fn socket(ip: &str, port: u16) -> SocketAddr {
    SocketAddr::new(ip.parse().unwrap(), port)
}

/// A listener in a pod.
pub(crate) fn listen(pod: &str, ip: &str, port: u16) -> TcpListener {
    netns(pod).within(|| TcpListener::bind(socket(ip, port))).unwrap()
}

/// Connects from a pod (or from the node: `None`) in a thread of its own, telling how many SYNs were sent again there.
pub(crate) fn connect(pod: Option<&str>, to: SocketAddr) -> JoinHandle<(io::Result<TcpStream>, u64)> {
    let netns = pod.map_or_else(|| Netns::current().unwrap(), netns);
    thread::spawn(move || {
        netns.enter().unwrap();
        let before = syns_sent_again();
        let stream = TcpStream::connect_timeout(&to, LONG).inspect(|s| s.set_read_timeout(Some(LONG)).unwrap());
        (stream, syns_sent_again() - before)
    })
}

/// `TCPSynRetrans` of this thread's namespace.
fn syns_sent_again() -> u64 {
    let text = fs::read_to_string("/proc/thread-self/net/netstat").unwrap();
    let mut lines = text.lines().filter(|line| line.starts_with("TcpExt:")).map(str::split_whitespace);
    let (names, values) = (lines.next().unwrap(), lines.next().unwrap());
    names.zip(values).find(|(name, _)| *name == "TCPSynRetrans").unwrap().1.parse().unwrap()
}
