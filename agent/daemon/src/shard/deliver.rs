//! The last step towards a pod: the entry first, then a socket with the client's own address and port.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;

use kumiko_abi::flow::{TCP, flags};
use kumiko_abi::{CommandResult, Direction, Flow, FlowId, FlowKey, FlowState, Reason, Verdict};
use kumiko_core::addr;
use kumiko_core::connect::{connect_reason, errno};
use kumiko_fault::Point;
use kumiko_kernel::bpf::Commands;
use kumiko_kernel::{diag, sockets};
use tokio::net::TcpStream;

use super::Shard;
use super::failure::{Failure, at};
use super::registry::{Claimed, Entry, Registered, Stop};
use crate::reconcile::Between;

/// Source of a pod's connection to itself through a Service: its own address would never be answered.
const HAIRPIN_V4: Ipv4Addr = Ipv4Addr::new(169, 254, 107, 1);
/// The same for IPv6, a unique local address: a link-local one would need a scope.
const HAIRPIN_V6: Ipv6Addr = Ipv6Addr::new(0xfd6b, 0x756d, 0x696b, 0, 0, 0, 0, 1);
/// Other source ports tried when the client's own is taken by another flow to the same pod.
const OTHER_PORTS: usize = 16;

/// What is to be delivered.
pub(super) struct Delivery {
    pub(super) id: FlowId,
    pub(super) client: SocketAddr,
    /// The address that the client asked for: a Service's, or the pod's own.
    pub(super) asked: SocketAddr,
    /// The pod.
    pub(super) to: SocketAddr,
    pub(super) source_uid: String,
    pub(super) target_uid: String,
    pub(super) service: u32,
    pub(super) stop: Arc<Stop>,
}

/// A connection that a pod has accepted.
pub(super) struct Delivered {
    pub(super) stream: TcpStream,
    pub(super) registered: Registered,
    /// Epoch of the verdicts that let it.
    pub(super) epoch: u32,
}

/// An entry whose connection is still to come. Dropped before it came (refused, or the client gave up), the entry goes:
/// it must not meet the next flow with this tuple.
struct Reserved<'a> {
    commands: &'a Commands,
    key: FlowKey,
    id: FlowId,
    registered: &'a Registered,
}

impl Reserved<'_> {
    fn keep(self) {
        std::mem::forget(self);
    }
}

impl Drop for Reserved<'_> {
    fn drop(&mut self) {
        // An OPEN that was tried again on another tunnel has this very id: what it entered is not this one's to reap.
        if self.registered.holds() {
            let _ = self.commands.reap(&self.key, &self.id);
        }
    }
}

impl Shard {
    /// Connects to a local pod as the client.
    pub(super) async fn deliver(self: &Rc<Self>, delivery: Delivery) -> Result<Delivered, Failure> {
        let state = self.common.state.load();
        let Some(ifindex) = state.attached_ifindex(&delivery.target_uid) else {
            // Its replies would leave in the clear.
            return Err(Failure { reason: Reason::EndpointNotAttached, errno: errno::EHOSTUNREACH });
        };
        let hairpin = delivery.source_uid == delivery.target_uid;
        let source = if hairpin { hairpin_source(delivery.client) } else { delivery.client };
        let handles = [state.handle(&delivery.source_uid), state.handle(&delivery.target_uid)];
        let between = Between {
            proto: TCP,
            source_uid: delivery.source_uid.clone(),
            target_uid: delivery.target_uid.clone(),
            client: delivery.client.ip(),
            to: delivery.to,
            host: false,
            proved: true,
        };
        let (_, would) = state.judge(&between);
        drop(state);
        let marks = flags::DELIVERED | would | if hairpin { flags::HAIRPIN } else { 0 };
        let (source, registered) = self.reserve(&delivery, source, handles, ifindex, marks)?;
        let (key, _) = addr::flow_key(source, delivery.to, TCP);
        let reserved = Reserved { commands: &self.common.commands, key, id: delivery.id, registered: &registered };
        self.common.registry.learn(&registered, between.clone());
        let epoch = {
            let state = self.common.state.load();
            if let Some(refused) = state.refusal(&between) {
                return Err(Failure::new(refused.reason));
            }
            state.epoch()
        };
        at(Point::AcceptorEntered)?;
        match connect(source, delivery.to, &registered).await {
            Ok(stream) => {
                reserved.keep();
                Ok(Delivered { stream, registered, epoch })
            }
            Err(number) => Err(Failure { reason: connect_reason(number), errno: number }),
        }
    }

