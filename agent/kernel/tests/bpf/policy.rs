//! The real programs' verdicts over random worlds, beside a naive evaluator's: on SYNs, and on first datagrams.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use kumiko_abi::{
    CommandResult, Config, EventKind, Flow, FlowKey, FlowState, Reason, Stage, Verdict,
    flow::flags,
    policy::{CELLS_LEN, CHUNKS_LEN, COLUMNS_LEN, ROWS_LEN, SETS_LEN},
    programs::AGENT_INGRESS,
};
use kumiko_core::{
    compile::{self, Attached, AttachedEndpoint, Desired, Handles, Op, diff, net_key},
    model::World,
    policy::{
        compile::{Image, compile},
        verdict::Evaluator,
    },
    stage::Phase,
};
use kumiko_kernel::bpf::{Maps, Verdicts};
use kumiko_worlds::{Asked, Everything, Pod, Random, Refusal, documents, naive, read};

use crate::{
    fixture::{alone, config},
    frames::{Other, Tcp, Udp},
    node::{AGENT, HERE, Node, REDIRECT, fake, key, node},
};

const WORLDS: u64 = 7_000;
/// So often each term and each reason decides, at least.
const OFTEN: u64 = 100;
const QUESTIONS: usize = 10;
const NODE: &str = "n1";
/// In the place of the protocol of what came in a tunnel.
const TUNNELLED: u8 = 255;

/// Where the pods of the node are: the one whose hook is run is on an interface that is there.
fn attached(world: &World, here: &str) -> Attached {
    let local = world.workloads_on(NODE).filter(|workload| workload.stage != Stage::Off);
    let endpoint = |(workload, number): (&std::sync::Arc<kumiko_core::model::Workload>, u32)| {
        let ifindex = if workload.uid == here { HERE } else { 100 + number };
        let phase = Phase::Enforcing(workload.stage);
        let of = AttachedEndpoint { ifindex, phase, fast: false, pod_mac: [2; 6], gateway_mac: [4; 6], master: 0 };
        (workload.uid.clone(), of)
    };
    local.zip(0..).map(endpoint).collect()
}

fn write(maps: &Maps, op: &Op) {
    match *op {
        Op::SetWorkload(handle, workload) => maps.set_workload(handle, &workload).unwrap(),
        Op::SetAddr(addr, entry) => maps.set_addr(&addr, &entry).unwrap(),
        Op::SetEndpoint(ifindex, endpoint) => {
            maps.init_use(ifindex).unwrap();
            maps.set_endpoint(ifindex, &endpoint).unwrap();
        }
        Op::SetNet(net, classes) => maps.set_net(&net_key(net), classes).unwrap(),
        Op::RemoveEndpoint(ifindex) => drop(maps.remove_endpoint(ifindex).unwrap()),
        Op::RemoveAddr(addr) => drop(maps.remove_addr(&addr).unwrap()),
        Op::RemoveNet(net) => drop(maps.remove_net(&net_key(net)).unwrap()),
        Op::ClearWorkload(handle) => maps.set_workload(handle, &kumiko_abi::Workload::default()).unwrap(),
        Op::SetProbePort(..) | Op::RemoveProbePort(..) | Op::SetService(..) | Op::RemoveService(..) => {}
        Op::SetBackend(..) | Op::RemoveBackend(..) => {}
    }
}

/// The node of a world, in the maps.
struct Here {
    world: World,
    image: Image,
    handles: Handles,
    written: Desired,
}

impl Here {
    fn set(&mut self, maps: &Maps, here: &str) {
        let attached = attached(&self.world, here);
        let mut desired = compile::compile(&self.world, NODE, &attached, &self.handles, &BTreeSet::new());
        desired.judge_by(&self.image, &self.world, &self.world, &attached, &Desired::default());
        for op in diff(&self.written, &desired) {
            write(maps, &op);
        }
        self.written = desired;
    }
}

