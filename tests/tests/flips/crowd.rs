//! Thousands of open connections, half of them idle, when the rules change: exactly those that lost their right are cut, at
//! both ends, and nothing that is written once `kumiko policy apply --wait` has returned comes to the other end.

use std::collections::BTreeMap;
use std::io::{Error, ErrorKind, Result as Io};
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicUsize, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use kumiko_lab::agents::binary;
use kumiko_lab::command::{Never, wait_for};
use kumiko_lab::{Family, Lab, LabSpec, Net, PodSpec, Stage};
use kumiko_tests::own_port::{OwnPorts, any};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::timeout;

/// Connections, unless told otherwise.
const CONNECTIONS: usize = 5_000;
/// Further descriptors of this process.
const OTHERS: u64 = 500;
/// Connects at once.
const AT_ONCE: usize = 200;
const BACKLOG: u32 = 4_096;
/// Between two questions of a connection that is not idle.
const PAUSE: Duration = Duration::from_millis(500);
/// Nobody waits longer.
const PATIENCE: Duration = Duration::from_secs(60);
/// Bytes of a question, and of its answer.
const MESSAGE: usize = 64;
/// What is written before the command has returned, and after it.
const BEFORE: u8 = 1;
const AFTER: u8 = 2;
/// What the rules let through, and what they do not.
const OPEN: u16 = 20_000;
const SHUT: u16 = 20_001;
const FAMILIES: [Family; 2] = [Family::V4, Family::V6];

/// Who calls whom at which port, and whether that stays.
const GROUPS: [(&str, &str, u16, bool); 6] = [
    ("client-1", "server-1", OPEN, true),
    ("client-1", "server-2", OPEN, true),
    ("client-1", "server-1", SHUT, false),
    ("client-1", "server-2", SHUT, false),
    ("other-1", "server-1", OPEN, false),
    ("other-1", "server-2", OPEN, false),
];

const RULES: &str = "
apiVersion: kumiko.dev/v1alpha1
kind: MeshPolicy
metadata: {name: server, namespace: demo}
spec:
  subject: {labels: {app: server}}
  ingress:
    - {name: own, from: [{namespace: demo}], ports: [{port: 20000}]}
";

/// One connection, as its client has it.
struct Call {
    what: String,
    /// Its port.
    from: u16,
    to: SocketAddr,
    stays: bool,
    idle: bool,
}

/// What came of it: it was answered after the command had returned, or how it ended.
type Told = (Call, Result<std::net::TcpStream, String>);

/// One connection, as its server has it.
struct Served {
    peer: SocketAddr,
    port: u16,
    /// Bytes that were written after the command had returned.
    late: AtomicUsize,
    /// How it ended.
    end: Mutex<Option<String>>,
}

/// What everybody shares.
struct Shared {
    tag: AtomicU8,
    /// From here on a connection may be cut.
    changing: AtomicBool,
    opened: AtomicUsize,
    /// Those that ended before anything changed.
    early: AtomicUsize,
    answered: AtomicUsize,
    served: Mutex<Vec<Arc<Served>>>,
    /// Whether the command has returned.
    returned: watch::Sender<bool>,
    /// Whether the servers may go.
    over: watch::Sender<bool>,
    places: Semaphore,
}

fn connections() -> Result<usize> {
    match std::env::var("KUMIKO_FLIP_CONNECTIONS") {
        Ok(text) => text.parse().context("KUMIKO_FLIP_CONNECTIONS"),
        Err(_) => Ok(CONNECTIONS),
    }
}

/// Both ends of each connection are this process's.
fn allow_descriptors(count: usize) -> Result<()> {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).context("the limit of descriptors")?;
    let wanted = 2 * u64::try_from(count)? + OTHERS;
    ensure!(
        hard >= wanted,
        "{count} connections take {wanted} descriptors, and {hard} may be opened: raise the hard limit (ulimit -Hn), or say \
         KUMIKO_FLIP_CONNECTIONS"
    );
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).context("raising the limit of descriptors")
}

