//! One flow while it lives, and a little after.

use std::net::SocketAddr;

use kumiko_abi::flow::flags;
use kumiko_abi::{Flow, FlowId, FlowKey, FlowState, Reason, Verdict};
use kumiko_core::addr::from_abi;
use kumiko_core::flow_record::{AgentFacts, Clock, Directory, Entry, FlowClose, FlowRecord, Names};

use super::FlowStart;
use super::unbuilt::Unbuilt;

/// Everything that is known about a flow. A flow through a Service whose pod is on this node has two entries: the
/// client's side and the pod's.
#[derive(Clone, Debug)]
pub(super) struct Live {
    /// The client's side, if there is one here; else the pod's.
    pub entry: Entry,
    /// The pod's side beside the client's.
    pub delivered: Option<Entry>,
    pub names: Names,
    pub facts: AgentFacts,
    /// The table has (had) an entry. Else a shard told of it only.
    pub in_table: bool,
    /// A shard told of it, so a shard will tell of its end.
    pub by_agent: bool,
    /// When a shard told of its end, or 0.
    pub ended_ns: u64,
    /// Number of the reading that saw it last.
    pub seen: u64,
    /// Reading at which the end was first noticed: the record waits a little for the other side's word.
    pub closing: Option<u64>,
    /// The final record is written; the entry only waits to be reaped.
    pub done: bool,
    /// Reports to followers so far.
    pub reports: u32,
    /// Monotonic time of the last report, and packets then.
    pub reported: (u64, u64),
    /// Monotonic time of the last look for its socket.
    pub looked_ns: u64,
}

impl Live {
    pub(super) fn new(entry: Entry, in_table: bool, seen: u64) -> Self {
        Self {
            entry,
            delivered: None,
            names: Names::default(),
            facts: AgentFacts::default(),
            in_table,
            by_agent: false,
            ended_ns: 0,
            seen,
            closing: None,
            done: false,
            reports: 0,
            reported: (0, 0),
            looked_ns: 0,
        }
    }

    /// A flow of which only a shard has told.
    pub(super) fn of_start(start: &FlowStart, now_ns: u64, seen: u64) -> Self {
        let lo = SocketAddr::new(from_abi(&start.key.lo), start.key.lo_port);
        let hi = SocketAddr::new(from_abi(&start.key.hi), start.key.hi_port);
        // The pod may see another port than the client's own: then the address alone tells the ends apart.
        let client_is_lo = lo == start.client || (hi != start.client && lo.ip() == start.client.ip());
        let flow = Flow {
            id: start.id,
            first_ns: now_ns,
            last_syn_ns: now_ns,
            last_ns: now_ns,
            over_ns: 0,
            src: start.source,
            dst: start.destination,
            service: 0,
            src_ifindex: 0,
            dst_ifindex: 0,
            generation: 0,
            epoch: 0,
            isn: 0,
            flags: if client_is_lo { flags::INITIATOR_IS_LO } else { 0 },
            shard: 0,
            reason: Reason::None as u16,
            state: FlowState::Pending as u8,
            verdict: Verdict::Allow as u8,
            _pad: [0; 2],
            not_after: 0,
            dir: Default::default(),
        };
        Self::new(Entry { key: start.key, flow }, false, seen)
    }

    /// Takes what the table or an event says about one of its entries.
    pub(super) fn observe(&mut self, entry: Entry) {
        let old = &self.entry.flow;
        // Events lag behind readings: what they carry may be older. Told by counters, which only grow: times are of two
        // clocks, and that of packets is a few ms behind that of the flow's begin.
        let stale = progress(&entry.flow) < progress(old) || (self.facts.opened && is_pending(&entry.flow));
        if self.in_table && entry.key == self.entry.key && stale {
            return;
        }
        let from_tunnel = entry.flow.flags & flags::DELIVERED != 0;
        if !self.in_table || entry.key == self.entry.key {
            self.entry = entry;
        } else if from_tunnel {
            self.delivered = Some(entry);
        } else {
            let pod_side = std::mem::replace(&mut self.entry, entry);
            self.delivered = Some(pod_side);
        }
        self.in_table = true;
    }