fn enter(maps: &Maps, all: &Everything, written: Desired, epoch: u32) -> Here {
    let (world, loaded) = read(all);
    let evaluator = Evaluator { world: &world, policies: &loaded.policies, settings: &loaded.settings };
    let compiled = compile(&evaluator, NODE, all.now).unwrap();
    let up = nix::sys::sysinfo::sysinfo().unwrap().uptime().as_secs();
    let image = Image::of(&compiled, all.now - i64::try_from(up).unwrap(), epoch).unwrap();
    let verdicts = Verdicts {
        sets: (image.begin(SETS_LEN), &image.sets),
        rows: (image.begin(ROWS_LEN), &image.rows),
        chunks: (image.begin(CHUNKS_LEN), &image.chunks),
        columns: (image.begin(COLUMNS_LEN), &image.columns),
        cells: (image.begin(CELLS_LEN), &image.cells),
    };
    maps.set_verdicts(&verdicts).unwrap();
    maps.set_config(&Config { epoch, host_class: [image.host; 2], ..config(AGENT) }).unwrap();
    let mut handles = Handles::default();
    handles.assign(&world, NODE);
    Here { world, image, handles, written }
}

fn reason(refusal: &Refusal, host: bool, clear: bool) -> Option<Reason> {
    Some(match refusal.as_ref()?.0 {
        'D' => Reason::BaselineDenied,
        'C' => Reason::AboveCeiling,
        'K' => Reason::NetworkPolicyDefault,
        'T' => Reason::TeamDefault,
        'I' => Reason::PolicyInvalid,
        _ if clear && host => Reason::HostRefused,
        _ if clear => Reason::PlaintextRefused,
        _ => Reason::PeerUnproved,
    })
}

/// What an end that is enrolled says, with whether it is enforced.
type Says = Option<(Option<Reason>, bool)>;

/// What both say: denied, or recorded as refused, for the reason that speaks first.
fn expected(says: [Says; 2]) -> (Verdict, Option<Reason>) {
    let of = |enforced: bool| {
        let refusing = says.iter().flatten().filter(|(_, is)| *is == enforced);
        // A default is a default, known or not; what came later has a later number.
        let order = [
            Reason::BaselineDenied,
            Reason::AboveCeiling,
            Reason::NetworkPolicyDefault,
            Reason::TeamDefault,
            Reason::PolicyInvalid,
        ];
        let rank = |reason: &Reason| order.iter().position(|known| known == reason).unwrap_or(order.len());
        refusing.filter_map(|(reason, _)| *reason).min_by_key(rank)
    };
    match (of(true), of(false)) {
        (Some(reason), _) => (Verdict::Deny, Some(reason)),
        (None, Some(reason)) => (Verdict::Audit, Some(reason)),
        (None, None) => (Verdict::Allow, None),
    }
}

/// What would be said if what is in audit were enforced, or everybody strict: flags of the flow, by what each view says of its
/// ends.
fn would(views: [Vec<naive::Refusal>; 3]) -> u32 {
    let lets = views.map(|ends| ends.iter().all(Option::is_none));
    let [enforced, with_audit, strict] = lets;
    (if enforced == with_audit { 0 } else { flags::AUDIT_DIFFERS }) | if strict { 0 } else { flags::STRICT_REFUSES }
}

/// What the program made of a SYN or of a first datagram, with these flags.
fn verdict(node: &mut Node, key: &FlowKey) -> (Verdict, Reason, u32) {
    while node.syns.next().is_some() {}
    let mut denied = None;
    while let Some((kind, reason, event)) = node.event() {
        if kind == EventKind::Denied {
            denied = Some((reason, event.flow.flags));
        }
    }
    let would = |all: u32| all & (flags::AUDIT_DIFFERS | flags::STRICT_REFUSES);
    match (denied, node.datapath.flows().get(key)) {
        (Some((reason, all)), _) => (Verdict::Deny, reason, would(all)),
        (None, Some(flow)) => {
            let verdict = [Verdict::Deny, Verdict::Audit].into_iter().find(|verdict| *verdict as u8 == flow.verdict);
            let verdict = verdict.unwrap_or(Verdict::Allow);
            (verdict, Reason::from_u16(flow.reason).unwrap(), would(flow.flags))
        }
        (None, None) => panic!("neither denied nor entered"),
    }
}

fn pod(all: &Everything, ip: IpAddr) -> Option<&Pod> {
    all.pods.iter().find(|pod| pod.ips.contains(&ip))
}

