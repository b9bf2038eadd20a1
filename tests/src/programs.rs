//! Ordinary programs in the pods of a lab: servers that run until they are dropped, clients that run to their end.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use kumiko_lab::Netns;
use kumiko_lab::agents::tail;
use kumiko_lab::command::{Never, wait_for};
use nix::sys::signal::{Signal, kill, killpg};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
use nix::unistd::Pid;

/// The longest that a client may run, or a server may take to start or stop: tells a hang from a slow machine.
const LIMIT: Duration = Duration::from_secs(90);

/// A server in a pod; it and what it has started are ended when it is dropped.
#[derive(Debug)]
pub struct Server {
    group: Group,
    what: String,
    log: PathBuf,
}

impl Server {
    /// Starts one, and waits until it listens on every port of `ports`; as often as a port is named, on as many addresses.
    /// What it says goes to `log`.
    pub fn start(ns: &Netns, log: &Path, command: &mut Command, ports: &[u16]) -> Result<Self> {
        let what = format!("{command:?}");
        let file = File::create(log).with_context(|| format!("making {}", log.display()))?;
        let copy = file.try_clone().context("sharing a log")?;
        let child = ns.spawn(command.stdin(Stdio::null()).stdout(file).stderr(copy).process_group(0))?;
        let server = Self { group: Group::of(child)?, what, log: log.to_owned() };
        wait_for("the server listens", LIMIT, || {
            if server.group.over()? {
                return Err(Never("it ended".to_owned()).into());
            }
            let open = ns.within(listening)?;
            let times = |ports: &[u16], port| ports.iter().filter(|one| **one == port).count();
            ensure!(ports.iter().all(|port| times(&open, *port) >= times(ports, *port)), "it listens on {open:?}");
            Ok(())
        })
        .with_context(|| format!("{}; end of its log:\n{}", server.what, tail(log, 30)))?;
        Ok(server)
    }

    /// The end of what it said.
    pub fn said(&self) -> String {
        tail(&self.log, 30)
    }

    /// Asks it to end with a signal, and waits until it has.
    pub fn stop(self, signal: Signal) -> Result<()> {
        self.group.signal(signal)?;
        wait_for("the server ends", LIMIT, || {
            ensure!(self.group.over()?, "{} runs on; end of its log:\n{}", self.what, self.said());
            Ok(())
        })
    }
}

/// Ports that somebody listens on in this thread's namespace.
fn listening() -> Result<Vec<u16>> {
    let mut ports = Vec::new();
    for table in ["tcp", "tcp6"] {
        let text = fs::read_to_string(format!("/proc/thread-self/net/{table}")).context("reading the sockets")?;
        let lines = text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
        let listeners = lines.filter(|words| words.get(3) == Some(&"0A"));
        let addresses = listeners.filter_map(|words| words.get(1)?.rsplit_once(':').map(|(_, port)| port.to_owned()));
        ports.extend(addresses.filter_map(|port| u16::from_str_radix(&port, 16).ok()));
    }
    Ok(ports)
}

/// What a program gave when it ended.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Outcome {
    /// Its exit code; none: a signal ended it.
    pub code: Option<i32>,
    /// Its standard output.
    pub out: Vec<u8>,
    /// Its standard error.
    pub err: String,
}

impl Outcome {
    /// Its output, if it ended well.
    pub fn well(self) -> Result<String> {
        let out = String::from_utf8_lossy(&self.out).into_owned();
        ensure!(self.code == Some(0), "it ended with {:?}: {}\n{out}", self.code, self.err);
        Ok(out)
    }
}

/// A client in a pod, while it runs; ended when it is dropped.
#[derive(Debug)]
pub struct Client {
    group: Group,
    what: String,
    stdin: Option<ChildStdin>,
    out: Collector,
    err: Collector,
}

impl Client {
    /// Starts one that is spoken to with [`Client::say`].
    pub fn start(ns: &Netns, command: &mut Command) -> Result<Self> {
        Self::reading(ns, command, Stdio::piped())
    }

    fn reading(ns: &Netns, command: &mut Command, stdin: Stdio) -> Result<Self> {
        let what = format!("{command:?}");
        let streams = command.stdin(stdin).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = ns.spawn(streams.process_group(0)).context("run `cargo xtask setup`")?;
        let out = Collector::start(child.stdout.take().context("a program's output")?);
        let err = Collector::start(child.stderr.take().context("a program's messages")?);
        let stdin = child.stdin.take();
        Ok(Self { group: Group::of(child)?, what, stdin, out, err })
    }

