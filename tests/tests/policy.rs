//! Who may talk to whom, on real sockets: what a rule refuses is refused at `connect()`, and nothing else is.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use k8s_openapi::jiff::Timestamp;
use kumiko_lab::command::wait_for;
use kumiko_lab::{Family, Lab, LabSpec, Net, PodSpec, ServiceSpec, Stage};
use kumiko_tests::echo::Echo;
use kumiko_tests::harness;
use libtest_mimic::Arguments;
use serde_json::Value;

const NAMES: &[&str] = &[
    "new_connections_keep_to_the_rules",
    "exceptions_end_by_themselves",
    "open_connections_lose_their_right",
    "revoked_after_a_while_or_never",
    "verdicts_outlive_the_agent",
];
/// Ports that the servers listen on, and their Services.
const PORTS: [u16; 2] = [20_000, 20_001];
/// For a policy to be in force on both nodes.
const FORCE_WITHIN: Duration = Duration::from_secs(30);
/// For one connect, which takes milliseconds.
const CONNECT_WITHIN: Duration = Duration::from_secs(20);

fn main() -> ExitCode {
    harness::main(NAMES, run)
}

fn run(args: &Arguments) -> Result<bool> {
    if harness::without_mesh() {
        eprintln!("skipped: without a mesh there are no rules");
        return Ok(true);
    }
    let tests: [fn() -> Result<()>; 5] = [rules, exceptions, open, revoked, restarted];
    let trials = NAMES.iter().zip(tests).map(|(name, test)| harness::trial(*name, test));
    Ok(harness::run_trials(args, trials.collect()))
}

/// The lab, with what changes in it.
struct World {
    lab: Lab,
    _echoes: Vec<Echo>,
}

/// A connect that is tried: who, to whom, at which port.
type Try = (&'static str, &'static str, u16);

impl World {
    fn up(test: &str) -> Result<Self> {
        let name = format!("policy-{test}-{}", std::process::id());
        let mut spec = LabSpec::standard(&name, 2, Net::Routed, Stage::Strict)
            .with_pod(PodSpec::new("other-1", "other", 1))
            .with_pod(PodSpec::new("other-2", "other", 2))
            .with_pod(PodSpec::new("watched-1", "watched", 1))
            .with_pod(PodSpec::new("clear-1", "clear", 1))
            .with_ports(PORTS[0], 2);
        spec.services.push(ServiceSpec {
            name: "other-2".into(),
            namespace: "other".into(),
            pods: vec!["other-2".into()],
            ports: PORTS.map(|port| (port, port)).to_vec(),
        });
        spec.agent_args = vec!["--policy-preview".to_owned()];
        let lab = Lab::up(&spec)?;
        for (namespace, stage) in [("other", Stage::Permissive), ("watched", Stage::Observe), ("clear", Stage::Off)] {
            lab.set_stage(namespace, stage)?;
            lab.wait_stage(namespace, stage)?;
        }
        let mut echoes = Vec::new();
        for server in ["server-1", "server-2", "other-2"] {
            let pod = lab.pod(server)?;
            for family in [Family::V4, Family::V6] {
                for port in PORTS {
                    echoes.push(Echo::start(&pod.netns, SocketAddr::new(pod.ip(family), port))?);
                }
            }
        }
        Ok(Self { lab, _echoes: echoes })
    }

    /// The source's epoch of a node, and that of the policy that it judges by.
    fn epochs(&self, node: u8) -> Result<[u64; 2]> {
        let status = self.lab.admin(node, "/v1/status")?;
        let told = status.pointer("/source/diagnostics").and_then(Value::as_array).context("no diagnostics")?;
        ensure!(told.is_empty(), "{told:?}");
        let number = |at: &str| status.pointer(at).and_then(Value::as_u64).context("no such number");
        Ok([number("/source/epoch")?, number("/policy/sourceEpoch")?])
    }

    /// Writes other documents than before and waits until they are what both nodes judge by.
    fn apply(&self, text: &str) -> Result<()> {
        let before = [self.epochs(1)?, self.epochs(2)?];
        let file = self.lab.manifests().join("policy.yaml");
        std::fs::write(&file, text).context("the policy's file")?;
        wait_for("the policy is in force", FORCE_WITHIN, || {
            for (node, [before, _]) in (1..).zip(before) {
                let [source, judged] = self.epochs(node)?;
                ensure!(source > before && judged == source, "n{node}: {before} before, {source}, {judged}");
            }
            Ok(())
        })
    }

