//! The control loop over an edge that remembers, and that refuses orders of writes which would open a window.

mod fake;
mod look;

use std::time::{Duration, Instant};

use kumiko_abi::flow::{TCP, flags};
use kumiko_abi::map::{endpoint_flags, service_flags, workload_flags};
use kumiko_abi::{FlowState, Stage};
use kumiko_core::addr::{flow_key, to_abi};
use kumiko_core::stage::{CROSSING, Phase};

use super::*;
use fake::{Fake, flow};

/// Two pods here, one elsewhere; `demo` at a stage.
fn world(stage: &str, epoch: u64) -> Arc<World> {
    let workload = |name: &str, node: &str, ip: &str, attachment: &str| {
        format!(
            "apiVersion: kumiko.dev/v1alpha1\nkind: Workload\nmetadata: {{name: {name}, namespace: demo, uid: u-{name}, \
             labels: {{app: {name}}}}}\nspec: {{serviceAccount: {name}, node: {node}, ips: [{ip}], {attachment} ports: \
             [{{port: 8080, probe: true}}]}}\n---\n"
        )
    };
    let text = format!(
        "apiVersion: v1\nkind: Namespace\nmetadata: {{name: demo, labels: {{kumiko.dev/stage: {stage}}}}}\n---\n\
         apiVersion: v1\nkind: Service\nmetadata: {{name: far, namespace: demo}}\nspec: {{clusterIP: 10.9.0.1, selector: \
         {{app: far}}, ports: [{{port: 80}}]}}\n---\n"
    ) + &workload("a", "n1", "10.0.0.1", "attachment: {veth: va},")
        + &workload("b", "n1", "10.0.0.2", "attachment: {veth: vb},")
        + &workload("far", "n2", "10.0.1.1", "");
    build(&text, epoch)
}

fn build(text: &str, epoch: u64) -> Arc<World> {
    let objects = kumiko_core::manifest::parse("f", text).unwrap();
    Arc::new(World::build("td", epoch, objects.iter().map(|object| ("f", object))).unwrap().0)
}

fn engine(fake: &Fake) -> (Engine<Fake>, Reconciled) {
    Engine::new("n1".to_owned(), fake.clone(), None).unwrap()
}

fn both_there() -> Fake {
    let fake = Fake::default();
    fake.veth("va", 11);
    fake.veth("vb", 12);
    fake
}

fn phase(reconciled: &Reconciled, uid: &str) -> Phase {
    reconciled.state.load().endpoint(uid).unwrap().phase
}

#[test]
fn off_touches_nothing() {
    let fake = both_there();
    let (mut engine, reconciled) = engine(&fake);
    engine.pass(world("off", 1), Instant::now());
    assert!(fake.state().hooks.is_empty() && fake.state().maps.endpoints.is_empty());
    assert_eq!(phase(&reconciled, "u-a"), Phase::Detached);
    assert!(!engine.waits());
    assert_eq!(fake.state().maps.addrs.len(), 3, "others are told who is who");
}

#[test]
fn enrolling_learns_then_enforces() {
    let fake = both_there();
    fake.socket(11, "10.0.0.1:50000", "10.0.1.1:80");
    fake.socket(11, "127.0.0.1:1", "127.0.0.1:2");
    // The two local pods have a connection with each other.
    fake.socket(11, "10.0.0.1:50001", "10.0.0.2:8080");
    fake.socket(12, "10.0.0.2:8080", "10.0.0.1:50001");
    let (mut engine, reconciled) = engine(&fake);
    engine.pass(world("strict", 1), Instant::now());
    let state = fake.state();
    for ifindex in [11, 12] {
        let endpoint = state.maps.endpoints[&ifindex];
        assert_eq!((endpoint.stage, endpoint.flags & endpoint_flags::LEARN), (Stage::Strict as u8, 0));
        assert!(state.hooks.contains(&ifindex));
    }
    assert_eq!(state.flows.len(), 2);
    assert!(state.flows.values().all(|flow| flow.flags & flags::LEGACY != 0));
    let (key, _) = flow_key("10.0.0.1:50001".parse().unwrap(), "10.0.0.2:8080".parse().unwrap(), TCP);
    assert_eq!((state.flows[&key].src_ifindex, state.flows[&key].dst_ifindex), (11, 12));
    let snapshot = reconciled.state.load();
    assert_eq!(snapshot.attached_ifindex("u-a"), Some(11));
    assert_eq!(snapshot.attached_ifindex("u-far"), None);
    let handle = snapshot.handle("u-a");
    assert_eq!(state.maps.endpoints[&11].handle, handle);
    assert_eq!(snapshot.workload_of(handle).unwrap().name, "a");
    let kernel = state.maps.workloads[&handle];
    assert_eq!(kernel.flags, workload_flags::LIVE | workload_flags::LOCAL | workload_flags::ATTACHED);
    assert_eq!((kernel.ifindex, kernel.stage), (11, Stage::Strict as u8));
    let service = state.maps.services[&(to_abi("10.9.0.1".parse().unwrap()), 80, TCP)];
    assert_eq!(service.flags, service_flags::CAPTURE);
    assert_eq!(snapshot.service_of(service.id).unwrap().to_string(), "demo/far:80");
    assert!(state.maps.probe_ports.contains(&(handle, 8080)));
    assert!(!engine.waits());
}