    pub(super) fn started(&mut self, start: FlowStart) {
        self.by_agent = true;
        self.facts.judged(start.epoch);
        self.facts.judged_there(start.peer_epoch);
        // Of a same-node flow through a Service both halves are told; the client's knows the Service.
        if !(start.delivering && self.facts.target.is_some()) {
            self.facts.target = start.target.or(self.facts.target);
            self.facts.delivering = start.delivering;
        }
        self.facts.service = start.service.or(self.facts.service.take());
        self.facts.remote |= start.remote;
        if !start.peer_node.is_empty() {
            self.facts.peer_node = start.peer_node;
        }
    }

    pub(super) fn record(&self, node: &str, clock: Clock) -> FlowRecord {
        FlowRecord::build(node, clock, &self.entry, &self.names, &self.facts)
    }

    /// The same, for later.
    pub(super) fn unbuilt(&self, clock: Clock) -> Unbuilt {
        Unbuilt { entry: self.entry, names: self.names.clone(), facts: self.facts.clone(), clock, finished: false }
    }

    pub(super) fn complete(&mut self, directory: &dyn Directory) {
        self.names.complete(directory, &self.entry, &self.facts);
    }

    pub(super) fn over(&self) -> bool {
        let flow = &self.entry.flow;
        flow.over_ns != 0 || flow.flags & flags::OVER != 0
    }

    pub(super) fn has(&self, flag: u32) -> bool {
        self.entry.flow.flags & flag != 0
    }

    pub(super) fn state(&self) -> Option<FlowState> {
        FlowState::from_u8(self.entry.flow.state)
    }

    pub(super) fn packets(&self) -> u64 {
        let [sent, received] = self.entry.flow.dir;
        sent.packets.saturating_add(received.packets)
    }

    /// Both sides have said that it ended, or the only one that knows it.
    pub(super) fn fully_closed(&self) -> bool {
        let told = self.facts.close.is_some();
        // What opened has an entry, and only that knows the bytes: a short flow is over before any reading saw it, and
        // the shard's word may come before the kernel's.
        let without_entry = !self.in_table && !self.facts.opened;
        let kernel = self.over() || self.state() == Some(FlowState::Cut) || without_entry;
        if self.by_agent { told && kernel } else { kernel && self.in_table }
    }

    /// Whether any side has said that it ended.
    pub(super) fn half_closed(&self) -> bool {
        self.facts.close.is_some() || self.over() || self.state() == Some(FlowState::Cut)
    }

    /// The dial failed and the flow lives in the clear: from now on only the kernel knows of it.
    pub(super) fn went_on(&mut self) {
        self.facts.reason = Some(Reason::Downgraded as u16);
        self.by_agent = false;
        if self.state() == Some(FlowState::Pending) {
            // The kernel was told already; the next reading shows the same.
            self.entry.flow.state = FlowState::Direct as u8;
            self.entry.flow.flags |= flags::DOWNGRADED | flags::PLAINTEXT;
        }
    }

    /// Makes the end certain for the record when nothing else did.
    pub(super) fn force_end(&mut self, now_ns: u64, close: Option<FlowClose>) {
        if self.entry.flow.over_ns == 0 {
            // What a shard told of ended then, however long the record waited for the kernel's word.
            self.entry.flow.over_ns = if self.ended_ns != 0 { self.ended_ns } else { now_ns };
        }
        self.facts.close = self.facts.close.or(close);
    }

    /// When a flow that is over was over, or had its last packet, in ns.
    pub(super) fn quiet_since(&self) -> u64 {
        let flow = &self.entry.flow;
        if flow.over_ns != 0 { flow.over_ns.max(flow.last_ns) } else { flow.last_ns }
    }

    /// Keys of its entries with the id that a reap must name.
    pub(super) fn keys(&self) -> impl Iterator<Item = (FlowKey, FlowId)> + '_ {
        let first = self.in_table.then_some((self.entry.key, self.entry.flow.id));
        first.into_iter().chain(self.delivered.iter().map(|entry| (entry.key, entry.flow.id)))
    }
}

/// How far an entry has come.
fn progress(flow: &Flow) -> (u64, bool) {
    let [sent, received] = flow.dir;
    (sent.packets.saturating_add(received.packets), flow.over_ns != 0 || flow.flags & flags::OVER != 0)
}

fn is_pending(flow: &Flow) -> bool {
    FlowState::from_u8(flow.state) == Some(FlowState::Pending)
}
