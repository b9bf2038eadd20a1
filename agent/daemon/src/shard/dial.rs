//! Honest connect, the client's side: a parked SYN becomes a connection only after the far end has accepted.

use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use kumiko_abi::flow::{TCP, flags};
use kumiko_abi::{FlowState, Reason, SynRecord, Verdict};
use kumiko_core::addr;
use kumiko_core::connect::{self, Answer};
use kumiko_core::frame::{AskedService, Open};
use kumiko_core::model::{Protocol, World};
use kumiko_core::route::{self, Plan};
use kumiko_fault::Point;
use kumiko_kernel::diag;
use kumiko_tunnel::pool::Key;
use kumiko_tunnel::{OpenError, Tunnel};
use tokio::net::TcpStream;
use tracing::debug;

use super::deliver::{Delivered, Delivery};
use super::failure::{Failure, at};
use super::registry::{Entry, Stop};
use super::{Shard, carry, report};
use crate::clock;
use crate::reconcile::Between;
use crate::telemetry::FlowOpened;

/// How often a pending flow's entry is looked at, to see whether its client still tries.
const LOOK: Duration = Duration::from_secs(1);
/// Tunnels tried for one flow when the trouble may pass: "not processed", a warm one that died, a swamped acceptor.
const TRIES: usize = 3;
/// Time for the agent namespace's handshake with the client after the SYN was injected. The client is a veth away; only
/// one that is stopped or gone takes longer, and then its entry shows it.
const PAIR_WITHIN: Duration = Duration::from_secs(10);

/// Where the bytes of a dialled flow go.
enum Far {
    /// To another node.
    Tunnel(Box<Tunnel>),
    /// To a pod of this node, which a Service led to.
    Local(Delivered),
}

/// Serves one parked SYN, from plan to the end of its flow.
pub(super) async fn dial(shard: Rc<Shard>, syn: SynRecord) {
    let (client, asked) = addr::ends(&syn.key, syn.flags);
    let stop = Arc::new(Stop::default());
    let handles = [syn.src, syn.dst];
    let entry = Entry { id: syn.id, client, asked, handles, between: None, stop: stop.clone() };
    let registered = shard.common.registry.add(syn.key, entry);
    if syn.flags & flags::UNCARRIABLE != 0 {
        return refuse(&shard, &syn, None, Failure::new(Reason::MethodRefused)).await;
    }
    let plan = match shard.plan(&syn, client, asked) {
        Ok(plan) => plan,
        Err(reason) => return refuse(&shard, &syn, None, Failure::new(reason)).await,
    };
    let between = Between {
        proto: TCP,
        source_uid: plan.source.uid.clone(),
        target_uid: plan.target.uid.clone(),
        client: client.ip(),
        to: plan.target_addr,
        host: false,
        proved: true,
    };
    shard.common.registry.learn(&registered, between.clone());
    let state = shard.common.state.load();
    let (target, (refused, marks)) = ((state.handle(&plan.target.uid), state.epoch()), state.judge(&between));
    drop(state);
    if marks & !syn.flags != 0 {
        // The pod that was chosen is known only now. Lost, it lacks in a record.
        let _ = shard.common.commands.flag(&syn.key, &syn.id, marks);
    }
    shard.common.sink.dialling(report::dialled(&syn, client, &plan, target));
    if let Some(refused) = refused {
        return refuse(&shard, &syn, Some(&plan), Failure::new(refused.reason)).await;
    }
    let (_, epoch) = target;
    let far = {
        let quit = async {
            tokio::select! {
                reason = gave_up(&shard, &syn) => reason,
                reason = stop.stopped() => reason,
            }
        };
        reach(&shard, &syn, (&plan, epoch), (client, asked), &stop, pin!(quit)).await
    };
    let far = match far {
        Ok(far) => far,
        Err(failure) => return refuse(&shard, &syn, Some(&plan), failure).await,
    };
    if registered.replaced() {
        // What the older flow left here (a handshake that nobody finished) would answer the new SYN in its own way.
        let _ = diag::destroy(asked, client);
    }
    let paired = pair(&shard, &syn, client, asked, &stop).await;
    let plain = match paired.and_then(|plain| at(Point::DiallerAccepted).map(|()| plain)) {
        Ok(plain) => plain,
        Err(failure) => {
            // The far pod is reset at once; the tunnel is as good as before.
            if let Far::Tunnel(mut tunnel) = far {
                let shard = shard.clone();
                tokio::task::spawn_local(async move {
                    if tunnel.reset(failure.reason).await {
                        shard.put_back(*tunnel);
                    }
                });
            }
            return refuse(&shard, &syn, Some(&plan), failure).await;
        }
    };
    match far {
        Far::Tunnel(tunnel) => carry::to_node(&shard, syn.id, plain, *tunnel, &stop).await,
        Far::Local(delivered) => carry::on_node(&shard, syn.id, plain, delivered, &stop).await,
    }
}