#[test]
fn a_veth_that_comes_late_is_attached_when_it_comes() {
    let fake = Fake::default();
    fake.veth("va", 11);
    let (mut engine, reconciled) = engine(&fake);
    let now = Instant::now();
    engine.pass(world("strict", 1), now);
    assert_eq!(phase(&reconciled, "u-a"), Phase::Enforcing(Stage::Strict));
    assert_eq!(phase(&reconciled, "u-b"), Phase::Detached);
    assert!(reconciled.state.load().endpoint("u-b").unwrap().problem.contains("no interface vb"));
    assert!(engine.waits());
    // Until it is there, connections to it are refused.
    let handle = reconciled.state.load().handle("u-b");
    assert_eq!(fake.state().maps.workloads[&handle].stage, Stage::Strict as u8);
    assert_eq!(fake.state().maps.workloads[&handle].flags & workload_flags::ATTACHED, 0);
    fake.veth("vb", 12);
    engine.pass(world("strict", 1), now);
    assert_eq!(phase(&reconciled, "u-b"), Phase::Enforcing(Stage::Strict));
    assert_eq!(reconciled.state.load().endpoint("u-b").unwrap().problem, "");
    assert!(!engine.waits());
}

#[test]
fn hooks_stay_until_nothing_is_carried_and_nobody_may_open() {
    let fake = both_there();
    let (mut engine, reconciled) = engine(&fake);
    let start = Instant::now();
    engine.pass(world("strict", 1), start);
    fake.flow("10.0.0.1:50000", "10.0.1.1:80", flow(FlowState::Captured, 11, 99));
    engine.pass(world("off", 2), start);
    assert_eq!(phase(&reconciled, "u-a"), Phase::Enforcing(Stage::Permissive), "other nodes may be strict still");
    let start = start + CROSSING;
    engine.pass(world("off", 2), start);
    assert_eq!(phase(&reconciled, "u-a"), Phase::Enforcing(Stage::Off));
    assert_eq!(fake.state().maps.endpoints[&11].stage, Stage::Off as u8);
    let snapshot = reconciled.state.load();
    assert!(snapshot.accepts("u-a", start) && !snapshot.accepts("u-a", start + ACCEPT_AFTER_LOWERING));
    // Half a minute later nobody opens any more, but the flow still runs.
    let later = start + ACCEPT_AFTER_LOWERING + Duration::from_secs(1);
    engine.pass(world("off", 2), later);
    assert_eq!(phase(&reconciled, "u-a"), Phase::Enforcing(Stage::Off));
    assert_eq!(phase(&reconciled, "u-b"), Phase::Detached);
    assert!(engine.waits());
    fake.end("10.0.0.1:50000", "10.0.1.1:80");
    engine.pass(world("off", 2), later);
    assert_eq!(phase(&reconciled, "u-a"), Phase::Detached);
    assert!(fake.state().hooks.is_empty() && fake.state().maps.endpoints.is_empty());
    assert!(!engine.waits());
}

#[test]
fn raised_while_it_drains_it_learns_again() {
    let fake = both_there();
    let (mut engine, reconciled) = engine(&fake);
    let now = Instant::now();
    engine.pass(world("permissive", 1), now);
    engine.pass(world("off", 2), now);
    fake.socket(11, "10.0.0.1:50000", "10.0.1.1:80");
    engine.pass(world("permissive", 3), now);
    assert_eq!(phase(&reconciled, "u-a"), Phase::Enforcing(Stage::Permissive));
    assert_eq!(fake.state().flows.len(), 1);
}

