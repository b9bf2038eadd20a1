//! Random worlds, asked of the evaluator (by way of documents and their reader) and of the naive one.

use std::collections::BTreeMap;

use kumiko_core::manifest::Protocol;
use kumiko_core::model::World;
use kumiko_core::policy::judge::{Side, Term, View};
use kumiko_core::policy::port;
use kumiko_core::policy::verdict::{End, Evaluator, Flow};
use kumiko_worlds::{Asked, Everything, Random, documents, naive, read};

use crate::{QUESTIONS, WORLDS};

/// What the naive evaluator says of a side, from the evaluator's answer.
fn refusal(side: &Side<'_>) -> naive::Refusal {
    let answer = side.refusal()?;
    let letter = match answer.term {
        Term::Deny => 'D',
        Term::Ceiling => 'C',
        Term::NetworkPolicy => 'K',
        Term::Team => 'T',
        Term::Invalid => 'I',
        Term::Proof => 'P',
    };
    Some((letter, answer.by.first().map_or(String::new(), |source| source.object.id.name.clone())))
}

/// Asks both; the error says how they differ.
fn compare(all: &Everything, world: &World, evaluator: &Evaluator<'_>, asked: Asked) -> [Option<naive::Refusal>; 4] {
    let protocol = Protocol::of_number(asked.proto);
    let asked_port = port::Asked { protocol, port: asked.port };
    let flow = Flow::new(End::at(world, asked.from), End::at(world, asked.to), asked_port);
    let mut found = [const { None }; 4];
    for (audit, view) in [(false, View::Enforced), (true, View::WithAudit)] {
        let verdict = evaluator.judge(&flow, all.now, view);
        let ours = [&verdict.egress, &verdict.ingress].map(|judged| judged.side.as_ref().map(refusal));
        let theirs = naive::verdict(all, asked, audit);
        assert_eq!(ours, theirs, "{asked:?}, with audit {audit}: {flow:#?}\n{}", documents(all));
        for (at, one) in theirs.into_iter().enumerate() {
            found[2 * usize::from(audit) + at] = one;
        }
    }
    found
}

#[test]
fn the_evaluator_says_what_the_formula_says() {
    let mut decided: BTreeMap<(usize, Option<char>), u64> = BTreeMap::new();
    for seed in crate::first_seed()..crate::first_seed() + WORLDS {
        let mut random = Random::new(seed);
        let mut all = random.everything();
        if seed % 4 == 0 {
            random.breaks(&mut all);
        }
        let (world, loaded) = read(&all);
        let evaluator = Evaluator { world: &world, policies: &loaded.policies, settings: &loaded.settings };
        for _ in 0..QUESTIONS {
            let asked = random.asked(&all);
            let found = std::panic::catch_unwind(|| compare(&all, &world, &evaluator, asked));
            let found = found.unwrap_or_else(|_| panic!("seed {seed}: {asked:?}"));
            for (at, refusal) in found.iter().enumerate() {
                if let Some(refusal) = refusal {
                    *decided.entry((at, refusal.as_ref().map(|(letter, _)| *letter))).or_default() += 1;
                }
            }
        }
    }
    println!("{decided:?}");
    let each = ['D', 'C', 'K', 'T', 'I', 'P'].map(Some);
    for (side, letters) in [(0, &each[..5]), (1, &each[..])] {
        for letter in letters.iter().chain([&None]) {
            let times = decided.get(&(side, *letter)).copied().unwrap_or(0);
            assert!(times >= 100, "{letter:?} decided side {side} only {times} times");
        }
    }
}
