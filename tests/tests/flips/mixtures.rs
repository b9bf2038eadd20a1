//! Two versions that agree on every pair, of which any mixture says something else, take each other's place a thousand times
//! while clients call all the time.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use kumiko_lab::agents::binary;
use kumiko_lab::command::wait_for;
use kumiko_lab::{Family, Lab, state};
use kumiko_tests::echo::{Datagrams, Echo};
use kumiko_tests::in_force;
use serde_json::Value;

use super::callers::{Caller, Calls, Sink, Target};
use super::versions::{FILE, MIXED, PAIRS, PORT, Pair, Version, WHOLE, spec, take_pods};

/// Epochs of each node.
const FLIPS: u64 = 1_000;
/// Every other version goes through the command, which waits until it is in force; those between go straight into the folder.
const BY_COMMAND: usize = 2;
/// Between two looks at whether a version was read.
const LOOK: Duration = Duration::from_millis(3);
/// For one version to be read.
const READ_WITHIN: Duration = Duration::from_secs(60);
/// Of the rules that refuse here.
const REASONS: [&str; 2] = ["team_default", "network_policy_default"];
/// For a datagram to arrive.
const PASSING: Duration = Duration::from_secs(10);
const FAMILIES: [Family; 2] = [Family::V4, Family::V6];

/// The lab, and who serves in it.
struct World {
    lab: Lab,
    pods: BTreeMap<String, String>,
    _echoes: Vec<Echo>,
    _datagrams: Vec<Datagrams>,
    /// Where none may come, by the pod's name.
    sinks: Vec<(&'static str, Sink)>,
}

pub(super) fn never() -> Result<()> {
    let world = World::up()?;
    world.flips().map_err(|cause| cause.context(world.evidence()))
}

impl World {
    fn up() -> Result<Self> {
        let mut lab = Lab::build(&spec())?;
        let pods = take_pods(&lab)?;
        let [first, _] = WHOLE;
        state::replace(&lab.manifests().join(FILE), first.documents(&pods).as_bytes())?;
        lab.start_mesh()?;
        let (mut echoes, mut datagrams, mut sinks) = (Vec::new(), Vec::new(), Vec::new());
        for (_, server, allowed) in PAIRS {
            let pod = lab.pod(server)?;
            for family in FAMILIES {
                let at = SocketAddr::new(pod.ip(family), PORT);
                echoes.push(Echo::start(&pod.netns, at)?);
                if allowed {
                    datagrams.push(Datagrams::start(&pod.netns, at)?);
                } else {
                    sinks.push((server, Sink::open(&pod.netns, at)?));
                }
            }
        }
        Ok(Self { lab, pods, _echoes: echoes, _datagrams: datagrams, sinks })
    }

    /// What a failure's message should show: refused flows of those that both versions let, and the ends of the logs.
    fn evidence(&self) -> String {
        let mut text = String::new();
        for node in [1, 2] {
            let flows = self.lab.admin(node, "/v1/flows?verdict=deny&limit=20000").unwrap_or_default();
            let to = |flow: &&Value| flow.pointer("/destination/name").and_then(Value::as_str).map(str::to_owned);
            let wrong = |flow: &&Value| to(flow).is_some_and(|name| name.starts_with("open"));
            for flow in flows.as_array().into_iter().flatten().filter(wrong) {
                text += &format!("--- wrong on n{node}: {flow}\n");
            }
            text += &format!("--- refused on n{node}: {:?}\n", self.reasons(node));
        }
        text + &self.lab.logs(20)
    }

    /// For which reasons a node refused anything.
    fn reasons(&self, node: u8) -> Result<BTreeSet<String>> {
        let status = self.lab.admin(node, "/v1/status")?;
        let all = status.get("refused").and_then(Value::as_array).context("nothing is said of refusals")?;
        Ok(all.iter().filter_map(|one| one.get("reason")?.as_str()).map(str::to_owned).collect())
    }

    fn flips(&self) -> Result<()> {
        self.mixtures_differ()?;
        let (calls, before, begun) = (Calls::default(), self.epochs()?, Instant::now());
        let callers = ["near-1", "far-1"].map(|name| self.caller(name, |(client, ..)| *client == name));
        let callers = callers.into_iter().collect::<Result<Vec<_>>>()?;
        let versions = std::thread::scope(|scope| {
            let works = [Caller::connect, Caller::send, Caller::stand];
            let all = callers.iter().flat_map(|caller| works.map(|work| (caller, work)));
            let calling: Vec<_> = all
                .map(|(caller, work)| {
                    let calls = &calls;
                    scope.spawn(move || {
                        let end = work(caller, calls);
                        // Nobody goes on after a wrong verdict.
                        calls.stop.store(true, Ordering::Relaxed);
                        end
                    })
                })
                .collect();
            let versions = self.change(&calls, before);
            calls.stop.store(true, Ordering::Relaxed);
            for caller in calling {
                match caller.join() {
                    Ok(end) => end.context("a wrong verdict")?,
                    Err(_) => bail!("a caller panicked"),
                }
            }
            versions
        })?;
        for (server, sink) in &self.sinks {
            let came = sink.drain()?;
            ensure!(came == 0, "a wrong verdict: {came} datagrams came to {server}");
        }
        for node in [1, 2] {
            let others = self.reasons(node)?.into_iter().filter(|reason| !REASONS.contains(&reason.as_str()));
            let others: Vec<String> = others.collect();
            ensure!(others.is_empty(), "n{node} refused something for other reasons than its rules: {others:?}");
        }
        let made: Vec<u64> = self.epochs()?.iter().zip(before).map(|(now, [_, before])| now[1] - before).collect();
        ensure!(made.iter().all(|made| *made >= FLIPS), "{made:?} epochs");
        let count = |of: &std::sync::atomic::AtomicU64| of.load(Ordering::Relaxed);
        let (connects, datagrams, standing) = (count(&calls.connects), count(&calls.datagrams), count(&calls.standing));
        ensure!(connects > FLIPS && datagrams > FLIPS && standing > FLIPS, "{calls:?}");
        eprintln!(
            "{versions} versions in {} s made {} epochs on n1, {} on n2; meanwhile {connects} connects, {datagrams} first \
             datagrams, {standing} questions on what was open",
            begun.elapsed().as_secs(),
            made.first().unwrap_or(&0),
            made.last().unwrap_or(&0),
        );
        Ok(())
    }