#[test]
fn connections_from_before_become_legacy() {
    let fake = both_there();
    let (mut engine, reconciled) = engine(&fake);
    let now = Instant::now();
    engine.pass(world("observe", 1), now);
    let observed = kumiko_abi::Flow { flags: flags::OBSERVED, ..flow(FlowState::Direct, 11, 0) };
    fake.flow("10.0.0.1:50000", "203.0.113.1:80", observed);
    fake.socket(11, "10.0.0.1:50000", "203.0.113.1:80");
    fake.flow("10.0.0.1:50002", "10.0.1.1:80", flow(FlowState::Direct, 11, 0));
    engine.pass(world("strict", 2), now);
    assert_eq!(phase(&reconciled, "u-a"), Phase::Enforcing(Stage::Permissive), "other nodes may not know yet");
    assert!(engine.waits());
    engine.pass(world("strict", 2), now + CROSSING);
    assert_eq!(phase(&reconciled, "u-a"), Phase::Enforcing(Stage::Strict));
    let state = fake.state();
    assert_eq!(state.flows.len(), 2);
    assert!(state.flows.values().all(|flow| flow.flags & flags::LEGACY != 0), "{:?}", state.flows);
}

#[test]
fn a_syn_that_learning_dropped_is_not_from_before() {
    let fake = both_there();
    let (mut engine, _reconciled) = engine(&fake);
    let now = Instant::now();
    fake.connecting(11, "10.0.0.1:50000", "10.0.1.1:80");
    engine.pass(world("permissive", 1), now);
    assert_eq!(fake.state().flows.len(), 1, "sent before the hooks came: its SYN-ACK may be on its way");
    fake.connecting(11, "10.0.0.1:50001", "10.0.1.1:80");
    engine.pass(world("strict", 2), now);
    assert_eq!(fake.state().flows.len(), 1, "sent in a mesh that has no entry of it: it was dropped");
}

#[test]
fn a_peer_that_is_raised_does_not_count_as_leak_meanwhile() {
    let fake = both_there();
    let (mut engine, reconciled) = engine(&fake);
    let now = Instant::now();
    let two = |far: &str, epoch| {
        build(
            &format!(
                "apiVersion: v1\nkind: Namespace\nmetadata: {{name: demo, labels: {{kumiko.dev/stage: strict}}}}\n---\n\
                 apiVersion: v1\nkind: Namespace\nmetadata: {{name: else, labels: {{kumiko.dev/stage: {far}}}}}\n---\n\
                 apiVersion: kumiko.dev/v1alpha1\nkind: Workload\nmetadata: {{name: a, namespace: demo, uid: u-a}}\n\
                 spec: {{serviceAccount: a, node: n1, ips: [10.0.0.1], attachment: {{veth: va}}}}\n---\n\
                 apiVersion: kumiko.dev/v1alpha1\nkind: Workload\nmetadata: {{name: far, namespace: else, uid: u-far}}\n\
                 spec: {{serviceAccount: far, node: n2, ips: [10.0.1.1]}}\n"
            ),
            epoch,
        )
    };
    engine.pass(two("off", 1), now);
    fake.flow("10.0.0.1:50000", "10.0.1.1:80", flow(FlowState::Direct, 11, 0));
    // The fake refuses a meshed, remote, counted workload while an unmarked clear flow to it lives.
    fake.state().guard_leaks = true;
    engine.pass(two("permissive", 2), now);
    let handle = reconciled.state.load().handle("u-far");
    let state = fake.state();
    assert_eq!(state.maps.workloads[&handle].flags, workload_flags::LIVE);
    assert_eq!(state.maps.workloads[&handle].stage, Stage::Permissive as u8);
    assert!(state.flows.values().all(|flow| flow.flags & flags::LEGACY != 0));
}