    /// What `connect()` says, over both families, by the pod's address and by its Service's.
    fn check(&self, one: Try, allowed: bool) -> Result<()> {
        self.check_by_pod(one, allowed)?;
        let (_, to, _) = one;
        [Family::V4, Family::V6]
            .iter()
            .try_for_each(|family| self.connect(one, self.lab.service_ip(to, *family)?, allowed))
    }

    fn check_by_pod(&self, one: Try, allowed: bool) -> Result<()> {
        let (_, to, _) = one;
        [Family::V4, Family::V6].iter().try_for_each(|family| self.connect(one, self.lab.pod(to)?.ip(*family), allowed))
    }

    fn connect(&self, (from, to, port): Try, ip: IpAddr, allowed: bool) -> Result<()> {
        let address = SocketAddr::new(ip, port);
        let client = &self.lab.pod(from)?.netns;
        let result = client.within(|| Ok(TcpStream::connect_timeout(&address, CONNECT_WITHIN)))?;
        let (said, right) = match &result {
            Ok(_) => ("connected".to_owned(), allowed),
            Err(error) => (error.to_string(), !allowed && error.kind() == ErrorKind::ConnectionRefused),
        };
        ensure!(right, "{from} to {to}:{port} ({address}): {said}; to be allowed: {allowed}");
        Ok(())
    }

    fn all(&self, tries: &[(Try, bool)]) -> Result<()> {
        tries.iter().try_for_each(|(one, allowed)| self.check(*one, *allowed))
    }
}

const TEAM: &str = "
apiVersion: kumiko.dev/v1alpha1
kind: MeshPolicy
metadata: {name: server, namespace: demo}
spec:
  subject: {labels: {app: server}}
  ingress:
    - {name: own, from: [{namespace: demo}], ports: [{port: 20000}]}
";

const EGRESS: &str = "
apiVersion: kumiko.dev/v1alpha1
kind: MeshPolicy
metadata: {name: client, namespace: demo}
spec:
  subject: {serviceAccount: client}
  egress:
    - {name: open, to: [{namespace: demo, labels: {app: server}}], ports: [{port: 20000}]}
";

const KUBERNETES: &str = "
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: server, namespace: demo}
spec:
  podSelector: {matchLabels: {app: server}}
  policyTypes: [Ingress]
  ingress:
    - from: [{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: other}}}]
      ports: [{port: 20000, endPort: 20001}]
";

const BASELINE: &str = "
apiVersion: kumiko.dev/v1alpha1
kind: MeshBaseline
metadata: {name: platform}
spec:
  subject: {namespace: demo}
  ingress:
    deny: [{name: no-other, from: [{namespace: other}]}]
---
apiVersion: kumiko.dev/v1alpha1
kind: MeshPolicy
metadata: {name: all, namespace: demo}
spec:
  subject: {}
  ingress: [{name: everybody, from: [{namespace: other}, {namespace: demo}]}]
";

/// Ends at `{expires}`.
const EXCEPTION: &str = "
---
apiVersion: kumiko.dev/v1alpha1
kind: MeshException
metadata: {name: for-a-while}
spec:
  suspends: [{baseline: platform, rules: [ingress.deny.no-other]}]
  subject: {namespace: demo}
  peers: [{namespace: other}]
  ports: [{port: 20000}]
  owner: somebody
  expires: \"{expires}\"
";

const CLEAR: &str = "
apiVersion: kumiko.dev/v1alpha1
kind: MeshPolicy
metadata: {name: clear, namespace: demo}
spec:
  subject: {labels: {app: server}}
  ingress:
    - {name: clear, from: [{namespace: clear}], ports: [{port: 20001}], unauthenticated: true}
";

const OBSERVED: &str = "
apiVersion: kumiko.dev/v1alpha1
kind: MeshPolicy
metadata: {name: nothing, namespace: watched}
spec: {subject: {}, egress: []}
";

const OPEN: u16 = PORTS[0];
const SHUT: u16 = PORTS[1];

fn within(name: &str, test: impl FnOnce(&mut World) -> Result<()>) -> Result<()> {
    let mut world = World::up(name)?;
    test(&mut world).map_err(|cause| cause.context(world.lab.evidence(60)))
}

