//! Mixed load: connections of every kind, whose every byte is checked, over whatever the agents do meanwhile.

use std::collections::BTreeMap;
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Result;
use kumiko_lab::Netns;
use kumiko_lab::pattern::{CAPTURED, Pattern};
use nix::errno::Errno;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use socket2::SockRef;

/// Longer than anything takes that goes on: what is silent for so long hangs.
const CALL_LIMIT: Duration = Duration::from_secs(45);
/// What sockets on the way hold without anybody reading.
const UNREAD: usize = 96 * 1024;

/// What became of all connections.
#[derive(Debug, Default)]
pub(super) struct Tally {
    /// They went as they should.
    pub(super) well: u64,
    /// They were told of a failure, by the call and its error.
    pub(super) told: BTreeMap<String, u64>,
    /// What must never be: wrong bytes, an early end that looks like a clean one, a hang.
    pub(super) wrong: Vec<String>,
    /// Local addresses of the connections that opened.
    pub(super) opened: Vec<SocketAddr>,
}

/// Clients that run until they are told to stop.
pub(super) struct Load {
    stop: Arc<AtomicBool>,
    tally: Arc<Mutex<Tally>>,
    threads: Vec<std::thread::JoinHandle<Result<()>>>,
}

/// What connections of a load do.
#[derive(Clone, Copy)]
pub(super) enum Mix {
    /// Everything that [`talk`] knows.
    All,
    /// They open and close.
    Brief,
}

/// Where clients go.
#[derive(Clone)]
pub(super) struct Targets(pub(super) Vec<SocketAddr>);

enum Failed {
    Told(&'static str, std::io::Error),
    Wrong(String),
}

impl Load {
    /// Starts `threads` clients in each namespace.
    pub(super) fn start(clients: &[(Netns, Targets)], threads: u64, mix: Mix, seed: u64) -> Self {
        let (stop, tally) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(Tally::default())));
        let mut running = Vec::new();
        for (place, (ns, targets)) in (0..).zip(clients) {
            for thread in 0..threads {
                let (ns, targets) = (ns.clone(), targets.clone());
                let (stop, tally) = (Arc::clone(&stop), Arc::clone(&tally));
                let mut random = StdRng::seed_from_u64(seed ^ (place << 32 | thread));
                running.push(std::thread::spawn(move || {
                    ns.within(|| {
                        while !stop.load(Ordering::Relaxed) {
                            one(&targets, mix, &mut random, &tally);
                        }
                        Ok(())
                    })
                }));
            }
        }
        Self { stop, tally, threads: running }
    }

    /// Ends it; what became of all connections.
    pub(super) fn end(self) -> Result<Tally> {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads {
            thread.join().map_err(|_| anyhow::anyhow!("a client panicked"))??;
        }
        Ok(std::mem::take(&mut *self.tally.lock().unwrap_or_else(PoisonError::into_inner)))
    }
}

fn one(targets: &Targets, mix: Mix, random: &mut StdRng, tally: &Mutex<Tally>) {
    let Some(to) = targets.0.get(random.random_range(0..targets.0.len())).copied() else { return };
    let connected = TcpStream::connect_timeout(&to, CALL_LIMIT);
    let local = connected.as_ref().ok().and_then(|stream| stream.local_addr().ok());
    let result = connected.map_err(|error| Failed::Told("connect", error)).and_then(|stream| match mix {
        Mix::All => talk(stream, random),
        Mix::Brief => Ok(()),
    });
    let mut tally = tally.lock().unwrap_or_else(PoisonError::into_inner);
    tally.opened.extend(local);
    match result {
        Ok(()) => tally.well += 1,
        Err(Failed::Told(call, error)) => {
            let name = match error.raw_os_error() {
                Some(number) => format!("{:?}", Errno::from_raw(number)),
                None => format!("{:?}", error.kind()),
            };
            // EAGAIN is a call that ran into its limit, as is connect's own.
            if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) && call != "connect" {
                tally.wrong.push(format!("{call} to {to} hung: {name}"));
            }
            *tally.told.entry(format!("{call} {name}")).or_default() += 1;
        }
        Err(Failed::Wrong(what)) => tally.wrong.push(format!("{to}: {what}")),
    }
}

