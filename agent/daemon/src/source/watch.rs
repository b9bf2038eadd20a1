//! When to read: file notifications, settled, with a slow look in between for what they cannot see.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};
use std::{fs, io};

use kumiko_core::manifest::FileContent;
use kumiko_folder::{KeepOut, Print, Reading, Writer, fingerprint, read_alone};
use tracing::debug;

use super::Publisher;
use super::notified::{Notified, Told, What, pause};

/// Quiet time after a notification before the folder is read: one `kubectl`, `git` or editor makes many.
const SETTLE: Duration = Duration::from_millis(50);
/// Readings of a folder that changes all the time: one alone may have been held up for as long as the wait.
const TRIES: u32 = 3;
/// Longest wait for quiet, and for a writer that has a file open: a truncated file reads as "no objects". After it the
/// other files are read.
const SETTLE_AT_MOST: Duration = Duration::from_secs(1);
/// A file that others may write to and that was written to so recently is read again: the kernel changes it first, then
/// tells of it. Less than [`SETTLE`].
const FRESH: Duration = Duration::from_millis(40);
/// A writer that has a file open and has written nothing for so long is not waited for any more.
const SILENT: Duration = Duration::from_secs(10);
/// Time between looks at what inotify cannot see: files behind links, a folder that was replaced.
const LOOK: Duration = Duration::from_secs(5);
/// The same while there is no folder or no watch on it.
const LOOK_UNWATCHED: Duration = Duration::from_secs(1);

/// Reads once, then watches in a thread of its own.
pub(super) fn spawn(dir: PathBuf, publisher: Publisher, keep_out: KeepOut) -> io::Result<()> {
    let mut watched = Watched {
        dir,
        publisher,
        keep_out,
        notified: None,
        writers: HashMap::new(),
        print: Vec::new(),
        again: false,
        stood: SystemTime::now(),
        doubt: false,
    };
    // Watches, then reads.
    watched.look();
    std::thread::Builder::new().name("source".into()).spawn(move || watched.run())?;
    Ok(())
}

struct Watched {
    dir: PathBuf,
    publisher: Publisher,
    keep_out: KeepOut,
    /// None: the folder cannot be watched, and is polled.
    notified: Option<Notified>,
    /// Files that somebody has open and has written, and when.
    writers: HashMap<PathBuf, Instant>,
    print: Vec<Print>,
    /// Something was written to while the folder was read the last time.
    again: bool,
    /// When the watch was put: nothing tells of writers that began before.
    stood: SystemTime,
    /// The last reading left out a file whose writer may end without a notification.
    doubt: bool,
}

impl Watched {
    fn run(mut self) {
        loop {
            let idle = match self.notified {
                _ if self.again => SETTLE,
                Some(_) if !self.doubt => LOOK,
                _ => LOOK_UNWATCHED,
            };
            let silent = self.writers.values().map(|wrote| SILENT.saturating_sub(wrote.elapsed())).min();
            if self.wait(silent.map_or(idle, |silent| silent.min(idle))) {
                self.settle();
                self.look();
            } else {
                if self.notified.is_none() {
                    self.watch();
                }
                let silent = self.writers.values().any(|wrote| wrote.elapsed() >= SILENT);
                let changed = self.has_changed();
                if changed && self.wait(SETTLE) {
                    // What tells that somebody writes comes a moment after he has begun.
                    self.settle();
                }
                if changed || silent || self.again || self.doubt || self.publisher.owes() {
                    self.look();
                }
            }
            if self.publisher.unwanted() {
                return;
            }
        }
    }

    /// Puts the watch on the folder, anew if it was replaced.
    fn watch(&mut self) {
        // First: the kernel has as many of them as it has.
        self.notified = None;
        self.notified = match Notified::of(&self.dir) {
            Ok(notified) => Some(notified),
            Err(error) => {
                debug!(dir = %self.dir.display(), %error, "the folder cannot be watched: polled instead");
                None
            }
        };
        self.stood = SystemTime::now();
    }

    /// Waits for a notification: whether there is one.
    fn wait(&self, within: Duration) -> bool {
        let Some(notified) = &self.notified else {
            pause(within);
            return false;
        };
        notified.wait(within)
    }

    /// Waits until writers are done.
    fn settle(&mut self) {
        let begun = Instant::now();
        let mut writing = HashSet::new();
        loop {
            self.take().into_iter().for_each(|told| self.note(told, &mut writing));
            let left = SETTLE_AT_MOST.saturating_sub(begun.elapsed());
            if left.is_zero() || !self.wait(if writing.is_empty() { SETTLE.min(left) } else { left }) {
                return;
            }
        }
    }

    fn take(&mut self) -> Vec<Told> {
        self.notified.as_mut().map(Notified::take).unwrap_or_default()
    }

    /// Takes what has been notified: whether anything was, and which files were written to in place.
    fn noted(&mut self) -> (bool, HashSet<PathBuf>) {
        let told = self.take();
        let any = !told.is_empty();
        let in_place = |told: &&Told| matches!(told.what, What::Made | What::Written | What::Closed);
        let files =
            told.iter().filter(in_place).map(|told| told.path.clone()).filter(|path| is_manifest(path)).collect();
        let mut writing = HashSet::new();
        told.into_iter().for_each(|told| self.note(told, &mut writing));
        (any, files)
    }

