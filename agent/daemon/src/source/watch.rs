//! When to read: file notifications, settled, with a slow look in between for what they cannot see.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::{Duration, Instant, SystemTime};

use kumiko_core::manifest::FileContent;
use kumiko_folder::{Print, fingerprint};
use notify::event::{AccessKind, AccessMode, CreateKind, DataChange, EventKind, ModifyKind};
use notify::{Event, RecommendedWatcher, RecursiveMode, Watcher};
use tracing::{debug, warn};

use super::{Publisher, read};

/// Quiet time after a notification before the folder is read: one `kubectl`, `git` or editor makes many.
const SETTLE: Duration = Duration::from_millis(50);
/// Longest wait for quiet, and for a writer that has a file open: a truncated file reads as "no objects". After it the
/// other files are read.
const SETTLE_AT_MOST: Duration = Duration::from_secs(1);
/// For the notification of what was written before a reading to come out of the watcher's thread.
const DELIVERED: Duration = Duration::from_millis(10);
/// A file that was written to so recently is read again: what tells of it may still be on its way. Less than [`SETTLE`].
const FRESH: Duration = Duration::from_millis(40);
/// A writer that has a file open and has written nothing for so long is not waited for any more.
const SILENT: Duration = Duration::from_secs(10);
/// Time between looks at what inotify cannot see: files behind links, a folder that was replaced.
const LOOK: Duration = Duration::from_secs(5);
/// The same while there is no folder or no watch on it.
const LOOK_UNWATCHED: Duration = Duration::from_secs(1);
/// Notifications that may wait; when there are more, the folder is read anyway.
const WAITING: usize = 1024;

type Notified = notify::Result<Event>;

/// Reads once, then watches in a thread of its own.
pub(super) fn spawn(dir: PathBuf, publisher: Publisher) -> io::Result<()> {
    let (sender, receiver) = sync_channel(WAITING);
    let lost = Arc::new(AtomicBool::new(false));
    let mut watched = Watched {
        dir,
        publisher,
        sender,
        lost,
        watcher: None,
        writers: HashMap::new(),
        print: Vec::new(),
        again: false,
        stood: SystemTime::now(),
        doubt: false,
    };
    // Watches, then reads.
    watched.look(&receiver);
    std::thread::Builder::new().name("source".into()).spawn(move || watched.run(&receiver))?;
    Ok(())
}

struct Watched {
    dir: PathBuf,
    publisher: Publisher,
    sender: SyncSender<Notified>,
    /// A notification found no place in the queue.
    lost: Arc<AtomicBool>,
    watcher: Option<RecommendedWatcher>,
    /// Files that somebody has open and has written, and when.
    writers: HashMap<PathBuf, Instant>,
    print: Vec<Print>,
    /// Something was written to while the folder was read the last time.
    again: bool,
    /// When the watch was put: nothing tells of writers that began before.
    stood: SystemTime,
    /// The last reading left out a file that may have such a writer.
    doubt: bool,
}

impl Watched {
    fn run(mut self, notified: &Receiver<Notified>) {
        loop {
            let idle = match self.watcher {
                _ if self.again => SETTLE,
                Some(_) if !self.doubt => LOOK,
                _ => LOOK_UNWATCHED,
            };
            let silent = self.writers.values().map(|wrote| SILENT.saturating_sub(wrote.elapsed())).min();
            match notified.recv_timeout(silent.map_or(idle, |silent| silent.min(idle))) {
                Ok(event) => {
                    self.settle(event, notified);
                    self.look(notified);
                }
                Err(RecvTimeoutError::Timeout) => {
                    if self.watcher.is_none() {
                        self.watch();
                    }
                    let silent = self.writers.values().any(|wrote| wrote.elapsed() >= SILENT);
                    let changed = self.has_changed();
                    if changed {
                        // What tells that somebody writes comes a moment after he has begun.
                        self.settled(notified);
                    }
                    if changed
                        || silent
                        || self.again
                        || self.doubt
                        || self.publisher.owes()
                        || self.lost.load(Ordering::Acquire)
                    {
                        self.look(notified);
                    }
                }
                Err(RecvTimeoutError::Disconnected) => return,
            }
            if self.publisher.unwanted() {
                return;
            }
        }
    }

