//! A folder of manifests, read whole: for the agent that brings it into force, and for the CLI that only asks what it would
//! mean.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read as _};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use kumiko_core::manifest::{FileContent, MAX_BYTES, Place};
use rustix::fs::SeekFrom;

/// Most manifests that are read.
pub const MAX_FILES: usize = 10_000;
/// Most that are listed: each one that is not read is told.
const MAX_LISTED: usize = 20_000;
/// How far the clock of a file system may be ahead of ours.
const CLOCKS: Duration = Duration::from_secs(10);
/// Deepest subfolder that is read.
pub const MAX_DEPTH: usize = 8;

/// What the folder holds.
#[derive(Debug, Default)]
pub struct Reading {
    /// Contents by path below the folder.
    pub files: BTreeMap<String, FileContent>,
    /// A file changed while it was read, and is [`FileContent::Unfinished`]: look again.
    pub torn: bool,
    /// Who may have written to a file while it was read. Others that were read, were while nobody could.
    pub writers: BTreeMap<String, Writer>,
}

/// What is known of who writes to a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Writer {
    /// Somebody has it open.
    Open,
    /// Nothing.
    Unknown,
}

/// Keeps writers out of a file until it is closed: whether it could, or somebody has it open. An error: nothing is known.
pub type KeepOut = fn(&File) -> io::Result<bool>;

/// Reads every `*.yaml` and `*.yml` of a folder and its subfolders. Hidden names are left out: editors' temporary files
/// and the versions behind a ConfigMap mount, whose visible names are links.
///
/// # Errors
/// The folder itself cannot be listed. A file that cannot be read is told as its content.
pub fn read(dir: &Path) -> io::Result<Reading> {
    read_alone(dir, |_| Err(io::ErrorKind::Unsupported.into()))
}

/// The same, each file while nobody can write to it, where that can be had.
///
/// # Errors
/// As of [`read`].
pub fn read_alone(dir: &Path, keep_out: KeepOut) -> io::Result<Reading> {
    let mut paths = Vec::new();
    list(dir, &mut PathBuf::new(), 0, &mut paths)?;
    paths.sort();
    let mut reading = Reading::default();
    for (number, path) in paths.into_iter().enumerate() {
        let name = path.to_string_lossy().into_owned();
        let content = if number < MAX_FILES {
            match reading.content(&name, &dir.join(&path), keep_out) {
                // Gone since it was listed; a link to nothing is still there.
                Err(_) if fs::symlink_metadata(dir.join(&path)).is_err() => continue,
                Err(error) => FileContent::Unreadable(error.to_string()),
                Ok(None) => continue,
                Ok(Some(content)) => content,
            }
        } else {
            FileContent::TooMany(MAX_FILES)
        };
        reading.files.insert(name, content);
    }
    Ok(reading)
}

fn list(dir: &Path, below: &mut PathBuf, depth: usize, paths: &mut Vec<PathBuf>) -> io::Result<()> {
    for entry in fs::read_dir(dir.join(&below))? {
        let entry = entry?;
        let name = entry.file_name();
        let text = name.to_string_lossy();
        if text.starts_with('.') {
            continue;
        }
        // Links to folders are not followed: they could lead round in a circle.
        if entry.file_type()?.is_dir() {
            if depth < MAX_DEPTH {
                below.push(&name);
                match list(dir, below, depth + 1, paths) {
                    // Gone since it was listed.
                    Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                    other => other?,
                }
                below.pop();
            } else {
                // Told as if it were a file that is refused.
                paths.push(below.join(&name));
            }
        } else if text.ends_with(".yaml") || text.ends_with(".yml") {
            if paths.len() >= MAX_LISTED {
                // Whichever were left out would count as removed.
                return Err(io::Error::other(format!(
                    "it holds more than {MAX_LISTED} manifests, of which {MAX_FILES} are read"
                )));
            }
            paths.push(below.join(&name));
        }
    }
    Ok(())
}

