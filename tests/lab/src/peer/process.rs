//! The peer's process: reads requests, runs them on threads, writes replies.

use std::collections::{HashMap, HashSet};
use std::io::{self, BufRead, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use socket2::{Domain, Protocol, SockRef, Socket, Type};

use super::protocol::{Action, ConnReport, Reply, Request, Step};
use super::script::{Around, CALL_LIMIT, error_name, run};

/// How long a gate or a meeting may last: longer than any test keeps one closed.
const WAIT_LIMIT: Duration = Duration::from_secs(900);
/// A thousand connections are a thousand threads.
const STACK: usize = 256 * 1024;

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Gates that the test opens.
#[derive(Default)]
pub(super) struct Gates {
    open: Mutex<HashSet<String>>,
    opened: Condvar,
}

impl Gates {
    pub(super) fn is_open(&self, name: &str) -> bool {
        locked(&self.open).contains(name)
    }

    pub(super) fn wait(&self, name: &str) -> io::Result<()> {
        if self.opens_within(name, WAIT_LIMIT) { Ok(()) } else { Err(io::ErrorKind::TimedOut.into()) }
    }

    /// Waits so long at most; whether the gate is open.
    pub(super) fn opens_within(&self, name: &str, limit: Duration) -> bool {
        let (_guard, waited) = self
            .opened
            .wait_timeout_while(locked(&self.open), limit, |open| !open.contains(name))
            .unwrap_or_else(PoisonError::into_inner);
        !waited.timed_out()
    }

    pub(super) fn open(&self, name: &str) {
        locked(&self.open).insert(name.to_owned());
        self.opened.notify_all();
    }
}

/// Where the connections of one action meet; one that fails before counts as there.
pub(super) struct Meeting {
    missing: Mutex<usize>,
    arrived: Condvar,
}

impl Meeting {
    fn new(count: usize) -> Self {
        Self { missing: Mutex::new(count), arrived: Condvar::new() }
    }

    fn arrive(&self) {
        let mut missing = locked(&self.missing);
        *missing = missing.saturating_sub(1);
        self.arrived.notify_all();
    }

    pub(super) fn wait(&self) -> io::Result<()> {
        self.arrive();
        let (_guard, waited) = self
            .arrived
            .wait_timeout_while(locked(&self.missing), WAIT_LIMIT, |missing| *missing > 0)
            .unwrap_or_else(PoisonError::into_inner);
        if waited.timed_out() { Err(io::ErrorKind::TimedOut.into()) } else { Ok(()) }
    }
}

#[derive(Default)]
struct Peer {
    gates: Gates,
    listeners: Mutex<HashMap<u16, Arc<TcpListener>>>,
    out: Mutex<()>,
}

/// Serves requests from standard input until it ends.
pub fn serve() -> Result<()> {
    let peer = Arc::new(Peer::default());
    for line in io::stdin().lock().lines() {
        let line = line.context("reading a request")?;
        let request: Request = serde_json::from_str(&line).with_context(|| format!("not a request: {line}"))?;
        let peer = Arc::clone(&peer);
        std::thread::Builder::new()
            .stack_size(STACK)
            .spawn(move || {
                let reply = peer.handle(request);
                peer.write(&reply);
            })
            .context("starting a thread")?;
    }
    Ok(())
}

impl Peer {
    fn write(&self, reply: &Reply) {
        let _one_at_a_time = locked(&self.out);
        if let Ok(mut line) = serde_json::to_string(reply) {
            line.push('\n');
            let _ = io::stdout().write_all(line.as_bytes()).and_then(|()| io::stdout().flush());
        }
    }

    fn handle(&self, request: Request) -> Reply {
        let mut reply = Reply { id: request.id, error: None, port: 0, reports: Vec::new() };
        let result = match request.action {
            Action::Listen { addr, backlog } => self.listen(addr, backlog).map(|port| reply.port = port),
            Action::Unlisten { port } => {
                locked(&self.listeners).remove(&port);
                Ok(())
            }
            Action::OpenGate { name } => {
                self.gates.open(&name);
                Ok(())
            }
            Action::AwaitGate { name } => self.gates.wait(&name),
            Action::Serve { port, count, script } => {
                self.accept(port, count, &script).map(|reports| reply.reports = reports)
            }
            Action::Connect { to, from, within_ms, count, script } => {
                let within = within_ms.map_or(CALL_LIMIT, Duration::from_millis);
                reply.reports = self.connect(to, from, within, count, &script);
                Ok(())
            }
        };
        reply.error = result.err().map(|error| error_name(&error));
        reply
    }

    fn listen(&self, addr: SocketAddr, backlog: i32) -> io::Result<u16> {
        let socket = Socket::new(Domain::for_address(addr), Type::STREAM, Some(Protocol::TCP))?;
        socket.set_reuse_address(true)?;
        // Accepted sockets inherit it; set on them, it could come after the urgent byte.
        socket.set_out_of_band_inline(true)?;
        socket.bind(&addr.into())?;
        socket.listen(backlog)?;
        let listener = TcpListener::from(socket);
        let port = listener.local_addr()?.port();
        locked(&self.listeners).insert(port, Arc::new(listener));
        Ok(port)
    }

    fn accept(&self, port: u16, count: usize, script: &[Step]) -> io::Result<Vec<ConnReport>> {
        let listener = locked(&self.listeners).get(&port).cloned().ok_or(io::ErrorKind::NotFound)?;
        // SO_RCVTIMEO holds for accept too: a test that waits for a connection that never comes must end.
        SockRef::from(&*listener).set_read_timeout(Some(CALL_LIMIT))?;
        let meeting = Meeting::new(count);
        let around = Around { gates: &self.gates, meeting: &meeting };
        std::thread::scope(|scope| {
            let mut threads = Vec::new();
            let mut failed = None;
            for _ in 0..count {
                match listener.accept() {
                    Ok((stream, peer)) => {
                        let around = &around;
                        threads.push(spawn(scope, move || {
                            let mut report = ConnReport::new(Some(peer), &stream);
                            report.steps = run(stream, script, around);
                            report
                        }));
                    }
                    Err(error) => {
                        failed = Some(error);
                        meeting.arrive();
                        break;
                    }
                }
            }
            let mut reports: Vec<ConnReport> =
                threads.into_iter().filter_map(|thread| thread.ok().and_then(|thread| thread.join().ok())).collect();
            if let Some(error) = failed {
                reports.push(ConnReport { connect: Some(error_name(&error)), ..ConnReport::nothing() });
            }
            Ok(reports)
        })
    }

    fn connect(
        &self,
        to: SocketAddr,
        from: Option<SocketAddr>,
        within: Duration,
        count: usize,
        script: &[Step],
    ) -> Vec<ConnReport> {
        let meeting = Meeting::new(count);
        let around = Around { gates: &self.gates, meeting: &meeting };
        std::thread::scope(|scope| {
            let one = || {
                let began = Instant::now();
                let connected = connect(to, from, within);
                let connect_us = u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX);
                match connected {
                    Ok(stream) => {
                        let mut report = ConnReport::new(stream.peer_addr().ok(), &stream);
                        report.connect_us = connect_us;
                        report.steps = run(stream, script, &around);
                        report
                    }
                    Err(error) => {
                        meeting.arrive();
                        ConnReport { connect: Some(error_name(&error)), connect_us, ..ConnReport::nothing() }
                    }
                }
            };
            if count == 1 {
                return vec![one()];
            }
            let threads: Vec<_> = (0..count).map(|_| spawn(scope, one)).collect();
            threads.into_iter().filter_map(|thread| thread.ok().and_then(|thread| thread.join().ok())).collect()
        })
    }
}

