//! `kumiko-agent run`: puts the parts together, and takes them apart in order.

mod cleanup;
mod feeds;
mod inputs;
mod limits;
mod view;

use std::net::TcpListener as StdListener;
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context as _, bail};
use kumiko_abi::Config;
use kumiko_abi::config::config_flags;
use kumiko_core::model::node_hash;
use kumiko_kernel::agent_ns::AgentNs;
use kumiko_kernel::alive::{HostLock, PinLock, RunLock, patiently};
use kumiko_kernel::bpf::{self, Datapath, LoadOptions, ObjectSource};
use kumiko_kernel::inject::{IcmpInjector, Injector};
use kumiko_kernel::netns::Netns;
use kumiko_kernel::readable::Readable;
use kumiko_kernel::sockets;
use tokio::sync::watch;
use tracing::{info, warn};

use crate::identity::Manager;
use crate::options::{RunOptions, WithoutAgent};
use crate::reconcile::{Reconciled, Reconciler};
use crate::shard::{self, Common, Parts, Refusals, Registry, TunnelList};
use crate::signals::EndSignals;
use crate::source::Source;
use crate::telemetry::{Collector, CurrentNames, Settings, flow_reports};

use inputs::{Inputs, listen_for_metrics};

pub use cleanup::cleanup;

/// Entries that the flow table holds, as the object declares it.
const TABLE_CAPACITY: u64 = 262_144;
/// Between two looks at whether all flows have ended.
const DRAIN_LOOK: Duration = Duration::from_millis(100);

/// Where the kernel programs come from.
pub(crate) fn object(path: Option<&Path>) -> anyhow::Result<ObjectSource> {
    match path {
        Some(path) => Ok(ObjectSource::File(path.to_owned())),
        None if ObjectSource::embedded_present() => Ok(ObjectSource::Embedded),
        None => bail!(
            "this binary has no kernel programs built in: build it with `cargo xtask build`, or name --bpf-object"
        ),
    }
}

/// Runs the agent until SIGTERM, SIGINT or SIGHUP. The process has to be in the node's host namespace.
pub fn run(options: &RunOptions) -> anyhow::Result<()> {
    let places = &options.places;
    limits::raise_descriptors();
    let inputs = Inputs::read(options)?;
    let _locks = (
        patiently(|| RunLock::acquire(&places.run_dir))?,
        patiently(HostLock::acquire)?,
        patiently(|| PinLock::acquire(&bpf::pin_root(&places.bpffs)))?,
    );
    let source = inputs::source(options)?;
    #[cfg(feature = "fault-points")]
    kumiko_fault::serve(&places.run_dir).context("socket of the fault points")?;
    let metrics = options.metrics.map(listen_for_metrics).transpose()?;
    let host = Netns::current().context("cannot open this process's network namespace")?;
    let agent = AgentNs::ensure(&places.run_dir, &places.netns_name, &host)?;
    let load = LoadOptions { object: inputs.object.clone(), pin_dir: bpf::pin_dir(&places.bpffs) };
    let datapath = Arc::new(Datapath::load_with_log(&load, options.bpf_log)?);
    if options.bpf_log > 0 {
        print_program_log(&datapath)?;
    }
    let shards = options.shards.unwrap_or_else(cores);
    let config = config(options, inputs.kubelet, &datapath, &agent, shards)?;
    // Before the hooks see it: no listener of the agent before us may be left for this generation.
    datapath.maps().clear_listeners()?;
    datapath.maps().set_config(&config)?;
    datapath.attach_agent_veth(agent.host_ifindex)?;
    datapath.attach_lookup(agent.netns.as_fd())?;
    info!(node = options.node, generation = config.generation, shards, "kernel part is up");

    let control = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .thread_name("control")
        .enable_all()
        .build()
        .context("control runtime")?;
    control.block_on(serve(options, (inputs.manager, source), metrics, host, agent, datapath, config))
}

