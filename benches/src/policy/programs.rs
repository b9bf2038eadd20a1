//! What a verdict costs in the kernel: the real program on SYNs that it refuses, asked by its stage alone and by rules.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::thread;

use anyhow::{Context, Result, anyhow};
use kumiko_abi::config::config_flags;
use kumiko_abi::policy::{CELLS_LEN, CHUNKS_LEN, COLUMNS_LEN, NO_SET, ROWS_LEN, SETS_LEN};
use kumiko_abi::programs::POD_EGRESS;
use kumiko_abi::{Config, Endpoint, Reason};
use kumiko_core::compile::{self, Attached, AttachedEndpoint, Desired, Handles, net_key};
use kumiko_core::model::World;
use kumiko_core::stage::Phase;
use kumiko_kernel::bpf::{Datapath, LoadOptions, Maps, ObjectSource, Verdicts, pin_dir};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

use super::Follower;
use super::world::{Cluster, NODE, PORTS, RULES};

/// The hook's interface: a test run needs one that is there.
const HERE: u32 = 1;
/// Frames of each measurement.
const FRAMES: usize = 20_000;
/// The same where the processor's caches are emptied before each.
const COLD_FRAMES: usize = 100;
/// Bytes that are written to for that: more than the caches hold.
const CACHES: usize = 64 << 20;
/// Bytes of a cache line.
const LINE: usize = 64;
/// Rounds, each of all frames in all forms.
const ROUNDS: usize = 5;
/// Frames until it is the other form's turn: soon, since the machine is faster now and slower then.
const TURN: usize = 500;

/// Measures on a thread with namespaces of its own.
pub(super) fn run(text: &mut String) -> Result<()> {
    if !ObjectSource::embedded_present() {
        text.push_str("No kernel programs in this build.\n");
        return Ok(());
    }
    let dir = tempfile::tempdir().context("a directory")?;
    let path = dir.path().to_owned();
    let worker = thread::spawn(move || measure(&path));
    text.push_str(&worker.join().map_err(|_| anyhow!("the measurement panicked"))??);
    Ok(())
}

fn measure(dir: &Path) -> Result<String> {
    unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWNET).context("own namespaces (needs root)")?;
    let none = None::<&str>;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).context("a private mount namespace")?;
    mount(Some("bpf"), dir, Some("bpf"), MsFlags::empty(), none).context("a bpf file system")?;
    kumiko_lab::command::run("ip", &["link", "set", "lo", "up"])?;
    let mut text = String::from(
        "\nOne SYN in the clear from a random workload to a local pod at strict, refused; ns of `pod_egress` by \
         BPF_PROG_TEST_RUN, medians. *Rules* asks the pod's set, *stage alone* is the same pod without one.\n\n\
         | rules in the cluster | frames | stage alone | rules | difference |\n|---|---|---|---|---|\n",
    );
    for policies in [1, 100, 10_000] {
        let mut cluster = Cluster::new(policies)?;
        let world = cluster.world()?;
        let mut follower = Follower::new();
        follower.step(&world)?;
        let pins = pin_dir(&dir.join(policies.to_string()));
        std::fs::create_dir_all(&pins).with_context(|| format!("making {}", pins.display()))?;
        let datapath = Datapath::load(&LoadOptions { object: ObjectSource::Embedded, pin_dir: pins })?;
        let node = Placed::new(&datapath, &world, &follower)?;
        let (same, random) = (node.same(), node.random(&world));
        let few: Vec<Vec<u8>> = random.iter().take(COLD_FRAMES).cloned().collect();
        let kinds = [
            ("one, again and again", same, 0),
            ("random peer and port", random, 0),
            ("the same, caches emptied", few, CACHES),
        ];
        for (frames, made, caches) in kinds {
            let [alone, ruled] = node.measure(&made, &mut vec![0; caches])?;
            let _ = writeln!(
                text,
                "| {} | {frames} | {alone} | {ruled} | {} |",
                policies * RULES,
                i64::from(ruled) - i64::from(alone)
            );
        }
    }
    Ok(text)
}

/// A local pod whose hook is run.
struct Placed<'a> {
    datapath: &'a Datapath,
    maps: Maps,
    /// Without a set, and with its own.
    forms: [Endpoint; 2],
    ip: Ipv4Addr,
    peer: Ipv4Addr,
}

fn v4(world: &World, name: &str) -> Result<Ipv4Addr> {
    let of = world.workload(name).with_context(|| format!("{name} is not there"))?;
    let first = of.ips.iter().find_map(|ip| if let IpAddr::V4(ip) = ip { Some(*ip) } else { None });
    first.with_context(|| format!("{name} has no IPv4"))
}

