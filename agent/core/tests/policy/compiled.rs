//! The compiled tables, read as the kernel reads them, beside the naive evaluator.

use std::collections::{BTreeMap, BTreeSet};

use kumiko_abi::policy::{Cell, Question, View, find};

use kumiko_core::policy::compile::{Compiled, Image, compile, reason};
use kumiko_core::policy::judge::Term;
use kumiko_core::policy::verdict::Evaluator;
use kumiko_worlds::{Asked, Everything, Random, documents, naive, read};

use crate::{QUESTIONS, WORLDS};

/// Second since 1970 at which the machine of these worlds was booted.
const BOOTED: i64 = 1_799_999_000;

fn term(letter: char) -> Term {
    match letter {
        'D' => Term::Deny,
        'C' => Term::Ceiling,
        'K' => Term::NetworkPolicy,
        'T' => Term::Team,
        'I' => Term::Invalid,
        _ => Term::Proof,
    }
}

/// Nodes with their tables.
type Nodes = BTreeMap<String, (Compiled, Image)>;

fn compiled(all: &Everything, evaluator: &Evaluator<'_>, epoch: u32) -> Nodes {
    let names: BTreeSet<&String> = all.pods.iter().map(|pod| &pod.node).collect();
    let one = |name: &String| {
        let compiled = compile(evaluator, name, all.now).unwrap();
        let image = Image::of(&compiled, BOOTED, epoch).unwrap();
        (name.clone(), (compiled, image))
    };
    names.into_iter().map(one).collect()
}

/// The cell about one end; `None`: no verdict is made for it.
fn cell<'n>(all: &Everything, nodes: &'n Nodes, asked: Asked, ingress: bool) -> Option<(Cell, &'n Compiled)> {
    let pod = |ip| all.pods.iter().find(|pod| pod.ips.contains(&ip));
    let (own, peer) = if ingress { (asked.to, asked.from) } else { (asked.from, asked.to) };
    let own = pod(own)?;
    if pod(peer).is_some_and(|peer| peer.name == own.name) {
        return None;
    }
    let (compiled, image) = &nodes[&own.node];
    let set = *image.ends.get(&own.name)?;
    // From the node's own address, proved is what the kubelet sends to a port that is declared for it: a probe.
    let probed = |(_, number, udp, probe): &(String, u16, bool, bool)| {
        *probe && *number == asked.port && asked.proto == if *udp { naive::UDP } else { naive::TCP }
    };
    let host = all.nodes.iter().any(|(name, ip)| *ip == peer && *name == own.node);
    let probe = host && ingress && own.ports.iter().any(probed);
    let proved = naive::proved(all, asked) || probe;
    let question = Question { set, class: image.class(peer), ingress, proto: asked.proto, proved, port: asked.port };
    Some((find(image, question).unwrap(), compiled))
}

fn booted_for(now: i64) -> u32 {
    u32::try_from(now - BOOTED).unwrap()
}

/// The naive evaluator's refusals, by view.
fn views(all: &Everything, asked: Asked) -> [[Option<naive::Refusal>; 2]; 3] {
    [naive::verdict(all, asked, false), naive::verdict(all, asked, true), naive::were_both_strict(all, asked)]
}

fn compare(all: &Everything, nodes: &Nodes, asked: Asked, decided: &mut BTreeMap<(View, bool, Option<char>), u64>) {
    let naive = views(all, asked);
    for (side, ingress) in [(0, false), (1, true)] {
        let cell = cell(all, nodes, asked, ingress);
        for view in View::ALL {
            let expected = &naive[view as usize][side];
            assert_eq!(cell.is_some(), expected.is_some(), "whether anything is asked");
            let (Some((cell, compiled)), Some(refusal)) = (cell, expected) else { continue };
            assert_eq!(
                cell.allows(view, booted_for(all.now)),
                refusal.is_none(),
                "{view:?} {side}: {cell:?} {refusal:?}"
            );
            *decided.entry((view, ingress, refusal.as_ref().map(|(letter, _)| *letter))).or_default() += 1;
            let Some((letter, name)) = refusal else { continue };
            let by = compiled.whys[cell.why as usize].0[view as usize].first();
            let by = by.map_or(String::new(), |(id, _)| id.name.clone());
            assert_eq!(u16::from(cell.reasons[view as usize]), reason(term(*letter)) as u16, "{view:?} {side}");
            assert_eq!(by, *name, "{view:?} {side}");
        }
    }
}

/// What is enforced, seconds later, without a new compilation.
fn compare_later(all: &Everything, nodes: &Nodes, asked: Asked, lapsed: &mut u64) {
    for later in 1..4 {
        let then = Everything { now: all.now + later, ..all.clone() };
        let naive = naive::verdict(&then, asked, false);
        for (side, ingress) in [(0, false), (1, true)] {
            let (Some((cell, _)), Some(refusal)) = (cell(all, nodes, asked, ingress), &naive[side]) else { continue };
            let now = booted_for(then.now);
            assert_eq!(cell.allows(View::Enforced, now), refusal.is_none(), "{later} s later, {side}: {cell:?}");
            if let (Some((letter, _)), true) = (refusal, cell.not_after == now) {
                assert_eq!(u16::from(cell.reasons[0]), reason(term(*letter)) as u16, "{later} s later, {side}");
                *lapsed += 1;
            }
        }
    }
}

#[test]
fn the_kernels_tables_say_what_the_formula_says() {
    let (mut decided, mut lapsed) = (BTreeMap::new(), 0);
    for seed in crate::first_seed()..crate::first_seed() + WORLDS {
        let mut random = Random::new(seed);
        let mut all = random.everything();
        // Nodes, settings and names that no world begins with.
        for _ in 0..seed % 8 {
            random.change(&mut all);
        }
        if seed % 4 == 0 {
            random.breaks(&mut all);
        }
        let (world, loaded) = read(&all);
        let evaluator = Evaluator { world: &world, policies: &loaded.policies, settings: &loaded.settings };
        let nodes = compiled(&all, &evaluator, u32::try_from(seed % 2).unwrap());
        for _ in 0..QUESTIONS {
            let asked = random.asked(&all);
            let compared = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                compare(&all, &nodes, asked, &mut decided);
                compare_later(&all, &nodes, asked, &mut lapsed);
            }));
            assert!(compared.is_ok(), "seed {seed}: {asked:?}\n{}", documents(&all));
        }
    }
    println!("{decided:?}, {lapsed} allowed for a time");
    assert!(lapsed >= 100, "{lapsed}");
    for view in View::ALL {
        for ingress in [false, true] {
            for letter in [None, Some('D'), Some('C'), Some('K'), Some('T'), Some('I'), Some('P')] {
                let times = decided.get(&(view, ingress, letter)).copied().unwrap_or(0);
                let never = letter == Some('P') && !ingress;
                assert!(times >= 100 || never, "{letter:?} decided {view:?}, ingress {ingress} only {times} times");
            }
        }
    }
}
