//! New connections at a pace: many a second, short, each with an exchange that only its own server can answer.

use std::collections::BTreeMap;
use std::fmt;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use kumiko_lab::Netns;
use nix::errno::Errno;
use socket2::SockRef;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::runtime::Runtime;
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

/// The longest that one call may wait: a SYN is sent for the fifth time after 15 s, for the sixth after 31.
const CALL_LIMIT: Duration = Duration::from_secs(40);
/// Connections at once, most of which wait for a SYN that is sent again when there are so many.
const AT_ONCE: usize = 1_000;
/// Of each listener.
const BACKLOG: u32 = 4_096;
/// After the clients' end, who has not been accepted by then was not there.
const QUEUE: Duration = Duration::from_millis(500);
/// Bytes each way.
const MESSAGE: usize = 64;
/// How often the clock is looked at.
const TICK: Duration = Duration::from_millis(1);

/// How the connections end.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Form {
    /// The server closes, then the client.
    ServerFirst,
    /// The client resets.
    ClientReset,
    /// The client closes, then the server.
    ClientFirst,
}

/// Connections to make.
#[derive(Clone, Debug)]
pub struct Load {
    /// How they end.
    pub form: Form,
    /// Where they go, in turn.
    pub to: Vec<SocketAddr>,
    /// Where servers listen.
    pub at: Vec<SocketAddr>,
    /// New ones a second. Who is behind catches up.
    pub rate: u32,
    /// How many.
    pub count: u64,
}

/// What one side saw: how often each call failed, and how.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    /// Connections that went well from begin to end.
    pub well: u64,
    /// Others, by call and errno.
    pub failures: BTreeMap<String, u64>,
}

/// What both sides saw.
#[derive(Clone, Debug)]
pub struct Report {
    /// The connecting side.
    pub client: Tally,
    /// The accepting side.
    pub server: Tally,
    /// How long it took.
    pub took: Duration,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rate = (self.client.total() as f64) / self.took.as_secs_f64();
        let (client, server) = (&self.client, &self.server);
        write!(
            f,
            "{} a second; client: {} well, {:?}; server: {} well, {:?}",
            rate.round(),
            client.well,
            client.failures,
            server.well,
            server.failures
        )
    }
}

impl Tally {
    /// Connections begun.
    pub fn total(&self) -> u64 {
        self.well + self.failures.values().sum::<u64>()
    }

    /// What fails more often here than in `direct`.
    pub fn worse_than<'a>(&'a self, direct: &'a Self) -> impl Iterator<Item = String> + 'a {
        self.failures.iter().filter_map(|(what, count)| {
            let usual = direct.failures.get(what).copied().unwrap_or(0);
            (*count > usual).then(|| format!("{what}: {count} times, without the mesh {usual}"))
        })
    }
}

/// A side's tally, written by its connections.
type Shared = Arc<Mutex<Tally>>;

fn note(tally: &Shared, result: Result<(), Failure>) {
    let mut tally = tally.lock().unwrap_or_else(PoisonError::into_inner);
    match result {
        Ok(()) => tally.well += 1,
        Err(Failure { call, what }) => *tally.failures.entry(format!("{call} {what}")).or_default() += 1,
    }
}

fn taken(tally: &Shared) -> Tally {
    tally.lock().unwrap_or_else(PoisonError::into_inner).clone()
}

/// A call and what it gave.
struct Failure {
    call: &'static str,
    what: String,
}

impl Failure {
    fn of(call: &'static str, error: &io::Error) -> Self {
        let what = match error.raw_os_error() {
            Some(number) => format!("{:?}", Errno::from_raw(number)),
            None => format!("{:?}", error.kind()),
        };
        Self { call, what }
    }
}

/// Waits for a call, within limits.
async fn call<T>(call: &'static str, work: impl Future<Output = io::Result<T>>) -> Result<T, Failure> {
    match timeout(CALL_LIMIT, work).await {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(error)) => Err(Failure::of(call, &error)),
        Err(_) => Err(Failure { call, what: "timed out".to_owned() }),
    }
}

fn expect(right: bool, call: &'static str, what: &str) -> Result<(), Failure> {
    if right { Ok(()) } else { Err(Failure { call, what: what.to_owned() }) }
}

impl Load {
    /// Makes the connections from one namespace to another; returns when all have ended.
    pub fn run(&self, client: &Netns, server: &Netns) -> Result<Report> {
        let (ready, listening) = channel();
        let (finish, finished) = watch::channel(());
        std::thread::scope(|scope| {
            let serving = scope.spawn(move || server.within(|| runtime()?.block_on(self.serve(ready, finished))));
            // When it cannot listen, its error says why.
            let asked = listening.recv().ok().map(|()| client.within(|| runtime()?.block_on(self.ask())));
            drop(finish);
            let server = serving.join().map_err(|_| anyhow::anyhow!("the serving thread panicked"))??;
            let (client, took) = asked.context("nobody listened")??;
            Ok(Report { client, server, took })
        })
    }

