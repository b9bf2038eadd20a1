//! The acceptor: tunnels that other nodes dialled, one flow after the other.

use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use kumiko_abi::Reason;
use kumiko_core::frame::{Open, Refused};
use kumiko_core::model::node_hash;
use kumiko_core::route::{self, Accepted, OpenView};
use kumiko_fault::Point;
use kumiko_tunnel::{HandshakeError, Tunnel, TunnelError, TunnelOptions};
use tokio::net::TcpStream;
use tracing::{debug, info};

use super::deliver::Delivery;
use super::failure::{Failure, at};
use super::refusals::Event;
use super::registry::Stop;
use super::tunnels::CERTIFICATE_WITHIN;
use super::{Shard, carry, report};
use crate::telemetry::FlowOpened;

/// How long an OPEN waits for the model to learn about its ends, and a handshake about the name that it asks for.
const MODEL_WITHIN: Duration = Duration::from_millis(500);

/// The same, unless a test has said otherwise.
fn model_within() -> Duration {
    kumiko_fault::model_within(MODEL_WITHIN)
}

/// Serves one connection on the tunnel port until it ends.
pub(super) async fn serve(shard: Rc<Shard>, stream: TcpStream, peer: SocketAddr) {
    let mut tunnel = match handshake(&shard, stream, peer.ip()).await {
        Ok(tunnel) => tunnel,
        Err(error) => {
            let (reason, refusals) = (error.reason(), &shard.common.refusals);
            refusals.count(reason);
            shard.common.tunnels.fail();
            if let Some(more) = refusals.may_write(Event::TunnelRefused, reason) {
                info!(%peer, reason = reason.name(), more, %error, "tunnel refused");
            }
            return;
        }
    };
    shard.common.tunnels.add(&tunnel, shard.number());
    let mut drain = shard.common.drain.clone();
    loop {
        let open = tokio::select! {
            biased;
            _ = drain.wait_for(|draining| *draining) => return tunnel.drain().await,
            open = tunnel.next_open() => open,
        };
        match open {
            Ok(Some(open)) => {
                if !serve_flow(&shard, &mut tunnel, open, peer.ip()).await {
                    return;
                }
            }
            Ok(None) => return,
            Err(error) => return ended(&shard, peer.ip(), &error),
        }
    }
}

/// Says why a tunnel ended, and counts it if the peer was refused.
pub(super) fn ended(shard: &Shard, peer: IpAddr, error: &TunnelError) {
    if error.is_peers_fault() {
        let (reason, refusals) = (error.reason(), &shard.common.refusals);
        refusals.count(reason);
        if let Some(more) = refusals.may_write(Event::TunnelEnded, reason) {
            info!(%peer, reason = reason.name(), more, %error, "tunnel ended");
        }
    } else {
        debug!(%peer, %error, "tunnel ended");
    }
}

/// The handshake, when it is this connection's turn. A burst of cold dials waits instead of being refused: its clients
/// wait too, as they would for a slow network.
async fn handshake(shard: &Shard, stream: TcpStream, peer: IpAddr) -> Result<Tunnel, HandshakeError> {
    // A pod or a host outside could keep the nodes from each other otherwise.
    let stranger = shard.common.state.load().world.node_at(peer).is_none();
    let place = shard.turns.enter(peer, stranger).ok_or(HandshakeError::Busy)?;
    let options = TunnelOptions::default();
    // A dialler speaks first, and at once. Who is silent takes no turn from those that speak.
    match tokio::time::timeout(options.handshake_time, stream.peek(&mut [0; 1])).await {
        Err(_) => return Err(HandshakeError::TimedOut(options.handshake_time)),
        Ok(spoke) => spoke.map_err(HandshakeError::Io)?,
    };
    let _turn = place.turn().await.ok_or(HandshakeError::Busy)?;
    let server = shard.common.identities.current().server();
    let late = async |name: &str| {
        // A workload of this node whose certificate is being asked for; or one that the model has not heard of yet.
        let known = {
            let state = shard.common.state.load();
            state.world.workloads_on(&shard.common.node).any(|workload| workload.principal.server_name() == name)
        };
        let within = if known {
            CERTIFICATE_WITHIN
        } else {
            at(Point::ModelAwaited).ok()?;
            model_within()
        };
        shard.common.identities.server_for(name, within).await
    };
    kumiko_tunnel::accept_late(stream, server, options, late).await
}