#[test]
fn a_pod_that_is_gone_ends_its_flows() {
    let fake = both_there();
    let (mut engine, reconciled) = engine(&fake);
    let mut gone = reconciled.gone.subscribe();
    let now = Instant::now();
    engine.pass(world("strict", 1), now);
    fake.flow("10.0.0.1:50000", "10.0.1.1:80", flow(FlowState::Captured, 11, 99));
    fake.remove_veth("va");
    engine.link_gone(11);
    let told = gone.try_recv().unwrap();
    assert_eq!((told.uid.as_str(), told.ifindex), ("u-a", 11));
    assert!(fake.state().flows.values().all(|flow| flow.flags & flags::OVER_GONE != 0));
    assert_eq!(reconciled.state.load().attached_ifindex("u-a"), None);
    assert!(!fake.state().maps.endpoints.contains_key(&11));
    engine.pass(world("strict", 1), now);
    assert_eq!(phase(&reconciled, "u-a"), Phase::Detached);
    // Made anew under another index.
    fake.veth("va", 21);
    engine.pass(world("strict", 1), now);
    assert_eq!(reconciled.state.load().attached_ifindex("u-a"), Some(21));
}

#[test]
fn a_link_that_is_down_takes_no_deliveries() {
    let fake = both_there();
    let (mut engine, reconciled) = engine(&fake);
    let mut gone = reconciled.gone.subscribe();
    engine.pass(world("strict", 1), Instant::now());
    engine.link_running(11, false);
    assert_eq!(gone.try_recv().unwrap().ifindex, 11);
    assert_eq!(reconciled.state.load().attached_ifindex("u-a"), None);
    assert!(fake.state().hooks.contains(&11));
    engine.link_running(11, true);
    assert_eq!(reconciled.state.load().attached_ifindex("u-a"), Some(11));
}

#[test]
fn another_workload_on_the_same_interface_ends_the_flows_of_the_first() {
    let fake = both_there();
    let (mut engine, reconciled) = engine(&fake);
    let now = Instant::now();
    engine.pass(world("strict", 1), now);
    let handle = reconciled.state.load().handle("u-a");
    let mut gone = reconciled.gone.subscribe();
    let other = "apiVersion: v1\nkind: Namespace\nmetadata: {name: demo, labels: {kumiko.dev/stage: strict}}\n---\n\
                 apiVersion: kumiko.dev/v1alpha1\nkind: Workload\nmetadata: {name: a, namespace: demo, uid: u-new}\n\
                 spec: {serviceAccount: other, node: n1, ips: [10.0.0.1], attachment: {veth: va}}\n";
    engine.pass(build(other, 2), now);
    assert_eq!(gone.try_recv().unwrap(), Gone { uid: "u-a".to_owned(), handle, ifindex: 11 });
    assert_eq!(phase(&reconciled, "u-new"), Phase::Enforcing(Stage::Strict));
    assert_eq!(reconciled.state.load().attached_ifindex("u-new"), Some(11));
}

#[test]
fn a_workload_that_is_gone_keeps_its_hooks_while_it_carries() {
    let fake = both_there();
    let (mut engine, reconciled) = engine(&fake);
    let mut gone = reconciled.gone.subscribe();
    let now = Instant::now();
    engine.pass(world("strict", 1), now);
    let handle = reconciled.state.load().handle("u-a");
    fake.flow("10.0.0.1:50000", "10.0.1.1:80", flow(FlowState::Captured, 11, 99));
    let without = build("apiVersion: v1\nkind: Namespace\nmetadata: {name: demo}\n", 2);
    engine.pass(without.clone(), now);
    assert_eq!(gone.try_recv().unwrap().handle, handle);
    assert_eq!(fake.state().maps.endpoints[&11].stage, Stage::Off as u8);
    assert!(fake.state().hooks.contains(&11) && !fake.state().hooks.contains(&12));
    assert_eq!(reconciled.state.load().workload_of(handle).unwrap().name, "a", "records still name it");
    assert_eq!(reconciled.state.load().handle("u-a"), 0);
    fake.end("10.0.0.1:50000", "10.0.1.1:80");
    engine.pass(without, now);
    assert!(fake.state().hooks.is_empty() && fake.state().maps.endpoints.is_empty());
    assert!(fake.state().maps.workloads.is_empty() && fake.state().maps.addrs.is_empty());
}

