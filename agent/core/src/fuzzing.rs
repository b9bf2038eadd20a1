//! What the fuzz targets of `fuzz/` run; the tests run the same over the kept corpora.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::missing_panics_doc,
    clippy::panic,
    clippy::cast_possible_truncation,
    reason = "a panic is how a fuzz target speaks"
)]

mod answers;
mod ends;
mod kept;
mod open;
mod schedule;
mod spec;

pub use answers::answers;
pub use ends::machines;
pub use kept::handles;
pub use open::open;
pub use schedule::schedule;

use crate::frame::{Frame, MAX_FRAME};
use crate::manifest::{FileContent, FolderState, Protocol, Scope};
use crate::model::World;
use crate::policy::compile::{Image, compile};
use crate::policy::explain::explain;
use crate::policy::judge::View;
use crate::policy::load::{Loaded, load};
use crate::policy::nobody;
use crate::policy::port::Asked;
use crate::policy::verdict::{End, Evaluator, Flow};

/// Any bytes are a frame or are refused; a frame comes back from its own encoding.
pub fn frame(bytes: &[u8]) {
    let Ok(frame) = Frame::decode(bytes) else { return };
    let mut again = [0; MAX_FRAME];
    let len = frame.encode(&mut again).unwrap();
    assert_eq!(Frame::decode(&again[..len]), Ok(frame));
}

/// Any text is read or refused with a place; what is read can be put in force.
pub fn manifest(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    match crate::manifest::parse("f", text) {
        Ok(objects) => {
            let objects = objects.iter().map(|object| ("f", object));
            World::build("td", 1, objects).unwrap();
        }
        Err(diagnostics) => assert!(!diagnostics.is_empty()),
    }
}

/// Any policy is read or refused with a place; what is read can be judged by, told of and made tables of.
pub fn policy(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let Ok(objects) = crate::manifest::parse_in(Scope::Policy, "f", text) else {
        // What stands for what can be read of it makes a world, too.
        let mut state = FolderState::of(Scope::Policy);
        state.apply([("f".to_owned(), FileContent::Text(text.to_owned()))].into());
        World::build("td", 1, state.objects()).unwrap();
        return;
    };
    let named = || objects.iter().map(|object| ("f", object));
    let (world, _) = World::build("td", 1, named()).unwrap();
    let Loaded { policies, settings, .. } = load(named());
    let evaluator = Evaluator { world: &world, policies: &policies, settings: &settings };
    let ips = world.workloads().filter_map(|workload| workload.ips.first());
    let ends: Vec<End> = ips.take(3).map(|ip| End::at(&world, *ip)).collect();
    let asked = Asked { protocol: Protocol::Tcp, port: 80 };
    for (source, destination) in ends.iter().flat_map(|source| ends.iter().map(move |to| (source, to))) {
        let flow = Flow::new(source.clone(), destination.clone(), asked);
        let told = explain(&evaluator, &flow, 0);
        assert_eq!(told.verdict == "allow", evaluator.judge(&flow, 0, View::Enforced).allows());
    }
    nobody::told(&world, world.policy(), 0);
    let node = world.workloads().next().map_or("n1", |workload| workload.node.as_str());
    if let Ok(compiled) = compile(&evaluator, node, 0) {
        let tables = Image::of(&compiled, 0, 1);
        assert_eq!(tables, Image::of(&compile(&evaluator, node, 0).unwrap(), 0, 1));
    }
}

#[cfg(test)]
mod tests {
    use kumiko_corpus::replay;
    use proptest::collection::vec;
    use proptest::prelude::*;

    #[test]
    fn corpora() {
        replay("answers", super::answers);
        replay("frame", super::frame);
        replay("handles", super::handles);
        replay("machines", super::machines);
        replay("manifest", super::manifest);
        replay("open", super::open);
        replay("policy", super::policy);
        replay("schedule", super::schedule);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]

        #[test]
        fn any_schedule(acts in vec(any::<u8>(), 0..400)) {
            super::schedule(&acts);
        }

        #[test]
        fn any_frames_at_any_machine(script in vec(any::<u8>(), 0..200)) {
            super::machines(&script);
        }

        #[test]
        fn any_fields(known: bool, fields in vec((0_u8..255, vec(any::<u8>(), 0..20)), 0..12)) {
            // Half of the time all that an OPEN needs is there already.
            let needed = (0_u8..5).filter(|_| known).map(|kind| (kind, vec![kind; 4]));
            let script = needed.chain(fields).flat_map(|(how, value)| [vec![how, value.len() as u8], value].concat());
            super::open(&script.collect::<Vec<u8>>());
        }
    }
}
