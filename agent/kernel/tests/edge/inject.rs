use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};

use kumiko_abi::record::SYN_MAX;
use kumiko_abi::{FlowId, FlowKey, SynRecord};
use kumiko_kernel::inject::{IcmpInjector, InjectError, Injector, complete};
use kumiko_kernel::sockets::connect_as;
use rustix::event::PollFlags;
use rustix::net::{RecvFlags, recv};
use socket2::{Domain, Socket, Type};

use crate::world::{ELSEWHERE, NOWHERE, Node, POD, addr, outcome, wait_for};

/// Sees every frame of the host's namespace.
struct Tap {
    socket: Socket,
}

impl Tap {
    fn new(node: &Node) -> Self {
        let every = u16::try_from(libc::ETH_P_ALL).unwrap().to_be();
        let open = || Socket::new(Domain::PACKET, Type::RAW, Some(i32::from(every).into()));
        Self { socket: node.host.netns.within(open).unwrap() }
    }

    /// The next SYN from source port `port`, as the programs would keep it.
    fn syn(&self, port: u16) -> SynRecord {
        loop {
            wait_for(&self.socket, PollFlags::IN);
            let mut frame = [0; 2048];
            let (length, _) = recv(&self.socket, &mut frame, RecvFlags::empty()).unwrap();
            if let Some(record) = record(&frame[..length], port) {
                return record;
            }
        }
    }
}

fn record(frame: &[u8], port: u16) -> Option<SynRecord> {
    let l4 = match frame[12..14] {
        [0x08, 0x00] if frame[23] == 6 => 14 + usize::from(frame[14] & 15) * 4,
        [0x86, 0xdd] => {
            let (mut next, mut at) = (frame[20], 54);
            while next == 0 || next == 60 {
                next = frame[at];
                at += 8 + usize::from(frame[at + 1]) * 8;
            }
            if next != 6 {
                return None;
            }
            at
        }
        _ => return None,
    };
    if frame[l4 + 13] & 0x12 != 2 || frame[l4..l4 + 2] != port.to_be_bytes() {
        return None;
    }
    let length = l4 + usize::from(frame[l4 + 12] >> 4) * 4;
    let mut kept = [0; SYN_MAX];
    kept[..length].copy_from_slice(&frame[..length]);
    Some(SynRecord {
        key: FlowKey { lo: [0; 16], hi: [0; 16], lo_port: 0, hi_port: 0, proto: 6, _pad: [0; 3] },
        id: FlowId::default(),
        first_ns: 0,
        generation: 1,
        ifindex: 0,
        src: 0,
        dst: 0,
        service: 0,
        flags: 0,
        shard: 0,
        len: length.try_into().unwrap(),
        l3: 14,
        l4: l4.try_into().unwrap(),
        frame: kept,
    })
}

/// Starts a connect of the pod whose SYN is lost, and returns both.
fn lost_syn(node: &Node, tap: &Tap, to: SocketAddr, port: u16) -> (TcpStream, SynRecord) {
    let own: IpAddr = POD[usize::from(to.is_ipv6())].parse().unwrap();
    let connecting = node.pod.netns.within(|| connect_as(SocketAddr::new(own, port), to)).unwrap();
    (connecting, tap.syn(port))
}

fn injector(node: &Node) -> Injector {
    node.host.netns.within(|| Injector::new(node.agent.host_ifindex, node.agent.agent_mac)).unwrap()
}

fn listener(node: &Node, family: usize) -> TcpListener {
    // A port for each: the fork of another test's command keeps a closed listener alive for a moment.
    let any = if family == 0 { "0.0.0.0:443" } else { "[::]:444" };
    node.agent.netns.within(|| TcpListener::bind(any)).unwrap()
}

#[test]
fn an_injected_syn_is_answered_by_the_agents_kernel() {
    let Some(node) = Node::new("inject") else { return };
    let tap = Tap::new(&node);
    let injector = injector(&node);
    for family in 0..2 {
        let to = addr(NOWHERE[family], [443, 444][family]);
        // Nobody listens: an RST, so the checksums were right.
        let (connecting, syn) = lost_syn(&node, &tap, to, 40_000);
        let whole = complete(&syn, node.agent.agent_mac).unwrap();
        assert_ne!(whole.bytes()[usize::from(syn.l4)..], syn.frame[usize::from(syn.l4)..usize::from(syn.len)]);
        injector.inject_syn(&syn).unwrap();
        assert_eq!(outcome(&connecting), Some(libc::ECONNREFUSED));

        // Somebody does: the client's own handshake, the options its kernel chose.
        let listener = listener(&node, family);
        let (connecting, syn) = lost_syn(&node, &tap, to, 40_001);
        node.host.ip(&format!("route del blackhole {}", NOWHERE[family]));
        node.host.ip(&format!("route add {} dev kumiko0", NOWHERE[family]));
        let neighbour = format!("neigh replace {} lladdr 02:6b:75:6d:69:02 dev kumiko0 nud permanent", NOWHERE[family]);
        node.host.ip(&neighbour);
        injector.inject_syn(&syn).unwrap();
        assert_eq!(outcome(&connecting), None);
        connecting.set_nonblocking(false).unwrap();
        let (mut served, from) = listener.accept().unwrap();
        assert_eq!((served.local_addr().unwrap(), from), (to, addr(POD[family], 40_001)));
        (&connecting).write_all(b"through").unwrap();
        let mut got = [0; 7];
        served.read_exact(&mut got).unwrap();
        assert_eq!(&got, b"through");
    }
}

