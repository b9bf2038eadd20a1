//! Live flows and the records of finished ones. A plain value: readings, events and reports go in, records and things to
//! do come out; the collector around it does the I/O.

mod exchanges;

use std::collections::hash_map::Entry as MapEntry;
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;

use kumiko_abi::flow::{TCP, flags};
use kumiko_abi::{Event, EventKind, Flow, FlowId, FlowKey, FlowState, Reason, Verdict};
use kumiko_core::api::FlowTableStatus;
use kumiko_core::flow_record::{
    AgentFacts, Clock, Directory, Entry, FlowClose, FlowRecord, FlowSide, Names, unanswered,
};
use tokio::sync::broadcast;

use super::closed::{ClosedCounts, closed_key};
use super::live::Live;
use super::unbuilt::Unbuilt;
use super::{FlowReport, Settings};

/// An entry that is over stays this long: late packets of it still find it.
const REAP_AFTER_NS: u64 = 60 * SECOND;
/// So long while the table fills (an eighth of it is half a pod's quota): what is over must not deny what is new.
const REAP_SOON_NS: u64 = 5 * SECOND;
/// How often a flow that lives long is told to followers.
const UPDATE_EVERY_NS: u64 = 10 * SECOND;
/// Silence after which a flow that nobody answered is looked up, to see whether its client still tries.
const UNANSWERED_NS: u64 = 10 * SECOND;
const SECOND: u64 = 1_000_000_000;
/// Readings that a record waits for the other side's word about the end.
const PATIENCE: u64 = 2;

/// What the collector has to do after a reading.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Todo {
    /// Delete an entry that has been over for a while.
    Reap(FlowKey, FlowId),
    /// Idle: look for its socket, and delete it if nobody has it.
    Look(Entry),
}

/// See the module's text.
#[derive(Debug)]
pub(super) struct Store {
    settings: Settings,
    live: HashMap<FlowId, Live>,
    finished: VecDeque<Arc<Unbuilt>>,
    followers: broadcast::Sender<Arc<FlowRecord>>,
    clock: Clock,
    readings: u64,
    pub(super) status: FlowTableStatus,
    closed: ClosedCounts,
    legacy: HashMap<u32, u64>,
}

impl Store {
    pub(super) fn new(settings: Settings) -> Self {
        let (followers, _) = broadcast::channel(settings.follow_queue.max(1));
        let status = FlowTableStatus {
            capacity: settings.table_capacity,
            record_capacity: settings.records as u64,
            ..FlowTableStatus::default()
        };
        Self {
            settings,
            live: HashMap::new(),
            finished: VecDeque::new(),
            followers,
            clock: Clock::default(),
            readings: 0,
            status,
            closed: BTreeMap::new(),
            legacy: HashMap::new(),
        }
    }

    pub(super) fn follow(&self) -> broadcast::Receiver<Arc<FlowRecord>> {
        self.followers.subscribe()
    }

    pub(super) fn set_clock(&mut self, clock: Clock) {
        self.clock = clock;
    }

    pub(super) fn closed(&self) -> &ClosedCounts {
        &self.closed
    }

    /// Legacy flows by the interface of each local end.
    pub(super) fn legacy(&self) -> &HashMap<u32, u64> {
        &self.legacy
    }

    /// Takes an event of the kernel.
    pub(super) fn event(&mut self, event: &Event, directory: &dyn Directory) {
        let entry = Entry { key: event.key, flow: event.flow };
        match event.kind {
            kind if kind == EventKind::Denied as u8 => self.denied(entry, event.at_ns, directory),
            kind if kind == EventKind::New as u8 => {
                let live = self.take(entry, directory);
                if live.reports == 0 && live.state() != Some(FlowState::Pending) {
                    self.tell(live_id(&entry), event.at_ns);
                }
            }
            kind if kind == EventKind::Over as u8 => {
                self.take(entry, directory);
                self.consider(live_id(&entry));
            }
            kind if kind == EventKind::Replaced as u8 => {
                let at = event.at_ns;
                let live = self.take(entry, directory);
                if !live.over() {
                    live.force_end(at, Some(FlowClose::Replaced));
                }
                // Its place in the table is another flow's now.
                self.finish(live_id(&entry));
                self.live.remove(&live_id(&entry));
            }
            _ => {}
        }
    }

