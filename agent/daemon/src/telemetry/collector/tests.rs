use std::sync::Mutex;

use kumiko_abi::flow::flags;
use kumiko_abi::{Direction, EventKind, FlowState, Reason, Verdict};
use kumiko_core::addr::flow_key;
use kumiko_core::flow_record::{FlowClose, FlowFilter, FlowPhase, hex_id};
use tokio::sync::{mpsc, oneshot};

use super::*;
use crate::telemetry::{FlowEnded, FlowOpened, FlowStart, flow_reports};

/// A flow table in memory; nobody has a socket.
#[derive(Clone, Default)]
struct Table(Arc<Mutex<Vec<Entry>>>);

impl Table {
    fn with<T>(&self, work: impl FnOnce(&mut Vec<Entry>) -> T) -> T {
        work(&mut self.0.lock().unwrap())
    }
}

impl FlowSource for Table {
    fn scan(&mut self, visit: &mut dyn FnMut(&FlowKey, &Flow)) -> io::Result<()> {
        self.with(|entries| entries.iter().for_each(|entry| visit(&entry.key, &entry.flow)));
        Ok(())
    }

    fn reap(&mut self, key: &FlowKey, id: FlowId) -> io::Result<()> {
        self.with(|entries| entries.retain(|entry| entry.key != *key || entry.flow.id != id));
        Ok(())
    }

    fn has_socket(&mut self, _: &Entry) -> io::Result<Option<bool>> {
        Ok(Some(false))
    }
}

/// A ring in memory.
struct Ring {
    receiver: mpsc::UnboundedReceiver<Event>,
    peeked: Option<Event>,
}

impl EventSource for Ring {
    async fn readable(&mut self) -> io::Result<()> {
        if self.peeked.is_none() {
            match self.receiver.recv().await {
                Some(event) => self.peeked = Some(event),
                None => std::future::pending().await,
            }
        }
        Ok(())
    }

    fn next_event(&mut self) -> Option<Event> {
        self.peeked.take().or_else(|| self.receiver.try_recv().ok())
    }
}

fn entry(id: u8, state: FlowState, last_ns: u64) -> Entry {
    let (client, server) = ("10.0.1.1:40000".parse().unwrap(), "10.0.2.2:80".parse().unwrap());
    let (key, initiator) = flow_key(client, server, 6);
    let flow = Flow {
        id: FlowId([id; 16]),
        first_ns: 1,
        last_syn_ns: 1,
        last_ns,
        over_ns: 0,
        src: 0,
        dst: 0,
        service: 0,
        src_ifindex: 3,
        dst_ifindex: 0,
        generation: 1,
        epoch: 0,
        isn: 0,
        flags: initiator,
        shard: 0,
        reason: Reason::Allowed as u16,
        state: state as u8,
        verdict: Verdict::Allow as u8,
        _pad: [0; 2],
        not_after: 0,
        dir: [Direction { packets: 2, ..Direction::default() }; 2],
    };
    Entry { key, flow }
}

fn event(kind: EventKind, entry: Entry) -> Event {
    Event { at_ns: clock::monotonic_ns(), key: entry.key, kind: kind as u8, _pad: [0; 7], flow: entry.flow }
}

fn start(of: Entry) -> FlowStart {
    FlowStart {
        id: of.flow.id,
        key: of.key,
        client: "10.0.1.1:40000".parse().unwrap(),
        target: Some("10.0.2.2:80".parse().unwrap()),
        service: None,
        source: 0,
        destination: 0,
        delivering: false,
        remote: true,
        peer_node: "n2".into(),
        epoch: 0,
        peer_epoch: 0,
    }
}

