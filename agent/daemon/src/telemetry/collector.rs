//! Reads flow table, event ring and reports, on a thread of its own: a reading of a full table takes a while, and nothing
//! else should wait for it.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::SyncSender;
use std::time::Duration;

use kumiko_abi::{Event, Flow, FlowId, FlowKey};
use kumiko_core::flow_record::{Clock, Entry};
use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior};
use tracing::{debug, warn};

use super::store::Todo;
use super::{FlowReport, FlowReports, REPORT_QUEUE, Settings, Telemetry};
use crate::clock;

/// Events and reports taken in one go, under one lock.
const BATCH: usize = 512;
/// Batches taken for one who asks: more than a full ring holds.
const BATCHES_AT_ONCE: usize = 16;
/// Askers that may wait at once; more see what was taken last.
const ASKED_QUEUE: usize = 64;
/// Pause after a batch that emptied its queue. Taken one by one, the events and reports of every connection would wake
/// this thread several times, on a processor that the connection itself could have used. Who looks at flows does not wait
/// for it ([`Telemetry::settle`]).
const PAUSE: Duration = Duration::from_millis(10);

/// The kernel's flow table, and the sockets of the pods behind it.
pub trait FlowSource: Send {
    /// Calls `visit` for every entry.
    fn scan(&mut self, visit: &mut dyn FnMut(&FlowKey, &Flow)) -> io::Result<()>;
    /// Deletes an entry, if it still has this id.
    fn reap(&mut self, key: &FlowKey, id: FlowId) -> io::Result<()>;
    /// Whether any local end of the flow, the agent's own included, still has a socket for it. `None`: nobody can tell,
    /// so the entry stays.
    fn has_socket(&mut self, entry: &Entry) -> io::Result<Option<bool>>;
}

/// The kernel's event ring.
pub trait EventSource {
    /// Waits until there may be events. Called again only after [`EventSource::next_event`] gave `None`, or at once if it
    /// has not yet; safe to drop while it waits.
    fn readable(&mut self) -> impl Future<Output = io::Result<()>>;
    /// The next event, if there is one.
    fn next_event(&mut self) -> Option<Event>;
}

/// See the module's text.
#[derive(Debug)]
pub struct Collector {
    telemetry: Telemetry,
    reports: FlowReports,
    /// Taken from the queue, not yet told.
    taken: Vec<FlowReport>,
    /// Who wants to see what there is now.
    asked: mpsc::Receiver<SyncSender<()>>,
    interval: Duration,
}

impl Collector {
    /// A collector that reads the table every `interval`.
    pub fn new(settings: Settings, reports: FlowReports, interval: Duration) -> Self {
        let (asking, asked) = mpsc::channel(ASKED_QUEUE);
        let telemetry = Telemetry::new(settings, reports.lost.clone(), asking);
        Self { telemetry, reports, taken: Vec::with_capacity(BATCH), asked, interval }
    }

    /// The handle to what is collected.
    pub fn telemetry(&self) -> Telemetry {
        self.telemetry.clone()
    }

    /// Collects on this thread until `stop` is done, then once more. Give it a thread with a current-thread runtime.
    pub async fn run<E: EventSource>(
        mut self,
        mut flows: Box<dyn FlowSource>,
        mut events: E,
        stop: impl Future<Output = ()>,
    ) -> io::Result<()> {
        let mut tick = tokio::time::interval(self.interval);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut entries = Vec::new();
        let (mut reporting, mut more) = (true, false);
        let pause = tokio::time::sleep(Duration::ZERO);
        tokio::pin!(stop, pause);
        self.set_clock();
        loop {
            let resting = !pause.is_elapsed();
            tokio::select! {
                () = &mut stop => break,
                _ = tick.tick() => {
                    self.read(flows.as_mut(), &mut entries);
                    continue;
                }
                () = &mut pause, if resting => continue,
                ready = async { if more { Ok(()) } else { events.readable().await } }, if !resting => ready?,
                // Without shards there are no reports, but the kernel's verdicts go on.
                count = self.reports.receiver.recv_many(&mut self.taken, BATCH), if reporting && !resting => {
                    reporting = count > 0;
                }
                Some(done) = self.asked.recv() => {
                    self.gather_all(&mut events);
                    // Whoever asked may have stopped waiting.
                    let _ = done.try_send(());
                }
            }
            more = !self.gather(&mut events);
            if !more {
                pause.as_mut().reset(Instant::now() + PAUSE);
            }
        }
        self.gather_all(&mut events);
        self.read(flows.as_mut(), &mut entries);
        Ok(())
    }

