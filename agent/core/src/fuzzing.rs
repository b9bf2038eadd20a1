//! What the fuzz targets of `fuzz/` run; the tests run the same over the kept corpora.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::missing_panics_doc,
    reason = "a panic is how a fuzz target speaks"
)]

mod schedule;

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
    use std::path::Path;

    /// Runs `target` over every file of its corpus.
    fn replay(name: &str, target: fn(&[u8])) {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus").join(name);
        let files: Vec<_> = std::fs::read_dir(&dir).unwrap().collect();
        assert!(!files.is_empty(), "{}", dir.display());
        for file in files {
            target(&std::fs::read(file.unwrap().path()).unwrap());
        }
    }

    #[test]
    fn corpus_of_frame() {
        replay("frame", super::frame);
    }

    #[test]
    fn corpus_of_manifest() {
        replay("manifest", super::manifest);
    }

    #[test]
    fn corpus_of_schedule() {
        replay("schedule", super::schedule);
    }
}