    /// Takes a report of a shard.
    pub(super) fn report(&mut self, report: FlowReport, now_ns: u64, directory: &dyn Directory) {
        let id = report.id();
        match report {
            FlowReport::Dialling(start) => {
                let readings = self.readings;
                let live = self.live.entry(id).or_insert_with(|| Live::of_start(&start, now_ns, readings));
                live.started(*start);
                live.complete(directory);
                return;
            }
            FlowReport::Opened(_, opened) => {
                let Some(live) = self.live.get_mut(&id) else { return };
                live.by_agent = true;
                live.facts.opened = true;
                live.facts.tunnel = opened.tunnel.or(live.facts.tunnel);
                live.facts.handshake_us = opened.handshake_us.or(live.facts.handshake_us);
                live.facts.connect_us.get_or_insert(opened.connect_us);
                live.facts.judged_there(opened.peer_epoch);
                if live.state() == Some(FlowState::Pending) {
                    // The kernel was told already; the next reading shows the same.
                    live.entry.flow.state = FlowState::Captured as u8;
                }
                if live.reports == 0 {
                    self.tell(id, now_ns);
                }
                return;
            }
            FlowReport::Refused(_, reason, errno) => {
                let Some(live) = self.live.get_mut(&id) else { return };
                live.by_agent = true;
                live.ended_ns = now_ns;
                live.facts.reason = Some(reason as u16);
                live.facts.errno = errno;
                live.facts.close.get_or_insert(match reason {
                    Reason::ConnectTimedOut | Reason::NodeUnreachable => FlowClose::TimedOut,
                    Reason::ClientGone => FlowClose::GaveUp,
                    _ => FlowClose::Refused,
                });
                live.facts.closed_by.get_or_insert(match reason {
                    Reason::ConnectRefused | Reason::ConnectTimedOut | Reason::ConnectUnreachable => {
                        FlowSide::Destination
                    }
                    Reason::ClientGone => FlowSide::Source,
                    _ => FlowSide::Mesh,
                });
            }
            FlowReport::Downgraded(_) => {
                let Some(live) = self.live.get_mut(&id) else { return };
                live.went_on();
                return;
            }
            FlowReport::Ended(_, ended) => {
                let Some(live) = self.live.get_mut(&id) else { return };
                let facts: &mut AgentFacts = &mut live.facts;
                facts.close = Some(ended.close);
                facts.closed_by = ended.closed_by.or(facts.closed_by);
                facts.reason = Some(ended.reason as u16);
                facts.rtt_us = ended.rtt_us.or(facts.rtt_us);
                facts.retransmits = ended.retransmits.or(facts.retransmits);
                facts.judged(ended.epoch);
                live.by_agent = true;
                live.ended_ns = now_ns;
            }
        }
        self.consider(id);
    }

    /// Takes a whole reading of the table; says what to do.
    pub(super) fn reading(&mut self, entries: &[Entry], now_ns: u64, directory: &dyn Directory) -> Vec<Todo> {
        self.readings += 1;
        let reading = self.readings;
        for entry in entries {
            self.take(*entry, directory).seen = reading;
        }
        let ids: Vec<FlowId> = self.live.keys().copied().collect();
        let fills = entries.len() as u64 > self.settings.table_capacity / 8;
        let reap_before_ns = now_ns.saturating_sub(if fills { REAP_SOON_NS } else { REAP_AFTER_NS });
        let mut todo = Vec::new();
        for id in ids {
            if !self.exchange(id, now_ns, fills, &mut todo) {
                self.look_over(id, now_ns, reap_before_ns, &mut todo);
            }
        }
        self.count(entries.len());
        todo
    }

    fn look_over(&mut self, id: FlowId, now_ns: u64, reap_before_ns: u64, todo: &mut Vec<Todo>) {
        let reading = self.readings;
        let Some(live) = self.live.get_mut(&id) else { return };
        let in_table = live.in_table && live.seen == reading;
        if live.done {
            if in_table {
                if live.quiet_since() <= reap_before_ns {
                    todo.extend(live.keys().map(|(key, id)| Todo::Reap(key, id)));
                }
            } else {
                self.live.remove(&id);
            }
            return;
        }
        if live.half_closed() || (live.in_table && !in_table) {
            let since = *live.closing.get_or_insert(reading);
            if live.fully_closed() || reading.saturating_sub(since) >= PATIENCE {
                live.force_end(now_ns, None);
                self.finish(id);
                if !in_table {
                    self.live.remove(&id);
                }
            }
            return;
        }
        live.closing = None;
        let idle_ns = if unanswered(&live.entry.flow) {
            self.settings.idle_check_ns.min(UNANSWERED_NS)
        } else {
            self.settings.idle_check_ns
        };
        let last = live.entry.flow.last_ns.max(live.looked_ns);
        if live.entry.key.proto == TCP && in_table && now_ns.saturating_sub(last) >= idle_ns {
            live.looked_ns = now_ns;
            todo.push(Todo::Look(live.entry));
        }
        let (told_ns, told_packets) = live.reported;
        let due = now_ns.saturating_sub(told_ns) >= UPDATE_EVERY_NS && live.packets() != told_packets;
        if live.reports == 0 || due {
            self.tell(id, now_ns);
        }
    }

    /// Nobody has the flow's socket any more, and its entry is deleted.
    pub(super) fn expired(&mut self, entry: &Entry, now_ns: u64) {
        let id = live_id(entry);
        if let Some(live) = self.live.get_mut(&id) {
            if unanswered(&live.entry.flow) {
                // Nobody answered, or an ICMP error did: the client knows, the hooks do not.
                live.force_end(now_ns, Some(FlowClose::TimedOut));
            } else {
                live.facts.reason = Some(Reason::IdleExpired as u16);
                live.force_end(now_ns, Some(FlowClose::Idle));
            }
            self.finish(id);
            self.live.remove(&id);
        }
    }

