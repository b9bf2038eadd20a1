//! Random worlds of pods and policies, and a naive evaluator to compare with.
#![allow(clippy::panic, clippy::unwrap_used, clippy::indexing_slicing, reason = "a panic is how a test fails")]
#![allow(missing_docs, reason = "fields are named after what documents call them")]

pub mod naive;
pub mod random;

pub use naive::{Asked, Everything, Pod, Refusal};
pub use random::{Random, documents};

use kumiko_core::manifest::{Scope, parse_in};
use kumiko_core::model::World;
use kumiko_core::policy::load::{Loaded, load};

/// What the reader makes of a world's documents.
///
/// # Panics
/// If they are not taken as they are.
#[must_use]
pub fn read(all: &Everything) -> (World, Loaded) {
    read_text(&documents(all))
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
