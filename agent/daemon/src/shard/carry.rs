//! Carries an open flow to its end and says how that came.

use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use kumiko_abi::{FlowId, Reason};
use kumiko_core::flow_record::{FlowClose, FlowSide};
use kumiko_kernel::sockets::{self, Owed};
use kumiko_tunnel::{RelayEnd, SideEnd, Tunnel, Urgent, Who};
use tokio::net::TcpStream;

use super::deliver::Delivered;
use super::registry::Stop;
use super::{Shard, serve};
use crate::telemetry::FlowEnded;

/// Between two looks at whether the other node still answers.
const LOOK: Duration = Duration::from_secs(5);
/// How long another node may leave sent bytes unanswered before the flow is given up: long enough for a link that is
/// re-routed, short enough that nobody waits for TCP's own quarter of an hour.
const SILENCE: Duration = Duration::from_secs(30);

/// Urgent data by the kernel's own calls.
struct Oob;

impl Urgent for Oob {
    fn at_mark(&self, stream: &TcpStream) -> bool {
        // A socket that cannot say is read as if the byte were an ordinary one: nothing is lost but the mark.
        sockets::at_mark(stream).unwrap_or(false)
    }

    fn send(&self, stream: &TcpStream, byte: u8) -> io::Result<()> {
        match sockets::send_oob(stream, &[byte]) {
            Ok(0) => Err(io::ErrorKind::WouldBlock.into()),
            Ok(_) => Ok(()),
            Err(error) => Err(error),
        }
    }
}

/// The client's side: to another node. The tunnel goes back to the pool if it can.
pub(super) async fn to_node(shard: &Rc<Shard>, id: FlowId, plain: TcpStream, mut tunnel: Tunnel, stop: &Stop) {
    let end = {
        let stopped = stopped(stop, tunnel.stream_handle());
        kumiko_tunnel::relay(&plain, &mut tunnel, stopped, Some(&Oob)).await
    };
    close(plain, &end);
    report(shard, id, &end, FlowSide::Source, (tunnel.stream(), stop.epoch()));
    if end.reusable || settled(&mut tunnel, &end).await {
        shard.put_back(tunnel);
    }
}

/// The server's side: from another node. Says whether the tunnel can carry another flow.
pub(super) async fn from_node(
    shard: &Rc<Shard>,
    id: FlowId,
    delivered: Delivered,
    tunnel: &mut Tunnel,
    stop: &Stop,
) -> bool {
    let Delivered { stream, registered, .. } = delivered;
    let end = {
        let stopped = stopped(stop, tunnel.stream_handle());
        kumiko_tunnel::relay(&stream, tunnel, stopped, Some(&Oob)).await
    };
    close(stream, &end);
    report(shard, id, &end, FlowSide::Destination, (tunnel.stream(), stop.epoch()));
    drop(registered);
    if let Some(error) = &end.error {
        serve::ended(shard, tunnel.facts().peer_addr.ip(), error);
    }
    end.reusable || settled(tunnel, &end).await
}

/// After a flow that was stopped here: waits a moment for the other node's answer to the RESET. The tunnel can carry the
/// next flow then.
async fn settled(tunnel: &mut Tunnel, end: &RelayEnd) -> bool {
    match end.stopped {
        Some(reason) if end.error.is_none() && reason != Reason::NodeUnreachable => tunnel.reset(reason).await,
        _ => false,
    }
}

/// Both pods on this node.
pub(super) async fn on_node(shard: &Rc<Shard>, id: FlowId, client: TcpStream, delivered: Delivered, stop: &Stop) {
    let Delivered { stream, registered, .. } = delivered;
    let end = kumiko_tunnel::plain_relay(&client, &stream, stop.stopped(), Some(&Oob)).await;
    report(shard, id, &end, FlowSide::Source, (&stream, stop.epoch()));
    close(client, &end);
    close(stream, &end);
    drop(registered);
}

/// Returns when the flow has to end: asked from outside, or the other node has been silent for too long.
///
/// `TCP_USER_TIMEOUT` cannot do the second: it also ends connections whose reader is merely stalled (its window closed,
/// its kernel answering every probe).
async fn stopped(stop: &Stop, tunnel: Arc<TcpStream>) -> Reason {
    let silent = async {
        let mut owed = Owed::default();
        loop {
            tokio::time::sleep(LOOK).await;
            if sockets::tcp_info(&*tunnel).is_ok_and(|info| owed.look(&info, Instant::now()) > SILENCE) {
                return Reason::NodeUnreachable;
            }
        }
    };
    tokio::select! {
        reason = stop.stopped() => reason,
        reason = silent => reason,
    }
}

/// After an orderly end the kernel finishes sending; any other end is an RST, never a clean end of stream.
fn close(stream: TcpStream, end: &RelayEnd) {
    if end.orderly() {
        let _ = sockets::set_linger_off(&stream);
    }
    drop(stream);
}

fn report(shard: &Shard, id: FlowId, end: &RelayEnd, plain: FlowSide, (measured, epoch): (&TcpStream, u32)) {
    let far = if plain == FlowSide::Source { FlowSide::Destination } else { FlowSide::Source };
    let info = sockets::tcp_info(measured).ok();
    let reason = match (end.reason(), end.first, plain) {
        // The relay knows "plain" and "far"; people know clients and servers.
        (Reason::ClientReset | Reason::ServerReset, Some(who), _) => {
            let by = if who == Who::Plain { plain } else { far };
            if by == FlowSide::Source { Reason::ClientReset } else { Reason::ServerReset }
        }
        (reason, ..) => reason,
    };
    shard.common.sink.ended(
        id,
        FlowEnded {
            close: how(end),
            closed_by: end.first.map(|who| match who {
                Who::Plain => plain,
                Who::Far => far,
                Who::Agent => FlowSide::Mesh,
            }),
            reason,
            rtt_us: info.as_ref().map(|info| info.rtt_us),
            retransmits: info.as_ref().map(|info| info.total_retransmits),
            // The other node's verdict came by its own epoch, which this node's newest is nearest to.
            epoch: if epoch == 0 && reason.is_verdict() { shard.common.state.load().epoch() } else { epoch },
        },
    );
}

fn how(end: &RelayEnd) -> FlowClose {
    match end.stopped {
        Some(Reason::EndpointGone) => return FlowClose::EndpointGone,
        Some(Reason::TupleBusy) => return FlowClose::Replaced,
        Some(Reason::NodeUnreachable) => return FlowClose::TunnelLost,
        Some(_) => return FlowClose::Agent,
        None => {}
    }
    match (end.far, end.plain) {
        (SideEnd::Lost(_), _) => FlowClose::TunnelLost,
        (SideEnd::Finished, SideEnd::Finished) => FlowClose::Fin,
        _ => FlowClose::Rst,
    }
}
