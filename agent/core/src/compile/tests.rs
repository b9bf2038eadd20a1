use std::collections::HashSet;

use super::*;
use crate::manifest::{Scope, parse, parse_in};
use proptest::prelude::*;

/// A model of random shape: `(name, node, ip, namespace stage, probe)`.
#[derive(Clone, Debug)]
struct Spec {
    stages: [u8; 2],
    workloads: Vec<(u8, u8, u8, u8, bool)>,
    services: Vec<(u8, u8)>,
}

fn spec() -> impl Strategy<Value = Spec> {
    let workload = (0_u8..8, 0_u8..2, 1_u8..12, 0_u8..2, any::<bool>());
    (any::<[u8; 2]>(), proptest::collection::vec(workload, 0..8), proptest::collection::vec((0_u8..3, 0_u8..2), 0..3))
        .prop_map(|(stages, workloads, services)| Spec { stages, workloads, services })
}

fn world(spec: &Spec) -> World {
    let stage = |n: u8| crate::stage::name(Stage::from_u8(n % 4));
    let mut text = String::new();
    for (number, value) in spec.stages.iter().enumerate() {
        text += &format!(
            "apiVersion: v1\nkind: Namespace\nmetadata: {{name: ns{number}, labels: {{kumiko.dev/stage: {}}}}}\n---\n",
            stage(*value)
        );
    }
    text += "apiVersion: v1\nkind: Node\nmetadata: {name: n0}\nstatus: {addresses: [{type: InternalIP, address: 192.168.0.1}]}\n---\n";
    text += "apiVersion: v1\nkind: Node\nmetadata: {name: n1}\nstatus: {addresses: [{type: InternalIP, address: 192.168.0.2}]}\n---\n";
    let (mut names, mut ips) = (HashSet::new(), HashSet::new());
    for (name, node, ip, namespace, probe) in &spec.workloads {
        if names.insert(name) && ips.insert(ip) {
            text += &format!(
                "apiVersion: kumiko.dev/v1alpha1\nkind: Workload\nmetadata: {{name: w{name}, namespace: ns{namespace}, uid: u{name}, labels: {{app: a{}}}}}\nspec: {{serviceAccount: s{}, node: n{node}, ips: [10.0.0.{ip}, 'fd00::{ip}'], ports: [{{port: 80, probe: {probe}}}]}}\n---\n",
                name % 2,
                name % 3
            );
        }
    }
    let mut seen = HashSet::new();
    for (name, app) in &spec.services {
        if seen.insert(name) {
            text += &format!(
                "apiVersion: v1\nkind: Service\nmetadata: {{name: s{name}, namespace: ns0}}\nspec: {{clusterIP: 10.9.0.{name}, selector: {{app: a{app}}}, ports: [{{port: 80}}, {{name: dns, protocol: UDP, port: 53}}]}}\n---\n"
            );
        }
    }
    let objects = parse("f", &text).unwrap_or_else(|problems| panic!("{}", problems[0]));
    World::build("td", 1, objects.iter().map(|object| ("f", object))).unwrap().0
}

/// Every second local workload is attached.
fn attached(world: &World) -> Attached {
    let some = world.workloads_on("n0").enumerate().filter(|(number, _)| number % 2 == 0);
    some.map(|(number, workload)| {
        let ifindex = u32::try_from(number).unwrap() + 10;
        let phase = Phase::Enforcing(workload.stage);
        let here = AttachedEndpoint { ifindex, phase, fast: true, pod_mac: [1; 6], gateway_mac: [2; 6], master: 0 };
        (workload.uid.clone(), here)
    })
    .collect()
}

