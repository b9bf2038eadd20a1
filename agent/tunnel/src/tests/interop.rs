//! Against rustls itself, buffered, at the other end: bytes and key updates, both directions, both roles, each cipher.

use std::io::{IoSliceMut, Read, Write};
use std::sync::Arc;

use rustls::sign::SingleCertAndKey;
use tokio::net::TcpStream;

use crate::identity::Identities;
use crate::outbound::Filled;
use crate::session::Item;
use crate::testing::{Authority, principal, sockets};
use crate::{Tunnel, TunnelError, TunnelOptions, accept, dial};

const OPTIONS: TunnelOptions = TunnelOptions {
    handshake_time: std::time::Duration::from_secs(5),
    handshake_bytes: 1 << 16,
    // Keys change many times in these tests.
    records_per_key: 5,
};

/// What the peer does after its handshake.
type Script = Box<dyn FnOnce(&mut dyn Peer) + Send>;

trait Peer {
    fn read_exactly(&mut self, n: usize) -> Vec<u8>;
    fn write(&mut self, bytes: &[u8]);
    fn refresh(&mut self);
}

struct Buffered<C>(C, std::net::TcpStream);

macro_rules! peer {
    ($conn:ty) => {
        impl Peer for Buffered<$conn> {
            fn read_exactly(&mut self, n: usize) -> Vec<u8> {
                let mut bytes = vec![0; n];
                rustls::Stream::new(&mut self.0, &mut self.1).read_exact(&mut bytes).unwrap();
                bytes
            }

            fn write(&mut self, bytes: &[u8]) {
                rustls::Stream::new(&mut self.0, &mut self.1).write_all(bytes).unwrap();
            }

            fn refresh(&mut self) {
                self.0.refresh_traffic_keys().unwrap();
            }
        }
    };
}

peer!(rustls::ClientConnection);
peer!(rustls::ServerConnection);

fn blocking(stream: TcpStream) -> std::net::TcpStream {
    let stream = stream.into_std().unwrap();
    stream.set_nonblocking(false).unwrap();
    stream
}

/// A tunnel whose other end is buffered rustls that follows `script`; `suite` narrows the cipher.
async fn against(rustls_dials: bool, suite: Option<usize>, script: Script) -> (Tunnel, tokio::task::JoinHandle<()>) {
    let authority = Authority::new("root");
    let (here, there): (Identities, Identities) =
        (authority.identities(&["client"]), authority.identities(&["server"]));
    let (a, b) = sockets().await;
    let (client, server) = (principal("client"), principal("server"));
    let mut provider = (*crate::identity::provider()).clone();
    if let Some(suite) = suite {
        provider.cipher_suites = vec![provider.cipher_suites[suite]];
    }
    let provider = Arc::new(provider);
    if rustls_dials {
        let base = here.client_for(&client).unwrap();
        // Another provider needs another configuration; the identity stays.
        let mut config = rustls::ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_root_certificates(rustls::RootCertStore { roots: vec![webpki_root(&authority)] })
            .with_client_cert_resolver(Arc::new(SingleCertAndKey::from(base.svid.certified().clone())));
        config.alpn_protocols = vec![crate::identity::ALPN.to_vec()];
        config.dangerous().set_certificate_verifier(super::peers::trusting());
        let task = tokio::task::spawn_blocking(move || {
            let mut stream = blocking(a);
            let name = server.server_name().try_into().unwrap();
            let mut conn = rustls::ClientConnection::new(Arc::new(config), name).unwrap();
            conn.complete_io(&mut stream).unwrap();
            script(&mut Buffered(conn, stream));
        });
        (accept(b, there.server(), OPTIONS).await.unwrap(), task)
    } else {
        let svid = there.svids().next().unwrap().clone();
        let mut config = rustls::ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_no_client_auth()
            .with_cert_resolver(Arc::new(SingleCertAndKey::from(svid.certified().clone())));
        config.alpn_protocols = vec![crate::identity::ALPN.to_vec()];
        // Tickets come after the handshake: they have to be skipped.
        config.send_tls13_tickets = 2;
        let task = tokio::task::spawn_blocking(move || {
            let mut stream = blocking(b);
            let mut conn = rustls::ServerConnection::new(Arc::new(config)).unwrap();
            conn.complete_io(&mut stream).unwrap();
            script(&mut Buffered(conn, stream));
        });
        (dial(a, &here, &client, &server, OPTIONS).await.unwrap(), task)
    }
}

fn webpki_root(authority: &Authority) -> rustls_pki_types::TrustAnchor<'static> {
    let mut store = rustls::RootCertStore::empty();
    store.add(authority.root()).unwrap();
    store.roots.pop().unwrap()
}

