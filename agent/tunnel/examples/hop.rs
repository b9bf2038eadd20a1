//! Relays by hand, to look at what a hop costs (iperf3, strace -c, perf) without capture, model or agents.
//!
//!     hop keys DIR                       makes a root and two SVIDs
//!     hop dial DIR LISTEN NODE           plain connections on LISTEN go into tunnels to NODE
//!     hop accept DIR LISTEN TARGET       tunnels on LISTEN come out as plain connections to TARGET
//!     hop plain LISTEN TARGET            the plain twin: copies, no TLS
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, missing_docs)]

use std::cell::RefCell;
use std::future::pending;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use kumiko_abi::{FlowId, Reason};
use kumiko_core::Principal;
use kumiko_core::frame::{Open, Refused};
use kumiko_tunnel::identity::{Bundle, Identities, Svid};
use kumiko_tunnel::pool::{Key, Limits, Pool};
use kumiko_tunnel::{RelayEnd, TunnelOptions, accept, dial, plain_relay, relay};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, SanType};
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{LocalSet, spawn_local};

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    LocalSet::new().block_on(&runtime, async {
        match args.as_slice() {
            ["keys", dir] => keys(Path::new(dir)),
            ["dial", dir, listen, node] => dialler(Path::new(dir), listen, node).await,
            ["accept", dir, listen, target] => acceptor(Path::new(dir), listen, target).await,
            ["plain", listen, target] => plain(listen, target).await,
            _ => panic!("hop keys DIR | dial DIR LISTEN NODE | accept DIR LISTEN TARGET | plain LISTEN TARGET"),
        }
    });
}

fn principal(name: &str) -> Principal {
    Principal::new("cluster.local", "bench", name).unwrap()
}

fn keys(dir: &Path) {
    let root_key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    let root = params.self_signed(&root_key).unwrap();
    std::fs::write(dir.join("root.der"), root.der()).unwrap();
    let issuer = Issuer::new(params, root_key);
    for name in ["client", "server"] {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.subject_alt_names = vec![SanType::URI(principal(name).to_string().as_str().try_into().unwrap())];
        let cert = params.signed_by(&key, &issuer).unwrap();
        std::fs::write(dir.join(format!("{name}.der")), cert.der()).unwrap();
        std::fs::write(dir.join(format!("{name}.key")), key.serialize_der()).unwrap();
    }
}

fn identities(dir: &Path, name: &str) -> Identities {
    let read = |file: String| std::fs::read(dir.join(file)).unwrap();
    let chain = vec![CertificateDer::from(read(format!("{name}.der")))];
    let key = PrivateKeyDer::Pkcs8(read(format!("{name}.key")).into());
    let bundle = Bundle::new("cluster.local", vec![CertificateDer::from(read("root.der".into()))]);
    Identities::new([Arc::new(Svid::new(chain, key).unwrap())], &bundle).unwrap()
}

fn plain_side(stream: &TcpStream) {
    stream.set_nodelay(true).unwrap();
    socket2::SockRef::from(stream).set_linger(Some(Duration::ZERO)).unwrap();
}

fn close(end: &RelayEnd, stream: &TcpStream) {
    if end.orderly() {
        socket2::SockRef::from(stream).set_linger(None).unwrap();
    }
}

async fn never() -> Reason {
    pending().await
}

async fn dialler(dir: &Path, listen: &str, node: &str) {
    let identities = Rc::new(identities(dir, "client"));
    let pool = Rc::new(RefCell::new(Pool::new(Limits::default())));
    let listener = TcpListener::bind(listen).await.unwrap();
    let node: std::net::SocketAddr = node.parse().unwrap();
    let key = Rc::new(Key { source: principal("client"), destination: principal("server"), node });
    loop {
        let (client, from) = listener.accept().await.unwrap();
        let (identities, pool, key) = (identities.clone(), pool.clone(), key.clone());
        spawn_local(async move {
            plain_side(&client);
            let pooled = pool.borrow_mut().take(&key);
            let mut tunnel = match pooled {
                Some(tunnel) => tunnel,
                None => {
                    let stream = TcpStream::connect(node).await.unwrap();
                    stream.set_nodelay(true).unwrap();
                    dial(stream, &identities, &key.source, &key.destination, TunnelOptions::default()).await.unwrap()
                }
            };
            let open = Open {
                flow_id: FlowId([1; 16]),
                client: from,
                destination: node,
                destination_uid: "d".into(),
                source_uid: "s".into(),
                label_digest: Vec::new(),
                service: None,
                epoch: 0,
            };
            if let Err(error) = tunnel.open(&open).await {
                eprintln!("open: {error}");
                return;
            }
            let end = relay(&client, &mut tunnel, never(), None).await;
            close(&end, &client);
            if end.reusable {
                pool.borrow_mut().put_back(tunnel);
            }
        });
    }
}

async fn acceptor(dir: &Path, listen: &str, target: &str) {
    let server = identities(dir, "server").server();
    let listener = TcpListener::bind(listen).await.unwrap();
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        let (server, target) = (server.clone(), target.to_owned());
        spawn_local(async move {
            stream.set_nodelay(true).unwrap();
            let mut tunnel = accept(stream, server, TunnelOptions::default()).await.unwrap();
            while let Ok(Some(_)) = tunnel.next_open().await {
                let Ok(pod) = TcpStream::connect(&target).await else {
                    tunnel.refuse(Refused::by_destination(Reason::ConnectRefused, 111)).await.unwrap();
                    continue;
                };
                plain_side(&pod);
                tunnel.opened(0).await.unwrap();
                let end = relay(&pod, &mut tunnel, never(), None).await;
                close(&end, &pod);
                if !end.reusable {
                    return;
                }
            }
        });
    }
}

async fn plain(listen: &str, target: &str) {
    let listener = TcpListener::bind(listen).await.unwrap();
    loop {
        let (client, _) = listener.accept().await.unwrap();
        let target = target.to_owned();
        spawn_local(async move {
            plain_side(&client);
            let pod = TcpStream::connect(&target).await.unwrap();
            plain_side(&pod);
            let end = plain_relay(&client, &pod, never(), None).await;
            close(&end, &client);
            close(&end, &pod);
        });
    }
}
