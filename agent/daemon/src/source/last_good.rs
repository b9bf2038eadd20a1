//! The last good version of each file, on disk: an agent that starts while a file is bad goes on with what was in force.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use kumiko_core::manifest::FileContent;
use kumiko_core::policy::foreign::Raised;
use kumiko_core::stage;
use kumiko_folder::read;
use sha2::{Digest as _, Sha256};

/// Stages that were in force. A hidden name is no manifest's.
const RAISED: &str = ".raised";
/// What a line of it is about.
const NAMESPACE: &str = "namespace";
const WORKLOADS: &str = "workloads";

/// A folder with the same names as the source's.
#[derive(Debug)]
pub(super) struct LastGood {
    dir: PathBuf,
    /// What is in it.
    known: HashMap<String, [u8; 32]>,
}

impl LastGood {
    /// Opens what an agent before kept, and reads it.
    ///
    /// # Errors
    /// The folder cannot be made or listed.
    pub(super) fn open(dir: PathBuf) -> io::Result<(Self, BTreeMap<String, FileContent>)> {
        fs::create_dir_all(&dir)?;
        let files = read(&dir)?.files;
        let known = files.iter().filter_map(|(name, content)| Some((name.clone(), digest(text(content)?)))).collect();
        Ok((Self { dir, known }, files))
    }

    /// Versions of a reading that are not kept.
    pub(super) fn news(&self, files: &BTreeMap<String, FileContent>) -> Vec<(String, String)> {
        let texts = files.iter().filter_map(|(name, content)| Some((name, text(content)?)));
        let new = texts.filter(|(name, text)| self.known.get(*name) != Some(&digest(text)));
        new.map(|(name, text)| (name.clone(), text.to_owned())).collect()
    }

    /// Stages above observe that were in force. A line that cannot be read is none, so that its namespace may be kept from being
    /// raised again: never the other way. `None`: an agent before this one kept none.
    pub(super) fn raised(&self) -> Option<Raised> {
        let text = fs::read_to_string(self.dir.join(RAISED)).ok()?;
        let mut raised = Raised::default();
        for line in text.lines() {
            let mut words = line.split(' ');
            let (Some(of), Some(is), Some(namespace)) =
                (words.next(), words.next().and_then(stage::parse), words.next())
            else {
                continue;
            };
            let all = if of == WORKLOADS { &mut raised.workloads } else { &mut raised.namespaces };
            all.insert(namespace.to_owned(), is);
        }
        Some(raised)
    }

    /// Keeps them for the next start.
    ///
    /// # Errors
    /// They cannot be written.
    pub(super) fn keep_raised(&self, raised: &Raised) -> io::Result<()> {
        if self.raised().as_ref() == Some(raised) {
            return Ok(());
        }
        let both = [(NAMESPACE, &raised.namespaces), (WORKLOADS, &raised.workloads)];
        let lines = both.into_iter().flat_map(|(of, all)| {
            all.iter().map(move |(namespace, is)| format!("{of} {} {namespace}\n", stage::name(*is)))
        });
        replace(&self.dir.join(RAISED), &lines.collect::<String>())
    }

    /// Keeps new versions, but for those that are refused, and drops what is not there any more.
    ///
    /// # Errors
    /// One cannot be written, or removed, the first of them; the others are. It is tried again.
    pub(super) fn keep(
        &mut self,
        news: &[(String, String)],
        refused: &HashSet<&str>,
        there: &HashSet<String>,
    ) -> io::Result<()> {
        let gone: Vec<String> = self.known.keys().filter(|name| !there.contains(*name)).cloned().collect();
        let mut done = Ok(());
        for name in gone {
            match fs::remove_file(self.dir.join(&name)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => done = done.and(Err(error)),
                _ => drop(self.known.remove(&name)),
            }
        }
        for (name, text) in news.iter().filter(|(name, _)| !refused.contains(name.as_str())) {
            match replace(&self.dir.join(name), text) {
                Err(error) => done = done.and(Err(error)),
                Ok(()) => drop(self.known.insert(name.clone(), digest(text))),
            }
        }
        done
    }
}

/// The name of a source's folder among those of all sources.
pub(super) fn name_of(source: &Path) -> String {
    let digest = Sha256::digest(source.as_os_str().as_encoded_bytes());
    digest.iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}

fn text(content: &FileContent) -> Option<&str> {
    if let FileContent::Text(text) = content { Some(text) } else { None }
}

fn digest(text: &str) -> [u8; 32] {
    Sha256::digest(text).into()
}

/// Whole or not at all. Hidden names are no manifests, so a file that is half written is none.
fn replace(path: &Path, text: &str) -> io::Result<()> {
    let parent = path.parent().unwrap_or(path);
    fs::create_dir_all(parent)?;
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let temporary = parent.join(format!(".{name}.new"));
    let mut file = fs::File::create(&temporary)?;
    file.write_all(text.as_bytes())?;
    // A name that outlives a power failure without its text would be an empty manifest.
    file.sync_all()?;
    fs::rename(&temporary, path)
}