    /// Follows which files have a writer.
    fn note(&mut self, Told { path, what }: Told, writing: &mut HashSet<PathBuf>) {
        match what {
            What::Closed | What::Renamed => {
                writing.remove(&path);
                self.writers.remove(&path);
            }
            What::Made | What::Written if is_manifest(&path) => {
                let size = path.symlink_metadata().ok().filter(fs::Metadata::is_file).map(|file| file.len());
                // Nobody writes to a link. A file that has content as it is made was linked here whole, or its writer is told
                // of next.
                if what == What::Written || size == Some(0) {
                    self.writers.insert(path.clone(), Instant::now());
                }
                if what == What::Written || size.is_some() {
                    writing.insert(path);
                }
            }
            What::Folder => self.stood = SystemTime::now(),
            What::Lost => self.watch(),
            What::Made | What::Written | What::Other => {}
        }
    }

    fn has_changed(&mut self) -> bool {
        let Ok(print) = fingerprint(&self.dir) else {
            self.notified = None;
            return true;
        };
        self.follow(&print);
        print != self.print
    }

    /// Watches the folder that stands under the name, if it is another one than before.
    fn follow(&mut self, print: &[Print]) {
        if !print.is_empty() && print.first() != self.print.first() {
            self.writers.clear();
            self.watch();
        }
    }

    /// Reads the folder, each file while nobody can write to it. Where that cannot be had, a file that was truncated just
    /// before it was read looks whole and says nothing, so what was written to while the reading went on is read again, or
    /// is not taken from this reading.
    fn look(&mut self) {
        let begun = Instant::now();
        let mut tries = 0;
        let (mut reading, meanwhile, after) = loop {
            // From before the reading: what changes from now on differs from it, and is seen without a notification, too. The
            // watch stands by then, so nothing falls between the two.
            let before = fingerprint(&self.dir).unwrap_or_default();
            self.follow(&before);
            self.print = before;
            let reading = read_alone(&self.dir, self.keep_out);
            tries += 1;
            let after = fingerprint(&self.dir).unwrap_or_default();
            let now = SystemTime::now();
            let writer = |print: &Print| reading.as_ref().ok().and_then(|whole| writer(whole, print.path()));
            let fresh =
                |print: &Print| writer(print) == Some(Writer::Unknown) && print.age(now).is_some_and(|age| age < FRESH);
            let fresh = after.iter().any(fresh);
            let (any, meanwhile) = self.noted();
            self.again = any || fresh || after != self.print || reading.as_ref().is_ok_and(|whole| whole.torn);
            if !self.again || (begun.elapsed() >= SETTLE_AT_MOST && tries >= TRIES) {
                break (reading, meanwhile, after);
            }
            if self.wait(SETTLE) {
                self.settle();
            }
        };
        self.writers.retain(|_, wrote| wrote.elapsed() < SILENT);
        if let Ok(whole) = &mut reading {
            let mut unfinished = Vec::new();
            for path in meanwhile.iter().chain(self.writers.keys()) {
                let path = path.strip_prefix(&self.dir).unwrap_or(path);
                let name = path.to_string_lossy();
                // Half of a file may read as a whole one with fewer objects; one that is taken away and made anew may have
                // been missed.
                let missed = || is_read(&name) && self.dir.join(path).symlink_metadata().is_ok();
                let may_be_half =
                    if whole.files.contains_key(&*name) { writer(whole, path).is_some() } else { missed() };
                if may_be_half {
                    unfinished.push(name.into_owned());
                }
            }
            let doubtful = self.doubtful(whole, &after);
            self.doubt = !doubtful.is_empty();
            unfinished.extend(doubtful);
            whole.files.extend(unfinished.into_iter().map(|name| (name, FileContent::Unfinished)));
        }
        self.publisher.take(reading);
    }

    /// Files that have a writer of whom nothing needs to have been told, or may have one, for all that is known: they say
    /// nothing, and he may have truncated them before the watch stood, or works behind a link. He is waited for as for one
    /// who is known. `prints` are of after the reading.
    fn doubtful(&self, reading: &Reading, prints: &[Print]) -> Vec<String> {
        let now = SystemTime::now();
        let unknown = |print: &Print, age: Duration| {
            let link = || self.dir.join(print.path()).symlink_metadata().is_ok_and(|file| file.is_symlink());
            self.notified.is_none() || now.checked_sub(age).is_none_or(|written| written <= self.stood) || link()
        };
        let doubtful = |print: &&Print| {
            let name = print.path().to_string_lossy();
            let blank = || matches!(reading.files.get(&*name), Some(FileContent::Text(text)) if says_nothing(text));
            // Of a file that said nothing before nothing can be lost.
            let lost = || self.publisher.has_in_force(&name);
            print.age(now).is_some_and(|age| {
                age < SILENT
                    && match writer(reading, print.path()) {
                        Some(Writer::Open) => true,
                        Some(Writer::Unknown) => blank() && lost() && unknown(print, age),
                        None => false,
                    }
            })
        };
        prints.iter().filter(doubtful).map(|print| print.path().to_string_lossy().into_owned()).collect()
    }
}

/// What is known of who wrote to a file while it was read; none: nobody could.
fn writer(reading: &Reading, path: &Path) -> Option<Writer> {
    reading.writers.get(&*path.to_string_lossy()).copied()
}

/// Whether a text has no object: a writer may have begun with its remarks.
fn says_nothing(text: &str) -> bool {
    text.lines().map(str::trim).all(|line| line.is_empty() || line.starts_with('#') || line == "---")
}

/// Whether a manifest of this name below the folder is read: nothing hidden is.
fn is_read(name: &str) -> bool {
    name.split('/').all(|part| !part.starts_with('.'))
}

/// Hidden files are not read, so nobody waits for their writers.
fn is_manifest(path: &Path) -> bool {
    let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    !name.starts_with('.') && (name.ends_with(".yaml") || name.ends_with(".yml"))
}
