//! Where one run of a program happens, and what programs need to say what they saw.

use std::collections::BTreeMap;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result};
use kumiko_lab::pattern::{CAPTURED, Pattern};
use kumiko_lab::{Family, Netns};
use kumiko_tests::programs::Server;
use kumiko_tests::twins::{Path as Way, Side};
use sha2::{Digest, Sha256};

/// One run: a lab, and the family that its pods speak.
pub(crate) struct Run<'a> {
    pub side: &'a Side,
    pub family: Family,
}

impl<'a> Run<'a> {
    pub(crate) fn new(side: &'a Side, family: Family) -> Self {
        Self { side, family }
    }

    /// A port that the server's pod and its Service declare, and nobody else uses now.
    pub(crate) fn port(&self) -> u16 {
        self.side.port()
    }

    /// The clients' namespace.
    pub(crate) fn client(&self) -> Result<&Netns> {
        Ok(&self.side.lab.pod("client-1")?.netns)
    }

    /// The server's namespace.
    pub(crate) fn server(&self) -> Result<&Netns> {
        Ok(&self.side.lab.pod("server-2")?.netns)
    }

    /// Where the server listens.
    pub(crate) fn at(&self, port: u16) -> Result<SocketAddr> {
        Ok(SocketAddr::new(self.side.lab.pod("server-2")?.ip(self.family), port))
    }

    /// What clients call: the pod, and its Service.
    pub(crate) fn to(&self, port: u16) -> Result<[SocketAddr; 2]> {
        let address = |way| Ok::<_, anyhow::Error>(SocketAddr::new(self.side.address(way, self.family)?, port));
        Ok([address(Way::CrossNode)?, address(Way::ServiceCrossNode)?])
    }

    /// A directory of its own, which goes with the lab.
    pub(crate) fn dir(&self, name: &str) -> Result<PathBuf> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let dir = self.side.lab.dir().join(format!("{name}-{number}"));
        fs::create_dir(&dir).with_context(|| format!("making {}", dir.display()))?;
        Ok(dir)
    }

    /// Starts the program's server; it listens on `ports` when this returns.
    pub(crate) fn serve(&self, dir: &Path, command: &mut Command, ports: &[u16]) -> Result<Server> {
        Server::start(self.server()?, &dir.join("server.log"), command, ports)
    }
}

/// Bytes of a stream of their own.
pub(crate) fn bytes(length: usize, tag: u64) -> Vec<u8> {
    let mut bytes = vec![0; length];
    Pattern::new(CAPTURED, tag).fill(0, &mut bytes);
    bytes
}

/// Writes a file, with its directories.
pub(crate) fn write(path: &Path, content: impl AsRef<[u8]>) -> Result<()> {
    if let Some(dir) = path.parent() {
        fs::create_dir_all(dir).with_context(|| format!("making {}", dir.display()))?;
    }
    fs::write(path, content).with_context(|| format!("writing {}", path.display()))
}

/// What a file holds.
pub(crate) fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("reading {}", path.display()))
}

/// Length and checksum of bytes, for answers.
pub(crate) fn sum(bytes: &[u8]) -> String {
    let digest: String = Sha256::digest(bytes).iter().take(8).map(|byte| format!("{byte:02x}")).collect();
    format!("{} bytes, {digest}", bytes.len())
}

/// Files below a directory, by their names in it: their checksums. What begins with a dot is left out.
pub(crate) fn tree(dir: &Path) -> Result<BTreeMap<String, String>> {
    let mut files = BTreeMap::new();
    for entry in fs::read_dir(dir).with_context(|| format!("reading {}", dir.display()))? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.starts_with('.') {
            continue;
        }
        if entry.file_type()?.is_dir() {
            files.extend(tree(&entry.path())?.into_iter().map(|(below, sum)| (format!("{name}/{below}"), sum)));
        } else {
            files.insert(name, sum(&read(&entry.path())?));
        }
    }
    Ok(files)
}

/// A path as an argument.
pub(crate) fn text(path: &Path) -> String {
    path.display().to_string()
}
