//! The kept corpora of the fuzz targets, which the tests of the targets' crates run over.
#![allow(clippy::panic, reason = "a panic is how a test fails")]

use std::fs;
use std::path::{Path, PathBuf};

/// Where a target's corpus is, a file for each input.
#[must_use]
pub fn dir(target: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus").join(target)
}

/// Runs `target` over every input of the corpus `name`.
///
/// # Panics
///
/// If the corpus is not there or empty: a target without one would look tested.
pub fn replay(name: &str, target: fn(&[u8])) {
    let dir = dir(name);
    let inputs = fs::read_dir(&dir).and_then(|files| files.map(|file| fs::read(file?.path())).collect());
    let inputs: Vec<Vec<u8>> = inputs.unwrap_or_else(|error| panic!("reading {}: {error}", dir.display()));
    assert!(!inputs.is_empty(), "{} is empty", dir.display());
    inputs.iter().for_each(|input| target(input));
}