/// Gets the far end to accept, unless `quit` comes first: over a tunnel, or here when the chosen pod is on this node.
async fn reach(
    shard: &Rc<Shard>,
    syn: &SynRecord,
    (plan, epoch): (&Plan, u32),
    (client, asked): (SocketAddr, SocketAddr),
    stop: &Arc<Stop>,
    mut quit: Pin<&mut impl Future<Output = Reason>>,
) -> Result<Far, Failure> {
    let Some(node) = plan.node_addr else {
        let delivery = Delivery {
            id: syn.id,
            client,
            asked,
            to: plan.target_addr,
            source_uid: plan.source.uid.clone(),
            target_uid: plan.target.uid.clone(),
            service: syn.service,
            stop: stop.clone(),
        };
        let delivered = tokio::select! {
            delivered = shard.deliver(delivery) => delivered?,
            reason = quit => return Err(Failure::new(reason)),
        };
        shard.common.sink.opened(syn.id, FlowOpened { connect_us: since(syn), ..FlowOpened::default() });
        return Ok(Far::Local(delivered));
    };
    let node = SocketAddr::new(node, kumiko_abi::TUNNEL_PORT);
    let open = Open { epoch, ..open_frame(&shard.common.state.load().world, syn, plan, client, asked) };
    let (mut last, mut fresh) = (Failure::new(Reason::NotProcessed), false);
    for _ in 0..TRIES {
        let key = Key { source: plan.source_principal.clone(), destination: plan.target_principal.clone(), node };
        let taken = tokio::select! {
            taken = shard.tunnel(key, fresh) => taken,
            reason = &mut quit => return Err(Failure::new(reason)),
        };
        let taken = match taken {
            Ok(taken) => taken,
            Err(failure) if passing(failure.reason) => {
                last = failure;
                continue;
            }
            Err(failure) => return Err(failure),
        };
        let mut tunnel = taken.tunnel;
        let opened = tokio::select! {
            opened = tunnel.open(&open) => opened,
            reason = &mut quit => {
                let shard = shard.clone();
                // The far agent stops its connect, and the tunnel can carry the next flow.
                tokio::task::spawn_local(async move {
                    if tunnel.cancel_open(reason).await {
                        shard.put_back(tunnel);
                    }
                });
                return Err(Failure::new(reason));
            }
        };
        match opened {
            Ok(peer_epoch) => {
                let opened = FlowOpened {
                    tunnel: Some(tunnel.info().number),
                    handshake_us: taken.handshake.map(|took| u64::try_from(took.as_micros()).unwrap_or(u64::MAX)),
                    connect_us: since(syn),
                    peer_epoch,
                };
                shard.common.sink.opened(syn.id, opened);
                return Ok(Far::Tunnel(Box::new(tunnel)));
            }
            Err(OpenError::NotProcessed) => last = Failure::new(Reason::NotProcessed),
            // A warm tunnel may have died unseen, with its peer: nothing of this flow was done there that a new OPEN
            // could double, since the acceptor ends what it did when the tunnel ends. The others may be dead as well.
            Err(OpenError::Tunnel(error)) if taken.handshake.is_none() => {
                last = Failure::new(error.reason());
                fresh = true;
            }
            Err(error) => {
                let failure = Failure { reason: error.reason(), errno: error.errno() };
                // A tunnel whose flow was refused is as good as new.
                shard.put_back(tunnel);
                return Err(failure);
            }
        }
    }
    Err(last)
}

/// Handshakes that end like this may do better a moment later: an acceptor that is swamped, or has just been replaced.
/// The client waits meanwhile, as for a slow network; when it gives up, so does the dial.
fn passing(reason: Reason) -> bool {
    matches!(reason, Reason::HandshakeTimedOut | Reason::TlsFailed | Reason::TunnelLost)
}

fn open_frame(world: &World, syn: &SynRecord, plan: &Plan, client: SocketAddr, asked: SocketAddr) -> Open {
    Open {
        flow_id: syn.id,
        client,
        destination: plan.target_addr,
        destination_uid: plan.target.uid.clone(),
        source_uid: plan.source.uid.clone(),
        label_digest: route::label_digest(world, &plan.source),
        service: plan
            .service
            .as_ref()
            .map(|service| AskedService { name: format!("{}/{}", service.namespace, service.name), address: asked }),
        epoch: 0,
    }
}