proptest! {
    /// Going there step by step ends where starting afresh with the same numbers does; every order is right on the way.
    #[test]
    fn incremental_is_as_from_scratch(specs in proptest::collection::vec(spec(), 1..6)) {
        let mut handles = Handles::default();
        let mut maps = Desired::default();
        for spec in &specs {
            let world = world(spec);
            handles.assign(&world, "n0");
            let scratch = compile(&world, "n0", &attached(&world), &handles, &BTreeSet::new());
            for op in diff(&maps, &scratch) {
                maps.apply(&op);
                for entry in maps.addrs.values().filter(|entry| entry.kind == AddrKind::Workload as u8) {
                    prop_assert!(maps.workloads.contains_key(&entry.handle), "{op:?} leaves an address without a workload");
                }
            }
            prop_assert_eq!(&maps, &scratch);
            prop_assert!(diff(&maps, &scratch).is_empty());
            prop_assert_eq!(&scratch, &compile(&world, "n0", &attached(&world), &handles, &BTreeSet::new()));
        }
    }

    /// A number is one name's for as long as anything refers to it.
    #[test]
    fn numbers_are_never_shared(steps in proptest::collection::vec((proptest::collection::btree_set(0_u8..12, 0..6), any::<u64>()), 1..30)) {
        let mut numbers = Numbers::default();
        let mut meaning: std::collections::HashMap<u32, String> = std::collections::HashMap::new();
        for (names, keep) in steps {
            let names: Vec<String> = names.into_iter().map(|n| format!("n{n}")).collect();
            let without = numbers.assign(names.iter().map(String::as_str), 10);
            for name in &names {
                let Some(number) = numbers.get(name) else { continue };
                prop_assert!((1..=10).contains(&number));
                let known = meaning.entry(number).or_insert_with(|| name.clone());
                prop_assert_eq!(&*known, name, "{} has two names", number);
                prop_assert_eq!(numbers.name(number), Some(name.as_str()));
            }
            prop_assert_eq!(names.iter().filter(|name| numbers.get(name).is_none()).count(), without);
            // What is still referred to is up to chance; the rest may be given again.
            let referenced: HashSet<u32> = (0..64).filter(|bit| keep >> bit & 1 == 1).collect();
            let retired: Vec<u32> = numbers.retired().map(|(number, _)| number).collect();
            numbers.release(&referenced);
            for number in retired.iter().filter(|number| !referenced.contains(number)) {
                meaning.remove(number);
            }
            let text = serde_json::to_string(&numbers).unwrap();
            prop_assert_eq!(&serde_json::from_str::<Numbers>(&text).unwrap(), &numbers);
        }
    }
}

#[test]
fn a_name_that_comes_back_has_its_number_again() {
    let mut numbers = Numbers::default();
    numbers.assign(["a", "b"].into_iter(), 10);
    numbers.assign(["b"].into_iter(), 10);
    assert_eq!((numbers.get("a"), numbers.name(1)), (None, Some("a")));
    numbers.assign(["c", "a"].into_iter(), 10);
    assert_eq!((numbers.get("a"), numbers.get("c"), numbers.name(2)), (Some(1), Some(3), Some("b")));
}

#[test]
fn numbers_of_a_lost_file_are_not_given_again() {
    let mut numbers = Numbers::default();
    numbers.reserve(&HashSet::from([0, 2, 5, 70_000]), MAX_HANDLE);
    assert_eq!(numbers.assign(["a", "b", "c"].into_iter(), 6), 0);
    let given: Vec<u32> = ["a", "b", "c"].iter().filter_map(|name| numbers.get(name)).collect();
    assert_eq!(given, [6, 1, 3]);
    numbers.release(&HashSet::from([5]));
    assert_eq!(numbers.assign(["a", "b", "c", "d", "e"].into_iter(), 6), 0);
    assert_eq!((numbers.get("d"), numbers.get("e")), (Some(2), Some(4)));
    assert_eq!(numbers.assign(["a", "b", "c", "d", "e", "f"].into_iter(), 6), 1);
}

fn one(stage: u8) -> (World, Handles) {
    let spec = Spec {
        stages: [stage, stage],
        workloads: vec![(0, 0, 1, 0, true), (1, 1, 2, 0, true)],
        services: vec![(0, 1)],
    };
    let world = world(&spec);
    let mut handles = Handles::default();
    handles.assign(&world, "n0");
    (world, handles)
}