#[test]
fn the_programs_say_what_the_formula_says() {
    alone("the_programs_say_what_the_formula_says", |dir| {
        let mut node = node(dir, Stage::Off);
        let maps = node.maps.clone();
        maps.remove_endpoint(HERE).unwrap();
        for (addr, _) in maps.addrs().unwrap() {
            maps.remove_addr(&addr).unwrap();
        }
        let (mut written, mut port, mut decided) = (Desired::default(), 1_024_u16, BTreeMap::new());
        let first = std::env::var("KUMIKO_POLICY_SEED").map_or(0, |seed| seed.parse().unwrap());
        for seed in first..first + WORLDS {
            let mut random = Random::new(seed);
            let mut all = random.everything();
            // The machine's clock goes on meanwhile.
            all.without_ends();
            if seed % 4 == 0 {
                random.breaks(&mut all);
            }
            let mut here = enter(&maps, &all, written, u32::try_from(seed).unwrap());
            for _ in 0..QUESTIONS {
                let asked = random.asked(&all);
                port = port.checked_add(1).unwrap_or(1_024);
                ask(&mut node, &mut here, &all, asked, port, &mut decided, seed);
            }
            written = here.written;
        }
        println!("{decided:?}");
        for reason in [Reason::BaselineDenied, Reason::AboveCeiling, Reason::NetworkPolicyDefault, Reason::TeamDefault]
        {
            let denied = decided.get(&(TUNNELLED, false, Verdict::Deny as u8, Some(reason))).copied().unwrap_or(0);
            assert!(denied >= OFTEN, "{reason:?}, in a tunnel: {denied} denied");
        }
        // Few ends only observe: of these, any protocol will do.
        let times = |proto: u8, outbound: bool, verdict: Verdict, reason| {
            decided.get(&(proto, outbound, verdict as u8, Some(reason))).copied().unwrap_or(0)
        };
        for outbound in [true, false] {
            for reason in
                [Reason::BaselineDenied, Reason::AboveCeiling, Reason::NetworkPolicyDefault, Reason::TeamDefault]
            {
                let all = [naive::TCP, naive::UDP, naive::SCTP, naive::ICMP, naive::GRE];
                let denied = all.map(|proto| times(proto, outbound, Verdict::Deny, reason));
                let told = all.map(|proto| times(proto, outbound, Verdict::Audit, reason)).iter().sum::<u64>();
                let [tcp, udp, sctp, icmp, gre] = denied;
                // Kubernetes says nothing of what has no ports.
                let portless = icmp + gre >= 20 || reason == Reason::NetworkPolicyDefault;
                let enough = tcp >= 20 && udp + sctp >= 20 && portless && told >= 20;
                let often = denied.iter().sum::<u64>() >= OFTEN;
                assert!(enough && often, "{reason:?}, outbound {outbound}: {denied:?} denied, {told} told");
            }
        }
        for reason in [Reason::PolicyInvalid, Reason::PeerUnproved, Reason::PlaintextRefused, Reason::HostRefused] {
            let denies = |(_, _, verdict, why): &Key| (*verdict, *why) == (Verdict::Deny as u8, Some(reason));
            let denied: u64 = decided.iter().filter(|(key, _)| denies(key)).map(|(_, times)| times).sum();
            assert!(denied >= OFTEN, "{reason:?}: {denied} denied");
        }
    });
}

/// Protocol, whether the pod began it, verdict and reason.
type Key = (u8, bool, u8, Option<Reason>);
type Decided = BTreeMap<Key, u64>;

