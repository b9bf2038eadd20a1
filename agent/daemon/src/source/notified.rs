//! What happened in a folder since it is watched, in the order in which it happened.
//!
//! Read from inotify(7) with nothing between: the kernel queues a notification before the call that it tells of returns,
//! so who empties the queue knows of each call that has ended. A thread that passes notifications on would not do: for how
//! long it is kept from its CPU, nobody knows. Of a write that has not returned nothing may have been told.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use kumiko_folder::MAX_DEPTH;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::inotify::{self, CreateFlags, ReadFlags, WatchFlags};
use rustix::io::{Errno, ioctl_fionread};

/// What is told of a folder: not who only reads, as we do ourselves.
const TOLD: WatchFlags = WatchFlags::ATTRIB
    .union(WatchFlags::CLOSE_WRITE)
    .union(WatchFlags::CREATE)
    .union(WatchFlags::DELETE)
    .union(WatchFlags::DELETE_SELF)
    .union(WatchFlags::MODIFY)
    .union(WatchFlags::MOVE)
    .union(WatchFlags::MOVE_SELF)
    .union(WatchFlags::EXCL_UNLINK)
    .union(WatchFlags::ONLYDIR);
/// The same of a subfolder: a link to one is not followed, as it is not read.
const BELOW: WatchFlags = TOLD.union(WatchFlags::DONT_FOLLOW);
/// Room for notifications taken at once; one with the longest name takes 272 bytes.
const BUFFER: usize = 8192;
/// Bytes of a notification without a name.
const SHORTEST: u64 = 16;

/// One notification.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Told {
    /// What it is about; the folder's own path where it is about none in it.
    pub path: PathBuf,
    pub what: What,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum What {
    /// A file was made or linked.
    Made,
    /// It was written to or truncated.
    Written,
    /// A writer has closed it.
    Closed,
    /// Another file has the name, or none.
    Renamed,
    /// A subfolder came: of who had begun to write in it nothing may have been told.
    Folder,
    /// Something that makes no writer.
    Other,
    /// There will be no more: the folder is gone or replaced, or the kernel had no room to queue them.
    Lost,
}

/// The watch on a folder and its subfolders; hidden ones are not watched, as they are not read.
#[derive(Debug)]
pub(super) struct Notified {
    inotify: OwnedFd,
    dir: PathBuf,
    /// By watch descriptor.
    folders: HashMap<i32, PathBuf>,
}