    /// What is to be found out is there to be found: both versions say what [`PAIRS`] do, each mixture something else.
    fn mixtures_differ(&self) -> Result<()> {
        let all = MIXED.iter().copied().chain(WHOLE.map(|whole| (whole, &[][..])));
        for (version, others) in all {
            in_force::after(&self.lab, || self.put(version))?;
            for (number, pair) in PAIRS.iter().enumerate() {
                self.says(*pair, pair.2 != others.contains(&number)).with_context(|| format!("{version:?}"))?;
            }
        }
        Ok(())
    }

    /// Whether a pair is let.
    fn says(&self, (client, server, _): Pair, allowed: bool) -> Result<()> {
        let mut caller = self.caller(client, |pair| pair.1 == server)?;
        for target in &mut caller.targets {
            target.allowed = allowed;
        }
        caller.once()?;
        let sinks: Vec<&Sink> = self.sinks.iter().filter(|(name, _)| *name == server).map(|(_, sink)| sink).collect();
        // One for each address that it has, its own and its Service's.
        let wanted = if allowed { 2 } else { 0 };
        sinks.iter().try_for_each(|sink| {
            let mut came = 0;
            wait_for("datagrams come", PASSING, || {
                came += sink.drain()?;
                ensure!(came == wanted, "{client} to {server}: {came} datagrams came, not {wanted}");
                Ok(())
            })
        })
    }

    fn caller(&self, name: &'static str, pairs: impl Fn(&&Pair) -> bool) -> Result<Caller<'_>> {
        let mut targets = Vec::new();
        for (_, server, allowed) in PAIRS.iter().filter(|pair| pair.0 == name).filter(pairs) {
            for family in FAMILIES {
                for ip in [self.lab.pod(server)?.ip(family), self.lab.service_ip(server, family)?] {
                    let answers = !self.sinks.iter().any(|(sink, _)| sink == server);
                    targets.push(Target { to: SocketAddr::new(ip, PORT), allowed: *allowed, answers });
                }
            }
        }
        Ok(Caller { name, netns: &self.lab.pod(name)?.netns, targets })
    }

    fn put(&self, version: Version) -> Result<()> {
        state::replace(&self.lab.manifests().join(FILE), version.documents(&self.pods).as_bytes())
    }

    /// By the command: it looks whether the documents are good, and waits until both nodes judge by them.
    fn apply(&self, version: Version) -> Result<()> {
        let dir = self.lab.dir().join("documents");
        std::fs::create_dir_all(&dir)?;
        let file = dir.join(FILE);
        std::fs::write(&file, version.documents(&self.pods))?;
        let mut command = std::process::Command::new(binary("kumiko")?);
        command.arg("--socket").arg(self.lab.node(1)?.files.socket()).args(["policy", "apply"]).arg(&file);
        command.arg("--wait").arg("--also").arg(self.lab.node(2)?.files.socket());
        let output = command.output().context("kumiko policy apply")?;
        ensure!(output.status.success(), "{output:?}");
        Ok(())
    }

    /// One version after the other, each as soon as both nodes have read the one before, until both made their epochs; how
    /// many it took.
    fn change(&self, calls: &Calls, before: [[u64; 2]; 2]) -> Result<usize> {
        let done = |now: &[[u64; 2]; 2]| now.iter().zip(before).all(|([_, now], [_, before])| now - before >= FLIPS);
        for (number, version) in WHOLE.into_iter().cycle().enumerate() {
            let read = self.epochs()?;
            if calls.stop.load(Ordering::Relaxed) || done(&read) {
                return Ok(number);
            }
            if number % BY_COMMAND == 0 {
                self.apply(version)?;
            } else {
                self.put(version)?;
            }
            let begun = Instant::now();
            while self.epochs()?.iter().zip(read).any(|([now, _], [before, _])| *now == before) {
                ensure!(begun.elapsed() < READ_WITHIN, "version {number} is not read");
                std::thread::sleep(LOOK);
            }
        }
        Ok(0)
    }

    /// Of each node the source's epoch, and that of the verdicts.
    fn epochs(&self) -> Result<[[u64; 2]; 2]> {
        let of = |node| {
            let status = self.lab.admin(node, "/v1/status")?;
            let number = |at: &str| status.pointer(at).and_then(Value::as_u64).context("no such number");
            Ok::<_, anyhow::Error>([number("/source/epoch")?, number("/policy/epoch")?])
        };
        Ok([of(1)?, of(2)?])
    }
}
