//! A test's hold on a peer process.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::protocol::{Action, ConnReport, Reply, Request, Step};
use crate::agents::binary;
use crate::netns::Netns;

/// The longest that a request may take.
const REPLY_LIMIT: Duration = Duration::from_secs(900);

type Waiting = Arc<Mutex<HashMap<u64, Sender<Reply>>>>;

/// A scripted peer in a pod; usable from several threads at once. Ends when dropped.
#[derive(Debug)]
pub struct Peer {
    child: Child,
    stdin: Mutex<ChildStdin>,
    waiting: Waiting,
    next: AtomicU64,
}

/// A request that runs.
#[derive(Debug)]
pub struct Pending {
    receiver: Receiver<Reply>,
    what: String,
}

impl Peer {
    /// Starts one in a namespace; what it says on standard error goes to `log`.
    pub fn start(ns: &Netns, log: &Path) -> Result<Self> {
        let mut command = Command::new(binary("kumiko-peer")?);
        let log = File::create(log).with_context(|| format!("making {}", log.display()))?;
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(log);
        let mut child = ns.spawn(&mut command)?;
        let stdin = child.stdin.take().context("the peer's input")?;
        let stdout = child.stdout.take().context("the peer's output")?;
        let waiting = Waiting::default();
        let readers = Arc::clone(&waiting);
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                if let Ok(reply) = serde_json::from_str::<Reply>(&line)
                    && let Some(sender) = readers.lock().unwrap_or_else(PoisonError::into_inner).remove(&reply.id)
                {
                    let _ = sender.send(reply);
                }
            }
            // Dropping the senders tells everybody who still waits.
            readers.lock().unwrap_or_else(PoisonError::into_inner).clear();
        });
        Ok(Self { child, stdin: Mutex::new(stdin), waiting, next: AtomicU64::new(1) })
    }

    /// Its pid.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends a request; its reply comes later.
    pub fn begin(&self, action: Action) -> Result<Pending> {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let what = format!("{action:?}");
        let (sender, receiver) = channel();
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).insert(id, sender);
        let mut line = serde_json::to_string(&Request { id, action })?;
        line.push('\n');
        let mut stdin = self.stdin.lock().unwrap_or_else(PoisonError::into_inner);
        stdin.write_all(line.as_bytes()).with_context(|| format!("the peer does not take {what}"))?;
        Ok(Pending { receiver, what })
    }

    /// Makes a listener; its port.
    pub fn listen(&self, addr: SocketAddr) -> Result<u16> {
        self.begin(Action::Listen { addr, backlog: 4096 })?.reply().map(|reply| reply.port)
    }

    /// Closes a listener.
    pub fn unlisten(&self, port: u16) -> Result<()> {
        self.begin(Action::Unlisten { port })?.reply().map(drop)
    }

    /// Runs a script on `count` connections of a listener.
    pub fn serve(&self, port: u16, count: usize, script: Vec<Step>) -> Result<Pending> {
        self.begin(Action::Serve { port, count, script })
    }

    /// Runs a script on `count` connections at once.
    pub fn connect(&self, to: SocketAddr, count: usize, script: Vec<Step>) -> Result<Pending> {
        self.begin(Action::Connect { to, from: None, within_ms: None, count, script })
    }

    /// Runs a script on a connection that gives up when `connect` takes longer than `within`.
    pub fn connect_within(&self, to: SocketAddr, within: Duration, script: Vec<Step>) -> Result<Pending> {
        let within_ms = Some(u64::try_from(within.as_millis())?);
        self.begin(Action::Connect { to, from: None, within_ms, count: 1, script })
    }

    /// Opens a gate.
    pub fn open_gate(&self, name: &str) -> Result<()> {
        self.begin(Action::OpenGate { name: name.to_owned() })?.reply().map(drop)
    }

    /// Waits until a script has opened a gate.
    pub fn await_gate(&self, name: &str) -> Result<()> {
        self.begin(Action::AwaitGate { name: name.to_owned() })?.reply().map(drop)
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Pending {
    /// Waits for the reply.
    pub fn reply(self) -> Result<Reply> {
        match self.receiver.recv_timeout(REPLY_LIMIT) {
            Ok(Reply { error: Some(error), .. }) => bail!("{}: {error}", self.what),
            Ok(reply) => Ok(reply),
            Err(RecvTimeoutError::Timeout) => bail!("{}: no reply in {} s", self.what, REPLY_LIMIT.as_secs()),
            Err(RecvTimeoutError::Disconnected) => bail!("{}: the peer's process has ended", self.what),
        }
    }

    /// Waits for the reports of all connections.
    pub fn reports(self) -> Result<Vec<ConnReport>> {
        self.reply().map(|reply| reply.reports)
    }

    /// Waits for the report of the only connection.
    pub fn report(self) -> Result<ConnReport> {
        let what = self.what.clone();
        self.reports()?.into_iter().next().with_context(|| format!("{what}: no report"))
    }
}