impl Notified {
    /// Watches a folder from now on.
    ///
    /// # Errors
    /// It cannot be listed, or the kernel has no more watches: `fs.inotify.max_user_instances`, `max_user_watches`.
    pub(super) fn of(dir: &Path) -> io::Result<Self> {
        let inotify = inotify::init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC)?;
        let mut notified = Self { inotify, dir: dir.to_owned(), folders: HashMap::new() };
        notified.add(dir.to_owned(), TOLD)?;
        Ok(notified)
    }

    /// Waits for a notification: whether there is one.
    pub(super) fn wait(&self, within: Duration) -> bool {
        wait(&mut [PollFd::new(&self.inotify, PollFlags::IN)], within)
    }

    /// All that are queued, and perhaps some that come meanwhile. An error ends them, and is told as [`What::Lost`].
    pub(super) fn take(&mut self) -> Vec<Told> {
        // Whoever writes all the time would keep us here.
        let queued = ioctl_fionread(&self.inotify).map_or(u64::MAX, |bytes| bytes / SHORTEST);
        let mut raw = Vec::new();
        let mut buffer = [MaybeUninit::uninit(); BUFFER];
        let mut reader = inotify::Reader::new(&self.inotify, &mut buffer);
        let error = loop {
            if reader.is_buffer_empty() && raw.len() as u64 >= queued {
                break Errno::WOULDBLOCK;
            }
            match reader.next() {
                Ok(event) => {
                    let name = event.file_name().map(|name| OsStr::from_bytes(name.to_bytes()).to_owned());
                    raw.push((event.wd(), event.events(), name));
                }
                Err(Errno::INTR) => {}
                Err(error) => break error,
            }
        };
        let mut told: Vec<Told> =
            raw.into_iter().filter_map(|(wd, events, name)| self.tell(wd, events, name.as_deref())).collect();
        if error != Errno::WOULDBLOCK {
            told.push(self.lost());
        }
        told
    }

    fn lost(&self) -> Told {
        Told { path: self.dir.clone(), what: What::Lost }
    }

    fn tell(&mut self, wd: i32, events: ReadFlags, name: Option<&OsStr>) -> Option<Told> {
        // A file system that is gone from a subfolder shows another one, which is not watched.
        if events.intersects(ReadFlags::QUEUE_OVERFLOW | ReadFlags::UNMOUNT) {
            return Some(self.lost());
        }
        let folder = self.folders.get(&wd)?;
        if events.intersects(ReadFlags::IGNORED | ReadFlags::DELETE_SELF | ReadFlags::MOVE_SELF) {
            let own = *folder == self.dir;
            if events.contains(ReadFlags::IGNORED) {
                self.folders.remove(&wd);
            }
            // Of a subfolder the one above tells.
            return own.then(|| self.lost());
        }
        let path = name.map_or_else(|| folder.clone(), |name| folder.join(name));
        if events.contains(ReadFlags::ISDIR) {
            return Some(self.folder(path, events));
        }
        let what = match events {
            _ if events.contains(ReadFlags::CREATE) => What::Made,
            _ if events.contains(ReadFlags::MODIFY) => What::Written,
            _ if events.contains(ReadFlags::CLOSE_WRITE) => What::Closed,
            _ if events.contains(ReadFlags::ATTRIB) => What::Other,
            _ => What::Renamed,
        };
        Some(Told { path, what })
    }

    /// Follows subfolders that come and go.
    fn folder(&mut self, path: PathBuf, events: ReadFlags) -> Told {
        if events.contains(ReadFlags::MOVED_FROM) {
            let inotify = &self.inotify;
            self.folders.retain(|wd, folder| {
                let stays = !folder.starts_with(&path);
                if !stays {
                    // Its end is told by a descriptor that is known no more. One that is gone has ended by itself.
                    let _ = inotify::remove_watch(inotify, *wd);
                }
                stays
            });
        }
        if !events.intersects(ReadFlags::CREATE | ReadFlags::MOVED_TO) {
            return Told { path, what: What::Other };
        }
        match self.add(path.clone(), BELOW) {
            Ok(()) => Told { path, what: What::Folder },
            Err(error) if is_gone(&error) => Told { path, what: What::Other },
            Err(_) => self.lost(),
        }
    }

    /// Watches a folder, then lists it for those below: what is made in between is told.
    fn add(&mut self, folder: PathBuf, told: WatchFlags) -> io::Result<()> {
        let below = folder.strip_prefix(&self.dir).unwrap_or(&folder);
        if below.components().count() > MAX_DEPTH || below.components().any(|part| is_hidden(part.as_os_str())) {
            return Ok(());
        }
        let wd = inotify::add_watch(&self.inotify, &folder, told)?;
        self.folders.insert(wd, folder.clone());
        for entry in fs::read_dir(&folder)? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                match self.add(entry.path(), BELOW) {
                    Err(error) if is_gone(&error) => {}
                    other => other?,
                }
            }
        }
        Ok(())
    }
}

/// Waits without a watch.
pub(super) fn pause(time: Duration) {
    wait(&mut [], time);
}