    /// Takes all that there is, unless more comes all the time.
    fn gather_all<E: EventSource>(&mut self, source: &mut E) {
        for _ in 0..BATCHES_AT_ONCE {
            if self.gather(source) {
                return;
            }
        }
    }

    /// Takes what ring and queue hold, up to a batch of events. Says whether the ring is empty now.
    ///
    /// Reports are taken after the events, and told before them: what a shard said of a flow before the kernel saw its end
    /// is known then. A record that was finished by the kernel's word alone would lack it.
    fn gather<E: EventSource>(&mut self, source: &mut E) -> bool {
        let events: Vec<Event> = std::iter::from_fn(|| source.next_event()).take(BATCH).collect();
        self.take_reports();
        let directory = self.telemetry.directory.load_full();
        let mut store = self.telemetry.lock();
        for event in &events {
            store.event(event, &**directory);
        }
        events.len() < BATCH
    }

    fn take_reports(&mut self) {
        while self.taken.len() < REPORT_QUEUE
            && let Ok(report) = self.reports.receiver.try_recv()
        {
            self.taken.push(report);
        }
        let directory = self.telemetry.directory.load_full();
        let now = clock::monotonic_ns();
        let mut store = self.telemetry.lock();
        for report in self.taken.drain(..) {
            store.report(report, now, &**directory);
        }
    }

    fn read(&mut self, flows: &mut dyn FlowSource, entries: &mut Vec<Entry>) {
        self.set_clock();
        entries.clear();
        let scanned = flows.scan(&mut |key, flow| entries.push(Entry { key: *key, flow: *flow }));
        if let Err(error) = scanned {
            // Half a reading would look like many flows that vanished.
            self.failed("flow table could not be read", &error);
            return;
        }
        self.take_reports();
        let now = clock::monotonic_ns();
        let directory = self.telemetry.directory.load_full();
        let todo = self.telemetry.lock().reading(entries, now, &**directory);
        for todo in todo {
            match todo {
                Todo::Reap(key, id) => {
                    if let Err(error) = flows.reap(&key, id) {
                        self.failed("entry could not be reaped", &error);
                    }
                }
                Todo::Look(entry) => match flows.has_socket(&entry) {
                    Ok(Some(false)) => match flows.reap(&entry.key, entry.flow.id) {
                        Ok(()) => self.telemetry.lock().expired(&entry, now),
                        Err(error) => self.failed("entry could not be reaped", &error),
                    },
                    Ok(_) => debug!("idle flow still has its socket"),
                    Err(error) => self.failed("sockets of a pod could not be listed", &error),
                },
            }
        }
        // What a peak needed is not kept for ever.
        if entries.capacity() > 4 * entries.len() + 4096 {
            entries.shrink_to(2 * entries.len() + 4096);
        }
    }

    fn set_clock(&self) {
        let offset = i128::from(clock::unix_ns()) - i128::from(clock::monotonic_ns());
        let unix_minus_monotonic = i64::try_from(offset).unwrap_or(0);
        self.telemetry.lock().set_clock(Clock { unix_minus_monotonic });
    }

    fn failed(&self, what: &str, error: &io::Error) {
        let errors: &Arc<_> = &self.telemetry.errors;
        // Once a reading at most would still fill a log: the first, then every thousandth.
        if errors.fetch_add(1, Ordering::Relaxed).is_multiple_of(1000) {
            warn!(%error, "{what}");
        }
    }
}

#[cfg(test)]
mod tests;