#[test]
fn what_the_kernel_is_told() {
    let (world, handles) = one(3);
    let here = AttachedEndpoint {
        ifindex: 7,
        phase: Phase::Learning(Stage::Strict),
        fast: true,
        pod_mac: [1; 6],
        gateway_mac: [2; 6],
        master: 9,
    };
    let attached = Attached::from([("u0".to_owned(), here)]);
    let desired = compile(&world, "n0", &attached, &handles, &BTreeSet::new());
    let (local, remote) = (handles.workload("u0").unwrap(), handles.workload("u1").unwrap());
    let flags = workload_flags::LIVE | workload_flags::LOCAL | workload_flags::ATTACHED;
    assert_eq!((desired.workloads[&local].flags, desired.workloads[&local].ifindex), (flags, 7));
    assert_eq!(desired.workloads[&remote].flags, workload_flags::LIVE);
    assert_eq!(desired.workloads[&remote].stage, Stage::Strict as u8);
    let kind = |ip: &str| desired.addrs[&to_abi(ip.parse().unwrap())];
    assert_eq!((kind("10.0.0.1").handle, kind("fd00::1").handle), (local, local));
    assert_eq!(kind("192.168.0.1").kind, AddrKind::ThisNode as u8);
    assert_eq!(kind("192.168.0.2").kind, AddrKind::Node as u8);
    assert_eq!(desired.probe_ports, BTreeSet::from([(local, 80)]), "probes are this node's");
    let endpoint = desired.endpoints[&7];
    assert_eq!((endpoint.handle, endpoint.stage, endpoint.master), (local, 3, 9));
    assert_eq!(endpoint.flags, endpoint_flags::LEARN | endpoint_flags::FAST);
    assert_eq!(phase_of(&endpoint), here.phase);
    let service = |port, proto| desired.services[&(to_abi("10.9.0.0".parse().unwrap()), port, proto)];
    assert_eq!(service(80, 6).flags, service_flags::CAPTURE);
    assert_eq!(service(53, 17).flags, 0, "only TCP is captured");
    assert!(service(80, 6).id != 0 && service(80, 6).id != service(53, 17).id);
}

#[test]
fn what_the_platform_decides_about_a_nodes_endpoints() {
    let flags = |settings: &str| {
        let text = format!(
            "apiVersion: kumiko.dev/v1alpha1\nkind: Workload\nmetadata: {{name: w, namespace: a, uid: u}}\nspec: \
             {{serviceAccount: c, node: n0, ips: [10.0.0.1]}}\n---\napiVersion: kumiko.dev/v1alpha1\nkind: MeshSettings\n\
             metadata: {{name: mesh}}\nspec: {{{settings}}}\n"
        );
        let objects = parse_in(Scope::Policy, "f", &text).unwrap();
        let world = World::build("td", 1, objects.iter().map(|object| ("f", object))).unwrap().0;
        let mut handles = Handles::default();
        handles.assign(&world, "n0");
        let phase = Phase::Enforcing(Stage::Permissive);
        let here = AttachedEndpoint { ifindex: 7, phase, fast: true, pod_mac: [1; 6], gateway_mac: [2; 6], master: 0 };
        let attached = Attached::from([("u".to_owned(), here)]);
        compile(&world, "n0", &attached, &handles, &BTreeSet::new()).endpoints[&7].flags
    };
    assert_eq!(flags(""), endpoint_flags::FAST);
    assert_eq!(flags("sameNodeFastPath: true, permissiveWithoutAgent: agent"), endpoint_flags::FAST);
    assert_eq!(flags("sameNodeFastPath: false"), 0);
    let refused = endpoint_flags::FAST | endpoint_flags::REFUSED_WITHOUT_AGENT;
    assert_eq!(flags("permissiveWithoutAgent: refuse"), refused);
}

