use std::collections::HashMap;
use std::io::{ErrorKind, Read};
use std::net::SocketAddr;

use kumiko_kernel::diag::{Diag, TcpState, destroy, dump, exists};
use kumiko_kernel::sockets::connect_as;

use crate::world::{CLIENT, NOWHERE, Node, POD, addr, eventually, outcome};

fn states(node: &Node) -> HashMap<(SocketAddr, SocketAddr), TcpState> {
    dump(&node.pod.netns).unwrap().into_iter().map(|s| ((s.local, s.remote), s.state)).collect()
}

#[test]
fn a_dump_has_sockets_that_connect_and_requests_too() {
    let Some(node) = Node::new("dump") else { return };
    // One listener for both families: accepted IPv4 connections have mapped addresses.
    let listener = node.pod.listen("[::]:80");
    for family in 0..2 {
        let to = addr(POD[family], 80);
        let client = addr(CLIENT[family], 40_000);
        let upstream = node.agent.netns.within(|| connect_as(client, to)).unwrap();
        assert_eq!(outcome(&upstream), None);
        let (served, _) = listener.accept().unwrap();
        assert_eq!(states(&node).get(&(to, client)), Some(&TcpState::Established));
        assert!(exists(&node.pod.netns, &to, &client).unwrap());

        // A connect of the pod that is never answered.
        let nowhere = addr(NOWHERE[family], 443);
        let asks = addr(POD[family], 41_000);
        let connecting = node.pod.netns.within(|| connect_as(asks, nowhere)).unwrap();
        assert_eq!(states(&node).get(&(asks, nowhere)), Some(&TcpState::SynSent));
        drop(connecting);
        // The fork of another test's command may keep the socket for a moment.
        eventually("it is gone", || !exists(&node.pod.netns, &asks, &nowhere).unwrap());

        // A request whose SYN-ACK is lost.
        let lost = addr(CLIENT[family], 40_001);
        node.host.ip(&format!("route del {} dev kumiko0", CLIENT[family]));
        node.host.ip(&format!("route add blackhole {}", CLIENT[family]));
        let _waiting = node.agent.netns.within(|| connect_as(lost, to)).unwrap();
        eventually("the request is listed", || states(&node).get(&(to, lost)) == Some(&TcpState::SynReceived));
        assert!(exists(&node.pod.netns, &to, &lost).unwrap());
        drop(served);
    }
}

#[test]
fn a_listener_is_neither_found_nor_ended_in_place_of_a_socket() {
    let Some(node) = Node::new("destroy") else { return };
    for any in ["0.0.0.0:80", "[::]:81"] {
        let listener = node.pod.listen(any);
        let port = listener.local_addr().unwrap().port();
        for family in 0..2 {
            if any.starts_with('0') && family == 1 {
                continue;
            }
            let (to, client) = (addr(POD[family], port), addr(CLIENT[family], 40_000));
            assert!(!exists(&node.pod.netns, &to, &client).unwrap());
            assert!(!node.pod.netns.within(|| destroy(to, client)).unwrap());
            // It still serves.
            let upstream = node.agent.netns.within(|| connect_as(client, to)).unwrap();
            assert_eq!(outcome(&upstream), None);
            let (mut served, _) = listener.accept().unwrap();
            let mut diag = Diag::open(&node.pod.netns).unwrap();
            assert_eq!(diag.find(to, client).unwrap(), Some(TcpState::Established));
            assert!(diag.destroy(to, client).unwrap());
            assert!(!diag.destroy(to, client).unwrap());
            assert_eq!(served.read(&mut [0]).unwrap_err().kind(), ErrorKind::ConnectionAborted);
            eventually("the other end is reset", || !exists(&node.agent.netns, &client, &to).unwrap());
        }
    }
}