fn rules() -> Result<()> {
    within("rules", |world| {
        let free = [
            (("client-1", "server-1", OPEN), true),
            (("client-1", "server-2", SHUT), true),
            (("other-1", "server-1", OPEN), true),
            (("other-1", "server-2", OPEN), true),
            (("watched-1", "other-2", OPEN), true),
            (("clear-1", "server-1", SHUT), false),
            (("clear-1", "server-2", SHUT), false),
        ];
        world.all(&free)?;
        world.apply(TEAM).context("a team's rule")?;
        world.all(&[
            (("client-1", "server-1", OPEN), true),
            (("client-1", "server-2", OPEN), true),
            (("client-2", "server-1", OPEN), true),
            (("client-1", "server-1", SHUT), false),
            (("client-1", "server-2", SHUT), false),
            (("other-1", "server-1", OPEN), false),
            (("other-1", "server-2", OPEN), false),
        ])?;
        world.apply(EGRESS).context("a rule about where to go")?;
        world.all(&[
            (("client-1", "server-1", OPEN), true),
            (("client-1", "server-2", OPEN), true),
            (("client-1", "server-1", SHUT), false),
            (("client-1", "server-2", SHUT), false),
            (("client-1", "other-2", OPEN), false),
            (("other-1", "server-2", SHUT), true),
        ])?;
        world.apply(KUBERNETES).context("a NetworkPolicy")?;
        world.all(&[
            (("client-1", "server-1", OPEN), false),
            (("client-1", "server-2", OPEN), false),
            (("other-1", "server-1", SHUT), true),
            (("other-1", "server-2", OPEN), true),
        ])?;
        world.apply(BASELINE).context("a baseline that denies what a team allows")?;
        let denied = [
            (("client-1", "server-1", OPEN), true),
            (("client-1", "server-2", OPEN), true),
            (("other-1", "server-1", OPEN), false),
            (("other-1", "server-2", OPEN), false),
        ];
        world.all(&denied)?;
        world.apply(CLEAR).context("a rule that takes an address for enough")?;
        world.all(&[
            (("clear-1", "server-1", SHUT), true),
            (("clear-1", "server-2", SHUT), true),
            (("clear-1", "server-1", OPEN), false),
            (("client-1", "server-2", SHUT), false),
        ])?;
        world.apply(OBSERVED).context("observe enforces nothing")?;
        world.all(&[(("watched-1", "other-2", OPEN), true)])?;
        world.apply("")?;
        world.all(&free)
    })
}

fn exceptions() -> Result<()> {
    within("ends", |world| {
        let until = |seconds: u64| {
            let at = Timestamp::now() + Duration::from_secs(seconds);
            format!("{BASELINE}{}", EXCEPTION.replace("{expires}", &at.to_string()))
        };
        let suspended = [
            (("other-1", "server-1", OPEN), true),
            (("other-1", "server-2", OPEN), true),
            (("other-1", "server-1", SHUT), false),
            (("other-1", "server-2", SHUT), false),
        ];
        let over = suspended.map(|(one, _)| (one, false));
        world.apply(&until(3_600)).context("an exception")?;
        world.all(&suspended)?;
        world.apply(&until(10)).context("an exception that ends")?;
        wait_for("the exception has ended", Duration::from_secs(20), || world.all(&over))
    })
}

/// A connection that is open, and whether it is to stay.
struct Open {
    what: String,
    stream: TcpStream,
    stays: bool,
}

impl Open {
    /// Asks the server something, with a byte in each direction. The error is what the client is told.
    fn ask(&mut self) -> std::io::Result<()> {
        let mut byte = [7];
        self.stream.write_all(&byte)?;
        match self.stream.read(&mut byte)? {
            0 => Err(std::io::Error::other("a clean end")),
            _ => Ok(()),
        }
    }

    fn check(&mut self) -> Result<()> {
        let result = self.ask();
        ensure!(result.is_ok() == self.stays, "{}: {result:?}; to stay: {}", self.what, self.stays);
        if let Err(error) = result {
            let kinds = [ErrorKind::ConnectionReset, ErrorKind::ConnectionAborted, ErrorKind::BrokenPipe];
            ensure!(kinds.contains(&error.kind()), "{}: {error}", self.what);
        }
        Ok(())
    }
}