    /// Puts the watch on the folder, anew if it was replaced.
    fn watch(&mut self) {
        self.watcher = None;
        let (sender, lost) = (self.sender.clone(), self.lost.clone());
        let made = notify::recommended_watcher(move |event: Notified| {
            if event.as_ref().is_ok_and(is_reading) {
                return;
            }
            if sender.try_send(event).is_err() {
                lost.store(true, Ordering::Release);
            }
        })
        .and_then(|mut watcher| watcher.watch(&self.dir, RecursiveMode::Recursive).map(|()| watcher));
        match made {
            Ok(watcher) => self.watcher = Some(watcher),
            Err(error) => debug!(dir = %self.dir.display(), %error, "the folder cannot be watched: polled instead"),
        }
        self.stood = SystemTime::now();
    }

    /// Waits until writers are done.
    fn settle(&mut self, first: Notified, notified: &Receiver<Notified>) {
        let begun = Instant::now();
        let mut writing = HashSet::new();
        self.note(first, &mut writing);
        loop {
            let left = SETTLE_AT_MOST.saturating_sub(begun.elapsed());
            let wait = if writing.is_empty() { SETTLE.min(left) } else { left };
            let Ok(event) = notified.recv_timeout(wait) else { return };
            self.note(event, &mut writing);
            if left.is_zero() {
                return;
            }
        }
    }

    /// Takes what has been notified: whether anything was, and which files were written to in place.
    fn noted(&mut self, notified: &Receiver<Notified>) -> (bool, HashSet<PathBuf>) {
        let (mut files, mut writing) = (HashSet::new(), HashSet::new());
        let mut any = false;
        while let Ok(event) = notified.recv_timeout(if any { Duration::ZERO } else { DELIVERED }) {
            any = true;
            if let Ok(event) = event.as_ref()
                && !event.kind.is_remove()
                && !matches!(event.kind, EventKind::Modify(ModifyKind::Name(_)))
            {
                files.extend(event.paths.iter().filter(|path| is_manifest(path)).cloned());
            }
            self.note(event, &mut writing);
        }
        (any, files)
    }

    /// Follows which files have a writer.
    fn note(&mut self, event: Notified, writing: &mut HashSet<PathBuf>) {
        let event = match event {
            Ok(event) => event,
            Err(error) => {
                warn!(%error, "file notifications are in doubt: the whole folder is read again");
                self.watcher = None;
                return;
            }
        };
        if event.need_rescan() {
            // The kernel had no room for more.
            self.watcher = None;
        }
        match event.kind {
            EventKind::Access(AccessKind::Close(AccessMode::Write)) => {
                for path in &event.paths {
                    writing.remove(path);
                    self.writers.remove(path);
                }
            }
            EventKind::Create(CreateKind::File) => {
                for path in event.paths.into_iter().filter(|path| is_manifest(path)) {
                    // One that has content already was linked here whole, or its writer is notified next.
                    if path.symlink_metadata().is_ok_and(|file| file.is_file() && file.len() == 0) {
                        self.writers.insert(path.clone(), Instant::now());
                    }
                    writing.insert(path);
                }
            }
            EventKind::Modify(ModifyKind::Data(DataChange::Any)) => {
                for path in event.paths.into_iter().filter(|path| is_manifest(path)) {
                    self.writers.insert(path.clone(), Instant::now());
                    writing.insert(path);
                }
            }
            kind => {
                if kind.is_remove() && event.paths.contains(&self.dir) {
                    self.watcher = None;
                }
                for path in &event.paths {
                    writing.remove(path);
                    if !matches!(kind, EventKind::Modify(ModifyKind::Metadata(_))) {
                        // Another file has the name, or none.
                        self.writers.remove(path);
                    }
                }
            }
        }
    }