pub(super) fn cut() -> Result<()> {
    let count = connections()?;
    allow_descriptors(count)?;
    let name = format!("crowd-{}", std::process::id());
    let mut spec = LabSpec::standard(&name, 2, Net::Routed, Stage::Strict)
        .with_pod(PodSpec::new("other-1", "other", 1))
        .with_ports(OPEN, 2);
    for (_, stage) in &mut spec.namespaces {
        *stage = Stage::Strict;
    }
    let lab = Lab::up(&spec)?;
    crowd(&lab, count).map_err(|cause| cause.context(lab.evidence(20)))
}

/// Calls by their client, in turn over all groups, families, and ways to name the server: by the pod's own address, and by
/// the Service's. In each half of them are idle.
fn calls(lab: &Lab, count: usize) -> Result<BTreeMap<&'static str, Vec<Call>>> {
    let mut calls: BTreeMap<_, (OwnPorts, Vec<Call>)> = BTreeMap::new();
    let kinds = GROUPS.iter().flat_map(|group| FAMILIES.map(|family| (group, family)));
    let kinds = kinds.flat_map(|(group, family)| [true, false].map(|service| (group, family, service)));
    let kinds = kinds.flat_map(|(group, family, service)| [true, false].map(|idle| (group, family, service, idle)));
    for ((client, server, port, stays), family, service, idle) in kinds.cycle().take(count) {
        let what = format!("{client} to {server}:{port}, {family}, by its Service: {service}, idle: {idle}");
        let ip = if service { lab.service_ip(server, family) } else { lab.pod(server).map(|pod| pod.ip(family)) }?;
        let (ports, calls) = calls.entry(*client).or_default();
        let (from, to) = (ports.next(), SocketAddr::new(ip, *port));
        calls.push(Call { what, from, to, stays: *stays, idle });
    }
    Ok(calls.into_iter().map(|(client, (_, calls))| (client, calls)).collect())
}

fn crowd(lab: &Lab, count: usize) -> Result<()> {
    let calls = calls(lab, count)?;
    let busy = calls.values().flatten().filter(|call| !call.idle).count();
    let shared = Shared {
        tag: AtomicU8::new(BEFORE),
        changing: AtomicBool::new(false),
        opened: AtomicUsize::new(0),
        early: AtomicUsize::new(0),
        answered: AtomicUsize::new(0),
        served: Mutex::default(),
        returned: watch::Sender::new(false),
        over: watch::Sender::new(false),
        places: Semaphore::new(AT_ONCE),
    };
    let shared = Arc::new(shared);
    let servers = ["server-1", "server-2"].map(|name| lab.pod(name)).into_iter().collect::<Result<Vec<_>>>()?;
    let calls = calls.into_iter().map(|(name, calls)| Ok((lab.pod(name)?, calls))).collect::<Result<Vec<_>>>()?;
    let (ready, ready_ones) = channel();
    std::thread::scope(|scope| {
        let serving: Vec<_> = servers
            .into_iter()
            .map(|pod| {
                let (shared, ready) = (Arc::clone(&shared), ready.clone());
                scope.spawn(move || pod.netns.within(|| runtime()?.block_on(serve(pod.ips, &shared, ready))))
            })
            .collect();
        // Until both listen; a server that cannot says why when it is joined.
        drop(ready);
        let listening = ready_ones.iter().count();
        let calling: Vec<_> = calls
            .into_iter()
            .map(|(pod, calls)| {
                let shared = Arc::clone(&shared);
                scope.spawn(move || pod.netns.within(|| runtime()?.block_on(call_all(calls, &shared))))
            })
            .collect();
        let changed = if listening == 2 { change(lab, &shared, count, busy) } else { Err(anyhow!("nobody listens")) };
        // Everybody ends, whatever came of it.
        shared.returned.send_replace(true);
        let told: Vec<Result<Vec<Told>>> = calling.into_iter().map(joined).collect();
        let told = told.into_iter().collect::<Result<Vec<_>>>().map(|told| told.into_iter().flatten().collect());
        // What clients say comes first: it says which ones.
        let judged = told.and_then(|told: Vec<Told>| {
            wrong(&told, changed.is_ok())?;
            let took = changed?;
            ended(lab, &shared, count)?;
            let stayed = told.iter().filter(|(call, _)| call.stays).count();
            Ok((took, stayed))
        });
        shared.over.send_replace(true);
        serving.into_iter().try_for_each(joined)?;
        let (took, stayed) = judged?;
        eprintln!(
            "{count} connections, {busy} of them not idle: {stayed} stayed, the others were cut; `policy apply --wait` took {} \
             ms",
            took.as_millis()
        );
        Ok(())
    })
}