impl<'a> Placed<'a> {
    fn new(datapath: &'a Datapath, world: &World, follower: &Follower) -> Result<Self> {
        let (maps, image) = (datapath.maps(), follower.image());
        let endpoint = |(at, workload): (u32, &std::sync::Arc<kumiko_core::model::Workload>)| {
            let phase = Phase::Enforcing(workload.stage);
            let ifindex = if workload.uid == "u0-0" { HERE } else { 100 + at };
            let of = AttachedEndpoint { ifindex, phase, fast: false, pod_mac: [2; 6], gateway_mac: [4; 6], master: 0 };
            (workload.uid.clone(), of)
        };
        let attached: Attached = (0..).zip(world.workloads_on(NODE)).map(endpoint).collect();
        let mut handles = Handles::default();
        handles.assign(world, NODE);
        let mut desired = compile::compile(world, NODE, &attached, &handles, &BTreeSet::new());
        desired.judge_by(image, world, world, &attached, &Desired::default());
        maps.set_verdicts(&Verdicts {
            sets: (image.begin(SETS_LEN), &image.sets),
            rows: (image.begin(ROWS_LEN), &image.rows),
            chunks: (image.begin(CHUNKS_LEN), &image.chunks),
            columns: (image.begin(COLUMNS_LEN), &image.columns),
            cells: (image.begin(CELLS_LEN), &image.cells),
        })?;
        desired.workloads.iter().try_for_each(|(handle, workload)| maps.set_workload(*handle, workload))?;
        desired.addrs.iter().try_for_each(|(addr, entry)| maps.set_addr(addr, entry))?;
        desired.nets.iter().try_for_each(|(net, classes)| maps.set_net(&net_key(*net), *classes))?;
        let mut config =
            Config { generation: 1, shards: 1, agent_ifindex: 77, epoch: image.epoch, ..Config::default() };
        config.flags = config_flags::FAST_PATH;
        maps.set_config(&config)?;
        maps.init_use(HERE)?;
        let own = *desired.endpoints.get(&HERE).context("the pod's endpoint")?;
        let forms = [Endpoint { set: [NO_SET; 2], ..own }, own];
        Ok(Self { datapath, maps, forms, ip: v4(world, "u0-0")?, peer: v4(world, "u4242-3")? })
    }

    fn same(&self) -> Vec<Vec<u8>> {
        let [port, ..] = PORTS;
        vec![syn(self.peer, self.ip, 40_000, port); FRAMES]
    }

    fn random(&self, world: &World) -> Vec<Vec<u8>> {
        let of = |ip: &IpAddr| if let IpAddr::V4(ip) = ip { Some(*ip) } else { None };
        let peers: BTreeMap<usize, Ipv4Addr> =
            world.workloads().filter_map(|workload| workload.ips.iter().find_map(of)).enumerate().collect();
        let mut seed = 1_u64;
        let mut next = |below: usize| {
            // Knuth's MMIX; its high bits are good enough.
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            usize::try_from(seed >> 33).unwrap_or_default() % below
        };
        let frame = |_| {
            let peer = peers.get(&next(peers.len())).copied().unwrap_or(self.peer);
            let [source, port] =
                [next(28_000) + 32_768, next(65_536)].map(|port| u16::try_from(port).unwrap_or_default());
            syn(peer, self.ip, source, port)
        };
        (0..FRAMES).map(frame).collect()
    }

    /// Medians, by form; `caches` is written to before each frame.
    fn measure(&self, frames: &[Vec<u8>], caches: &mut [u8]) -> Result<[u32; 2]> {
        let mut taken = [Vec::new(), Vec::new()];
        for begin in (0..ROUNDS * frames.len()).step_by(TURN.min(frames.len())) {
            // Not the same frames one after the other: the second form would find in the cache what the first has read.
            for (number, (form, taken)) in self.forms.iter().zip(&mut taken).enumerate() {
                self.maps.set_endpoint(HERE, form)?;
                let first = (begin + number * frames.len() / 2) % frames.len();
                for frame in frames.iter().cycle().skip(first).take(TURN.min(frames.len())) {
                    for byte in caches.iter_mut().step_by(LINE) {
                        *byte = black_box(byte.wrapping_add(1));
                    }
                    taken.push(self.datapath.test_time(POD_EGRESS, frame, Some(&context()))?);
                }
            }
        }
        let reasons = self.maps.reasons()?;
        let met = |reason: Reason| reasons.get(reason as usize).copied().unwrap_or_default();
        if met(Reason::TeamDefault) == 0 || met(Reason::PlaintextRefused) == 0 {
            return Err(anyhow!("nothing was asked: {reasons:?}"));
        }
        let median = |mut of: Vec<u32>| {
            of.sort_unstable();
            of.get(of.len() / 2).copied().unwrap_or_default()
        };
        Ok(taken.map(median))
    }
}

/// `struct __sk_buff`: 48 words, the tenth and the eleventh are the interfaces that it came in by and that the hook is on.
fn context() -> [u8; 192] {
    let mut context = [0; 192];
    for (at, index) in [(36, 99_u32), (40, HERE)] {
        for (to, from) in context.iter_mut().skip(at).zip(index.to_ne_bytes()) {
            *to = from;
        }
    }
    context
}

/// A SYN without options, its checksums left out.
fn syn(from: Ipv4Addr, to: Ipv4Addr, source: u16, port: u16) -> Vec<u8> {
    let mut frame = vec![2, 0, 0, 0, 0, 0x22, 2, 0, 0, 0, 0, 0x11, 8, 0];
    frame.extend([0x45, 0, 0, 40, 0, 0, 0, 0, 64, 6, 0, 0]);
    frame.extend(from.octets());
    frame.extend(to.octets());
    frame.extend(source.to_be_bytes());
    frame.extend(port.to_be_bytes());
    frame.extend([0, 0, 0, 1, 0, 0, 0, 0, 0x50, 2, 0xff, 0xff, 0, 0, 0, 0]);
    frame
}