#[test]
fn a_syn_with_extension_headers_or_options_is_answered_too() {
    let Some(node) = Node::new("options") else { return };
    let tap = Tap::new(&node);
    let injector = injector(&node);
    for family in 0..2 {
        let to = addr(NOWHERE[family], 443);
        let domain = Domain::for_address(to);
        let connecting = node
            .pod
            .netns
            .within(|| {
                let socket = Socket::new(domain, Type::STREAM.nonblocking(), None)?;
                socket.bind(&addr(POD[family], 40_002).into())?;
                let done = if family == 0 {
                    // A record route option of 7 bytes, padded (RFC 791).
                    nix_set(&socket, libc::IPPROTO_IP, libc::IP_OPTIONS, &[7, 7, 4, 0, 0, 0, 0, 0])
                } else {
                    // Destination options with padding only (RFC 8200, 4.6).
                    nix_set(&socket, libc::IPPROTO_IPV6, libc::IPV6_DSTOPTS, &[0, 0, 1, 4, 0, 0, 0, 0])
                };
                assert_eq!(done, 0);
                match socket.connect(&to.into()) {
                    Err(error) if error.raw_os_error() == Some(libc::EINPROGRESS) => Ok(TcpStream::from(socket)),
                    other => panic!("{other:?}"),
                }
            })
            .unwrap();
        let syn = tap.syn(40_002);
        assert!(syn.l4 > if family == 0 { 34 } else { 54 }, "the SYN has options");
        injector.inject_syn(&syn).unwrap();
        assert_eq!(outcome(&connecting), Some(libc::ECONNREFUSED));
    }
}

fn nix_set(socket: &Socket, level: i32, name: i32, value: &[u8]) -> i32 {
    use std::os::fd::AsRawFd;
    let length = libc::socklen_t::try_from(value.len()).unwrap();
    // SAFETY: the descriptor is borrowed for the call; the kernel reads `length` bytes of `value`.
    unsafe { libc::setsockopt(socket.as_raw_fd(), level, name, value.as_ptr().cast(), length) }
}

#[test]
fn a_client_is_told_why_with_the_errno_it_would_have_had() {
    let Some(node) = Node::new("icmp") else { return };
    let tap = Tap::new(&node);
    let injector = node.agent.netns.within(|| IcmpInjector::new(&node.agent)).unwrap();
    let mut port = 41_000;
    for (family, asked) in [(0, libc::ENOPROTOOPT), (0, libc::EHOSTDOWN), (1, libc::EACCES)].into_iter().chain(
        [0, 1].into_iter().flat_map(|family| {
            [libc::EHOSTUNREACH, libc::ENETUNREACH, libc::ECONNREFUSED, libc::EPROTO].map(|errno| (family, errno))
        }),
    ) {
        port += 1;
        let (connecting, syn) = lost_syn(&node, &tap, addr(NOWHERE[family], 443), port);
        injector.unreachable(&syn, asked).unwrap();
        assert_eq!(outcome(&connecting), Some(asked), "family {family}");
    }
    // What no ICMP error means.
    let (connecting, syn) = lost_syn(&node, &tap, addr(NOWHERE[0], 443), 42_000);
    injector.unreachable(&syn, libc::EADDRINUSE).unwrap();
    assert_eq!(outcome(&connecting), Some(libc::EHOSTUNREACH));
}

#[test]
fn a_veth_that_is_down_is_told() {
    let Some(node) = Node::new("down") else { return };
    let tap = Tap::new(&node);
    let injector = injector(&node);
    let (_connecting, syn) = lost_syn(&node, &tap, addr(ELSEWHERE[0], 443), 40_000);
    node.host.ip("link set kumiko0 down");
    let told = injector.inject_syn(&syn).unwrap_err();
    assert!(
        matches!(&told, InjectError::Send { source, .. } if source.raw_os_error() == Some(libc::ENETDOWN)),
        "{told}"
    );
}
