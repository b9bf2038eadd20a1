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
            crate::model::World::build("td", 1, objects).unwrap();
        }
        Err(diagnostics) => assert!(!diagnostics.is_empty()),
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