fn talk(mut stream: TcpStream, random: &mut StdRng) -> Result<(), Failed> {
    let told = |call| move |error| Failed::Told(call, error);
    let _ = stream.set_nodelay(true);
    let _ = stream.set_read_timeout(Some(CALL_LIMIT));
    let _ = stream.set_write_timeout(Some(CALL_LIMIT));
    let pattern = Pattern::new(CAPTURED, random.random());
    match random.random_range(0..12) {
        // A request and its whole answer, ended by the client's half-close.
        0..=4 => {
            let bytes = random.random_range(1..UNREAD);
            let mut sent = vec![0; bytes];
            pattern.fill(0, &mut sent);
            stream.write_all(&sent).map_err(told("write"))?;
            stream.shutdown(Shutdown::Write).map_err(told("shutdown"))?;
            whole(&mut stream, &pattern, bytes)
        }
        // Questions and answers, with pauses.
        5..=8 => {
            let mut at = 0;
            for _ in 0..random.random_range(1..12) {
                let mut sent = vec![0; random.random_range(1..4_000)];
                pattern.fill(at, &mut sent);
                stream.write_all(&sent).map_err(told("write"))?;
                exactly(&mut stream, &pattern, at, sent.len())?;
                at += sent.len() as u64;
                // An application that thinks, so that faults find connections idle, too.
                std::thread::sleep(Duration::from_millis(random.random_range(0..40)));
            }
            Ok(())
        }
        // Megabytes both ways at once.
        9 => {
            let bytes = random.random_range(1 << 20..8 << 20);
            let writer = stream.try_clone().map_err(told("dup"))?;
            std::thread::scope(|scope| {
                let sending = scope.spawn(|| send(writer, &pattern, bytes));
                let read = whole(&mut stream, &pattern, bytes);
                match sending.join() {
                    // Which of both calls is told of a reset is chance: the other one sees an end.
                    Ok(Err(error)) => Err(Failed::Told("write", error)),
                    _ => read,
                }
            })
        }
        // Reset in the middle.
        10 => {
            let mut sent = vec![0; random.random_range(1..UNREAD)];
            pattern.fill(0, &mut sent);
            stream.write_all(&sent).map_err(told("write"))?;
            exactly(&mut stream, &pattern, 0, random.random_range(0..sent.len()))?;
            SockRef::from(&stream).set_linger(Some(Duration::ZERO)).map_err(told("linger"))
        }
        // Opened and closed.
        _ => Ok(()),
    }
}

fn send(mut stream: TcpStream, pattern: &Pattern, bytes: usize) -> std::io::Result<()> {
    let (mut at, mut part) = (0, vec![0; 64 * 1024]);
    while at < bytes {
        let len = part.len().min(bytes - at);
        let now = part.get_mut(..len).unwrap_or_default();
        pattern.fill(at as u64, now);
        stream.write_all(now)?;
        at += len;
    }
    stream.shutdown(Shutdown::Write)
}

/// Reads to the end, which must not come before the last byte.
fn whole(stream: &mut TcpStream, pattern: &Pattern, bytes: usize) -> Result<(), Failed> {
    let (mut at, mut part, mut scratch) = (0, vec![0; 64 * 1024], Vec::new());
    loop {
        match stream.read(&mut part) {
            Ok(0) if at == bytes => return Ok(()),
            Ok(0) => return Err(Failed::Wrong(format!("a clean end after {at} of {bytes} bytes"))),
            Ok(read) => {
                let now = part.get(..read).unwrap_or_default();
                if at + read > bytes || !pattern.matches(at as u64, now, &mut scratch) {
                    return Err(Failed::Wrong(format!("wrong bytes at {at} of {bytes}")));
                }
                at += read;
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(Failed::Told("read", error)),
        }
    }
}

fn exactly(stream: &mut TcpStream, pattern: &Pattern, at: u64, bytes: usize) -> Result<(), Failed> {
    let mut part = vec![0; bytes];
    match stream.read_exact(&mut part) {
        Ok(()) if pattern.matches(at, &part, &mut Vec::new()) => Ok(()),
        Ok(()) => Err(Failed::Wrong(format!("wrong bytes at {at}"))),
        Err(error) if error.kind() == ErrorKind::UnexpectedEof => {
            Err(Failed::Wrong(format!("a clean end before {} bytes", at + bytes as u64)))
        }
        Err(error) => Err(Failed::Told("read", error)),
    }
}
