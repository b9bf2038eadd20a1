//! A namespace's admin narrows, and never widens: what a baseline denies, by a deny rule or a ceiling and without an exception,
//! stays denied whatever they write, as long as the platform's lowest stage has the end enrolled.

use std::net::IpAddr;

use kumiko_core::manifest::{Protocol, Scope, parse_in};
use kumiko_core::model::World;
use kumiko_core::policy::judge::{Proof, Term, View};
use kumiko_core::policy::load::{Loaded, load};
use kumiko_core::policy::port::Asked;
use kumiko_core::policy::rule::Direction;
use kumiko_core::policy::verdict::{End, Evaluator, Flow};
use kumiko_core::stage;
use kumiko_worlds::{Everything, Random, documents};

const WORLDS: u64 = 600;
/// Questions about each, and what its admin does.
const QUESTIONS: usize = 30;
const DEEDS: usize = 30;
const PROOFS: [Proof; 3] = [Proof::Claim, Proof::Veth, Proof::Tls];

/// One end of a pair: a pod by its name, whatever its address is now, or an address of nobody.
#[derive(Clone, PartialEq, Debug)]
enum Who {
    Pod { namespace: String, name: String, v6: bool },
    Ip(IpAddr),
}

impl Who {
    fn of(all: &Everything, ip: IpAddr) -> Self {
        let pod = all.pods.iter().find(|pod| pod.ips.contains(&ip));
        pod.map_or(Self::Ip(ip), |pod| Self::Pod {
            namespace: pod.namespace.clone(),
            name: pod.name.clone(),
            v6: ip.is_ipv6(),
        })
    }

    fn ip(&self, all: &Everything) -> IpAddr {
        match self {
            Self::Ip(ip) => *ip,
            Self::Pod { namespace, name, v6 } => {
                let is_it = |pod: &&kumiko_worlds::Pod| pod.namespace == *namespace && pod.name == *name;
                all.pods.iter().find(is_it).unwrap().ips[usize::from(*v6)]
            }
        }
    }
}

/// A pair that a baseline denies at this end.
#[derive(Debug)]
struct Denied {
    from: Who,
    to: Who,
    asked: Asked,
    at: Direction,
    /// The peer's address, if a baseline denies networks: with another one it may be in none of them, and addresses are the
    /// cluster's to give.
    by_address: Option<IpAddr>,
}

impl Denied {
    /// Whether the platform's word is about this flow still.
    fn is_of(&self, flow: &Flow) -> bool {
        self.by_address.is_none_or(|ip| flow.end(self.at.opposite()).ip == ip)
    }
}

/// Whether a baseline denies by address.
fn denies_networks(all: &Everything) -> bool {
    let mut peers = all.baselines.iter().flat_map(|(_, spec)| {
        let ingress = spec.ingress.iter().flat_map(|of| &of.deny).flat_map(|rule| rule.from.iter().flatten());
        ingress.chain(spec.egress.iter().flat_map(|of| &of.deny).flat_map(|rule| rule.to.iter().flatten()))
    });
    peers.any(|peer| peer.ip_block.is_some())
}