async fn until(telemetry: &Telemetry, holds: impl Fn(&Telemetry) -> bool) {
    let deadline = tokio::time::Instant::now() + Duration::from_secs(60);
    while !holds(telemetry) {
        assert!(tokio::time::Instant::now() < deadline, "{:#?}", telemetry.list(&FlowFilter::default(), 10));
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

#[tokio::test]
async fn table_events_and_reports_come_together() {
    let (sink, reports) = flow_reports();
    let settings = Settings::new("n1", Duration::from_secs(20), 100);
    let collector = Collector::new(settings, reports, Duration::from_millis(5));
    let telemetry = collector.telemetry();
    let table = Table::default();
    let (events, receiver) = mpsc::unbounded_channel();
    let (stop, stopped) = oneshot::channel::<()>();
    let ring = Ring { receiver, peeked: None };
    let running = tokio::spawn(collector.run(Box::new(table.clone()), ring, async {
        let _ = stopped.await;
    }));

    // Known from a reading alone, and from a shard.
    let now = clock::monotonic_ns();
    let mut flow = entry(1, FlowState::Captured, now);
    table.with(|entries| entries.push(flow));
    let start = start(flow);
    sink.dialling(start);
    sink.opened(
        flow.flow.id,
        FlowOpened { tunnel: Some(1), handshake_us: Some(900), connect_us: 1_500, peer_epoch: 7 },
    );
    until(&telemetry, |t| t.status().open == 1 && t.list(&FlowFilter::default(), 1).records[0].tunnel == Some(1)).await;

    flow.flow.over_ns = now;
    flow.flow.flags |= flags::OVER_FIN;
    events.send(event(EventKind::Over, flow)).unwrap();
    let ended = FlowEnded {
        close: FlowClose::Fin,
        closed_by: None,
        reason: Reason::Finished,
        rtt_us: None,
        retransmits: None,
        epoch: 0,
    };
    sink.ended(flow.flow.id, ended);
    until(&telemetry, |t| t.closed() == [(("tunnel", "fin", "allowed"), 1)]).await;
    assert_eq!(telemetry.list(&FlowFilter::default(), 1).records[0].state, FlowPhase::Closed);

    // Idle for long: its socket is looked for, and the entry goes.
    let idle = entry(2, FlowState::Direct, 1);
    table.with(|entries| *entries = vec![idle]);
    until(&telemetry, |t| t.closed().iter().any(|((_, close, _), _)| *close == "idle")).await;
    assert!(table.with(|entries| entries.is_empty()));

    stop.send(()).unwrap();
    running.await.unwrap().unwrap();
}

/// Flows that are over before the collector looks: the kernel's word alone would make records without tunnels of them.
#[tokio::test]
async fn what_a_shard_said_before_the_end_is_in_the_record() {
    let (sink, reports) = flow_reports();
    let collector = Collector::new(Settings::new("n1", Duration::from_secs(20), 100), reports, Duration::from_secs(5));
    let telemetry = collector.telemetry();
    let (events, receiver) = mpsc::unbounded_channel();
    let (_stop, stopped) = oneshot::channel::<()>();
    let ring = Ring { receiver, peeked: None };
    tokio::spawn(collector.run(Box::new(Table::default()), ring, async {
        let _ = stopped.await;
    }));
    for id in 1..=40 {
        let mut flow = entry(id, FlowState::Captured, clock::monotonic_ns());
        sink.dialling(start(flow));
        sink.opened(flow.flow.id, FlowOpened { tunnel: Some(1), handshake_us: None, connect_us: 1, peer_epoch: 0 });
        flow.flow.over_ns = clock::monotonic_ns();
        flow.flow.flags |= flags::OVER_FIN;
        events.send(event(EventKind::Over, flow)).unwrap();
        let record = loop {
            let asking = telemetry.clone();
            tokio::task::spawn_blocking(move || asking.settle()).await.unwrap();
            let last = telemetry.list(&FlowFilter::default(), 1).records.pop();
            // On a busy machine whoever asks may have waited in vain.
            if let Some(record) = last.filter(|record| record.id == hex_id(flow.flow.id)) {
                break record;
            }
        };
        assert_eq!((record.tunnel, record.peer_node.as_str()), (Some(1), "n2"), "flow {id}");
    }
}

#[tokio::test]
async fn reports_that_find_no_place_are_counted() {
    let (sink, reports) = flow_reports();
    let collector = Collector::new(Settings::new("n1", Duration::from_secs(300), 100), reports, Duration::from_secs(1));
    for _ in 0..crate::telemetry::REPORT_QUEUE + 7 {
        sink.refused(FlowId([1; 16]), Reason::NodeRefused, 0);
    }
    assert_eq!(collector.telemetry().status().reports_lost, 7);
}