fn spawn<'scope, T: Send + 'scope>(
    scope: &'scope std::thread::Scope<'scope, '_>,
    work: impl FnOnce() -> T + Send + 'scope,
) -> io::Result<std::thread::ScopedJoinHandle<'scope, T>> {
    std::thread::Builder::new().stack_size(STACK).spawn_scoped(scope, work)
}

fn connect(to: SocketAddr, from: Option<SocketAddr>, within: Duration) -> io::Result<TcpStream> {
    let socket = Socket::new(Domain::for_address(to), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_tcp_nodelay(true)?;
    if let Some(from) = from {
        socket.set_reuse_address(true)?;
        socket.bind(&from.into())?;
    }
    // SO_SNDTIMEO bounds connect: without it a lost SYN would hold a test for two minutes.
    socket.set_write_timeout(Some(within))?;
    socket.connect(&to.into())?;
    Ok(TcpStream::from(socket))
}

impl ConnReport {
    fn nothing() -> Self {
        Self { connect: None, local: None, peer: None, connect_us: 0, steps: Vec::new() }
    }

    fn new(peer: Option<SocketAddr>, stream: &TcpStream) -> Self {
        let _ = stream.set_nodelay(true);
        let _ = stream.set_read_timeout(Some(CALL_LIMIT));
        let _ = stream.set_write_timeout(Some(CALL_LIMIT));
        Self { peer, local: stream.local_addr().ok(), ..Self::nothing() }
    }
}