/// Serves one OPEN; says whether the tunnel can carry another.
async fn serve_flow(shard: &Rc<Shard>, tunnel: &mut Tunnel, open: Open, node: IpAddr) -> bool {
    if tunnel.is_expired() {
        // Whatever was proved is over. An honest dialler opens the flow on another tunnel, with certificates of today.
        shard.common.refusals.count(Reason::PeerCertificateExpired);
        let _ = tunnel.refuse(Refused::by_agent(Reason::NotProcessed)).await;
        return false;
    }
    let began = Instant::now();
    let accepted = check(shard, tunnel, &open, node).await;
    if !is_dialled_by(shard, &open, node) {
        // Under this id another node's flow may be known here: nothing of this OPEN may be told of that one.
        let reason = accepted.err().unwrap_or(Reason::ProtocolError);
        shard.common.refusals.count(reason);
        return tunnel.refuse(Refused::by_agent(reason)).await.is_ok() && tunnel.is_reusable();
    }
    let state = shard.common.state.load_full();
    let handles = [&open.source_uid, &open.destination_uid].map(|uid| state.handle(uid));
    let judged = (handles, state.epoch());
    let start = report::asked(&open, &state.world, accepted.as_ref().ok(), judged, &node.to_string());
    shard.common.sink.dialling(start);
    drop(state);
    let accepted = match accepted {
        Ok(accepted) => accepted,
        Err(reason) => return refuse(shard, tunnel, &open, Failure::new(reason)).await,
    };
    let stop = Arc::new(Stop::default());
    let delivery = Delivery {
        id: open.flow_id,
        client: open.client,
        asked: open.asked(),
        to: open.destination,
        source_uid: accepted.source.uid.clone(),
        target_uid: accepted.target.uid.clone(),
        service: 0,
        stop: stop.clone(),
    };
    if let Err(failure) = at(Point::AcceptorAsked) {
        return refuse(shard, tunnel, &open, failure).await;
    }
    let delivered = tokio::select! {
        delivered = shard.deliver(delivery) => delivered,
        gone = tunnel.closed() => {
            shard.common.sink.refused(open.flow_id, Reason::ClientGone, 0);
            if let Err(error) = &gone {
                ended(shard, node, error);
            }
            return gone.is_ok() && tunnel.is_reusable();
        }
        reason = stop.stopped() => Err(Failure::new(reason)),
    };
    let delivered = match delivered {
        Ok(delivered) => delivered,
        Err(failure) => return refuse(shard, tunnel, &open, failure).await,
    };
    if at(Point::AcceptorConnected).is_err()
        || tunnel.opened(delivered.epoch).await.is_err()
        || at(Point::AcceptorOpened).is_err()
    {
        // Dropping the socket resets the pod's side; nothing was said on it yet.
        shard.common.sink.refused(open.flow_id, Reason::TunnelLost, 0);
        return false;
    }
    let connect_us = u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX);
    let opened = FlowOpened { tunnel: Some(tunnel.info().number), handshake_us: None, connect_us, peer_epoch: 0 };
    shard.common.sink.opened(open.flow_id, opened);
    carry::from_node(shard, open.flow_id, delivered, tunnel, &stop).await
}

/// Checks OPEN against the model; what the model does not know yet waits a moment for it.
async fn check(shard: &Shard, tunnel: &Tunnel, open: &Open, node: IpAddr) -> Result<Accepted, Reason> {
    let mut changed = shard.common.changed.clone();
    let deadline = tokio::time::Instant::now() + model_within();
    loop {
        // Marked as seen before the look, so that no change is missed.
        changed.borrow_and_update();
        let reason = match check_now(shard, tunnel, open, node) {
            Ok(accepted) => return Ok(accepted),
            Err(reason) => reason,
        };
        let late = matches!(
            reason,
            Reason::UnknownSource
                | Reason::StaleIdentity
                | Reason::DisputedAddress
                | Reason::DestinationGone
                | Reason::EndpointNotAttached
        );
        if !late || at(Point::ModelAwaited).is_err() {
            return Err(reason);
        }
        if !matches!(tokio::time::timeout_at(deadline, changed.changed()).await, Ok(Ok(()))) {
            return Err(reason);
        }
    }
}

fn check_now(shard: &Shard, tunnel: &Tunnel, open: &Open, node: IpAddr) -> Result<Accepted, Reason> {
    let state = shard.common.state.load();
    let view = OpenView {
        client: open.client,
        destination: open.destination,
        destination_uid: &open.destination_uid,
        source_uid: &open.source_uid,
        label_digest: &open.label_digest,
    };
    let dialler =
        route::Dialler { principal: tunnel.peer(), origin: tunnel.info().facts.peer_origin.as_ref(), ip: node };
    let accepted = route::check_open(&state.world, &shard.common.node, &view, dialler, tunnel.local())?;
    let uid = &accepted.target.uid;
    if !state.accepts(uid, Instant::now()) || state.is_coming(uid) {
        // Not in the mesh here, or not yet: nobody judges what comes back.
        return Err(Reason::EndpointNotAttached);
    }
    Ok(accepted)
}

/// Whether the flow's id is one that the dialling node makes.
fn is_dialled_by(shard: &Shard, open: &Open, node: IpAddr) -> bool {
    let state = shard.common.state.load();
    state.world.node_at(node).is_some_and(|dialler| open.flow_id.0.starts_with(&node_hash(&dialler.name)))
}

async fn refuse(shard: &Shard, tunnel: &mut Tunnel, open: &Open, failure: Failure) -> bool {
    shard.common.refusals.count(failure.reason);
    shard.common.sink.refused(open.flow_id, failure.reason, failure.errno);
    let refused = if failure.errno == 0 {
        Refused::by_agent(failure.reason)
    } else {
        Refused::by_destination(failure.reason, failure.errno)
    };
    tunnel.refuse(refused).await.is_ok() && tunnel.is_reusable()
}