fn joined<T>(thread: std::thread::ScopedJoinHandle<'_, Result<T>>) -> Result<T> {
    match thread.join() {
        Ok(end) => end,
        Err(_) => bail!("a thread panicked"),
    }
}

/// Waits until all are open and the busy ones were answered, then lets the rules hold; how long the command took.
fn change(lab: &Lab, shared: &Shared, count: usize, busy: usize) -> Result<Duration> {
    wait_for("all are open", PATIENCE, || {
        let (opened, answered) = (shared.opened.load(Ordering::Relaxed), shared.answered.load(Ordering::Relaxed));
        let (served, early) = (served(shared).len(), shared.early.load(Ordering::Relaxed));
        if early > 0 {
            return Err(Never(format!("{early} have ended before anything changed")).into());
        }
        ensure!(opened == count && served == count, "{opened} and {served} of {count} are open");
        ensure!(answered >= busy, "{answered} answers for {busy}");
        Ok(())
    })?;
    let dir = lab.dir().join("documents");
    std::fs::create_dir_all(&dir)?;
    let file = dir.join("policy.yaml");
    std::fs::write(&file, RULES)?;
    let mut command = std::process::Command::new(binary("kumiko")?);
    command.arg("--socket").arg(lab.node(1)?.files.socket()).args(["policy", "apply"]).arg(&file);
    command.arg("--wait").arg("--also").arg(lab.node(2)?.files.socket());
    shared.changing.store(true, Ordering::Release);
    let begun = Instant::now();
    let output = command.output().context("kumiko policy apply")?;
    shared.tag.store(AFTER, Ordering::Release);
    let took = begun.elapsed();
    ensure!(output.status.success(), "{output:?}");
    Ok(took)
}

fn served(shared: &Shared) -> Vec<Arc<Served>> {
    shared.served.lock().unwrap_or_else(PoisonError::into_inner).clone()
}

/// What the servers saw: those of the cut ones were told, and nothing came to them; the others stand.
fn ended(lab: &Lab, shared: &Shared, count: usize) -> Result<()> {
    let own: Vec<IpAddr> = lab.pod("client-1")?.ips.to_vec();
    let stays = |one: &Served| one.port == OPEN && own.contains(&one.peer.ip());
    wait_for("servers are told", PATIENCE, || {
        let mut wrong = Vec::new();
        for one in served(shared) {
            let end = one.end.lock().unwrap_or_else(PoisonError::into_inner).clone();
            let right = match &end {
                None => stays(&one),
                Some(end) => !stays(&one) && end == "connection reset",
            };
            if !right {
                wrong.push(format!("{} at {}: {end:?}", one.peer, one.port));
            }
        }
        ensure!(wrong.is_empty(), "{} of {count}: {:?}", wrong.len(), wrong.get(..wrong.len().min(10)));
        Ok(())
    })?;
    let late: Vec<_> =
        served(shared).into_iter().filter(|one| !stays(one) && one.late.load(Ordering::Relaxed) > 0).collect();
    let late: Vec<SocketAddr> = late.iter().map(|one| one.peer).collect();
    ensure!(late.is_empty(), "bytes came to {} servers afterwards: {:?}", late.len(), late.get(..late.len().min(10)));
    Ok(())
}

fn wrong(told: &[Told], changed: bool) -> Result<()> {
    let right = |(call, end): &&Told| match end {
        Ok(_) => call.stays || !changed,
        Err(end) => !call.stays && end == "connection reset",
    };
    let wrong: Vec<String> =
        told.iter().filter(|one| !right(one)).map(|(call, end)| format!("{}: {end:?}", call.what)).collect();
    ensure!(wrong.is_empty(), "{} of {} clients: {:#?}", wrong.len(), told.len(), wrong.get(..wrong.len().min(10)));
    Ok(())
}

/// How an error reads, the same for each call that may be the first to tell of a reset.
fn name(error: &Error) -> String {
    match error.kind() {
        ErrorKind::ConnectionReset | ErrorKind::ConnectionAborted | ErrorKind::BrokenPipe => "connection reset".into(),
        _ => error.to_string(),
    }
}