/// The agent after its kernel part is up.
async fn serve(
    options: &RunOptions,
    (manager, mut source): (Manager, Source),
    metrics: Option<StdListener>,
    host: Netns,
    agent: AgentNs,
    datapath: Arc<Datapath>,
    config: Config,
) -> anyhow::Result<()> {
    let mut signals = EndSignals::new().context("handlers of signals")?;
    let (drain, draining) = watch::channel(false);
    let (end, ended) = watch::channel(false);

    // A folder that is not there is waited for; a signal ends that too.
    tokio::select! {
        synced = source.synced() => drop(synced.context("the source ended before its first reading")?),
        () = signals.recv() => return Ok(()),
    }

    let identities = manager.identities();
    tokio::spawn(manager.run(source.world.clone(), wait_for(ended.clone())));

    let registry = Registry::default();
    let reconcile = crate::reconcile::Options {
        node: options.node.clone(),
        run_dir: options.places.run_dir.clone(),
        datapath: datapath.clone(),
        host: host.try_clone()?,
        agent: agent.netns.try_clone()?,
        agent_ifindex: agent.host_ifindex,
        carried: Some(Box::new(registry.clone())),
    };
    let (reconciler, reconciled) = Reconciler::new(reconcile, source.world.clone())?;
    let reconcile_until = ended.clone();
    let control_loop = spawn_local_thread("reconcile", move || async move {
        tokio::select! {
            ended = reconciler.run() => ended,
            () = wait_for(reconcile_until) => Ok(()),
        }
    })?;

    let (sink, reports) = flow_reports();
    let settings = Settings::new(&options.node, Duration::from_secs(options.idle_check), TABLE_CAPACITY);
    let collector = Collector::new(settings, reports, options.collect_every());
    let telemetry = collector.telemetry();
    telemetry.set_directory(Arc::new(CurrentNames::new(reconciled.state.clone())));
    let flows =
        Box::new(feeds::Flows::new(&datapath, reconciled.state.clone(), host.try_clone()?, agent.netns.try_clone()?));
    let events = datapath.event_ring()?;
    let collect_until = ended.clone();
    let collecting = spawn_local_thread("collect", move || async move {
        let events = feeds::Events::new(events)?;
        collector.run(flows, events, wait_for(collect_until)).await
    })?;

    let common = Common {
        node: options.node.as_str().into(),
        generation: config.generation,
        agent_ifindex: agent.host_ifindex,
        state: reconciled.state.clone(),
        changed: reconciled.changed.clone(),
        identities: identities.clone(),
        commands: datapath.commands(),
        flows: datapath.flows(),
        sink,
        registry,
        tunnels: TunnelList::default(),
        refusals: Refusals::default(),
        drain: draining.clone(),
    };
    let mut threads = Vec::new();
    for index in 0..config.shards {
        threads.push(start_shard(index, &common, &datapath, &host, &agent, ended.clone())?);
    }
    tokio::spawn(stop_gone(reconciled.clone(), common.registry.clone()));

    let view = Arc::new(view::View::new(
        options,
        &config,
        &datapath,
        &source,
        &common,
        &telemetry,
        &reconciled,
        draining.clone(),
    ));
    view::serve(options, metrics, view, ended.clone())?;
    info!(node = options.node, "serving");

    let failed = tokio::select! {
        () = signals.recv() => None,
        died = watch_threads(&mut threads) => Some(died),
        died = watch_threads_one(&control_loop) => Some(died),
        died = watch_threads_one(&collecting) => Some(died),
    };
    if let Some(what) = failed {
        // State in doubt is never used: without one of its threads the agent is not an agent.
        bail!("{what} ended: the agent stops, the kernel part goes on judging");
    }
    leave(options, &datapath, &common, &drain, &end).await;
    for thread in threads {
        join(thread).await;
    }
    join(collecting).await;
    join(control_loop).await;
    Ok(())
}

/// Takes no new work, lets open flows end within the time limit, then resets them.
async fn leave(
    options: &RunOptions,
    datapath: &Datapath,
    common: &Common,
    drain: &watch::Sender<bool>,
    end: &watch::Sender<bool>,
) {
    info!(flows = common.registry.len(), seconds = options.drain_timeout, "draining");
    if let Err(error) = datapath.maps().clear_listeners() {
        warn!(%error, "listeners stay until the process ends");
    }
    drain.send_replace(true);
    let deadline = tokio::time::Instant::now() + Duration::from_secs(options.drain_timeout);
    while !common.registry.is_empty() && tokio::time::Instant::now() < deadline {
        tokio::time::sleep(DRAIN_LOOK).await;
    }
    let reset = common.registry.stop_all(kumiko_abi::Reason::AgentClosing);
    if reset > 0 {
        info!(flows = reset, "reset what had not ended");
        let _ = tokio::time::timeout(Duration::from_secs(1), async {
            while !common.registry.is_empty() {
                tokio::time::sleep(DRAIN_LOOK).await;
            }
        })
        .await;
    }
    end.send_replace(true);
}