    fn has_changed(&mut self) -> bool {
        let Ok(print) = fingerprint(&self.dir) else {
            self.watcher = None;
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

    /// Waits until writers are done, if there are any.
    fn settled(&mut self, notified: &Receiver<Notified>) {
        if let Ok(event) = notified.recv_timeout(SETTLE) {
            self.settle(event, notified);
        }
    }

    /// Reads the folder. A file that was truncated just before it was read looks whole and says nothing, so what was
    /// written to while the reading went on is read again, or is not taken from this reading.
    fn look(&mut self, notified: &Receiver<Notified>) {
        let begun = Instant::now();
        let (mut reading, meanwhile, after) = loop {
            if self.lost.swap(false, Ordering::AcqRel) {
                // Of whoever has begun to write so far nothing may be known.
                self.stood = SystemTime::now();
            }
            // From before the reading: what changes from now on differs from it, and is seen without a notification, too. The
            // watch stands by then, so nothing falls between the two.
            let before = fingerprint(&self.dir).unwrap_or_default();
            self.follow(&before);
            self.print = before;
            let reading = read(&self.dir);
            let after = fingerprint(&self.dir).unwrap_or_default();
            let now = SystemTime::now();
            let fresh = |print: &Print| print.age(now).is_some_and(|age| age < FRESH);
            let fresh = after.iter().any(fresh);
            let (any, meanwhile) = self.noted(notified);
            self.again = any || fresh || after != self.print || reading.as_ref().is_ok_and(|whole| whole.torn);
            if !self.again || begun.elapsed() >= SETTLE_AT_MOST {
                break (reading, meanwhile, after);
            }
            self.settled(notified);
        };
        self.writers.retain(|_, wrote| wrote.elapsed() < SILENT);
        if let Ok(whole) = &mut reading {
            for path in meanwhile.iter().chain(self.writers.keys()) {
                let name = path.strip_prefix(&self.dir).unwrap_or(path).to_string_lossy();
                // Half of a file may read as a whole one with fewer objects; one that is taken away and made anew may have
                // been missed.
                if whole.files.contains_key(&*name) || (is_read(&name) && path.symlink_metadata().is_ok()) {
                    whole.files.insert(name.into_owned(), FileContent::Unfinished);
                }
            }
            let doubtful = self.doubtful(&whole.files, &after);
            self.doubt = !doubtful.is_empty();
            whole.files.extend(doubtful.into_iter().map(|name| (name, FileContent::Unfinished)));
        }
        self.publisher.take(reading);
    }

    /// Files that say nothing because somebody has truncated them, for all that is known: he may have begun before the watch
    /// stood, or works behind a link. He is waited for as for one who is known. `prints` are of after the reading.
    fn doubtful(&self, files: &BTreeMap<String, FileContent>, prints: &[Print]) -> Vec<String> {
        let now = SystemTime::now();
        let unknown = |print: &Print, age: Duration| {
            let link = || self.dir.join(print.path()).symlink_metadata().is_ok_and(|file| file.is_symlink());
            self.watcher.is_none() || now.checked_sub(age).is_none_or(|written| written <= self.stood) || link()
        };
        let doubtful = |print: &&Print| {
            let text = files.get(&*print.path().to_string_lossy());
            let blank = matches!(text, Some(FileContent::Text(text)) if says_nothing(text));
            // Of a file that said nothing before nothing can be lost.
            let lost = || self.publisher.has_in_force(&print.path().to_string_lossy());
            blank && lost() && print.age(now).is_some_and(|age| age < SILENT && unknown(print, age))
        };
        prints.iter().filter(doubtful).map(|print| print.path().to_string_lossy().into_owned()).collect()
    }
}

/// Whether a text has no object: a writer may have begun with its remarks.
fn says_nothing(text: &str) -> bool {
    text.lines().map(str::trim).all(|line| line.is_empty() || line.starts_with('#') || line == "---")
}

/// Whether a notification tells only that somebody reads: our own readings make these.
fn is_reading(event: &Event) -> bool {
    matches!(event.kind, EventKind::Access(kind) if kind != AccessKind::Close(AccessMode::Write))
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
