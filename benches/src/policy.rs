//! Policy at size: how long a node's tables take to make and to follow a change, and what a verdict costs in the kernel.

mod programs;
mod world;

use std::fmt::Write as _;
use std::time::Duration;

use anyhow::{Context, Result};
use kumiko_abi::policy::{Cell, Row};
use kumiko_abi::{Addr, AddrEntry, Workload};
use kumiko_core::model::World;
use kumiko_core::policy::compile::{Compiler, Image, Layout, runs};
use kumiko_core::policy::verdict::Evaluator;

use world::{Cluster, LOCAL, NODE, RULES, WORKLOADS};

/// Seconds since 1970 of all verdicts.
const NOW: i64 = 1_800_000_000;
/// Times that each change is made; medians are told.
const ROUNDS: usize = 5;
/// Policies of the largest cluster.
const POLICIES: usize = 10_000;

/// Tables that follow a cluster.
struct Follower {
    compiler: Compiler,
    layout: Layout,
    halves: [Image; 2],
    epoch: u32,
}

/// What one change took.
struct Step {
    compile: Duration,
    image: Duration,
    /// Elements of the maps that are another than two epochs ago.
    written: usize,
    classes: u32,
    sets: usize,
}

impl Follower {
    fn new() -> Self {
        Self { compiler: Compiler::new(NODE), layout: Layout::default(), halves: Default::default(), epoch: 0 }
    }

    fn step(&mut self, world: &World) -> Result<Step> {
        self.epoch += 1;
        let (compiled, compile) = timed(|| self.compiler.compile(&Evaluator::of(world), NOW));
        let compiled = compiled.context("compiling")?;
        let (image, making) = timed(|| self.layout.image(&compiled, NOW - 1_000, self.epoch));
        let image = image.context("placing")?;
        let half = self.halves.get_mut((self.epoch % 2) as usize).context("a half")?;
        let written = different(half, &image);
        *half = image;
        Ok(Step { compile, image: making, written, classes: compiled.classes, sets: compiled.sets.len() })
    }

    fn image(&self) -> &Image {
        let [even, odd] = &self.halves;
        if self.epoch.is_multiple_of(2) { even } else { odd }
    }
}

fn different(before: &Image, now: &Image) -> usize {
    fn of<T: PartialEq>(before: &[T], now: &[T]) -> usize {
        runs(before, now).iter().map(|(_, run)| run.len()).sum()
    }
    of(&before.sets, &now.sets)
        + of(&before.rows, &now.rows)
        + of(&before.chunks, &now.chunks)
        + of(&before.columns, &now.columns)
        + of(&before.cells, &now.cells)
}

/// The processor's time, not the clock's: the machine has other work, too.
fn timed<T>(work: impl FnOnce() -> T) -> (T, Duration) {
    let now = || {
        // Only now it is written down.
        std::thread::yield_now();
        let stat = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
        stat.split(' ').next().and_then(|nanos| nanos.parse().ok()).map_or(Duration::ZERO, Duration::from_nanos)
    };
    // Each large piece makes the allocator sort some of what others have freed, of the model before above all: not this work's.
    for _ in 0..1_000 {
        drop(std::hint::black_box(vec![1_u8; 1 << 16]));
    }
    let begin = now();
    let done = work();
    (done, now().saturating_sub(begin))
}