fn ask(node: &mut Node, here: &mut Here, all: &Everything, asked: Asked, sport: u16, decided: &mut Decided, seed: u64) {
    let maps = node.maps.clone();
    let (from, to) = (pod(all, asked.from), pod(all, asked.to));
    let (src, dst) = (asked.from.to_string(), asked.to.to_string());
    let syn = Tcp::syn(&src, &dst).with(|syn| (syn.sport, syn.dport) = (sport, asked.port));
    let datagram = Udp { src: &src, dst: &dst, sport, dport: asked.port, payload: b"x" };
    let (frame, key) = match asked.proto {
        naive::TCP => (syn.frame(), key(&syn)),
        naive::UDP => (datagram.frame(), datagram.key()),
        other => {
            let packet = match other {
                naive::SCTP => Other::sctp(&src, &dst, sport, asked.port),
                naive::ICMP => Other::ping(&src, &dst, sport),
                _ => Other::gre(&src, &dst),
            };
            (packet.frame(), packet.key())
        }
    };
    // Without ports there is one exchange between two addresses, in all worlds.
    if let Some(flow) = node.datapath.flows().get(&key) {
        assert_eq!(node.datapath.commands().reap(&key, &flow.id).unwrap(), CommandResult::Done);
    }
    let local = |pod: Option<&Pod>| pod.is_some_and(|pod| pod.node == NODE && pod.stage > 0);
    let enforced = |pod: Option<&Pod>| pod.is_some_and(|pod| pod.stage > 1);
    if local(from) {
        here.set(&maps, &from.unwrap().name);
        let [egress, ingress] = naive::verdict(all, asked, false);
        // Rules are asked where the pod is.
        let ingress = ingress.filter(|_| local(to));
        let says = [
            egress.map(|refusal| (reason(&refusal, false, false), enforced(from))),
            ingress.map(|refusal| (reason(&refusal, false, false), enforced(to))),
        ];
        let ends = |[egress, ingress]: [Option<Refusal>; 2]| {
            egress.into_iter().chain(ingress.filter(|_| local(to))).collect::<Vec<_>>()
        };
        let views =
            [naive::verdict(all, asked, false), naive::verdict(all, asked, true), naive::were_both_strict(all, asked)];
        let expected = (expected(says), would(views.map(ends)));
        node.sends(&frame);
        let found = verdict(node, &key);
        tell(expected, found, asked, all, seed);
        *decided.entry((asked.proto, true, expected.0.0 as u8, expected.0.1)).or_default() += 1;
    } else if local(to) && !naive::proved(all, asked) {
        here.set(&maps, &to.unwrap().name);
        // A process of the node that is not the kubelet: no probe.
        let mut bare = all.clone();
        bare.pods.iter_mut().flat_map(|pod| &mut pod.ports).for_each(|port| port.3 = false);
        let host = all.nodes.iter().any(|(name, ip)| *ip == asked.from && name == NODE);
        let [_, ingress] = naive::verdict(&bare, asked, false);
        // A SYN in the clear is refused by stage, unless a rule takes an address for enough.
        let clear = enforced(to) && asked.proto == naive::TCP;
        let says = ingress.map(|refusal| (reason(&refusal, host, clear), enforced(to)));
        let views = [
            naive::verdict(&bare, asked, false),
            naive::verdict(&bare, asked, true),
            naive::were_both_strict(&bare, asked),
        ];
        let would = would(views.map(|[_, ingress]| ingress.into_iter().collect()));
        let expected = (expected([None, says]), would);
        // What no interface brought and no pod sends is a process's of this node: a test's packets have its control group.
        node.gets_by(if host { 0 } else { 99 }, &frame);
        let found = verdict(node, &key);
        tell(expected, found, asked, all, seed);
        *decided.entry((asked.proto, false, expected.0.0 as u8, expected.0.1)).or_default() += 1;
    } else if local(to) {
        // From another node: proved by TLS.
        here.set(&maps, &to.unwrap().name);
        let [_, ingress] = naive::verdict(all, asked, false);
        let expected = ingress.as_ref().and_then(|refusal| reason(refusal, false, false));
        let found = delivered(node, &syn);
        assert_eq!(found, expected, "seed {seed}: in a tunnel, {asked:?}\n{}", documents(all));
        let verdict = if expected.is_some() { Verdict::Deny } else { Verdict::Allow };
        *decided.entry((TUNNELLED, false, verdict as u8, expected)).or_default() += 1;
    }
}

/// What came in a tunnel, which proved the source, as the agent's socket begins it: by the pod's entry. Why it is refused.
fn delivered(node: &Node, syn: &Tcp<'_>) -> Option<Reason> {
    let entry = Flow {
        state: FlowState::Captured as u8,
        // In a test run the hook's interface is the pod's, too.
        src_ifindex: HERE,
        dst_ifindex: HERE,
        flags: fake(syn).flags | flags::DELIVERED,
        ..fake(syn)
    };
    assert_eq!(node.datapath.commands().create(&key(syn), &entry).unwrap(), CommandResult::Done);
    let passes = node.run(AGENT_INGRESS, &syn.frame()) == REDIRECT;
    let flow = node.flow(syn).unwrap();
    let cut = (flow.state == FlowState::Cut as u8).then(|| Reason::from_u16(flow.reason).unwrap());
    assert_eq!(passes, cut.is_none(), "{flow:?}");
    cut
}

type Expected = ((Verdict, Option<Reason>), u32);

fn tell(expected: Expected, found: (Verdict, Reason, u32), asked: Asked, all: &Everything, seed: u64) {
    let ((verdict, reason), would) = expected;
    let same = verdict == found.0 && reason.is_none_or(|reason| reason == found.1) && would == found.2;
    assert!(same, "seed {seed}: {asked:?}: expected {expected:?}, found {found:?}\n{}", documents(all));
}