    /// Finished flows, and live ones as they were read last: to be built outside the lock.
    pub(super) fn snapshot(&self) -> Vec<Arc<Unbuilt>> {
        let live = self.live.values().filter(|live| !live.done).map(|live| Arc::new(live.unbuilt(self.clock)));
        self.finished.iter().cloned().chain(live).collect()
    }

    /// A flow, as it was read last: to be built outside the lock.
    pub(super) fn find(&self, id: FlowId) -> Option<Arc<Unbuilt>> {
        let over = self.finished.iter().rev().find(|flow| live_id(&flow.entry) == id);
        over.cloned().or_else(|| Some(Arc::new(self.live.get(&id)?.unbuilt(self.clock))))
    }

    fn denied(&mut self, mut entry: Entry, at_ns: u64, directory: &dyn Directory) {
        entry.flow.verdict = Verdict::Deny as u8;
        if entry.flow.first_ns == 0 {
            entry.flow.first_ns = at_ns;
        }
        entry.flow.over_ns = at_ns;
        let (mut names, facts) = (Names::default(), AgentFacts::default());
        names.complete(directory, &entry, &facts);
        self.keep(Unbuilt { entry, names, facts, clock: self.clock, finished: true }, 1);
    }

    /// The live flow of an entry, brought up to date with it.
    fn take(&mut self, entry: Entry, directory: &dyn Directory) -> &mut Live {
        let seen = self.readings;
        match self.live.entry(live_id(&entry)) {
            MapEntry::Occupied(slot) => {
                let live = slot.into_mut();
                // A done flow's entry changes no more for the record, but tells when it may be reaped.
                live.observe(entry);
                if live.names.source.is_none() || live.names.destination.is_none() {
                    live.complete(directory);
                }
                live.seen = seen;
                live
            }
            MapEntry::Vacant(slot) => {
                let live = slot.insert(Live::new(entry, true, seen));
                live.complete(directory);
                live
            }
        }
    }

    /// Writes the final record if everything about the end is known.
    fn consider(&mut self, id: FlowId) {
        if self.live.get(&id).is_some_and(|live| !live.done && live.fully_closed()) {
            self.finish(id);
        }
    }

    fn finish(&mut self, id: FlowId) {
        let Some(live) = self.live.get_mut(&id) else { return };
        if live.done {
            return;
        }
        live.done = true;
        live.reports += 1;
        let (flow, report) = (Unbuilt { finished: true, ..live.unbuilt(self.clock) }, live.reports);
        self.keep(flow, report);
    }

    fn keep(&mut self, flow: Unbuilt, report: u32) {
        let mut record = flow.build(&self.settings.node);
        record.report = report;
        *self.closed.entry(closed_key(&record)).or_default() += 1;
        let _ = self.followers.send(Arc::new(record));
        if self.finished.len() >= self.settings.records {
            self.finished.pop_front();
            self.status.records_dropped += 1;
        }
        self.finished.push_back(Arc::new(flow));
    }

    fn tell(&mut self, id: FlowId, now_ns: u64) {
        let Some(live) = self.live.get_mut(&id) else { return };
        live.reports += 1;
        live.reported = (now_ns, live.packets());
        // Building a record costs allocations: only when somebody reads it.
        if self.followers.receiver_count() > 0 {
            let mut record = live.record(&self.settings.node, self.clock);
            record.report = live.reports;
            let _ = self.followers.send(Arc::new(record));
        }
    }

    fn count(&mut self, entries: usize) {
        let status = &mut self.status;
        status.entries = entries as u64;
        (status.open, status.pending, status.legacy) = (0, 0, 0);
        self.legacy.clear();
        for live in self.live.values().filter(|live| !live.done) {
            match live.state() {
                Some(FlowState::Pending) => status.pending += 1,
                _ => status.open += 1,
            }
            if live.has(flags::LEGACY) {
                status.legacy += 1;
                let Flow { src_ifindex, dst_ifindex, .. } = live.entry.flow;
                for ifindex in [src_ifindex, dst_ifindex].into_iter().filter(|ifindex| *ifindex != 0) {
                    *self.legacy.entry(ifindex).or_default() += 1;
                }
            }
        }
        status.records = self.finished.len() as u64;
    }
}

/// The flow's id; entries without one (made before ids were) are told apart by their key and start.
fn live_id(entry: &Entry) -> FlowId {
    if entry.flow.id != FlowId::default() {
        return entry.flow.id;
    }
    let mut digest = ring::digest::Context::new(&ring::digest::SHA256);
    digest.update(&entry.key.lo);
    digest.update(&entry.key.hi);
    digest.update(&[entry.key.lo_port.to_be_bytes(), entry.key.hi_port.to_be_bytes()].concat());
    digest.update(&entry.flow.first_ns.to_be_bytes());
    let mut id = [0; 16];
    id.iter_mut().zip(digest.finish().as_ref()).for_each(|(to, from)| *to = *from);
    FlowId(id)
}

#[cfg(test)]
mod tests;