    /// Makes the entry under which the pod's replies come back, on the client's own port if it is free.
    fn reserve(
        &self,
        delivery: &Delivery,
        source: SocketAddr,
        handles: [u32; 2],
        ifindex: u32,
        marks: u32,
    ) -> Result<(SocketAddr, Registered), Failure> {
        let other = |_| SocketAddr::new(source.ip(), rand::random_range(32_768..=60_999));
        let others = (0..OTHER_PORTS).map(other).map(|source| (source, marks | flags::OTHER_PORT));
        for (source, marks) in std::iter::once((source, marks)).chain(others) {
            let (key, _) = addr::flow_key(source, delivery.to, TCP);
            if self.common.flows.get(&key).is_some_and(|flow| flow.state == FlowState::Pending as u8) {
                // Simultaneous open: the pod itself is dialling its peer with these very addresses and ports.
                return Err(Failure::new(Reason::TupleBusy));
            }
            let Delivery { id, client, asked, stop, .. } = delivery;
            let entry = Entry { id: *id, client: *client, asked: *asked, handles, between: None, stop: stop.clone() };
            let registered = match self.common.registry.claim(key, entry) {
                Ok(registered) => registered,
                Err(Claimed::ByAnother) => continue,
                Err(Claimed::ByLater) => return Err(Failure::new(Reason::TupleBusy)),
            };
            if self.create(delivery, source, handles, ifindex, marks)?
                || (self.give_way(&key, &registered)? && self.create(delivery, source, handles, ifindex, marks)?)
            {
                return Ok((source, registered));
            }
        }
        Err(Failure::new(Reason::TupleBusy))
    }

    /// Ends what stands under the key if it is an older life of this very flow's tuple; says whether it is free now.
    fn give_way(&self, key: &FlowKey, registered: &Registered) -> Result<bool, Failure> {
        let Some(flow) = self.common.flows.get(key) else { return Ok(true) };
        if flow.flags & flags::DELIVERED == 0 {
            // The client's own flow to the pod's address, in the clear or on the fast path.
            return Ok(false);
        }
        if !registered.holds() {
            return Err(Failure::new(Reason::TupleBusy));
        }
        match self.common.commands.reap(key, &flow.id) {
            Ok(CommandResult::Done) => {
                let (local, remote) = addr::ends(key, flow.flags);
                // Its socket has to be gone before the tuple can be bound again; the pod gets the RST it would have got.
                let _ = diag::destroy(local, remote);
                Ok(true)
            }
            Ok(CommandResult::Missing) => Ok(true),
            _ => Ok(false),
        }
    }

    fn create(
        &self,
        delivery: &Delivery,
        source: SocketAddr,
        handles: [u32; 2],
        ifindex: u32,
        marks: u32,
    ) -> Result<bool, Failure> {
        let (key, initiator) = addr::flow_key(source, delivery.to, TCP);
        let flow = Flow {
            id: delivery.id,
            first_ns: 0,
            last_syn_ns: 0,
            last_ns: 0,
            over_ns: 0,
            src: handles[0],
            dst: handles[1],
            service: delivery.service,
            src_ifindex: self.common.agent_ifindex,
            dst_ifindex: ifindex,
            generation: self.common.generation,
            epoch: self.common.state.load().epoch(),
            isn: 0,
            flags: marks | initiator,
            shard: self.number(),
            reason: Reason::Allowed as u16,
            state: FlowState::Captured as u8,
            verdict: Verdict::Allow as u8,
            _pad: [0; 2],
            not_after: 0,
            dir: [Direction::default(); 2],
        };
        match self.common.commands.create(&key, &flow) {
            Ok(CommandResult::Done) => Ok(true),
            Ok(CommandResult::Full) => Err(Failure::new(Reason::TableFull)),
            Ok(_) => Ok(false),
            Err(_) => Err(Failure::new(Reason::TableFull)),
        }
    }
}

/// Connects and waits for the pod's answer; an errno when it is not a yes.
async fn connect(source: SocketAddr, to: SocketAddr, registered: &Registered) -> Result<TcpStream, i32> {
    let number = |e: std::io::Error| e.raw_os_error().unwrap_or(errno::EHOSTUNREACH);
    let socket = match sockets::connect_as(source, to) {
        Err(error) if error.kind() == std::io::ErrorKind::AddrNotAvailable && registered.holds() => {
            // Our own TIME_WAIT towards a server without timestamps, or an older life of this tuple.
            let _ = diag::destroy(source, to);
            sockets::connect_as(source, to).map_err(number)?
        }
        other => other.map_err(number)?,
    };
    let stream = TcpStream::from_std(socket).map_err(number)?;
    stream.writable().await.map_err(number)?;
    match stream.take_error().map_err(number)? {
        None => Ok(stream),
        Some(error) => Err(number(error)),
    }
}

fn hairpin_source(client: SocketAddr) -> SocketAddr {
    let ip = match client.ip() {
        IpAddr::V4(_) => IpAddr::V4(HAIRPIN_V4),
        IpAddr::V6(_) => IpAddr::V6(HAIRPIN_V6),
    };
    SocketAddr::new(ip, client.port())
}
