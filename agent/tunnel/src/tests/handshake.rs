//! Both ends are this crate: what a handshake leaves behind, and one flow after the other.

use std::time::Duration;

use kumiko_abi::Reason;
use kumiko_core::frame::Refused;

use crate::testing::{open, open_flow, principal, sockets, tunnels};
use crate::{HandshakeError, OpenError, TunnelOptions};

#[tokio::test]
async fn both_ends_know_who_they_speak_to() {
    let (dialled, accepted) = tunnels().await;
    assert_eq!((dialled.local(), dialled.peer()), (&principal("client"), &principal("server")));
    assert_eq!((accepted.local(), accepted.peer()), (&principal("server"), &principal("client")));
    assert_eq!(dialled.facts().peer_serial, accepted.facts().local_serial);
    assert_eq!(accepted.facts().peer_serial, dialled.facts().local_serial);
    assert!(dialled.facts().cipher.starts_with("TLS13_AES_128"), "{}", dialled.facts().cipher);
    assert!(dialled.facts().dialled && !accepted.facts().dialled);
}

#[tokio::test]
async fn a_refused_flow_leaves_the_tunnel_idle() {
    let (mut dialled, mut accepted) = tunnels().await;
    for _ in 0..3 {
        let refuse = async {
            accepted.next_open().await.unwrap().unwrap();
            accepted.refuse(Refused::by_destination(Reason::ConnectRefused, 111)).await.unwrap();
        };
        let wanted = open();
        let (opened, ()) = tokio::join!(dialled.open(&wanted), refuse);
        let error = opened.unwrap_err();
        assert!(matches!(error, OpenError::Refused(_)));
        assert_eq!((error.reason(), error.errno()), (Reason::ConnectRefused, 111));
        assert!(dialled.is_reusable() && accepted.is_reusable());
    }
    open_flow(&mut dialled, &mut accepted).await;
}

#[tokio::test]
async fn a_dialler_that_gives_up_gets_its_tunnel_back() {
    let (mut dialled, mut accepted) = tunnels().await;
    let wanted = open();
    tokio::select! {
        biased;
        _ = dialled.open(&wanted) => unreachable!("nobody answers"),
        asked = accepted.next_open() => assert!(asked.unwrap().is_some()),
    }
    let (cancelled, gone) = tokio::join!(dialled.cancel_open(Reason::ClientGone), accepted.closed());
    gone.unwrap();
    assert!(cancelled);
    open_flow(&mut dialled, &mut accepted).await;
}

#[tokio::test]
async fn a_dialler_that_drops_its_tunnel_is_noticed_while_connecting() {
    let (mut dialled, mut accepted) = tunnels().await;
    let wanted = open();
    tokio::select! {
        biased;
        _ = dialled.open(&wanted) => unreachable!("nobody answers"),
        asked = accepted.next_open() => assert!(asked.unwrap().is_some()),
    }
    drop(dialled);
    assert!(accepted.closed().await.is_err());
}

#[tokio::test]
async fn an_idle_tunnel_that_closes_is_no_error() {
    let (dialled, mut accepted) = tunnels().await;
    dialled.close();
    assert!(accepted.next_open().await.unwrap().is_none());
    let (dialled, mut accepted) = tunnels().await;
    drop(dialled);
    assert!(accepted.next_open().await.unwrap().is_none());
}

#[tokio::test]
async fn drain_that_crosses_an_open_is_not_processed() {
    let (mut dialled, mut accepted) = tunnels().await;
    let drain = async {
        accepted.drain().await;
        accepted
    };
    let wanted = open();
    let (opened, _accepted) = tokio::join!(dialled.open(&wanted), drain);
    assert!(matches!(opened, Err(OpenError::NotProcessed)), "{opened:?}");
    assert!(!dialled.is_reusable());
}

#[tokio::test]
async fn a_dialler_that_connects_to_nobody_says_so() {
    // An address of its own: on the others' another test could be given the port meanwhile.
    let listener = tokio::net::TcpListener::bind("127.0.0.3:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    drop(listener);
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    socket.set_nonblocking(true).unwrap();
    let _ = socket.connect(&addr.into());
    let stream = tokio::net::TcpStream::from_std(socket.into()).unwrap();
    let identities = crate::testing::Authority::new("root").identities(&["client"]);
    let result =
        crate::dial(stream, &identities, &principal("client"), &principal("server"), TunnelOptions::default()).await;
    assert_eq!(result.unwrap_err().reason(), Reason::NodeRefused);
}

#[tokio::test]
async fn no_certificate_yet() {
    let identities = crate::testing::Authority::new("root").identities(&["client"]);
    let (a, _b) = sockets().await;
    let result = crate::dial(a, &identities, &principal("other"), &principal("server"), TunnelOptions::default()).await;
    assert!(matches!(result, Err(HandshakeError::NoCertificate(_))));
}

#[tokio::test]
async fn a_silent_peer_is_given_up() {
    let identities = crate::testing::Authority::new("root").identities(&["client"]);
    let options = TunnelOptions { handshake_time: Duration::from_millis(50), ..TunnelOptions::default() };
    let (a, b) = sockets().await;
    let result = crate::accept(a, identities.server(), options).await;
    assert_eq!(result.unwrap_err().reason(), Reason::HandshakeTimedOut);
    let options = TunnelOptions::default();
    let result = crate::dial(b, &identities, &principal("client"), &principal("server"), options).await;
    // The acceptor has closed.
    assert_eq!(result.unwrap_err().reason(), Reason::TlsFailed);
}

#[tokio::test]
async fn bytes_that_came_before_the_end_of_the_tunnel_are_no_last_words() {
    let (mut dialled, mut accepted) = tunnels().await;
    let (out, rekey) = accepted.session.sender();
    out.fill(rekey, |places| {
        places[0][..5].copy_from_slice(b"early");
        Ok(5)
    })
    .unwrap();
    assert!(accepted.try_flush().unwrap());
    accepted.abort();
    dialled.stream().ready(tokio::io::Interest::ERROR).await.unwrap();
    assert!(matches!(dialled.open(&open()).await, Err(OpenError::Tunnel(_))));
}
