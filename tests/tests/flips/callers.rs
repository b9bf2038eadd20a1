//! Clients that call all the time, and what is wrong with what they are told.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use kumiko_lab::Netns;
use kumiko_tests::own_port::{self, any};
use socket2::SockRef;

/// Nobody waits longer for what should come: nothing gets lost between these pods.
const PATIENCE: Duration = Duration::from_secs(30);

/// Between two first packets of a client: what has ended stays in the flow table for a while, and a pod has a share of it.
const PAUSE: Duration = Duration::from_millis(4);

/// Whom a client calls, and whether it may.
#[derive(Clone, Copy, Debug)]
pub(super) struct Target {
    pub(super) to: SocketAddr,
    pub(super) allowed: bool,
    /// Whether it answers datagrams.
    pub(super) answers: bool,
}

/// A client's calls.
pub(super) struct Caller<'a> {
    pub(super) name: &'static str,
    pub(super) netns: &'a Netns,
    pub(super) targets: Vec<Target>,
}

/// What all of them did.
#[derive(Debug, Default)]
pub(super) struct Calls {
    pub(super) connects: AtomicU64,
    pub(super) datagrams: AtomicU64,
    /// On connections and in exchanges that were there from the begin.
    pub(super) standing: AtomicU64,
    pub(super) stop: AtomicBool,
}

impl Calls {
    fn go_on(&self) -> bool {
        !self.stop.load(Ordering::Relaxed)
    }
}

impl Caller<'_> {
    /// Connects to all of them in turn, until it is told to stop or something is wrong.
    pub(super) fn connect(&self, calls: &Calls) -> Result<()> {
        self.netns.within(|| {
            while calls.go_on() {
                for target in &self.targets {
                    self.connects(target)?;
                    calls.connects.fetch_add(1, Ordering::Relaxed);
                    std::thread::sleep(PAUSE);
                }
            }
            Ok(())
        })
    }

    fn connects(&self, target: &Target) -> Result<()> {
        let what = || format!("{} to {target:?}", self.name);
        match TcpStream::connect_timeout(&target.to, PATIENCE) {
            Ok(mut stream) => {
                ensure!(target.allowed, "{}: connected", what());
                ask(&mut stream).with_context(what)?;
                // No TIME_WAIT: ports come again soon.
                SockRef::from(&stream).set_linger(Some(Duration::ZERO))?;
                Ok(())
            }
            Err(error) if !target.allowed && error.kind() == ErrorKind::ConnectionRefused => Ok(()),
            Err(error) => bail!("{}: {error}", what()),
        }
    }

    /// Sends a datagram from a new port to all of them in turn. Servers that may not be called tell whether one came.
    pub(super) fn send(&self, calls: &Calls) -> Result<()> {
        self.netns.within(|| {
            while calls.go_on() {
                for target in &self.targets {
                    let socket = socket(target.to)?;
                    self.sends(&socket, target)?;
                    calls.datagrams.fetch_add(1, Ordering::Relaxed);
                    std::thread::sleep(PAUSE);
                }
            }
            Ok(())
        })
    }

    fn sends(&self, socket: &UdpSocket, target: &Target) -> Result<()> {
        let what = || format!("{} to {target:?} from {:?}", self.name, socket.local_addr());
        match socket.send(&[7]) {
            Ok(_) if target.allowed && target.answers => socket.recv(&mut [0; 2]).map(drop).with_context(what),
            Ok(_) => Ok(()),
            Err(error) if !target.allowed && error.kind() == ErrorKind::ConnectionRefused => Ok(()),
            Err(error) => Err(error).with_context(what),
        }
    }

    /// Asks on connections and in exchanges that stay.
    pub(super) fn stand(&self, calls: &Calls) -> Result<()> {
        self.netns.within(|| {
            let mut open = Vec::new();
            for (target, port) in self.targets.iter().zip(own_port::FIRST..) {
                let stream = if target.allowed {
                    let stream = own_port::connect(port, target.to, PATIENCE);
                    let stream = stream.with_context(|| format!("{target:?} from {port}"))?;
                    stream.set_nodelay(true)?;
                    Some(stream)
                } else {
                    None
                };
                open.push((target, stream, socket(target.to)?));
            }
            while calls.go_on() {
                for (target, stream, socket) in &mut open {
                    if let Some(stream) = stream {
                        ask(stream).with_context(|| format!("{}: an open connection to {target:?}", self.name))?;
                    }
                    self.sends(socket, target).context("in an old exchange")?;
                    calls.standing.fetch_add(1, Ordering::Relaxed);
                }
                std::thread::sleep(PAUSE);
            }
            Ok(())
        })
    }

    /// Calls each of them once.
    pub(super) fn once(&self) -> Result<()> {
        self.netns.within(|| {
            for target in &self.targets {
                self.connects(target)?;
                self.sends(&socket(target.to)?, target)?;
            }
            Ok(())
        })
    }
}

fn ask(stream: &mut TcpStream) -> std::io::Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut byte = [7];
    stream.write_all(&byte)?;
    stream.read_exact(&mut byte)
}

fn socket(to: SocketAddr) -> Result<UdpSocket> {
    let socket = UdpSocket::bind((any(to), 0)).context("a socket")?;
    socket.connect(to).with_context(|| format!("{to}"))?;
    socket.set_read_timeout(Some(PATIENCE))?;
    Ok(socket)
}

/// A server to which no datagram may come.
#[derive(Debug)]
pub(super) struct Sink(UdpSocket);

impl Sink {
    pub(super) fn open(ns: &Netns, at: SocketAddr) -> Result<Self> {
        let socket = ns.within(|| UdpSocket::bind(at).with_context(|| format!("listening on {at}")))?;
        socket.set_nonblocking(true)?;
        Ok(Self(socket))
    }

    fn take(&self) -> Result<bool> {
        match self.0.recv(&mut [0; 2]) {
            Ok(_) => Ok(true),
            Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(false),
            Err(error) => Err(error).context("a sink"),
        }
    }

    /// Takes what has come; how many datagrams.
    pub(super) fn drain(&self) -> Result<usize> {
        let mut came = 0;
        while self.take()? {
            came += 1;
        }
        Ok(came)
    }
}
