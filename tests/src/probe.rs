//! Connects and exchanges of many pods at once, and which of them end otherwise than they should.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use kumiko_lab::Netns;

/// Nobody waits longer for what should come.
const PATIENCE: Duration = Duration::from_secs(30);
/// A datagram that should be answered is sent again after so long.
const AGAIN: Duration = Duration::from_millis(500);
/// So long an answer is waited for that should not come: the others have come within milliseconds.
const SILENCE: Duration = Duration::from_millis(200);

/// How it is tried.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Protocol {
    /// By connecting.
    Tcp,
    /// By datagrams.
    Udp(Refusal),
}

/// How it shows that a datagram is refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Refusal {
    /// It is told or not: refusals are told at the kernel's own pace.
    MayBeSilent,
    /// It is told, of every one.
    Told,
}

/// One try.
#[derive(Clone, Debug)]
pub struct Probe {
    /// Who calls whom, and how.
    pub what: String,
    /// Where to.
    pub to: SocketAddr,
    /// A datagram's source port: one that no exchange had before, or it would be part of that one.
    pub from_port: u16,
    /// What is to come of it.
    pub reaches: bool,
}

/// Tries all, those of each namespace after each other; what came out otherwise.
pub fn wrong(protocol: Protocol, all: &[(&Netns, Vec<Probe>)]) -> Result<Vec<String>> {
    let one = |own: &[Probe]| match protocol {
        Protocol::Tcp => connects(own),
        Protocol::Udp(refusal) => exchanges(own, refusal),
    };
    let ends: Vec<Result<Vec<String>>> = std::thread::scope(|scope| {
        let started: Vec<_> = all.iter().map(|(ns, own)| scope.spawn(move || ns.within(|| one(own)))).collect();
        let joined = started.into_iter().map(|thread| match thread.join() {
            Ok(end) => end,
            Err(_) => bail!("a thread of probes panicked"),
        });
        joined.collect()
    });
    Ok(ends.into_iter().collect::<Result<Vec<_>>>()?.into_iter().flatten().collect())
}

/// A connection that is let takes a byte there and back; one that is not is refused at `connect()`.
fn connects(own: &[Probe]) -> Result<Vec<String>> {
    let mut wrong = Vec::new();
    for probe in own {
        let end = match TcpStream::connect_timeout(&probe.to, PATIENCE) {
            Ok(stream) if probe.reaches => ask(stream).err().map(|error| format!("connected, then {error}")),
            Ok(_) => Some("connected".to_owned()),
            Err(error) if !probe.reaches && error.kind() == ErrorKind::ConnectionRefused => None,
            Err(error) => Some(error.to_string()),
        };
        wrong.extend(end.map(|end| told(probe, &end)));
    }
    Ok(wrong)
}

fn ask(mut stream: TcpStream) -> std::io::Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut byte = [7];
    stream.write_all(&byte)?;
    stream.read_exact(&mut byte)
}

fn told(probe: &Probe, end: &str) -> String {
    format!("{} ({}): {end}; should reach: {}", probe.what, probe.to, probe.reaches)
}

/// What is let is answered; what is not is refused, or silent if that may be.
fn exchanges(own: &[Probe], refusal: Refusal) -> Result<Vec<String>> {
    let mut open = Vec::new();
    for probe in own {
        let any: IpAddr = if probe.to.is_ipv4() { [0; 4].into() } else { [0; 16].into() };
        let socket = UdpSocket::bind((any, probe.from_port)).context("a socket")?;
        socket.connect(probe.to).with_context(|| probe.what.clone())?;
        let refused = socket.send(&[7]).is_err_and(|error| error.kind() == ErrorKind::ConnectionRefused);
        open.push((probe, socket, refused));
    }
    let sent = Instant::now();
    let mut wrong = Vec::new();
    for (probe, socket, refused) in open.iter().filter(|(probe, ..)| probe.reaches) {
        match answered(socket, sent) {
            Ok(()) if !refused => {}
            Ok(()) => wrong.push(told(probe, "refused, then answered")),
            Err(error) => wrong.push(told(probe, &error.to_string())),
        }
    }
    for (probe, socket, refused) in open.iter().filter(|(probe, ..)| !probe.reaches) {
        if refusal == Refusal::Told {
            match answered(socket, sent) {
                _ if *refused => {}
                Ok(()) => wrong.push(told(probe, "answered")),
                Err(error) if error.kind() == ErrorKind::ConnectionRefused => {}
                Err(error) => wrong.push(told(probe, &error.to_string())),
            }
            continue;
        }
        let left = SILENCE.saturating_sub(sent.elapsed()).max(Duration::from_micros(1));
        socket.set_read_timeout(Some(left))?;
        match socket.recv(&mut [0; 2]) {
            Ok(_) => wrong.push(told(probe, "answered")),
            Err(error) => match error.kind() {
                ErrorKind::ConnectionRefused | ErrorKind::WouldBlock | ErrorKind::TimedOut => {}
                _ => wrong.push(told(probe, &error.to_string())),
            },
        }
    }
    Ok(wrong)
}

/// Waits for an answer, and sends again what may have got lost.
fn answered(socket: &UdpSocket, sent: Instant) -> std::io::Result<()> {
    socket.set_read_timeout(Some(AGAIN))?;
    loop {
        match socket.recv(&mut [0; 2]) {
            Ok(_) => return Ok(()),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                if sent.elapsed() > PATIENCE {
                    return Err(error);
                }
                socket.send(&[7])?;
            }
            Err(error) => return Err(error),
        }
    }
}
