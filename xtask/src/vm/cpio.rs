//! Writing the `newc` archive that a kernel unpacks at boot (Documentation/driver-api/early-userspace/buffer-format).

use std::collections::BTreeSet;
use std::fmt::Write;

const FILE: u32 = 0o100_000;
const DIRECTORY: u32 = 0o040_000;
const SYMLINK: u32 = 0o120_000;

/// An archive in the making.
#[derive(Default)]
pub(super) struct Archive {
    bytes: Vec<u8>,
    entries: u32,
    directories: BTreeSet<String>,
}

impl Archive {
    /// Adds a file, and the directories that it lies in.
    pub(super) fn file(&mut self, path: &str, content: &[u8], mode: u32) {
        self.parents(path);
        self.entry(path, content, FILE | mode);
    }

    /// Adds a symbolic link.
    pub(super) fn symlink(&mut self, path: &str, to: &str) {
        self.parents(path);
        self.entry(path, to.as_bytes(), SYMLINK | 0o777);
    }

    /// Ends it.
    pub(super) fn finish(mut self) -> Vec<u8> {
        self.entry("TRAILER!!!", &[], 0);
        self.bytes
    }

    fn parents(&mut self, path: &str) {
        for (at, _) in path.match_indices('/') {
            let directory = path.get(..at).unwrap_or_default();
            if self.directories.insert(directory.to_owned()) {
                self.entry(directory, &[], DIRECTORY | 0o755);
            }
        }
    }

    fn entry(&mut self, path: &str, content: &[u8], mode: u32) {
        self.entries += 1;
        let length = u32::try_from(content.len()).unwrap_or(u32::MAX);
        let name = u32::try_from(path.len() + 1).unwrap_or(u32::MAX);
        let mut head = String::from("070701");
        // ino, mode, uid, gid, nlink, mtime, filesize, device and rdevice (major, minor), namesize, check
        for field in [self.entries, mode, 0, 0, 1, 0, length, 0, 0, 0, 0, name, 0] {
            let _ = write!(head, "{field:08x}");
        }
        self.bytes.extend(head.as_bytes());
        self.bytes.extend(path.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend(content);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directories_come_once_and_first() {
        let mut archive = Archive::default();
        archive.file("a/b/one", b"12345", 0o644);
        archive.file("a/b/two", b"", 0o644);
        let bytes = archive.finish();
        assert_eq!(bytes.len() % 4, 0);
        let text = String::from_utf8_lossy(&bytes);
        let places: Vec<_> = ["a\0", "a/b\0", "a/b/one\0", "12345", "a/b/two\0", "TRAILER!!!\0"]
            .iter()
            .map(|part| text.find(part).unwrap())
            .collect();
        assert!(places.is_sorted(), "{places:?}");
        assert_eq!(text.matches("070701").count(), 5);
    }
}
