//! Which tunnels a pool hands out, and which it closes.

use std::time::{Duration, Instant};

use kumiko_core::Principal;

use crate::pool::{Key, Limits, Pool};
use crate::testing::{Authority, open_flow, principal, sockets};
use crate::{Tunnel, TunnelOptions, accept, dial};

struct Nodes {
    authority: Authority,
}

impl Nodes {
    fn new() -> Self {
        Self { authority: Authority::new("root") }
    }

    /// A tunnel to "server", and its other end. All come from one address, so that they have one key.
    async fn tunnel(&self) -> (Tunnel, Tunnel) {
        let (here, there) = (self.authority.identities(&["client"]), self.authority.identities(&["server"]));
        let (a, b) = sockets().await;
        let (client, server): (Principal, Principal) = (principal("client"), principal("server"));
        let options = TunnelOptions::default();
        let (a, b) = tokio::join!(dial(a, &here, &client, &server, options), accept(b, there.server(), options));
        (a.unwrap(), b.unwrap())
    }
}

#[tokio::test]
async fn newest_first_and_only_working_ones() {
    let nodes = Nodes::new();
    let mut pool = Pool::new(Limits::default());
    let (tunnel, mut far) = nodes.tunnel().await;
    let (key, number) = (Key::of(&tunnel), tunnel.info().number);
    assert!(pool.take(&key).is_none());
    pool.put_back(tunnel);
    assert_eq!((pool.len(), pool.iter().count()), (1, 1));
    let mut tunnel = pool.take(&key).unwrap();
    assert_eq!(tunnel.info().number, number);
    open_flow(&mut tunnel, &mut far).await;
    // One that carries a flow does not come in.
    pool.put_back(tunnel);
    assert!(pool.is_empty());
    assert_eq!(pool.stats().hits, 1);
    assert_eq!(pool.stats().misses, 1);
}

#[tokio::test]
async fn a_tunnel_that_was_closed_or_drains_is_not_handed_out() {
    let nodes = Nodes::new();
    let mut pool = Pool::new(Limits::default());
    for drain in [false, true] {
        let (tunnel, mut far) = nodes.tunnel().await;
        let key = Key::of(&tunnel);
        pool.put_back(tunnel);
        if drain {
            far.announce_drain().unwrap();
        } else {
            drop(far);
        }
        // The pool's end learns of it by the readiness of its socket.
        let (idle, _) = pool.iter().next().unwrap();
        idle.stream().readable().await.unwrap();
        assert!(pool.take(&key).is_none());
        assert!(pool.is_empty());
    }
    assert_eq!(pool.stats().stale, 2);
}

#[tokio::test]
async fn limits_and_idle_time() {
    let nodes = Nodes::new();
    let limits = Limits { per_key: 1, total: 2, idle: Duration::from_secs(60) };
    let mut pool = Pool::new(limits);
    let mut others = Vec::new();
    for _ in 0..3 {
        // Each listener has its own port: three keys.
        let (tunnel, far) = nodes.tunnel().await;
        pool.put_back(tunnel);
        others.push(far);
    }
    assert_eq!(pool.len(), 2);
    // The oldest had to go, and said so.
    assert!(others[0].next_open().await.unwrap().is_none());
    pool.sweep(Instant::now());
    assert_eq!(pool.len(), 2);
    pool.sweep(Instant::now() + limits.idle);
    assert!(pool.is_empty());
    assert_eq!(pool.stats().retired, 3);
}

#[tokio::test]
async fn a_renewed_certificate_retires_idle_tunnels() {
    let nodes = Nodes::new();
    let mut pool = Pool::new(Limits::default());
    let (tunnel, _far) = nodes.tunnel().await;
    let serial = tunnel.facts().local_serial.clone();
    pool.put_back(tunnel);
    pool.renewed(&principal("client"), &serial);
    pool.renewed(&principal("other"), "77");
    assert_eq!(pool.len(), 1);
    pool.renewed(&principal("client"), "77");
    assert!(pool.is_empty());
    let (tunnel, _far) = nodes.tunnel().await;
    pool.drain();
    pool.put_back(tunnel);
    assert!(pool.is_empty());
}