fn config(
    options: &RunOptions,
    (kubelet_cgroup, kubelet_level): (u64, u32),
    datapath: &Datapath,
    agent: &AgentNs,
    shards: u32,
) -> anyhow::Result<Config> {
    let before = datapath.maps().config()?;
    let clear = options.permissive_without_agent == WithoutAgent::Clear;
    Ok(Config {
        kubelet_cgroup,
        kubelet_level,
        generation: before.generation.wrapping_add(1).max(1),
        epoch: before.epoch,
        host_class: before.host_class,
        shards,
        agent_ifindex: agent.host_ifindex,
        flags: config_flags::FAST_PATH | if clear { config_flags::PERMISSIVE_WITHOUT_AGENT } else { 0 },
        node_hash: node_hash(&options.node),
        agent_mac: agent.agent_mac,
        ..Config::default()
    })
}

fn cores() -> u32 {
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    u32::try_from(cores).unwrap_or(kumiko_abi::MAX_SHARDS).min(kumiko_abi::MAX_SHARDS)
}

/// Makes a shard's sockets and starts its thread in the agent's namespace.
fn start_shard(
    index: u32,
    common: &Common,
    datapath: &Datapath,
    host: &Netns,
    agent: &AgentNs,
    end: watch::Receiver<bool>,
) -> anyhow::Result<JoinHandle<()>> {
    let number = u16::try_from(index).context("shard number")?;
    let syns = datapath.syn_ring(number)?;
    let mut listeners = Vec::new();
    for v6 in [false, true] {
        let listener = agent.netns.within(|| sockets::transparent_listener(v6)).context("transparent listener")?;
        datapath.maps().set_listener(number, v6, listener.as_fd())?;
        listeners.push(listener);
    }
    let injector = host.within(|| Injector::new(agent.host_ifindex, agent.agent_mac)).context("packet socket")?;
    let parts = Parts {
        index,
        syns,
        listeners,
        injector,
        icmp: agent.netns.within(|| IcmpInjector::new(agent)).context("packet socket in the agent's namespace")?,
        host: host.try_clone()?,
    };
    let (common, netns) = (common.clone(), agent.netns.try_clone()?);
    let work = move || {
        let result =
            netns.enter().context("cannot enter the agent's namespace").and_then(|()| shard::run(common, parts, end));
        if let Err(error) = result {
            tracing::error!(shard = index, "{error:#}");
        }
    };
    std::thread::Builder::new().name(format!("shard-{index}")).spawn(work).context("shard's thread")
}

/// Hands what the kernel programs log to the agent's own log, for as long as the process lives.
fn print_program_log(datapath: &Datapath) -> anyhow::Result<()> {
    let mut logger = datapath.logger().context("the kernel programs' log")?;
    spawn_local_thread("bpf-log", move || async move {
        let readable = Readable::new(&logger)?;
        readable
            .wait(|| {
                logger.flush();
                None::<()>
            })
            .await
    })?;
    Ok(())
}

/// Runs a task that need not be `Send` on a thread of its own.
fn spawn_local_thread<F, Fut, E>(name: &'static str, make: F) -> anyhow::Result<JoinHandle<()>>
where
    F: FnOnce() -> Fut + Send + 'static,
    Fut: Future<Output = Result<(), E>>,
    E: std::fmt::Display,
{
    let work = move || {
        let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
            Ok(runtime) => runtime,
            Err(error) => return tracing::error!(thread = name, %error, "runtime"),
        };
        if let Err(error) = runtime.block_on(make()) {
            tracing::error!(thread = name, %error, "thread ended");
        }
    };
    std::thread::Builder::new().name(name.into()).spawn(work).with_context(|| format!("thread {name}"))
}

/// Ends the flows of workloads that are gone.
async fn stop_gone(reconciled: Reconciled, registry: Registry) {
    use tokio::sync::broadcast::error::RecvError;
    let mut gone = reconciled.gone.subscribe();
    loop {
        match gone.recv().await {
            Ok(gone) => {
                registry.stop_workload(gone.handle, kumiko_abi::Reason::EndpointGone);
            }
            Err(RecvError::Lagged(_)) => {
                let state = reconciled.state.load_full();
                registry.stop_unless(|handle| {
                    handle == 0 || state.workload_of(handle).is_some_and(|w| state.world.workload(&w.uid).is_some())
                });
            }
            Err(RecvError::Closed) => return,
        }
    }
}

async fn wait_for(mut flag: watch::Receiver<bool>) {
    // The sender's end means the same.
    let _ = flag.wait_for(|over| *over).await;
}

/// Returns when one of the threads has ended, which none should.
async fn watch_threads(threads: &mut [JoinHandle<()>]) -> &'static str {
    loop {
        if threads.iter().any(JoinHandle::is_finished) {
            return "a shard";
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}

async fn watch_threads_one(thread: &JoinHandle<()>) -> &'static str {
    while !thread.is_finished() {
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    "the control loop or the collector"
}

async fn join(thread: JoinHandle<()>) {
    let _ = tokio::task::spawn_blocking(move || thread.join()).await;
}