/// Microseconds since the client's first SYN.
fn since(syn: &SynRecord) -> u64 {
    clock::monotonic_ns().saturating_sub(syn.first_ns) / 1000
}

/// Lets the client's handshake happen and returns its socket.
async fn pair(
    shard: &Rc<Shard>,
    syn: &SynRecord,
    client: SocketAddr,
    asked: SocketAddr,
    stop: &Arc<Stop>,
) -> Result<TcpStream, Failure> {
    // The pairing stands before the SYN goes in, so the accept cannot come first.
    let mut pairing = shard.pairings.expect((client, asked), syn.id);
    at(Point::DiallerOpened)?;
    shard.set_state(syn, FlowState::Captured, Reason::Allowed, Verdict::Allow, 0)?;
    at(Point::DiallerCaptured)?;
    shard.inject(syn)?;
    at(Point::DiallerInjected)?;
    let gone = async {
        loop {
            tokio::time::sleep(LOOK).await;
            if shard.living(syn).is_none() {
                return;
            }
        }
    };
    tokio::select! {
        biased;
        socket = pairing.socket() => socket.ok_or(Failure::new(Reason::TupleBusy)),
        reason = stop.stopped() => Err(Failure::new(reason)),
        () = gone => Err(Failure::new(Reason::ClientGone)),
        () = tokio::time::sleep(PAIR_WITHIN) => Err(Failure::new(Reason::ClientGone)),
    }
}

/// Returns when the client of a pending flow has stopped trying.
async fn gave_up(shard: &Rc<Shard>, syn: &SynRecord) -> Reason {
    loop {
        tokio::time::sleep(LOOK).await;
        let Some(flow) = shard.living(syn) else { return Reason::ClientGone };
        if connect::gave_up(flow.first_ns, flow.last_syn_ns, clock::monotonic_ns()) {
            return Reason::ClientGone;
        }
    }
}

/// Whether the client may go to each endpoint of the Service that it asked, if it asked one: in the clear somebody else chooses.
fn open_to_all(shard: &Rc<Shard>, syn: &SynRecord, plan: Option<&Plan>) -> bool {
    let (client, asked) = addr::ends(&syn.key, syn.flags);
    let state = shard.common.state.load();
    let Some((_, port)) = state.world.service_at(asked.ip(), asked.port(), Protocol::Tcp) else { return true };
    let between = |to| Between {
        proto: TCP,
        source_uid: plan.map_or(String::new(), |plan| plan.source.uid.clone()),
        target_uid: String::new(),
        client: client.ip(),
        to,
        host: false,
        proved: false,
    };
    port.backends(asked.ip()).ready.iter().all(|backend| state.refusal(&between(backend.addr)).is_none())
}

/// Tells the client what happened, as it would have been told without the mesh.
async fn refuse(shard: &Rc<Shard>, syn: &SynRecord, plan: Option<&Plan>, failure: Failure) {
    let stages = shard.stages(syn, plan);
    if plan.is_none() {
        shard.common.sink.dialling(report::unplanned(syn));
    }
    let answer = match connect::answer(failure.reason, failure.errno, stages) {
        Answer::Downgrade if !open_to_all(shard, syn, plan) => Answer::Reset,
        answer => answer,
    };
    if answer == Answer::Downgrade {
        let marks = flags::DOWNGRADED | flags::PLAINTEXT;
        if shard.set_state(syn, FlowState::Direct, Reason::Downgraded, Verdict::Allow, marks).is_ok() {
            return shard.common.sink.downgraded(syn.id);
        }
    }
    shard.common.sink.refused(syn.id, failure.reason, failure.errno);
    let cut = |marks| shard.set_state(syn, FlowState::Cut, failure.reason, Verdict::Deny, marks);
    let told = match answer {
        // The RST that the SYN gets ends the entry.
        Answer::Reset => cut(0).and_then(|()| shard.inject(syn)),
        // An ICMP error may be lost; and one that meets the client's socket in use (`connect` has not yet returned) its
        // kernel only remembers (`tcp_v4_err`). Then the SYN comes again, and is dialled anew: a cut entry would reset it.
        Answer::Unreachable(errno) => cut(flags::OVER_RST).and_then(|()| shard.unreachable(syn, errno)),
        Answer::Silence => {
            gave_up(shard, syn).await;
            cut(flags::OVER_RST)
        }
        // Too late: the entry is gone or another's.
        Answer::Downgrade => Ok(()),
    };
    if let Err(error) = told {
        // The entry is gone or another's: the client has moved on.
        debug!(reason = error.reason.name(), "refusal came too late");
    }
}