    /// Writes to its standard input.
    pub fn say(&mut self, bytes: &[u8]) -> Result<()> {
        let stdin = self.stdin.as_mut().context("its input is closed")?;
        stdin.write_all(bytes).and_then(|()| stdin.flush()).with_context(|| format!("speaking to {}", self.what))
    }

    /// Waits until its standard output satisfies `enough`.
    pub fn wait_said(&self, enough: impl Fn(&str) -> bool) -> Result<()> {
        wait_for("a program says what is waited for", LIMIT, || {
            let said = self.out.text();
            ensure!(enough(&said), "{} said:\n{said}\n{}", self.what, self.err.text());
            Ok(())
        })
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        self.group.signal(signal)
    }

    /// Closes its input and waits for its end.
    pub fn finish(mut self) -> Result<Outcome> {
        self.stdin = None;
        wait_for("a program ends", LIMIT, || {
            let over = self.group.over()?;
            ensure!(over, "{} runs on; it said:\n{}\n{}", self.what, self.out.text(), self.err.text());
            Ok(())
        })?;
        // What it has left running would keep its output open.
        let status = self.group.end()?;
        let (out, err) = (self.out.whole()?, self.err.whole()?);
        Ok(Outcome { code: status.code(), out, err: String::from_utf8_lossy(&err).into_owned() })
    }
}

/// Runs a program to its end, without input.
pub fn run(ns: &Netns, command: &mut Command) -> Result<Outcome> {
    Client::reading(ns, command, Stdio::null())?.finish()
}

/// Runs a program to its end, with a file as its input.
pub fn run_with(ns: &Netns, command: &mut Command, input: &Path) -> Result<Outcome> {
    let file = File::open(input).with_context(|| format!("opening {}", input.display()))?;
    Client::reading(ns, command, file.into())?.finish()
}

/// A command from words.
pub fn command(words: &[&str]) -> Command {
    let (program, args) = words.split_first().unwrap_or((&"false", &[]));
    let mut command = Command::new(program);
    command.args(args);
    command
}

/// A process that leads a group, with what it has started; all of it is ended when this is dropped.
#[derive(Debug)]
struct Group {
    child: Child,
    pid: Pid,
    reaped: bool,
}

impl Group {
    fn of(child: Child) -> Result<Self> {
        let pid = Pid::from_raw(i32::try_from(child.id())?);
        Ok(Self { child, pid, reaped: false })
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        kill(self.pid, signal).with_context(|| format!("signalling process {}", self.pid))
    }

    /// Whether its leader has ended. It is left a zombie: its number must stay its own until the group is ended.
    fn over(&self) -> Result<bool> {
        let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
        Ok(waitid(Id::Pid(self.pid), flags).context("asking for a process")? != WaitStatus::StillAlive)
    }

    fn end(&mut self) -> Result<ExitStatus> {
        if !self.reaped {
            let _ = killpg(self.pid, Signal::SIGKILL);
        }
        self.reaped = true;
        self.child.wait().context("waiting for a process")
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let _ = self.end();
    }
}

/// Reads a stream to its end beside the program.
#[derive(Debug)]
struct Collector {
    text: Arc<Mutex<Vec<u8>>>,
    thread: JoinHandle<()>,
}

impl Collector {
    fn start(mut stream: impl Read + Send + 'static) -> Self {
        let text = Arc::<Mutex<Vec<u8>>>::default();
        let shared = Arc::clone(&text);
        let thread = std::thread::spawn(move || {
            let mut buffer = vec![0; 64 << 10];
            while let Ok(read @ 1..) = stream.read(&mut buffer) {
                let mut text = shared.lock().unwrap_or_else(PoisonError::into_inner);
                text.extend_from_slice(buffer.get(..read).unwrap_or_default());
            }
        });
        Self { text, thread }
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.text.lock().unwrap_or_else(PoisonError::into_inner)).into_owned()
    }

    fn whole(self) -> Result<Vec<u8>> {
        if self.thread.join().is_err() {
            bail!("a reader panicked");
        }
        Ok(std::mem::take(&mut self.text.lock().unwrap_or_else(PoisonError::into_inner)))
    }
}