fn wait(of: &mut [PollFd<'_>], within: Duration) -> bool {
    // Longer than a time can be is for ever; an interrupted wait is a short one.
    let within = Timespec::try_from(within).ok();
    poll(of, within.as_ref()).is_ok_and(|ready| ready > 0)
}

/// Whether a subfolder is there no more.
fn is_gone(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}

fn is_hidden(name: &OsStr) -> bool {
    name.as_bytes().starts_with(b".")
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    fn whats(notified: &mut Notified, dir: &Path) -> Vec<(String, What)> {
        let name = |path: &Path| path.strip_prefix(dir).unwrap().to_string_lossy().into_owned();
        notified.take().into_iter().map(|told| (name(&told.path), told.what)).collect()
    }

    #[test]
    fn what_was_written_is_told_at_once_and_in_order() {
        let dir = tempfile::tempdir().unwrap();
        let mut notified = Notified::of(dir.path()).unwrap();
        assert!(!notified.wait(Duration::ZERO));
        for _ in 0..1_000 {
            let path = dir.path().join("a.yaml");
            let mut file = fs::File::create(&path).unwrap();
            file.write_all(b"a").unwrap();
            // Its writer has it open still.
            let told = whats(&mut notified, dir.path());
            assert_eq!(told, [("a.yaml".to_owned(), What::Made), ("a.yaml".to_owned(), What::Written)]);
            drop(file);
            // An empty queue would mean that nobody writes.
            let truncated = fs::File::create(&path).unwrap();
            let told = whats(&mut notified, dir.path());
            assert_eq!(told, [("a.yaml".to_owned(), What::Closed), ("a.yaml".to_owned(), What::Written)]);
            drop(truncated);
            fs::remove_file(&path).unwrap();
            let told = whats(&mut notified, dir.path());
            assert_eq!(told.first(), Some(&("a.yaml".to_owned(), What::Closed)));
            assert_eq!(told.last(), Some(&("a.yaml".to_owned(), What::Renamed)));
        }
    }

    #[test]
    fn subfolders_are_followed() {
        let (dir, elsewhere) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        fs::create_dir_all(dir.path().join("x/y")).unwrap();
        fs::create_dir(dir.path().join(".git")).unwrap();
        let mut notified = Notified::of(dir.path()).unwrap();
        let mut put = |path: &str| {
            fs::write(dir.path().join(path), "a").unwrap();
            whats(&mut notified, dir.path())
        };
        assert!(put("x/y/a.yaml").contains(&("x/y/a.yaml".to_owned(), What::Closed)));
        assert_eq!(put(".git/a.yaml"), []);
        // Made, with what is below it, before anybody looks.
        fs::create_dir_all(dir.path().join("new/below")).unwrap();
        assert!(put("new/below/a.yaml").contains(&("new".to_owned(), What::Folder)));
        assert!(put("new/below/b.yaml").contains(&("new/below/b.yaml".to_owned(), What::Closed)));
        // By its new name.
        fs::rename(dir.path().join("new"), dir.path().join("other")).unwrap();
        assert!(put("other/below/c.yaml").contains(&("other".to_owned(), What::Folder)));
        assert!(put("other/below/d.yaml").contains(&("other/below/d.yaml".to_owned(), What::Closed)));
        // Moved away: it is nobody's here, whatever happens in it.
        fs::rename(dir.path().join("other"), elsewhere.path().join("other")).unwrap();
        assert_eq!(whats(&mut notified, dir.path()), [("other".to_owned(), What::Other)]);
        fs::write(elsewhere.path().join("other/below/e.yaml"), "a").unwrap();
        fs::remove_dir_all(dir.path().join("x")).unwrap();
        let told = whats(&mut notified, dir.path());
        assert_eq!(told.last(), Some(&("x".to_owned(), What::Other)));
        assert!(!told.iter().any(|(path, what)| *what == What::Lost || path.contains("other")), "{told:?}");
        assert_eq!(notified.folders.len(), 1, "{:?}", notified.folders);
    }

    #[test]
    fn a_folder_that_is_replaced_or_gone_and_a_full_queue_end_it() {
        let ends: [fn(&Path) -> io::Result<()>; 2] =
            [|dir| fs::remove_dir(dir), |dir| fs::rename(dir, dir.with_extension("old"))];
        for end in ends {
            let parent = tempfile::tempdir().unwrap();
            let dir = parent.path().join("manifests");
            fs::create_dir(&dir).unwrap();
            let mut notified = Notified::of(&dir).unwrap();
            end(&dir).unwrap();
            assert!(whats(&mut notified, &dir).contains(&(String::new(), What::Lost)));
        }
        let room = fs::read_to_string("/proc/sys/fs/inotify/max_queued_events").unwrap();
        let dir = tempfile::tempdir().unwrap();
        let mut notified = Notified::of(dir.path()).unwrap();
        // Equal ones that follow each other are one, so two files take turns.
        let mut files = ["a", "b"].map(|name| fs::File::create(dir.path().join(name)).unwrap());
        for _ in 0..=room.trim().parse::<usize>().unwrap() / 2 {
            files.iter_mut().for_each(|file| file.write_all(b"a").unwrap());
        }
        assert_eq!(notified.take().last(), Some(&notified.lost()));
        assert!(Notified::of(&dir.path().join("missing")).is_err());
    }
}