impl World {
    /// Opens connections over both families, by the pod's address and by its Service's; half of them never say anything
    /// before they are looked at.
    fn open(&self, (from, to, port): Try, stays: bool) -> Result<Vec<Open>> {
        let client = &self.lab.pod(from)?.netns;
        let mut all = Vec::new();
        for family in [Family::V4, Family::V6] {
            for (by, ip) in [("pod", self.lab.pod(to)?.ip(family)), ("Service", self.lab.service_ip(to, family)?)] {
                for idle in [false, true] {
                    let what = format!("{from} to {to}:{port}, {family}, by {by}, idle: {idle}");
                    let address = SocketAddr::new(ip, port);
                    let stream = client.within(|| Ok(TcpStream::connect_timeout(&address, CONNECT_WITHIN)?));
                    let stream = stream.with_context(|| what.clone())?;
                    stream.set_read_timeout(Some(CONNECT_WITHIN))?;
                    let mut open = Open { what, stream, stays };
                    if !idle {
                        open.ask().with_context(|| open.what.clone())?;
                    }
                    all.push(open);
                }
            }
        }
        Ok(all)
    }
}

fn open() -> Result<()> {
    within("open", |world| {
        let tries = [
            (("client-1", "server-1", OPEN), true),
            (("client-1", "server-2", OPEN), true),
            (("client-2", "server-1", OPEN), true),
            (("client-1", "server-1", SHUT), false),
            (("client-1", "server-2", SHUT), false),
            (("other-1", "server-1", OPEN), false),
            (("other-1", "server-2", OPEN), false),
            (("other-2", "server-1", OPEN), false),
            (("other-1", "other-2", SHUT), true),
            (("clear-1", "other-2", OPEN), true),
        ];
        let mut all = Vec::new();
        for (one, stays) in tries {
            all.extend(world.open(one, stays)?);
        }
        world.apply(TEAM)?;
        all.iter_mut().try_for_each(Open::check)
    })
}

fn revoked() -> Result<()> {
    within("revoked", |world| {
        let tries = [("other-1", "server-1", OPEN), ("other-1", "server-2", OPEN)];
        let with = |on_revoke: &str| TEAM.replace("spec:", &format!("spec:\n  onRevoke: {on_revoke}"));
        let open = || -> Result<Vec<Open>> {
            Ok(tries
                .iter()
                .map(|one| world.open(*one, true))
                .collect::<Result<Vec<_>>>()?
                .into_iter()
                .flatten()
                .collect())
        };
        let mut kept = open()?;
        world.apply(&with("{action: keep}"))?;
        kept.iter_mut().try_for_each(Open::check).context("kept")?;
        world.all(&tries.map(|one| (one, false)))?;
        world.apply("")?;
        kept.iter_mut().try_for_each(Open::check).context("kept, and allowed again")?;
        world.apply(&with("{action: grace, seconds: 4}"))?;
        kept.iter_mut().try_for_each(Open::check).context("with a while left")?;
        kept.iter_mut().for_each(|open| open.stays = false);
        // Time passes; the flows are asked only once, since what is asked tells of the cut.
        wait_for("the while is over", Duration::from_secs(20), || {
            for node in 1..=2 {
                let flows = world.lab.admin(node, "/v1/flows?limit=1000")?;
                let live = |flow: &&Value| flow.get("state").and_then(Value::as_str) == Some("open");
                let open = flows.as_array().into_iter().flatten().filter(live).count();
                ensure!(open == 0, "{open} flows are open on n{node}");
            }
            Ok(())
        })?;
        kept.iter_mut().try_for_each(Open::check).context("after the while")
    })
}

fn restarted() -> Result<()> {
    within("restart", |world| {
        let own = [
            (("client-1", "server-1", OPEN), true),
            (("client-1", "server-1", SHUT), false),
            (("other-1", "server-1", OPEN), false),
        ];
        let all =
            [own[0], own[1], own[2], (("client-1", "server-2", OPEN), true), (("other-1", "server-2", OPEN), false)];
        world.apply(TEAM)?;
        world.all(&all)?;
        world.lab.kill_agent(1)?;
        // By the pods' own addresses: a Service's pod is chosen by the agent.
        for (one, allowed) in own {
            world.check_by_pod(one, allowed).context("while the agent is dead")?;
        }
        let policy = world.lab.manifests().join("policy.yaml");
        std::fs::write(&policy, format!("{TEAM}\n: no YAML")).context("a bad file")?;
        world.lab.start_agent(1)?;
        world.all(&all).context("after a start with a bad file")?;
        world.lab.kill_agent(1)?;
        std::fs::write(&policy, EGRESS).context("another policy")?;
        world.lab.start_agent(1)?;
        world.all(&[
            (("client-1", "other-2", OPEN), false),
            (("client-1", "server-1", SHUT), false),
            (("client-1", "server-1", OPEN), true),
            (("other-1", "server-1", OPEN), true),
        ])
    })
}