/// Resident memory of this process, in KiB.
fn resident() -> Result<usize> {
    let status = std::fs::read_to_string("/proc/self/status").context("reading /proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("VmRSS")?;
    line.trim().trim_end_matches(" kB").parse().context("VmRSS")
}

/// Measures everything; the text is for docs/performance.md.
pub fn run(command: &str) -> Result<String> {
    let mut text = format!(
        "{}, Linux {}, {} processors, `{command}`.\n\n",
        kumiko_lab::command::run("date", &["-u", "+%Y-%m-%d"])?.trim(),
        kumiko_lab::command::run("uname", &["-r"])?.trim(),
        std::thread::available_parallelism().map_or(1, usize::from),
    );
    compiling(&mut text)?;
    programs::run(&mut text)?;
    Ok(text)
}

fn compiling(text: &mut String) -> Result<()> {
    let mut cluster = Cluster::new(POLICIES)?;
    let (world, building) = timed(|| cluster.world());
    let world = world?;
    let before = resident()?;
    let mut follower = Follower::new();
    let first = follower.step(&world)?;
    let after = resident()?;
    let image = follower.image();
    let _ = writeln!(
        text,
        "{POLICIES} policies of {RULES} rules, {WORKLOADS} workloads, {LOCAL} of them local: {} sets, {} classes, {} rows, \
         {} cells, {} port tables; the model itself takes {building:.0?} to build.\n",
        first.sets,
        first.classes,
        image.rows.len(),
        image.cells.len(),
        image.chunks.len() / 1_024,
    );
    let kernel = image.rows.len() * size_of::<Row>()
        + image.cells.len() * size_of::<Cell>()
        + image.chunks.len() * 4
        + image.columns.len() * 64;
    let agent = after.saturating_sub(before);
    let elements = |ips: usize| {
        let sizes = [size_of::<u32>() + size_of::<Workload>(), ips * (size_of::<Addr>() + size_of::<AddrEntry>())];
        sizes.iter().sum::<usize>()
    };
    let workloads: usize = world.workloads().map(|workload| elements(workload.ips.len())).sum();
    let _ = writeln!(
        text,
        "Tables in use: {} KiB in the kernel for an epoch, {} bytes for each rule about a local pod; {agent} KiB in the agent, {} \
         bytes for each workload. Each workload takes {} bytes of keys and values in the kernel, itself and its addresses.\n",
        kernel / 1_024,
        kernel / (LOCAL * RULES),
        agent * 1_024 / WORKLOADS,
        workloads / WORKLOADS,
    );
    text.push_str(
        "Processor time of one thread:\n\n| change | compile | place | elements written |\n|---|---|---|---|\n",
    );
    let mut row = |what: &str, steps: &[Step]| {
        let median = |of: fn(&Step) -> Duration| {
            let mut all: Vec<Duration> = steps.iter().map(of).collect();
            all.sort_unstable();
            all.get(all.len() / 2).copied().unwrap_or_default()
        };
        let written = steps.iter().map(|step| step.written).max().unwrap_or_default();
        let (compile, image) = (median(|step| step.compile), median(|step| step.image));
        let _ = writeln!(text, "| {what} | {compile:.1?} | {image:.1?} | {written} |");
    };
    row("everything, from scratch", &[first]);
    // Both halves, and what the first time costs the memory.
    row("none, the other half", &[follower.step(&world)?]);
    let mut world = world;
    let mut steps: Vec<Vec<Step>> = CHANGES.iter().map(|_| Vec::new()).collect();
    for _ in 0..ROUNDS {
        for ((_, change), steps) in CHANGES.iter().zip(&mut steps) {
            change(&mut cluster)?;
            world = cluster.world()?.sharing(&world);
            steps.push(follower.step(&world)?);
            // The half that is not meant has the change, too, before the next one.
            follower.step(&world)?;
        }
    }
    for ((what, _), steps) in CHANGES.iter().zip(&steps) {
        row(what, steps);
    }
    Ok(())
}

type Change = fn(&mut Cluster) -> Result<()>;

const CHANGES: &[(&str, Change)] = &[
    ("none, but a new model", |_| Ok(())),
    ("a remote pod goes, its class stays", |cluster| cluster.remove_pod(Cluster::unnamed_peer(), 1)),
    ("a remote pod comes, its class is there", |cluster| cluster.add_pod(Cluster::unnamed_peer(), 1, false)),
    ("the last pods go that some rule names", |cluster| {
        (0..5).try_for_each(|pod| cluster.remove_pod(Cluster::named_peer(), pod))
    }),
    ("the first pod comes that some rule names: a new class", |cluster| {
        cluster.add_pod(Cluster::named_peer(), 1, false)
    }),
    ("a local pod goes, with its set", |cluster| cluster.remove_pod(1, 0)),
    ("a local pod comes, with a set of its own", |cluster| cluster.add_pod(1, 0, false)),
    ("a local pod is made anew, with its set", |cluster| cluster.add_pod(2, 0, true)),
    ("a policy about a local pod", |cluster| cluster.change_policy(3)),
    ("a policy about no local pod", |cluster| cluster.change_policy(LOCAL + 1)),
];