#[test]
fn addresses_for_clients_outside() {
    let text = "apiVersion: kumiko.dev/v1alpha1\nkind: Workload\nmetadata: {name: w, namespace: a, uid: u}\n\
                spec: {serviceAccount: c, node: n0, ips: [10.0.0.1]}\n---\n\
                apiVersion: v1\nkind: Service\nmetadata: {name: s, namespace: a}\n\
                spec: {clusterIP: 10.9.0.1, externalIPs: [192.0.2.1, 10.0.0.1, 10.9.0.1], \
                ports: [{port: 80, nodePort: 30080}, {name: dns, protocol: UDP, port: 53}]}\n\
                status: {loadBalancer: {ingress: [{ip: '2001:db8::1'}, {hostname: lb.example}]}}\n";
    let objects = parse("f", text).unwrap();
    let world = World::build("td", 1, objects.iter().map(|object| ("f", object))).unwrap().0;
    let mut handles = Handles::default();
    handles.assign(&world, "n0");
    let desired = compile(&world, "n0", &Attached::new(), &handles, &BTreeSet::new());
    let flags = |ip: &str, port, proto| {
        let addr = if ip.is_empty() { [0; 16] } else { to_abi(ip.parse().unwrap()) };
        desired.services.get(&(addr, port, proto)).map(|entry| entry.flags)
    };
    for (ip, port) in [("", 30_080), ("192.0.2.1", 80), ("2001:db8::1", 80)] {
        assert_eq!(flags(ip, port, 6), Some(service_flags::OUTER), "{ip}");
    }
    assert_eq!(flags("2001:db8::1", 53, 17), Some(service_flags::OUTER));
    assert_eq!(flags("10.9.0.1", 80, 6), Some(0), "the cluster IP stays one");
    assert_eq!(flags("10.0.0.1", 80, 6), None, "a pod's address stays the pod's");
}

#[test]
fn a_workload_whose_hooks_are_coming_is_not_refused() {
    let (world, handles) = one(3);
    let stage = |coming: &BTreeSet<String>| {
        let desired = compile(&world, "n0", &Attached::new(), &handles, coming);
        desired.workloads[&handles.workload("u0").unwrap()].stage
    };
    assert_eq!(stage(&BTreeSet::new()), Stage::Strict as u8);
    assert_eq!(stage(&BTreeSet::from(["u0".to_owned()])), Stage::Off as u8);
}

#[test]
fn raised_peers_are_held_once() {
    let ((before, handles), (after, _)) = (one(0), one(2));
    let none = BTreeSet::new();
    let old = compile(&before, "n0", &Attached::new(), &handles, &none);
    let new = compile(&after, "n0", &Attached::new(), &handles, &none);
    let mut held = new.clone();
    assert!(held.hold_raised(&old));
    let remote = handles.workload("u1").unwrap();
    assert_eq!(held.workloads[&remote].flags, workload_flags::LIVE | workload_flags::ATTACHED);
    assert_eq!(held.workloads[&remote].ifindex, 0);
    held.workloads.insert(remote, new.workloads[&remote]);
    assert_eq!(held, new, "nothing else is touched");
    assert!(!new.clone().hold_raised(&new));
}

#[test]
fn whom_the_tables_were_not_made_for_is_denied() {
    use crate::policy::compile::{Image, compile as verdicts};
    use crate::policy::verdict::Evaluator;
    use kumiko_abi::policy::DENY_CLASS;

    let pod = |name, ip| (name, 0, ip, 0, false);
    let of = |workloads| world(&Spec { stages: [3, 3], workloads, services: Vec::new() });
    let (judged, later) = (of(vec![pod(1, 1), pod(2, 2)]), of(vec![pod(3, 1), pod(2, 2), pod(4, 4)]));
    let image = Image::of(&verdicts(&Evaluator::of(&judged), "n0", 0).unwrap(), 0, 1).unwrap();
    let mut handles = Handles::default();
    let mut written = Desired::default();
    for world in [&judged, &later] {
        handles.assign(world, "n0");
        let attached = attached(world);
        let mut desired = compile(world, "n0", &attached, &handles, &BTreeSet::new());
        desired.judge_by(&image, &judged, world, &attached, &written);
        written = desired;
    }
    // Again: what is denied stays so.
    let mut desired = written.clone();
    desired.judge_by(&image, &judged, &later, &attached(&later), &written);
    assert_eq!(desired, written);
    let class = |ip: &str| written.addrs[&to_abi(ip.parse().unwrap())].class;
    assert_eq!(class("10.0.0.1"), [DENY_CLASS; 2], "an address that another has now");
    assert_eq!(class("fd00::4"), [DENY_CLASS; 2], "one that is new");
    assert_eq!(class("10.0.0.2"), [image.class("10.0.0.2".parse().unwrap()); 2]);
    assert_ne!(class("10.0.0.2"), [DENY_CLASS; 2]);
}
