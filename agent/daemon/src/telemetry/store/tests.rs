use std::net::{IpAddr, SocketAddr};

use kumiko_abi::flow::{UDP, dir_flags};
use kumiko_abi::{Direction, exchange};
use kumiko_core::addr::flow_key;
use kumiko_core::flow_record::{FlowPhase, PartyKind, PartyName, ServiceName};

use super::exchanges::REAP_ONE_SHOT_NS;
use super::*;
use crate::telemetry::{FlowEnded, FlowOpened, FlowStart};

struct Demo;

impl Directory for Demo {
    fn by_handle(&self, _: u32) -> Option<Arc<PartyName>> {
        None
    }

    fn by_ip(&self, ip: IpAddr) -> Option<Arc<PartyName>> {
        let (name, node) = match ip.to_string().as_str() {
            "10.0.1.1" => ("client", "n1"),
            "10.0.1.3" => ("cache", "n1"),
            "10.0.2.2" => ("server", "n2"),
            _ => return None,
        };
        let (kind, namespace) = (PartyKind::Workload, "demo".to_owned());
        Some(Arc::new(PartyName { kind, namespace, name: name.into(), node: node.into(), ..PartyName::default() }))
    }

    fn service(&self, _: SocketAddr, _: u8) -> Option<Arc<ServiceName>> {
        None
    }
}

fn settings() -> Settings {
    Settings { node: "n1".into(), records: 3, follow_queue: 16, idle_check_ns: 300 * SECOND, table_capacity: 100 }
}

fn entry(id: u8, from: &str, to: &str, state: FlowState) -> Entry {
    let (key, initiator) = flow_key(from.parse().unwrap(), to.parse().unwrap(), TCP);
    let flow = Flow {
        id: FlowId([id; 16]),
        first_ns: SECOND,
        last_syn_ns: SECOND,
        last_ns: SECOND,
        over_ns: 0,
        src: 0,
        dst: 0,
        service: 0,
        src_ifindex: 4,
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
        // Both ends have spoken.
        dir: [Direction { packets: 2, ..Direction::default() }; 2],
    };
    Entry { key, flow }
}

fn captured(id: u8) -> Entry {
    entry(id, "10.0.1.1:40000", "10.0.2.2:80", FlowState::Captured)
}

fn event(kind: EventKind, entry: Entry) -> Event {
    Event { at_ns: entry.flow.last_ns, key: entry.key, kind: kind as u8, _pad: [0; 7], flow: entry.flow }
}

fn over(mut entry: Entry, at: u64) -> Entry {
    entry.flow.over_ns = at;
    entry.flow.last_ns = at;
    entry.flow.flags |= flags::OVER_FIN;
    entry.flow.dir = [Direction { packets: 5, bytes: 50, flags: dir_flags::FIN, ..Direction::default() }; 2];
    entry
}

