//! The tunnel port, on each of this node's addresses: they may come and go with its Node object.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::time::Duration;

use kumiko_abi::TUNNEL_PORT;
use kumiko_kernel::sockets;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tracing::{info, warn};

use super::{Shard, canonical, pause, serve};

/// Until an address that could not be bound (tentative, or not there yet) is tried again.
const RETRY: Duration = Duration::from_secs(1);

/// Listens on the addresses that the model gives this node, until the agent drains.
pub(super) async fn tunnels(shard: Rc<Shard>) {
    let mut listening: HashMap<IpAddr, JoinHandle<()>> = HashMap::new();
    let (mut changed, mut drain) = (shard.common.changed.clone(), shard.common.drain.clone());
    loop {
        changed.borrow_and_update();
        let wanted = shard.own_addresses();
        listening.retain(|ip, task| {
            let keep = wanted.contains(ip);
            if !keep {
                task.abort();
            }
            keep
        });
        let mut missing = false;
        for ip in wanted {
            if listening.contains_key(&ip) {
                continue;
            }
            match bind(&shard, ip) {
                Ok(listener) => {
                    if shard.index == 0 {
                        info!(address = %SocketAddr::new(ip, TUNNEL_PORT), "tunnels are accepted");
                    }
                    listening.insert(ip, tokio::task::spawn_local(accept(shard.clone(), listener)));
                }
                Err(error) => {
                    missing = true;
                    if shard.index == 0 {
                        warn!(%ip, %error, "tunnel port cannot be bound: is this address of the Node object on this host?");
                    }
                }
            }
        }
        tokio::select! {
            gone = changed.changed() => if gone.is_err() { break },
            _ = drain.wait_for(|draining| *draining) => break,
            () = tokio::time::sleep(RETRY), if missing => {}
        }
    }
    for task in listening.values() {
        task.abort();
    }
}

fn bind(shard: &Shard, ip: IpAddr) -> io::Result<TcpListener> {
    let listener = shard.tunnels.host().within(|| sockets::tunnel_listener(SocketAddr::new(ip, TUNNEL_PORT)))?;
    TcpListener::from_std(listener)
}

async fn accept(shard: Rc<Shard>, listener: TcpListener) {
    loop {
        match listener.accept().await {
            Ok((stream, peer)) => {
                tokio::task::spawn_local(serve::serve(shard.clone(), stream, canonical(peer)));
            }
            Err(error) => pause(&error, "accept of a tunnel").await,
        }
    }
}