async fn flush(tunnel: &mut Tunnel) {
    while !tunnel.try_flush().unwrap() {
        tunnel.stream.writable().await.unwrap();
    }
}

async fn send(tunnel: &mut Tunnel, mut bytes: &[u8]) {
    while !bytes.is_empty() {
        flush(tunnel).await;
        let (out, rekey) = tunnel.session.sender();
        let filled = out
            .fill(rekey, |places| {
                let mut n = 0;
                for place in places {
                    n += Read::read(&mut bytes, place).unwrap();
                }
                Ok(n)
            })
            .unwrap();
        assert!(matches!(filled, Filled::Bytes(_) | Filled::Flush), "{filled:?}");
    }
    flush(tunnel).await;
}

async fn receive(tunnel: &mut Tunnel, n: usize) -> Vec<u8> {
    let mut got = Vec::new();
    while got.len() < n {
        match tunnel.session.next().unwrap() {
            Some(Item::Bytes) => {
                let mut pieces = [std::io::IoSlice::new(&[]); crate::inbound::BATCH];
                let count = tunnel.session.inn.pieces(&mut pieces);
                let before = got.len();
                for piece in &pieces[..count] {
                    got.extend_from_slice(piece);
                }
                let delivered = got.len() - before;
                tunnel.session.inn.delivered(delivered);
            }
            Some(other) => panic!("{other:?}"),
            None => {
                flush(tunnel).await;
                tunnel.stream.readable().await.unwrap();
                let room = tunnel.session.inn.room();
                let len = room.len();
                match tunnel.stream.try_read(room) {
                    Ok(0) => panic!("closed"),
                    Ok(n) => tunnel.session.inn.read(n, len),
                    Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock),
                }
            }
        }
    }
    got
}

fn pattern(n: usize) -> Vec<u8> {
    (0..n).map(|i| (i * 7 + i / 251) as u8).collect()
}

#[tokio::test]
async fn bytes_both_ways_with_every_cipher() {
    const N: usize = 700_001;
    for rustls_dials in [false, true] {
        for suite in 0..3 {
            let script: Script = Box::new(|peer| {
                for n in [1, 100, 20_000, N] {
                    assert!(peer.read_exactly(n) == pattern(n));
                    peer.write(&pattern(n));
                }
            });
            let (mut tunnel, task) = against(rustls_dials, Some(suite), script).await;
            for n in [1, 100, 20_000, N] {
                send(&mut tunnel, &pattern(n)).await;
                assert!(receive(&mut tunnel, n).await == pattern(n));
            }
            // 700,001 bytes are 43 records, 5 per key.
            assert!(tunnel.session.out.key_updates() >= 8, "{}", tunnel.session.out.key_updates());
            task.await.unwrap();
        }
    }
}

#[tokio::test]
async fn key_updates_asked_for_by_either_side() {
    for rustls_dials in [false, true] {
        let script: Script = Box::new(|peer| {
            for round in 0..10 {
                assert_eq!(peer.read_exactly(100), pattern(100));
                if round % 2 == 0 {
                    // rustls asks for ours as well (update_requested).
                    peer.refresh();
                }
                peer.write(&pattern(50_000));
            }
        });
        let (mut tunnel, task) = against(rustls_dials, None, script).await;
        let mut ours = 0;
        for round in 0..10 {
            if round % 3 == 0 {
                tunnel.update_keys(true).await.unwrap();
                ours += 1;
            }
            send(&mut tunnel, &pattern(100)).await;
            assert!(receive(&mut tunnel, 50_000).await == pattern(50_000));
        }
        let peer = tunnel.session.peer_key_updates();
        assert_eq!(peer, 5 + ours, "rustls changed its keys five times by itself and answered ours");
        assert!(tunnel.session.out.key_updates() >= 5 + ours, "its five were answered");
        task.await.unwrap();
    }
}

#[tokio::test]
async fn a_changed_record_is_refused() {
    let (mut dialled, mut accepted) = crate::testing::tunnels().await;
    let (out, rekey) = dialled.session.sender();
    out.fill(rekey, |places: &mut [IoSliceMut<'_>]| {
        places[0][..5].copy_from_slice(b"hello");
        Ok(5)
    })
    .unwrap();
    let mut record = out.pending()[0].to_vec();
    *record.last_mut().unwrap() ^= 1;
    dialled.stream.try_write(&record).unwrap();
    let error = accepted.next_open().await.unwrap_err();
    assert!(matches!(error, TunnelError::Record(crate::RecordError::Bad)), "{error}");
    assert_eq!(error.reason(), kumiko_abi::Reason::BadRecord);
    // The dialler is told by an alert.
    let error = dialled.open(&crate::testing::open()).await.unwrap_err();
    assert_eq!(error.reason(), kumiko_abi::Reason::BadRecord, "{error:?}");
}