impl Reading {
    /// The content of a file, `None` if it is neither a regular file nor a folder that lies too deep.
    fn content(&mut self, name: &str, path: &Path, keep_out: KeepOut) -> io::Result<Option<FileContent>> {
        if fs::symlink_metadata(path)?.is_dir() {
            return Ok(Some(FileContent::TooDeep(MAX_DEPTH)));
        }
        if !fs::metadata(path)?.is_file() {
            // Opening a pipe would wait for its writer.
            return Ok(None);
        }
        let mut file = File::open(path)?;
        let writer = match keep_out(&file) {
            Ok(true) => None,
            Ok(false) => Some(Writer::Open),
            Err(_) => Some(Writer::Unknown),
        };
        self.writers.extend(writer.map(|writer| (name.to_owned(), writer)));
        let before = file.metadata()?;
        let size = usize::try_from(before.len()).unwrap_or(usize::MAX);
        if size > MAX_BYTES {
            return Ok(Some(FileContent::TooLarge(size)));
        }
        let mut bytes = Vec::with_capacity(size);
        (&mut file).take(MAX_BYTES as u64 + 1).read_to_end(&mut bytes)?;
        if bytes.len() > MAX_BYTES {
            return Ok(Some(FileContent::TooLarge(bytes.len())));
        }
        if writer.is_some() {
            wait_for_truncation(&file);
        }
        let after = file.metadata()?;
        let stamp = |m: &fs::Metadata| (m.len(), m.mtime(), m.mtime_nsec());
        if stamp(&before) != stamp(&after) {
            self.torn = true;
            return Ok(Some(FileContent::Unfinished));
        }
        Ok(Some(match String::from_utf8(bytes) {
            Ok(text) => FileContent::Text(text),
            Err(error) => {
                let text = error.as_bytes().get(..error.utf8_error().valid_up_to());
                FileContent::NotText(end(text.unwrap_or_default()))
            }
        }))
    }
}

/// Waits for who is truncating a file that others may write to. It is empty long before truncate(2) returns and inotify
/// tells of it: a file system may have to wait for its journal. All of that happens under the inode's lock, and who looks
/// for a hole takes it too: ext4, btrfs, tmpfs; on XFS reading does (`do_truncate` of fs/open.c, `ext4_llseek`,
/// `shmem_file_llseek`). Where neither is so, only the time of a file tells that it was written to just now.
fn wait_for_truncation(file: &File) {
    // Where the hole is does not matter, nor that an empty file has none.
    let _ = rustix::fs::seek(file, SeekFrom::Hole(0));
}

/// The place behind a text.
fn end(text: &[u8]) -> Place {
    let text = String::from_utf8_lossy(text);
    let number = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
    let column = text.rsplit('\n').next().map_or(0, |line| line.chars().count());
    Place { line: number(text.matches('\n').count() + 1), column: number(column + 1) }
}

/// What tells a file, or the folder, from another one under its name.
#[derive(Debug, PartialEq, Eq, Default)]
pub struct Print {
    path: PathBuf,
    inode: u64,
    /// Bytes; for the folder its device.
    size: u64,
    modified: (i64, i64),
}

impl Print {
    /// The file's path below the folder; empty for the folder's own.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// For how long the file has not been written to; none: it is the folder's own, or its time is yet to come, by more than
    /// clocks differ.
    pub fn age(&self, now: SystemTime) -> Option<Duration> {
        let (seconds, ns) = self.modified;
        let modified = UNIX_EPOCH + Duration::new(u64::try_from(seconds).ok()?, u32::try_from(ns).ok()?);
        let age = match now.duration_since(modified) {
            Ok(age) => Some(age),
            Err(ahead) => (ahead.duration() < CLOCKS).then_some(Duration::ZERO),
        };
        age.filter(|_| !self.path.as_os_str().is_empty())
    }
}

/// What tells that the folder, or a file behind a link, is another one than before, without reading it. The first is
/// the folder's own.
///
/// # Errors
/// The folder itself cannot be listed.
pub fn fingerprint(dir: &Path) -> io::Result<Vec<Print>> {
    let own = fs::metadata(dir)?;
    let mut prints = vec![Print { inode: own.ino(), size: own.dev(), ..Print::default() }];
    let mut paths = Vec::new();
    list(dir, &mut PathBuf::new(), 0, &mut paths)?;
    paths.sort();
    for path in paths.into_iter().take(MAX_FILES) {
        // A link to nothing is something too: it may come to lead somewhere.
        let print = fs::metadata(dir.join(&path)).map_or_else(
            |_| Print::default(),
            |m| Print { inode: m.ino(), size: m.len(), modified: (m.mtime(), m.mtime_nsec()), ..Print::default() },
        );
        prints.push(Print { path, ..print });
    }
    Ok(prints)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_that_lies_too_deep_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let deepest = (0..MAX_DEPTH).fold(dir.path().to_owned(), |path, number| path.join(number.to_string()));
        fs::create_dir_all(deepest.join("below")).unwrap();
        for path in [deepest.join("read.yaml"), deepest.join("below/not.yaml")] {
            fs::write(path, "kind: none").unwrap();
        }
        let files = read(dir.path()).unwrap().files;
        assert_eq!(files["0/1/2/3/4/5/6/7/read.yaml"], FileContent::Text("kind: none".to_owned()));
        assert_eq!(files["0/1/2/3/4/5/6/7/below"], FileContent::TooDeep(MAX_DEPTH));
        assert_eq!(files.len(), 2);
    }
}