fn start(id: u8) -> FlowStart {
    let entry = captured(id);
    FlowStart {
        id: FlowId([id; 16]),
        key: entry.key,
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

fn ended() -> FlowEnded {
    FlowEnded {
        close: FlowClose::Fin,
        closed_by: Some(FlowSide::Source),
        reason: Reason::Finished,
        rtt_us: Some(90),
        retransmits: Some(0),
        epoch: 0,
    }
}

fn records(store: &Store) -> Vec<FlowRecord> {
    store.snapshot().iter().map(|flow| flow.build("n1")).collect()
}

fn only(store: &Store) -> FlowRecord {
    let mut records = records(store);
    assert_eq!(records.len(), 1, "{records:#?}");
    records.remove(0)
}

#[test]
fn a_dialled_flow_from_syn_to_fin() {
    let mut store = Store::new(settings());
    let mut follower = store.follow();
    let mut pending = captured(1);
    pending.flow.state = FlowState::Pending as u8;
    store.event(&event(EventKind::New, pending), &Demo);
    store.report(FlowReport::Dialling(Box::new(start(1))), SECOND, &Demo);
    assert_eq!(only(&store).state, FlowPhase::Pending);
    assert!(follower.try_recv().is_err(), "a dial that goes well is told when it has opened");

    let opened = FlowOpened { tunnel: Some(7), handshake_us: None, connect_us: 400, peer_epoch: 9 };
    store.report(FlowReport::Opened(FlowId([1; 16]), opened), SECOND, &Demo);
    let open = only(&store);
    assert_eq!((open.state, open.encrypted, open.tunnel, open.connect_us), (FlowPhase::Open, true, Some(7), Some(400)));
    assert_eq!((open.peer_node.as_str(), open.peer_epoch), ("n2", Some(9)));
    assert_eq!(follower.try_recv().unwrap().report, 1);

    // The kernel sees the last FIN; the shard's word is still missing.
    store.event(&event(EventKind::Over, over(captured(1), 3 * SECOND)), &Demo);
    assert!(follower.try_recv().is_err());
    store.report(FlowReport::Ended(FlowId([1; 16]), ended()), 3 * SECOND, &Demo);
    let last = follower.try_recv().unwrap();
    assert_eq!((last.report, last.state, last.close), (2, FlowPhase::Closed, Some(FlowClose::Fin)));
    assert_eq!((last.bytes_sent, last.rtt_us, last.closed_by), (50, Some(90), Some(FlowSide::Source)));
    assert_eq!(only(&store).report, 0);
}

#[test]
fn a_flow_shorter_than_a_reading_keeps_its_bytes() {
    let opened = FlowOpened { tunnel: Some(7), handshake_us: None, connect_us: 400, peer_epoch: 9 };
    for by_event in [true, false] {
        let mut store = Store::new(settings());
        // All of it before the kernel's word: no event and no reading has shown the entry yet.
        store.report(FlowReport::Dialling(Box::new(start(1))), SECOND, &Demo);
        store.report(FlowReport::Opened(FlowId([1; 16]), opened), SECOND, &Demo);
        store.report(FlowReport::Ended(FlowId([1; 16]), ended()), 2 * SECOND, &Demo);
        if by_event {
            store.event(&event(EventKind::Over, over(captured(1), 2 * SECOND)), &Demo);
        } else {
            store.reading(&[over(captured(1), 2 * SECOND)], 3 * SECOND, &Demo);
        }
        let record = only(&store);
        assert_eq!((record.state, record.bytes_sent, record.bytes_received), (FlowPhase::Closed, 50, 50), "{by_event}");
        assert_eq!(store.closed().values().sum::<u64>(), 1);
    }
    // The event was lost and the entry is gone: it ends all the same.
    let mut store = Store::new(settings());
    store.report(FlowReport::Dialling(Box::new(start(1))), SECOND, &Demo);
    store.report(FlowReport::Opened(FlowId([1; 16]), opened), SECOND, &Demo);
    store.report(FlowReport::Ended(FlowId([1; 16]), ended()), 2 * SECOND, &Demo);
    for second in 3..=5 {
        store.reading(&[], second * SECOND, &Demo);
    }
    assert_eq!(only(&store).state, FlowPhase::Closed);
    assert!(store.live.is_empty());
}

#[test]
fn one_final_record_whatever_comes_late() {
    let mut store = Store::new(settings());
    store.reading(&[captured(1)], 2 * SECOND, &Demo);
    store.report(FlowReport::Dialling(Box::new(start(1))), 2 * SECOND, &Demo);
    store.report(FlowReport::Ended(FlowId([1; 16]), ended()), 3 * SECOND, &Demo);
    for second in 3..10 {
        store.reading(&[over(captured(1), 3 * SECOND)], second * SECOND, &Demo);
        store.event(&event(EventKind::Over, over(captured(1), 3 * SECOND)), &Demo);
    }
    assert_eq!(only(&store).state, FlowPhase::Closed);
    assert_eq!(store.closed().values().sum::<u64>(), 1);
}

#[test]
fn what_is_over_goes_sooner_while_the_table_fills() {
    let mut store = Store::new(settings());
    let flow = |id: u8| over(entry(id, &format!("10.0.1.1:4{id:04}"), "10.0.1.3:6379", FlowState::Fast), 3 * SECOND);
    let crowd: Vec<Entry> = (1..=13).map(flow).collect();
    assert_eq!(store.reading(&crowd, 7 * SECOND, &Demo), []);
    assert_eq!(store.reading(&crowd, 8 * SECOND, &Demo).len(), 13);
    // With room again, the minute holds.
    assert_eq!(store.reading(&crowd[..12], 9 * SECOND, &Demo), []);
}

#[test]
fn what_is_over_is_reaped_after_a_minute() {
    let mut store = Store::new(settings());
    let done = over(entry(2, "10.0.1.1:40000", "10.0.1.3:6379", FlowState::Fast), 3 * SECOND);
    assert_eq!(store.reading(&[done], 4 * SECOND, &Demo), []);
    assert_eq!(only(&store).close, Some(FlowClose::Fin));
    assert_eq!(store.reading(&[done], 62 * SECOND, &Demo), []);
    assert_eq!(store.reading(&[done], 63 * SECOND, &Demo), [Todo::Reap(done.key, done.flow.id)]);
    assert_eq!(store.reading(&[], 64 * SECOND, &Demo), []);
    assert!(store.live.is_empty());
    assert_eq!(records(&store).len(), 1);
}

#[test]
fn idle_flows_are_looked_up_once_in_a_while() {
    let mut store = Store::new(settings());
    let idle = entry(3, "10.0.1.1:40000", "198.51.100.1:443", FlowState::Direct);
    assert_eq!(store.reading(&[idle], 300 * SECOND, &Demo), []);
    assert_eq!(store.reading(&[idle], 301 * SECOND, &Demo), [Todo::Look(idle)]);
    assert_eq!(store.reading(&[idle], 302 * SECOND, &Demo), [], "it still has its socket");
    assert_eq!(store.reading(&[idle], 601 * SECOND, &Demo), [Todo::Look(idle)]);
    store.expired(&idle, 601 * SECOND);
    let record = only(&store);
    assert_eq!((record.close, record.reason.as_ref()), (Some(FlowClose::Idle), "idle_expired"));
}

#[test]
fn what_nobody_answers_is_no_open_flow() {
    let mut store = Store::new(settings());
    let mut silent = entry(3, "10.0.1.1:40000", "198.51.100.1:443", FlowState::Direct);
    silent.flow.dir[1] = Direction::default();
    assert_eq!(store.reading(&[silent], 10 * SECOND, &Demo), []);
    assert_eq!(only(&store).state, FlowPhase::Pending);
    assert_eq!(store.reading(&[silent], 11 * SECOND, &Demo), [Todo::Look(silent)]);
    store.expired(&silent, 11 * SECOND);
    assert_eq!((only(&store).state, only(&store).close), (FlowPhase::Closed, Some(FlowClose::TimedOut)));
}

#[test]
fn a_refused_connect_keeps_its_errno() {
    let mut store = Store::new(settings());
    store.report(FlowReport::Dialling(Box::new(start(4))), SECOND, &Demo);
    store.report(FlowReport::Refused(FlowId([4; 16]), Reason::ConnectRefused, 111), SECOND, &Demo);
    // Told by a shard only: the acceptor refuses before there is an entry.
    let record = only(&store);
    assert_eq!((record.errno, record.reason.as_ref(), record.verdict), (111, "connect_refused", Verdict::Allow));
    assert_eq!((record.source.name.as_str(), record.destination.name.as_str()), ("client", "server"));
    assert_eq!(record.closed_by, Some(FlowSide::Destination));
    store.reading(&[], 2 * SECOND, &Demo);
    assert!(store.live.is_empty());
}

#[test]
fn a_refused_delivery_ends_when_it_was_refused() {
    let mut store = Store::new(settings());
    store.report(FlowReport::Dialling(Box::new(start(4))), SECOND, &Demo);
    // A reading sees the entry of the attempt; it is reaped without a word.
    store.reading(&[captured(4)], 2 * SECOND, &Demo);
    store.report(FlowReport::Refused(FlowId([4; 16]), Reason::ConnectRefused, 111), 2 * SECOND, &Demo);
    for n in 3..9 {
        store.reading(&[], n * SECOND, &Demo);
    }
    let record = only(&store);
    assert_eq!(record.end_unix_ns - record.start_unix_ns, SECOND);
}

#[test]
fn a_downgraded_flow_lives_on_in_the_clear() {
    let mut store = Store::new(settings());
    let mut flow = captured(5);
    flow.flow.state = FlowState::Pending as u8;
    // Between two readings: nothing but the dialler's word is known.
    store.report(FlowReport::Dialling(Box::new(start(5))), SECOND, &Demo);
    store.report(FlowReport::Downgraded(FlowId([5; 16])), SECOND, &Demo);
    let live = only(&store);
    assert_ne!(live.state, FlowPhase::Closed);
    assert_eq!((live.reason.as_ref(), live.downgraded), ("downgraded", true));
    flow.flow.state = FlowState::Direct as u8;
    flow.flow.reason = Reason::Downgraded as u16;
    flow.flow.flags |= flags::DOWNGRADED | flags::PLAINTEXT;
    for second in 2..6 {
        store.reading(&[flow], second * SECOND, &Demo);
    }
    let live = only(&store);
    assert_eq!((live.state, live.reason.as_ref(), live.downgraded), (FlowPhase::Open, "downgraded", true));
    assert!(!live.encrypted && live.errno == 0);
    // Silent for minutes, it is no flow that is over.
    let todo = store.reading(&[flow], 130 * SECOND, &Demo);
    assert!(!todo.iter().any(|todo| matches!(todo, Todo::Reap(..))), "{todo:?}");
    store.event(&event(EventKind::Over, over(flow, 9 * SECOND)), &Demo);
    assert_eq!(only(&store).close, Some(FlowClose::Fin));
}

#[test]
fn denials_are_records_at_once() {
    let mut store = Store::new(settings());
    let mut denied = entry(6, "192.0.2.7:5555", "10.0.1.3:6379", FlowState::Cut);
    denied.flow.reason = Reason::PlaintextRefused as u16;
    denied.flow.last_ns = 2 * SECOND;
    store.event(&event(EventKind::Denied, denied), &Demo);
    let record = only(&store);
    assert_eq!((record.verdict, record.reason.as_ref()), (Verdict::Deny, "plaintext_refused"));
    assert_eq!(record.source.kind, PartyKind::Outside);
    assert_eq!(store.closed().get(&("refused", "refused", "plaintext_refused")), Some(&1));
}

#[test]
fn a_replaced_flow_ends_and_the_new_one_lives() {
    let mut store = Store::new(settings());
    let old = entry(7, "10.0.1.1:40000", "10.0.1.3:80", FlowState::Fast);
    store.reading(&[old], SECOND, &Demo);
    store.event(&event(EventKind::Replaced, old), &Demo);
    let new = Entry { flow: Flow { id: FlowId([8; 16]), ..old.flow }, ..old };
    store.event(&event(EventKind::New, new), &Demo);
    let ends: Vec<_> = records(&store).into_iter().map(|record| (record.state, record.close)).collect();
    assert_eq!(ends, [(FlowPhase::Closed, Some(FlowClose::Replaced)), (FlowPhase::Open, None)]);
}

#[test]
fn two_entries_of_one_flow_are_one_record() {
    let mut store = Store::new(settings());
    let client_side = entry(9, "10.0.1.1:40000", "10.96.0.1:80", FlowState::Captured);
    let mut pod_side = entry(9, "10.0.1.1:40000", "10.0.1.3:80", FlowState::Captured);
    pod_side.flow.flags |= flags::DELIVERED;
    for order in [[client_side, pod_side], [pod_side, client_side]] {
        store.reading(&order, SECOND, &Demo);
        let record = only(&store);
        assert_eq!(record.destination.ip.to_string(), "10.96.0.1");
    }
    let over = [over(client_side, 2 * SECOND), over(pod_side, 2 * SECOND)];
    store.reading(&over, 3 * SECOND, &Demo);
    assert_eq!(store.reading(&over, 70 * SECOND, &Demo).len(), 2, "both entries are reaped");
}

#[test]
fn an_older_event_does_not_turn_back_the_counters() {
    let mut store = Store::new(settings());
    let mut now = entry(1, "10.0.1.1:40000", "10.0.1.3:80", FlowState::Fast);
    let first = now;
    now.flow.last_ns = 2 * SECOND;
    now.flow.dir = [Direction { packets: 9, bytes: 900, ..Direction::default() }; 2];
    store.reading(&[now], 2 * SECOND, &Demo);
    store.event(&event(EventKind::New, first), &Demo);
    assert_eq!(only(&store).bytes_sent, 900);
}

#[test]
fn a_flow_shorter_than_a_tick_of_the_coarse_clock_ends() {
    let mut store = Store::new(settings());
    let mut short = entry(1, "10.0.1.1:40000", "10.0.1.3:80", FlowState::Direct);
    store.event(&event(EventKind::New, short), &Demo);
    short = over(short, SECOND - 2_000_000);
    short.flow.last_ns = SECOND - 2_000_000;
    short.flow.dir = [Direction { packets: 5, bytes: 70, ..Direction::default() }; 2];
    store.reading(&[short], 2 * SECOND, &Demo);
    assert_eq!((only(&store).state, only(&store).bytes_sent), (FlowPhase::Closed, 70));
    assert_eq!(store.reading(&[short], 61 * SECOND, &Demo), [Todo::Reap(short.key, short.flow.id)]);
}

#[test]
fn records_are_bounded_and_drops_are_counted() {
    let mut store = Store::new(settings());
    for n in 0..5 {
        store.event(&event(EventKind::Denied, entry(n, "192.0.2.7:5555", "10.0.1.3:6379", FlowState::Cut)), &Demo);
    }
    store.reading(&[], SECOND, &Demo);
    assert_eq!((store.status.records, store.status.records_dropped), (3, 2));
}

#[test]
fn long_flows_report_while_they_live_and_legacy_ones_are_counted() {
    let mut store = Store::new(settings());
    let mut follower = store.follow();
    let mut flow = entry(1, "10.0.1.1:40000", "10.0.1.3:80", FlowState::Direct);
    flow.flow.flags |= flags::LEGACY;
    for second in 1..=21 {
        flow.flow.last_ns = second * SECOND;
        flow.flow.dir = [Direction { packets: second, bytes: 100 * second, ..Direction::default() }; 2];
        store.reading(&[flow], second * SECOND, &Demo);
    }
    let told: Vec<u64> = std::iter::from_fn(|| follower.try_recv().ok()).map(|record| record.bytes_sent).collect();
    assert_eq!(told, [100, 1100, 2100]);
    assert_eq!((store.status.legacy, store.legacy().get(&4)), (1, Some(&1)));
}

fn datagrams(id: u8, sent: u64, received: u64) -> Entry {
    let mut entry = entry(id, "10.0.1.1:40000", "10.0.2.2:53", FlowState::Direct);
    entry.key.proto = UDP;
    entry.key.lo_port = entry.key.lo_port.wrapping_add(u16::from(id));
    entry.flow.dir = [sent, received].map(|packets| Direction { packets, bytes: packets, ..Direction::default() });
    entry
}

#[test]
fn exchanges_end_by_silence_and_are_reaped_later() {
    for (received, life) in [(0, exchange::UNREPLIED_NS), (1, exchange::REPLIED_NS)] {
        let mut store = Store::new(settings());
        let entry = datagrams(1, 1, received);
        assert!(store.reading(&[entry], SECOND + life - 1, &Demo).is_empty());
        assert_eq!(only(&store).state, FlowPhase::Open);
        assert!(store.reading(&[entry], SECOND + life, &Demo).is_empty(), "a late answer is yet to be known");
        let record = only(&store);
        assert_eq!(
            (record.state, record.close, record.verdict),
            (FlowPhase::Closed, Some(FlowClose::Idle), Verdict::Allow)
        );
        let reap = vec![Todo::Reap(entry.key, entry.flow.id)];
        assert!(store.reading(&[entry], SECOND + 2 * life - 1, &Demo).is_empty());
        assert_eq!(store.reading(&[entry], SECOND + 2 * life, &Demo), reap);
        store.reading(&[], SECOND + 2 * life + 1, &Demo);
        assert_eq!(records(&store).len(), 1, "one record");
    }
}

#[test]
fn exchanges_go_sooner_while_the_table_fills() {
    let mut store = Store::new(settings());
    // A question and its answer; a stream; many more.
    let all: Vec<Entry> = (1..20).map(|id| datagrams(id, if id == 2 { 9 } else { 1 }, 1)).collect();
    assert!(store.reading(&all, SECOND + REAP_ONE_SHOT_NS - 1, &Demo).is_empty());
    let todo = store.reading(&all, SECOND + REAP_ONE_SHOT_NS, &Demo);
    assert_eq!(todo.len(), all.len() - 1);
    let stream = all[1];
    assert!(!todo.contains(&Todo::Reap(stream.key, stream.flow.id)));
    assert!(
        store.reading(&all, SECOND + exchange::REPLIED_NS, &Demo).contains(&Todo::Reap(stream.key, stream.flow.id))
    );
}

#[test]
fn a_refused_exchange_is_one_record_however_often_it_is_tried() {
    let mut store = Store::new(settings());
    let mut entry = datagrams(1, 1, 0);
    entry.flow.state = FlowState::Cut as u8;
    (entry.flow.verdict, entry.flow.reason) = (Verdict::Deny as u8, Reason::TeamDefault as u16);
    store.event(&event(EventKind::New, entry), &Demo);
    for at in 2..40 {
        (entry.flow.last_ns, entry.flow.dir[0].packets) = (at * SECOND, at);
        assert!(store.reading(&[entry], at * SECOND, &Demo).is_empty());
    }
    let record = only(&store);
    assert_eq!(
        (record.state, record.close, record.reason.as_ref()),
        (FlowPhase::Closed, Some(FlowClose::Refused), "team_default")
    );
    assert_eq!(store.reading(&[entry], 39 * SECOND + REAP_AFTER_NS, &Demo).len(), 1);
}
