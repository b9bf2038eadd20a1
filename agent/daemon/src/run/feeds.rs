//! The kernel's side of telemetry: flow table, event ring, pods' sockets.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use kumiko_abi::flow::flags;
use kumiko_abi::{Event, Flow, FlowId, FlowKey};
use kumiko_core::addr;
use kumiko_core::flow_record::Entry;
use kumiko_core::model::Attachment;
use kumiko_kernel::bpf::{Commands, Datapath, EventRing, FlowTable, Maps};
use kumiko_kernel::diag;
use kumiko_kernel::netns::Netns;
use kumiko_kernel::readable::Readable;
use kumiko_kernel::veth;

use crate::reconcile::SharedState;
use crate::telemetry::{EventSource, FlowSource};

/// The flow table, and the namespaces behind it: the pods' and the agent's own.
pub(super) struct Flows {
    table: FlowTable,
    maps: Maps,
    commands: Commands,
    state: SharedState,
    host: Netns,
    agent: Netns,
    /// Pods' namespaces by interface, for one reading.
    known: HashMap<u32, Option<Arc<Netns>>>,
}

impl Flows {
    pub(super) fn new(datapath: &Datapath, state: SharedState, host: Netns, agent: Netns) -> Self {
        let (table, maps, commands) = (datapath.flows(), datapath.maps(), datapath.commands());
        Self { table, maps, commands, state, host, agent, known: HashMap::new() }
    }

    fn namespace(&mut self, ifindex: u32) -> Option<Arc<Netns>> {
        if let Some(known) = self.known.get(&ifindex) {
            return known.clone();
        }
        let state = self.state.load();
        let owner = state.endpoints().find(|(_, report)| report.ifindex == ifindex).map(|(uid, _)| uid.to_owned());
        let attachment = owner.and_then(|uid| state.world.workload(&uid)?.attachment.clone());
        let found = attachment.and_then(|attachment| {
            let wanted = match attachment {
                Attachment::Netns { path, interface } => veth::Attachment::Netns { path: path.into(), interface },
                Attachment::Veth { name } => veth::Attachment::Veth { name },
            };
            // Only if it is the interface of the flow: a pod that was made anew has no socket of it.
            veth::resolve(&wanted, &self.host).ok().filter(|veth| veth.ifindex == ifindex)?.netns.map(Arc::new)
        });
        self.known.insert(ifindex, found.clone());
        found
    }
}

impl FlowSource for Flows {
    fn scan(&mut self, visit: &mut dyn FnMut(&FlowKey, &Flow)) -> io::Result<()> {
        self.known.clear();
        self.table.scan(visit)
    }

    fn reap(&mut self, key: &FlowKey, id: FlowId) -> io::Result<()> {
        self.commands.reap(key, &id).map(drop).map_err(io::Error::other)
    }

    fn has_socket(&mut self, entry: &Entry) -> io::Result<Option<bool>> {
        let (initiator, target) = addr::ends(&entry.key, entry.flow.flags);
        // Where the programs chose the endpoint, the client's socket has the Service for its peer.
        let turned = entry.flow.flags & flags::TURNED != 0;
        let asked = if turned { self.maps.translation(&entry.key).map_err(io::Error::other)? } else { None };
        let peer = asked.map_or(target, |asked| SocketAddr::new(addr::from_abi(&asked.addr), asked.port));
        let ends = [(entry.flow.src_ifindex, initiator, peer), (entry.flow.dst_ifindex, target, initiator)];
        let mut told = None;
        for (ifindex, local, remote) in ends {
            if ifindex == 0 {
                continue;
            }
            let Some(netns) = self.namespace(ifindex) else { continue };
            if diag::exists(&netns, &local, &remote)? {
                return Ok(Some(true));
            }
            told = Some(false);
        }
        if told == Some(false) {
            // A pod's socket may be gone without a word (closed, and its FIN_WAIT2 ran out), or not be there yet (its
            // backlog is full). The agent still carries the flow: only through this entry does what comes next reach
            // the pod, and the pod's RST the other end.
            let carried =
                diag::exists(&self.agent, &target, &initiator)? || diag::exists(&self.agent, &initiator, &target)?;
            told = Some(carried);
        }
        Ok(told)
    }
}

/// The event ring, polled.
pub(super) struct Events {
    ring: EventRing,
    readable: Readable,
    /// Taken while waiting for it.
    next: Option<Event>,
}

impl Events {
    /// In a tokio runtime.
    pub(super) fn new(ring: EventRing) -> io::Result<Self> {
        Ok(Self { readable: Readable::new(&ring)?, ring, next: None })
    }
}

impl EventSource for Events {
    async fn readable(&mut self) -> io::Result<()> {
        if self.next.is_none() {
            let ring = &mut self.ring;
            self.next = Some(self.readable.wait(|| ring.next()).await?);
        }
        Ok(())
    }

    fn next_event(&mut self) -> Option<Event> {
        self.next.take().or_else(|| self.ring.next())
    }
}