async fn call_all(calls: Vec<Call>, shared: &Arc<Shared>) -> Result<Vec<Told>> {
    let mut tasks = JoinSet::new();
    for call in calls {
        let shared = Arc::clone(shared);
        tasks.spawn(async move {
            let end = one_call(&call, &shared).await.map_err(|error| name(&error));
            let early = end.is_err() && !shared.changing.load(Ordering::Acquire);
            shared.early.fetch_add(usize::from(early), Ordering::Relaxed);
            (call, if early { end.map_err(|error| format!("before anything changed: {error}")) } else { end })
        });
    }
    let mut told = Vec::new();
    while let Some(end) = tasks.join_next().await {
        told.push(end?);
    }
    Ok(told)
}

/// Asks until the command has returned, unless it is idle, and once after that.
async fn one_call(call: &Call, shared: &Shared) -> Io<std::net::TcpStream> {
    let mut stream = {
        let _place = shared.places.acquire().await.map_err(Error::other)?;
        let socket = if call.to.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
        socket.bind(SocketAddr::new(any(call.to), call.from))?;
        within(socket.connect(call.to)).await?
    };
    stream.set_nodelay(true)?;
    shared.opened.fetch_add(1, Ordering::Relaxed);
    let mut returned = shared.returned.subscribe();
    if !call.idle {
        while !*returned.borrow() {
            ask(&mut stream, shared.tag.load(Ordering::Acquire)).await?;
            shared.answered.fetch_add(1, Ordering::Relaxed);
            let _ = timeout(PAUSE, returned.wait_for(|returned| *returned)).await;
        }
    }
    returned.wait_for(|returned| *returned).await.map_err(Error::other)?;
    ask(&mut stream, AFTER).await?;
    stream.into_std()
}

async fn within<T>(work: impl Future<Output = Io<T>>) -> Io<T> {
    timeout(PATIENCE, work).await.unwrap_or_else(|_| Err(Error::other("nothing came")))
}

async fn ask(stream: &mut TcpStream, tag: u8) -> Io<()> {
    within(stream.write_all(&[tag; MESSAGE])).await?;
    let mut answer = [0; MESSAGE];
    within(stream.read_exact(&mut answer)).await?;
    if answer == [tag; MESSAGE] { Ok(()) } else { Err(Error::other("another answer")) }
}

async fn serve(ips: [IpAddr; 2], shared: &Arc<Shared>, ready: Sender<()>) -> Result<()> {
    let mut tasks = JoinSet::new();
    for (ip, port) in ips.into_iter().flat_map(|ip| [OPEN, SHUT].map(|port| (ip, port))) {
        let socket = if ip.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
        socket.bind(SocketAddr::new(ip, port)).with_context(|| format!("binding {ip}:{port}"))?;
        tasks.spawn(accept(socket.listen(BACKLOG)?, port, Arc::clone(shared)));
    }
    ready.send(()).context("nobody waits")?;
    drop(ready);
    let mut over = shared.over.subscribe();
    let _ = over.wait_for(|over| *over).await;
    Ok(())
}

async fn accept(listener: TcpListener, port: u16, shared: Arc<Shared>) {
    let mut tasks = JoinSet::new();
    while let Ok((stream, peer)) = listener.accept().await {
        let one = Arc::new(Served { peer, port, late: AtomicUsize::new(0), end: Mutex::new(None) });
        shared.served.lock().unwrap_or_else(PoisonError::into_inner).push(Arc::clone(&one));
        tasks.spawn(async move {
            let end = echo(stream, &one).await.map_or_else(|error| name(&error), |()| "end of the stream".into());
            *one.end.lock().unwrap_or_else(PoisonError::into_inner) = Some(end);
        });
    }
}

async fn echo(mut stream: TcpStream, one: &Served) -> Io<()> {
    stream.set_nodelay(true)?;
    let mut buffer = [0; 4 * MESSAGE];
    loop {
        let read = stream.read(&mut buffer).await?;
        let came = buffer.get(..read).unwrap_or_default();
        if came.is_empty() {
            return Ok(());
        }
        one.late.fetch_add(came.iter().filter(|byte| **byte == AFTER).count(), Ordering::Relaxed);
        stream.write_all(came).await?;
    }
}

fn runtime() -> Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread().enable_all().build().context("making a runtime")
}
