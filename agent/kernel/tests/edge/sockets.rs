use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};

use kumiko_kernel::diag;
use kumiko_kernel::sockets::{abort, connect_as, connect_from, set_linger_off, tcp_info, transparent_listener};
use rustix::event::PollFlags;
use socket2::SockRef;

use crate::world::{CLIENT, ELSEWHERE, NOWHERE, Node, POD, UNREACHABLE, addr, eventually, outcome, wait_for};

/// Connects from the agent's namespace to a listener of the pod as `client`, both ends returned.
fn delivered(node: &Node, listener: &TcpListener, client: SocketAddr) -> (TcpStream, TcpStream) {
    let to = listener.local_addr().unwrap();
    let upstream = node.agent.netns.within(|| connect_as(client, to)).unwrap();
    assert_eq!(outcome(&upstream), None);
    upstream.set_nonblocking(false).unwrap();
    let (served, from) = listener.accept().unwrap();
    assert_eq!(from, client, "the pod sees the client itself");
    (upstream, served)
}

fn pod_listener(node: &Node, family: usize, port: u16) -> TcpListener {
    node.pod.listen(&addr(POD[family], port).to_string())
}

#[test]
fn the_pod_sees_the_client() {
    let Some(node) = Node::new("asclient") else { return };
    for family in 0..2 {
        let listener = pod_listener(&node, family, 80);
        let client = addr(CLIENT[family], 40_000);
        let (mut upstream, mut served) = delivered(&node, &listener, client);
        assert_eq!(upstream.local_addr().unwrap(), client);
        let options = SockRef::from(&upstream);
        assert_eq!(options.linger().unwrap(), Some(std::time::Duration::ZERO));
        assert!(options.out_of_band_inline().unwrap() && options.tcp_nodelay().unwrap());
        served.write_all(b"hello").unwrap();
        let mut got = [0; 5];
        upstream.read_exact(&mut got).unwrap();
        upstream.write_all(&got).unwrap();
        served.read_exact(&mut got).unwrap();
        let info = tcp_info(&upstream).unwrap();
        assert_eq!((info.state, info.bytes_received), (diag::TcpState::Established as u8, 5));
        assert!(info.rtt_us > 0 && info.bytes_sent >= 5 && info.unanswered().is_zero());
        // The same client port towards another port of the pod.
        let second = pod_listener(&node, family, 81);
        delivered(&node, &second, client);
    }
}

#[test]
fn refusal_and_unreachability_are_told_as_they_are() {
    let Some(node) = Node::new("refused") else { return };
    for family in 0..2 {
        let client = addr(CLIENT[family], 40_000);
        let connect = |to| node.agent.netns.within(|| connect_as(client, to)).unwrap();
        assert_eq!(outcome(&connect(addr(POD[family], 80))), Some(libc::ECONNREFUSED));
        assert_eq!(
            outcome(&connect(addr(UNREACHABLE[family], 80))),
            Some(if family == 0 {
                libc::EHOSTUNREACH
            } else {
                // Linux sends "no route" for an unreachable route.
                libc::ENETUNREACH
            })
        );
    }
}

#[test]
fn a_taken_tuple_and_a_taken_address_are_told_apart() {
    let Some(node) = Node::new("taken") else { return };
    for family in 0..2 {
        let listener = pod_listener(&node, family, 80);
        let to = listener.local_addr().unwrap();
        let client = addr(CLIENT[family], 40_000);
        let (_upstream, _served) = delivered(&node, &listener, client);
        let taken = node.agent.netns.within(|| connect_as(client, to)).unwrap_err();
        assert_eq!(taken.kind(), ErrorKind::AddrNotAvailable, "{taken}");
        // Another port of the same client; the kernel's choice.
        let other = node.agent.netns.within(|| connect_from(client.ip(), to)).unwrap();
        assert_eq!(outcome(&other), None);
        let from = listener.accept().unwrap().1;
        assert!(from.ip() == client.ip() && from.port() != client.port());
        assert_eq!(from, other.local_addr().unwrap());
        // Somebody listens on the client's address and port.
        let busy = addr(CLIENT[family], 40_001);
        let _listener = node
            .agent
            .netns
            .within(|| {
                let domain = socket2::Domain::for_address(busy);
                let socket = socket2::Socket::new(domain, socket2::Type::STREAM, None)?;
                if family == 0 {
                    socket.set_ip_transparent_v4(true)?
                } else {
                    socket.set_ip_transparent_v6(true)?
                }
                socket.bind(&busy.into())?;
                socket.listen(1)?;
                Ok(socket)
            })
            .unwrap();
        let refused = node.agent.netns.within(|| connect_as(busy, to)).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::AddrInUse, "{refused}");
    }
}

/// Ends a connection in good order, so that our side is left in TIME_WAIT.
fn finish(upstream: TcpStream, mut served: TcpStream) {
    upstream.shutdown(Shutdown::Write).unwrap();
    let mut rest = Vec::new();
    assert_eq!(served.read_to_end(&mut rest).unwrap(), 0);
    served.shutdown(Shutdown::Write).unwrap();
    wait_for(&upstream, PollFlags::IN);
    let mut upstream = upstream;
    assert_eq!(upstream.read_to_end(&mut rest).unwrap(), 0, "a clean end");
    set_linger_off(&upstream).unwrap();
}