/// The platform's word on stages: whatever a namespace says, its production is permissive at least.
fn text(all: &Everything, services: &str) -> String {
    let least = r#""spec":{"minStage":[{"namespaceLabels":{"platform.example/tier":"prod"},"stage":"permissive"}],"#;
    documents(all).replacen(r#""spec":{"#, least, 1) + services
}

fn read(text: &str) -> (World, Loaded) {
    let objects = parse_in(Scope::Policy, "f", text).unwrap_or_else(|problems| panic!("{}\n{text}", problems[0]));
    let named = || objects.iter().map(|object| ("f", object));
    let loaded = load(named());
    assert!(loaded.is_fit(), "{:?}", loaded.problems);
    (World::build("td", 1, named()).unwrap().0, loaded)
}

fn flow(all: &Everything, world: &World, from: &Who, to: &Who, asked: Asked) -> Flow {
    Flow::new(End::at(world, from.ip(all)), End::at(world, to.ip(all)), asked)
}

/// The ends at which a baseline denies a flow, whatever proves it.
fn denied_at(evaluator: &Evaluator<'_>, flow: &Flow, now: i64) -> impl Iterator<Item = Direction> {
    let denies = |direction: Direction| {
        PROOFS.iter().all(|proof| {
            let verdict = evaluator.judge_proved(flow, *proof, now, View::Enforced);
            let judged = if direction == Direction::Egress { verdict.egress } else { verdict.ingress };
            judged.refuses() && matches!(judged.refusal(), Some(Term::Deny | Term::Ceiling))
        })
    };
    [Direction::Egress, Direction::Ingress]
        .into_iter()
        .filter(move |direction| denies(*direction))
        .collect::<Vec<_>>()
        .into_iter()
}

#[test]
fn nothing_that_an_admin_writes_allows_what_a_baseline_denies() {
    let (mut pairs, mut asked_again, mut of_ceilings) = (0, 0, 0);
    for seed in crate::first_seed()..crate::first_seed() + WORLDS {
        let mut random = Random::new(seed);
        let mut all = random.everything();
        let admins = random.namespace();
        let mut denied = Vec::new();
        let (world, loaded) = read(&text(&all, ""));
        let evaluator = Evaluator { world: &world, policies: &loaded.policies, settings: &loaded.settings };
        for _ in 0..QUESTIONS {
            let question = random.asked(&all);
            let protocol = Protocol::of_number(question.proto);
            let asked = Asked { protocol, port: question.port };
            let (from, to) = (Who::of(&all, question.from), Who::of(&all, question.to));
            let flow = flow(&all, &world, &from, &to, asked);
            for at in denied_at(&evaluator, &flow, all.now) {
                let end = flow.end(at).workload.as_ref().unwrap();
                let held = loaded.settings.least(world.namespace_labels(&end.namespace))
                    >= Some(kumiko_abi::Stage::Permissive);
                if held || end.namespace != admins {
                    let verdict = evaluator.judge_proved(&flow, Proof::Tls, all.now, View::Enforced);
                    let judged = if at == Direction::Egress { verdict.egress } else { verdict.ingress };
                    of_ceilings += usize::from(judged.refusal() == Some(Term::Ceiling));
                    let by_address = denies_networks(&all).then(|| flow.end(at.opposite()).ip);
                    denied.push(Denied { from: from.clone(), to: to.clone(), asked, at, by_address });
                }
            }
        }
        pairs += denied.len();
        let mut services = String::new();
        for deed in 0..DEEDS {
            random.administer(&mut all, admins);
            if deed % 5 == 0 {
                services.push_str(&random.service(&all, admins, deed));
            }
            let text = text(&all, &services);
            let (world, loaded) = read(&text);
            let evaluator = Evaluator { world: &world, policies: &loaded.policies, settings: &loaded.settings };
            for pair in &denied {
                let Denied { from, to, asked, at, .. } = pair;
                let flow = flow(&all, &world, from, to, *asked);
                if evaluator.may_be_probe(&flow) || !pair.is_of(&flow) {
                    continue;
                }
                let own = flow.end(*at).workload.as_ref().unwrap();
                assert!(own.stage.meshed(), "seed {seed}: {} was lowered to {}", own.name, stage::name(own.stage));
                for proof in PROOFS.into_iter().chain([flow.proof()]) {
                    asked_again += 1;
                    let verdict = evaluator.judge_proved(&flow, proof, all.now, View::Enforced);
                    assert!(
                        !verdict.allows(),
                        "seed {seed}, the admin of {admins}, deed {deed}: {from:?} -> {to:?} {asked:?} was denied {at}\n{text}"
                    );
                }
            }
        }
    }
    println!("{pairs} pairs denied ({of_ceilings} by ceilings), asked about {asked_again} times");
    assert!(
        pairs > 2_000 && of_ceilings > 500 && pairs - of_ceilings > 500,
        "{pairs} pairs, {of_ceilings} by ceilings"
    );
}