#[test]
fn the_next_agent_takes_over_without_a_gap() {
    let fake = both_there();
    let now = Instant::now();
    let (mut first, before) = engine(&fake);
    first.pass(world("strict", 1), now);
    let handle = before.state.load().handle("u-a");
    drop(first);
    fake.state().log.clear();
    let (mut second, after) = engine(&fake);
    second.pass(world("strict", 1), now);
    assert_eq!(after.state.load().handle("u-a"), handle);
    assert_eq!(after.state.load().attached_ifindex("u-a"), Some(11));
    assert_eq!(phase(&after, "u-a"), Phase::Enforcing(Stage::Strict));
    let log = fake.state().log.clone();
    assert!(log.iter().all(|line| !line.starts_with("hook") && !line.contains("Learn")), "{log:?}");
    assert!(!log.iter().any(|line| line.starts_with("write")), "nothing had to be written: {log:?}");
}

#[test]
fn what_an_unknown_agent_left_is_taken_down_in_order() {
    let fake = both_there();
    let now = Instant::now();
    let (mut first, _) = engine(&fake);
    first.pass(world("strict", 1), now);
    drop(first);
    // Numbers lost, and the pod is no workload any more.
    fake.state().saved = None;
    fake.flow("10.0.0.1:50000", "10.0.1.1:80", flow(FlowState::Captured, 11, 99));
    let (mut second, after) = engine(&fake);
    let new = build(
        "apiVersion: v1\nkind: Namespace\nmetadata: {name: x, labels: {kumiko.dev/stage: strict}}\n---\n\
         apiVersion: kumiko.dev/v1alpha1\nkind: Workload\nmetadata: {name: b, namespace: x, uid: new-b}\n\
         spec: {serviceAccount: a, node: n1, ips: [10.0.0.2], attachment: {veth: vb}}\n",
        1,
    );
    second.pass(new.clone(), now);
    assert!(fake.state().hooks.contains(&11), "it still carries something");
    assert_eq!(after.state.load().attached_ifindex("new-b"), Some(12));
    let old: Vec<u32> = fake.state().flows.values().map(|flow| flow.src).collect();
    assert!(!old.contains(&after.state.load().handle("new-b")), "its number is not one that flows carry");
    fake.end("10.0.0.1:50000", "10.0.1.1:80");
    second.pass(new, now);
    assert_eq!(fake.state().hooks.iter().copied().collect::<Vec<_>>(), [12]);
}

#[test]
fn numbers_that_the_file_does_not_have_are_not_given_again() {
    let fake = both_there();
    let now = Instant::now();
    let (mut first, _) = engine(&fake);
    first.pass(world("strict", 1), now);
    drop(first);
    // A workload that came after the file was written for the last time: the disk was full.
    let unknown = fake.state().saved.clone().unwrap().workloads.live().map(|(_, handle)| handle).max().unwrap() + 1;
    fake.flow("10.0.0.1:50000", "10.0.0.9:80", kumiko_abi::Flow { dst: unknown, ..flow(FlowState::Direct, 11, 0) });
    let (mut second, after) = engine(&fake);
    let text = "apiVersion: kumiko.dev/v1alpha1\nkind: Workload\nmetadata: {name: n, namespace: x, uid: u-n}\n\
                spec: {serviceAccount: a, node: n1, ips: [10.0.0.8]}\n";
    second.pass(build(text, 2), now);
    assert_ne!(after.state.load().handle("u-n"), unknown);
}

#[test]
fn what_fails_is_tried_again() {
    let fake = both_there();
    let (mut engine, reconciled) = engine(&fake);
    let now = Instant::now();
    fake.state().failing = 3;
    engine.pass(world("strict", 1), now);
    assert!(engine.waits());
    for _ in 0..3 {
        engine.pass(world("strict", 1), now);
    }
    assert_eq!(phase(&reconciled, "u-a"), Phase::Enforcing(Stage::Strict));
    assert_eq!(phase(&reconciled, "u-b"), Phase::Enforcing(Stage::Strict));
    assert_eq!(fake.state().maps.addrs.len(), 3);
    assert!(!engine.waits());
}

#[test]
fn one_interface_is_one_workloads() {
    let fake = Fake::default();
    fake.veth("va", 11);
    fake.veth("vb", 11);
    let (mut engine, reconciled) = engine(&fake);
    engine.pass(world("strict", 1), Instant::now());
    let state = reconciled.state.load();
    assert_eq!(state.attached_ifindex("u-a"), Some(11));
    assert!(state.endpoint("u-b").unwrap().problem.contains("is the interface of demo/a already"));
}