#[test]
fn a_tuple_in_time_wait_is_taken_again() {
    let Some(node) = Node::new("timewait") else { return };
    for family in 0..2 {
        let listener = pod_listener(&node, family, 80);
        let client = addr(CLIENT[family], 40_000);
        let to = listener.local_addr().unwrap();
        for _ in 0..3 {
            let (upstream, served) = delivered(&node, &listener, client);
            finish(upstream, served);
            let mut diag = diag::Diag::open(&node.agent.netns).unwrap();
            assert_eq!(diag.find(client, to).unwrap(), Some(diag::TcpState::TimeWait));
        }
    }
}

#[test]
fn a_time_wait_without_timestamps_can_be_destroyed() {
    let Some(node) = Node::new("notimestamps") else { return };
    node.pod.sysctl("ipv4/tcp_timestamps", "0");
    for family in 0..2 {
        let listener = pod_listener(&node, family, 80);
        let client = addr(CLIENT[family], 40_000);
        let to = listener.local_addr().unwrap();
        let (upstream, served) = delivered(&node, &listener, client);
        finish(upstream, served);
        let refused = node.agent.netns.within(|| connect_as(client, to)).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::AddrNotAvailable, "{refused}");
        assert!(node.agent.netns.within(|| diag::destroy(client, to)).unwrap());
        delivered(&node, &listener, client);
    }
}

#[test]
fn a_dropped_socket_is_a_reset_and_an_ended_one_is_not() {
    let Some(node) = Node::new("linger") else { return };
    let listener = pod_listener(&node, 0, 80);
    let mut got = Vec::new();

    let (upstream, mut served) = delivered(&node, &listener, addr(CLIENT[0], 40_000));
    drop(upstream);
    assert_eq!(served.read_to_end(&mut got).unwrap_err().kind(), ErrorKind::ConnectionReset);

    // Unread data in the pod's send queue, our linger off: the rest still goes out after the close.
    let (mut upstream, mut served) = delivered(&node, &listener, addr(CLIENT[0], 40_001));
    served.shutdown(Shutdown::Write).unwrap();
    assert_eq!(upstream.read_to_end(&mut got).unwrap(), 0);
    let sent = vec![7; 150_000];
    upstream.write_all(&sent).unwrap();
    upstream.shutdown(Shutdown::Write).unwrap();
    set_linger_off(&upstream).unwrap();
    drop(upstream);
    assert_eq!(served.read_to_end(&mut got).unwrap(), sent.len());

    let (upstream, mut served) = delivered(&node, &listener, addr(CLIENT[0], 40_002));
    abort(&upstream).unwrap();
    assert_eq!(served.read_to_end(&mut got).unwrap_err().kind(), ErrorKind::ConnectionReset);
    drop(upstream);

    // While it still connects: nothing is left behind.
    let (client, nowhere) = (addr(CLIENT[0], 40_003), addr(NOWHERE[0], 80));
    let connecting = node.agent.netns.within(|| connect_as(client, nowhere)).unwrap();
    assert!(diag::exists(&node.agent.netns, &client, &nowhere).unwrap());
    abort(&connecting).unwrap();
    assert!(!diag::exists(&node.agent.netns, &client, &nowhere).unwrap());
}

#[test]
fn the_transparent_listener_is_out_of_reach_without_its_program() {
    let Some(node) = Node::new("listener") else { return };
    for family in 0..2 {
        let listener = node.agent.netns.within(|| transparent_listener(family == 1)).unwrap();
        let port = listener.local_addr().unwrap().port();
        assert!(listener.local_addr().unwrap().ip().is_loopback());
        let refused = node.pod.connect(addr(ELSEWHERE[family], port)).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
        // A client whose port is the listener's.
        let pod = pod_listener(&node, family, 80);
        delivered(&node, &pod, addr(CLIENT[family], port));
    }
}

#[test]
fn what_the_transparent_listener_accepts_is_a_plain_side_from_birth() {
    let Some(node) = Node::new("accepted") else { return };
    for v6 in [false, true] {
        // In a namespace whose loopback is its own.
        let listener = node.pod.netns.within(|| transparent_listener(v6)).unwrap();
        listener.set_nonblocking(false).unwrap();
        let _client = node.pod.connect(listener.local_addr().unwrap()).unwrap();
        let accepted = listener.accept().unwrap().0;
        let options = SockRef::from(&accepted);
        assert_eq!(options.linger().unwrap(), Some(std::time::Duration::ZERO));
        assert!(options.out_of_band_inline().unwrap() && options.tcp_nodelay().unwrap());
    }
}

#[test]
fn what_is_not_answered_is_seen() {
    let Some(node) = Node::new("unanswered") else { return };
    let listener = pod_listener(&node, 0, 80);
    let (mut upstream, _served) = delivered(&node, &listener, addr(CLIENT[0], 40_000));
    node.host.ip("route add blackhole 10.1.0.2/32");
    upstream.write_all(b"lost").unwrap();
    eventually("something is sent again", || !tcp_info(&upstream).unwrap().unanswered().is_zero());
    node.host.ip("route del blackhole 10.1.0.2/32");
    eventually("it is answered", || tcp_info(&upstream).unwrap().unanswered().is_zero());
    assert!(tcp_info(&upstream).unwrap().total_retransmits > 0);
}
