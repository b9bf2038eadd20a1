//! What nobody tells the control loop about.

use super::*;

fn fast(fake: &Fake, ifindex: u32) -> bool {
    fake.state().maps.endpoints.get(&ifindex).unwrap().flags & endpoint_flags::FAST != 0
}

#[test]
fn hooks_that_somebody_took_off_are_put_back() {
    let fake = both_there();
    let (mut engine, reconciled) = engine(&fake);
    let now = Instant::now();
    engine.pass(world("strict", 1), now);
    engine.look(now);
    engine.pass(world("strict", 1), now);
    assert_eq!(fake.state().log.iter().filter(|line| *line == "hook 11").count(), 1, "they are there");
    fake.state().hooks.remove(&11);
    fake.state().lookup_off = true;
    engine.look(now);
    assert!(!fake.state().lookup_off, "the socket lookup is looked after too");
    engine.pass(world("strict", 1), now);
    assert!(fake.state().hooks.contains(&11));
    assert_eq!(phase(&reconciled, "u-a"), Phase::Enforcing(Stage::Strict));
    assert_eq!(fake.state().log.iter().filter(|line| *line == "hook 12").count(), 1, "the other pod's were there");
}

#[test]
fn hooks_that_went_with_their_interface_are_the_link_watchs_to_tell() {
    let fake = both_there();
    let (mut engine, reconciled) = engine(&fake);
    let mut gone = reconciled.gone.subscribe();
    let now = Instant::now();
    engine.pass(world("strict", 1), now);
    fake.flow("10.0.0.1:50000", "10.0.1.1:80", flow(FlowState::Captured, 11, 99));
    fake.remove_veth("va");
    // Seen before the link watch's word.
    engine.look(now);
    engine.pass(world("strict", 1), now);
    engine.link_gone(11);
    assert_eq!(gone.try_recv().unwrap().ifindex, 11);
    assert!(fake.state().flows.values().all(|flow| flow.flags & flags::OVER_GONE != 0));
}

#[test]
fn a_limited_pod_takes_no_fast_path() {
    let fake = both_there();
    fake.state().shaped.insert(11);
    let (mut engine, _) = engine(&fake);
    let now = Instant::now();
    engine.pass(world("strict", 1), now);
    assert_eq!((fast(&fake, 11), fast(&fake, 12)), (false, true));
    fake.state().shaped = [12].into();
    engine.look(now);
    engine.pass(world("strict", 1), now);
    assert_eq!((fast(&fake, 11), fast(&fake, 12)), (true, false));
}

#[test]
fn the_nodes_own_interface_is_no_pods() {
    let fake = both_there();
    fake.state().addresses.insert("va".to_owned(), "192.0.2.1".parse().unwrap());
    let (mut engine, reconciled) = engine(&fake);
    let text = "apiVersion: v1\nkind: Node\nmetadata: {name: n1}\nstatus: {addresses: [{type: InternalIP, address: \
                192.0.2.1}]}\n---\napiVersion: v1\nkind: Namespace\nmetadata: {name: x, labels: {kumiko.dev/stage: \
                strict}}\n---\napiVersion: kumiko.dev/v1alpha1\nkind: Workload\nmetadata: {name: a, namespace: x, uid: \
                u-a}\nspec: {serviceAccount: a, node: n1, ips: [10.0.0.1], attachment: {veth: va}}\n";
    engine.pass(build(text, 1), Instant::now());
    assert!(fake.state().hooks.is_empty());
    let problem = reconciled.state.load().endpoint("u-a").unwrap().problem.clone();
    assert!(problem.contains("192.0.2.1: it is the node's way out"), "{problem}");
}
