//! A compiler that follows changes, beside one that begins anew; and that the order of objects does not matter.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use kumiko_abi::policy::{Cell, Question, find};

use crate::first_seed;
use kumiko_core::policy::compile::{Compiled, Compiler, Image, Layout, Set, Why, compile, runs};
use kumiko_core::policy::object::{Action, OnRevoke};
use kumiko_core::policy::verdict::Evaluator;
use kumiko_worlds::{Everything, Random, documents, naive, read, read_text};

/// Worlds, with changes of each.
const WORLDS: u64 = 20;
const CHANGES: u64 = 500;
const NODE: &str = "n1";
/// Ports on both sides of all that rules can name.
const PORTS: [u16; 19] =
    [0, 79, 80, 81, 82, 83, 443, 444, 445, 480, 481, 482, 843, 844, 9_090, 9_091, 9_490, 9_491, 65_535];
/// Addresses of no pod.
const OTHERS: [&str; 14] = [
    "192.0.2.1",
    "192.0.2.200",
    "172.16.0.1",
    "172.16.0.2",
    "172.16.0.3",
    "172.16.0.6",
    "10.0.0.3",
    "10.0.0.17",
    "10.0.1.1",
    "203.0.113.1",
    "2001:db8::1",
    "fd00::ffff",
    "fd00:1::1",
    "fe00::1",
];

/// Of one end: a cell without its numbers, with what decided.
type Answer<'a> = Option<(Cell, &'a Why)>;

fn answer<'a>(compiled: &'a Compiled, image: &Image, question: Question) -> Answer<'a> {
    let cell = find(image, question)?;
    Some((Cell { why: 0, ..cell }, &compiled.whys[cell.why as usize]))
}

/// Everything that can be asked of both.
fn compare(one: (&Compiled, &Image), other: (&Compiled, &Image)) {
    assert!(one.1.ends.keys().eq(other.1.ends.keys()), "endpoints");
    assert!(one.1.addrs.keys().eq(other.1.addrs.keys()), "addresses");
    let others = OTHERS.iter().map(|ip| ip.parse().unwrap());
    let addresses: BTreeSet<IpAddr> = one.1.addrs.keys().copied().chain(others).collect();
    let mut classes: BTreeMap<[u32; 2], IpAddr> =
        addresses.iter().map(|ip| ([one.1.class(*ip), other.1.class(*ip)], *ip)).collect();
    classes.insert([one.1.host, other.1.host], IpAddr::from([0; 4]));
    let sets: BTreeSet<[u32; 2]> = one.1.ends.iter().map(|(uid, set)| [*set, other.1.ends[uid]]).collect();
    for set in sets {
        for (class, ip) in &classes {
            for (ingress, proto, proved) in cases() {
                for port in PORTS {
                    let question =
                        |at: usize| Question { set: set[at], class: class[at], ingress, proto, proved, port };
                    let [ours, theirs] = [answer(one.0, one.1, question(0)), answer(other.0, other.1, question(1))];
                    assert!(ours.is_some(), "{ip} has no cell");
                    assert_eq!(ours, theirs, "{ip}, ingress {ingress}, protocol {proto}, proved {proved}, port {port}");
                }
            }
        }
    }
}

fn cases() -> impl Iterator<Item = (bool, u8, bool)> {
    let each = |proto| (0..4_u8).map(move |bits| (bits & 1 != 0, proto, bits & 2 != 0));
    [naive::TCP, naive::UDP, naive::SCTP, naive::ICMP, naive::GRE].into_iter().flat_map(each)
}

/// One half of the maps' arrays, as it is written.
#[derive(Default)]
struct Half {
    image: Image,
    written: usize,
}

impl Half {
    fn write(&mut self, image: &Image) {
        fn one<T: Clone + PartialEq + std::fmt::Debug>(half: &mut Arc<Vec<T>>, now: &Arc<Vec<T>>, written: &mut usize) {
            let runs = runs(half, now);
            let to = Arc::make_mut(half);
            for (begin, run) in runs {
                *written += run.len();
                let begin = begin as usize;
                to.resize(to.len().max(begin + run.len()), run[0].clone());
                to[begin..begin + run.len()].clone_from_slice(run);
            }
            // Elements behind the image's end stay in the maps, and nobody refers to them.
            to.truncate(now.len());
        }
        let written = &mut self.written;
        one(&mut self.image.sets, &image.sets, written);
        one(&mut self.image.rows, &image.rows, written);
        one(&mut self.image.chunks, &image.chunks, written);
        one(&mut self.image.columns, &image.columns, written);
        one(&mut self.image.cells, &image.cells, written);
        let Image { sets, rows, chunks, columns, cells, .. } = self.image.clone();
        self.image = Image { sets, rows, chunks, columns, cells, ..image.clone() };
    }
}