    async fn ask(&self) -> Result<(Tally, Duration)> {
        let tally = Shared::default();
        let places = Arc::new(Semaphore::new(AT_ONCE));
        let mut tasks = JoinSet::new();
        let began = Instant::now();
        let mut targets = self.to.iter().copied().cycle();
        for number in 0..self.count {
            while (began.elapsed().as_secs_f64() * f64::from(self.rate)) < number as f64 {
                sleep(TICK).await;
            }
            let place = Arc::clone(&places).acquire_owned().await?;
            let to = targets.next().context("nowhere to connect to")?;
            let (form, tally) = (self.form, Arc::clone(&tally));
            tasks.spawn(async move {
                note(&tally, ask_one(form, to, number).await);
                drop(place);
            });
            while tasks.try_join_next().is_some() {}
        }
        while tasks.join_next().await.is_some() {}
        Ok((taken(&tally), began.elapsed()))
    }

    async fn serve(&self, ready: Sender<()>, finished: watch::Receiver<()>) -> Result<Tally> {
        let tally = Shared::default();
        let mut accepting = JoinSet::new();
        for at in &self.at {
            let socket = if at.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
            socket.set_reuseaddr(true)?;
            socket.bind(*at).with_context(|| format!("binding {at}"))?;
            accepting.spawn(accept_all(socket.listen(BACKLOG)?, self.form, Arc::clone(&tally), finished.clone()));
        }
        let _ = ready.send(());
        while accepting.join_next().await.is_some() {}
        Ok(taken(&tally))
    }
}

/// Accepts until the clients have ended and nobody is left in the queue, and serves all to their end.
async fn accept_all(listener: TcpListener, form: Form, tally: Shared, mut finished: watch::Receiver<()>) {
    let mut tasks = JoinSet::new();
    let mut last = false;
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            // The other end of the channel is dropped.
            _ = finished.changed(), if !last => { last = true; continue }
            () = sleep(QUEUE), if last => break,
        };
        match accepted {
            Ok((stream, _)) => {
                let tally = Arc::clone(&tally);
                tasks.spawn(async move { note(&tally, serve_one(form, stream).await) });
            }
            Err(error) => note(&tally, Err(Failure::of("accept", &error))),
        }
        while tasks.try_join_next().is_some() {}
    }
    while tasks.join_next().await.is_some() {}
}

/// Every byte says which connection it belongs to.
fn message(number: u64) -> [u8; MESSAGE] {
    let mut message = [0; MESSAGE];
    for (at, chunk) in message.chunks_mut(8).enumerate() {
        chunk.copy_from_slice(&number.wrapping_mul(at as u64 + 1).to_be_bytes());
    }
    message
}

async fn ask_one(form: Form, to: SocketAddr, number: u64) -> Result<(), Failure> {
    let mut stream = call("connect", TcpStream::connect(to)).await?;
    let asked = message(number);
    call("write", stream.write_all(&asked)).await?;
    let mut answer = [0; MESSAGE];
    call("read", stream.read_exact(&mut answer)).await?;
    expect(answer == asked, "read", "another connection's bytes")?;
    match form {
        Form::ServerFirst => ends(&mut stream).await,
        Form::ClientReset => call("linger", async { SockRef::from(&stream).set_linger(Some(Duration::ZERO)) }).await,
        Form::ClientFirst => Ok(()),
    }
}

async fn serve_one(form: Form, mut stream: TcpStream) -> Result<(), Failure> {
    let mut asked = [0; MESSAGE];
    call("read", stream.read_exact(&mut asked)).await?;
    call("write", stream.write_all(&asked)).await?;
    match form {
        Form::ServerFirst => Ok(()),
        Form::ClientFirst => ends(&mut stream).await,
        Form::ClientReset => match timeout(CALL_LIMIT, stream.read(&mut asked)).await {
            Ok(Err(error)) if error.kind() == io::ErrorKind::ConnectionReset => Ok(()),
            other => Err(Failure { call: "end", what: format!("{other:?} instead of a reset") }),
        },
    }
}

/// The other side must close now, in order.
async fn ends(stream: &mut TcpStream) -> Result<(), Failure> {
    let more = call("end", stream.read(&mut [0])).await?;
    expect(more == 0, "end", "bytes")
}

fn runtime() -> Result<Runtime> {
    tokio::runtime::Builder::new_current_thread().enable_all().build().context("making a runtime")
}
