//! Random worlds of pods and policies, and a naive evaluator to compare with.
#![allow(clippy::panic, clippy::unwrap_used, clippy::indexing_slicing, reason = "a panic is how a test fails")]
#![allow(missing_docs, reason = "fields are named after what documents call them")]

pub mod naive;
pub mod random;

pub use naive::{Asked, Everything, Pod, Refusal};
pub use random::{Random, broken, documents};

use std::collections::BTreeMap;

use kumiko_core::manifest::{FileContent, FolderState, Scope, parse_in};
use kumiko_core::model::World;
use kumiko_core::policy::load::{Loaded, load};

/// What the reader makes of a world's documents.
///
/// # Panics
/// If they are not taken as they are.
#[must_use]
pub fn read(all: &Everything) -> (World, Loaded) {
    if all.broken.is_empty() {
        return read_text(&documents(all));
    }
    let mut files = BTreeMap::from([("f".to_owned(), FileContent::Text(documents(all)))]);
    for (number, text) in broken(all).into_iter().enumerate() {
        files.insert(format!("g{number}"), FileContent::Text(text));
    }
    let mut folder = FolderState::of(Scope::Policy);
    folder.apply(files);
    let (world, _) = World::build("td", 1, folder.objects()).unwrap();
    let loaded = load(folder.objects());
    assert_eq!(loaded.problems, [], "{all:?}");
    (world, loaded)
}

/// The same of the documents themselves.
///
/// # Panics
/// If they are not taken as they are.
#[must_use]
pub fn read_text(text: &str) -> (World, Loaded) {
    let objects = parse_in(Scope::Policy, "f", text).unwrap_or_else(|problems| panic!("{}\n{text}", problems[0]));
    let named = || objects.iter().map(|object| ("f", object));
    let (world, _) = World::build("td", 1, named()).unwrap();
    let loaded = load(named());
    assert_eq!(loaded.problems, [], "{text}");
    (world, loaded)
}