#[test]
fn following_changes_gives_what_beginning_anew_gives() {
    let (mut made, mut kept, mut asked, mut written, mut whole) = (0, 0, 0, 0, 0);
    for seed in first_seed()..first_seed() + WORLDS {
        let mut random = Random::new(seed);
        let mut all = random.everything();
        let (mut compiler, mut layout) = (Compiler::new(NODE), Layout::default());
        let mut halves = [Half::default(), Half::default()];
        let mut before: Vec<Arc<Set>> = Vec::new();
        for change in 0..CHANGES {
            let epoch = u32::try_from(change).unwrap();
            let compared = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                let (world, loaded) = read(&all);
                let evaluator = Evaluator { world: &world, policies: &loaded.policies, settings: &loaded.settings };
                let compiled = compiler.compile(&evaluator, all.now).unwrap();
                // The second of the boot is a difference of two clocks, and flickers.
                let booted = all.now - 1_000 + i64::from(epoch % 3 == 0);
                let image = layout.image(&compiled, booted, epoch).unwrap();
                let anew = compile(&evaluator, NODE, all.now).unwrap();
                let image_anew = Image::of(&anew, booted, epoch).unwrap();
                let half = &mut halves[(epoch % 2) as usize];
                half.write(&image);
                assert_eq!(half.image, image, "what stands in the maps is the image");
                compare((&compiled, &half.image), (&anew, &image_anew));
                whole += image.cells.len() + image.rows.len() + image.chunks.len() + image.columns.len();
                compiled
            }));
            let Ok(compiled) = compared else {
                panic!("seed {seed}, after {change} changes\n{}", documents(&all));
            };
            let there = |set: &&Arc<_>| before.iter().any(|known| Arc::ptr_eq(known, set));
            made += compiled.sets.len();
            kept += compiled.sets.iter().filter(there).count();
            asked += 1;
            before.clone_from(&compiled.sets);
            random.change(&mut all);
        }
        written += halves.iter().map(|half| half.written).sum::<usize>();
    }
    println!("{asked} changes: {kept} of {made} sets stayed as they were, {written} of {whole} elements were written");
    assert!(kept * 2 > made, "most sets have nothing to do with a change");
    assert!(written * 4 < whole, "most elements stay");
}

#[test]
fn the_order_of_objects_does_not_matter() {
    for seed in first_seed()..first_seed() + 500 {
        let mut random = Random::new(seed);
        let all = random.everything();
        let made = |text: &str| {
            let (world, loaded) = read_text(text);
            let evaluator = Evaluator { world: &world, policies: &loaded.policies, settings: &loaded.settings };
            let compiled = compile(&evaluator, NODE, all.now).unwrap();
            let image = Image::of(&compiled, all.now - 1_000, 1).unwrap();
            (compiled, image)
        };
        let text = documents(&all);
        let mut parts: Vec<&str> = text.split_inclusive("---\n").filter(|part| !part.is_empty()).collect();
        // A separator, and documents that each end with one, but for the last.
        let last = format!("{}---\n", parts.pop().unwrap());
        parts.push(&last);
        random.shuffle(&mut parts);
        let shuffled = parts.concat();
        assert!(made(&text) == made(&shuffled), "seed {seed}\n{text}\n=====\n{shuffled}");
    }
}

/// A world that changes by hand.
fn following(all: &Everything, compiler: &mut Compiler) -> Compiled {
    let (world, loaded) = read(all);
    let evaluator = Evaluator { world: &world, policies: &loaded.policies, settings: &loaded.settings };
    compiler.compile(&evaluator, all.now).unwrap()
}

/// A world with local and remote pods whose sets are not all one.
fn busy() -> Everything {
    let worlds = (0..).map(|seed| Random::new(seed).everything());
    let is_busy = |all: &Everything| {
        let count = following(all, &mut Compiler::new(NODE)).sets.len();
        let of = |all: &Everything, name: &str| {
            following(all, &mut Compiler::new(NODE))
                .sets
                .iter()
                .filter(|set| set.objects.iter().any(|id| id.name == name))
                .count()
        };
        let some = all.policies.iter().any(|(_, name, _)| (1..count).contains(&of(all, name)));
        count >= 3 && some && all.pods.iter().any(|pod| pod.node != NODE)
    };
    worlds.into_iter().find(is_busy).unwrap()
}

#[test]
fn what_a_change_does_not_touch_stays_as_it_is() {
    let mut all = busy();
    let mut compiler = Compiler::new(NODE);
    let first = following(&all, &mut compiler);
    let same = following(&all, &mut compiler);
    let stayed = |one: &Compiled, other: &Compiled| {
        let there = |set: &&Arc<_>| other.sets.iter().any(|known| Arc::ptr_eq(known, set));
        one.sets.iter().filter(there).count()
    };
    assert_eq!(stayed(&same, &first), first.sets.len(), "nothing changed");
    assert!(Arc::ptr_eq(&first.addrs, &same.addrs) && Arc::ptr_eq(&first.nets, &same.nets));
    // One more of those that are there already, elsewhere.
    let mut twin = all.pods.iter().find(|pod| pod.node != NODE).unwrap().clone();
    twin.name = "twin".to_owned();
    twin.ips = ["10.0.0.250".parse().unwrap(), "fd00::250".parse().unwrap()].into();
    all.pods.push(twin);
    let more = following(&all, &mut compiler);
    assert_eq!((stayed(&more, &first), more.classes), (first.sets.len(), first.classes));
    assert_eq!(more.addrs.len(), first.addrs.len() + 2);
    all.pods.pop();
    assert_eq!(stayed(&following(&all, &mut compiler), &first), first.sets.len());
    // What one policy says of some.
    let has = |set: &Set, all: &Everything| {
        let (namespace, name, _) = &all.policies[0];
        set.objects.iter().any(|id| id.namespace == *namespace && id.name == *name)
    };
    let about = |all: &Everything| first.sets.iter().filter(|set| has(set, all)).count();
    while !(1..first.sets.len()).contains(&about(&all)) {
        all.policies.rotate_left(1);
    }
    all.policies[0].2.on_revoke = Some(OnRevoke { action: Action::Grace, seconds: Some(7) });
    let other = following(&all, &mut compiler);
    assert_eq!(other.sets.len(), first.sets.len());
    for (set, before) in other.sets.iter().zip(&first.sets) {
        assert_eq!(Arc::ptr_eq(set, before), !has(set, &all), "{:?}", set.objects);
    }
}
