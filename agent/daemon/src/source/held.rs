//! Which version of each file was read, and which is in force: who has put a file there wants to know when it is.

use std::collections::BTreeMap;

use kumiko_core::api::SourceDiagnostic;
use kumiko_core::manifest::{Digest, FolderState};

/// A file of the source.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Version {
    /// What was read last.
    pub read: Digest,
    /// What is in force, with the epoch of the first model that it is part of.
    pub in_force: Option<(Digest, u64)>,
}

/// All files of the source, and what is refused of them.
#[derive(Debug, Clone, Default)]
pub struct Held {
    /// By name.
    pub files: BTreeMap<String, Version>,
    /// Of the same reading.
    pub refused: Vec<SourceDiagnostic>,
}

impl Held {
    /// Takes a reading from which a model was made. A new version is in force if it is `fit`.
    pub(super) fn take(
        &mut self,
        folder: &FolderState,
        fit: impl Fn(&str) -> bool,
        epoch: u64,
        refused: &[SourceDiagnostic],
    ) {
        let mut files = BTreeMap::new();
        for (name, digest, good) in folder.versions() {
            let before = self.files.get(name).and_then(|version| version.in_force);
            let same = before.is_some_and(|(in_force, _)| in_force == digest);
            let in_force = if good && fit(name) && !same { Some((digest, epoch)) } else { before };
            files.insert(name.to_owned(), Version { read: digest, in_force });
        }
        self.files = files;
        self.refused = refused.to_vec();
    }
}
