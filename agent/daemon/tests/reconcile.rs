//! The control loop on the running kernel: real veths, real sockets, real maps. Each test has namespaces and a bpf file
//! system of its own. Needs root and built kernel programs; a test says so and passes without them.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "tests")]

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use kumiko_abi::flow::flags;
use kumiko_abi::{Config, Flow, FlowKey, Stage};
use kumiko_agent::options::SourceUrl;
use kumiko_agent::reconcile::{NodeState, Options, Reconciled, Reconciler};
use kumiko_agent::source::{self, Taking};
use kumiko_core::addr::ends;
use kumiko_core::stage::Phase;
use kumiko_kernel::bpf::{Datapath, LoadOptions, ObjectSource, pin_dir};
use kumiko_kernel::netns::Netns;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::unistd::geteuid;
use tokio::task::LocalSet;

/// Nothing here takes long; a hang should be a failure.
const WITHIN: Duration = Duration::from_secs(60);

/// Runs a test on a thread with a network namespace that plays the host, and a bpf file system.
fn alone<F: Future<Output = ()>>(name: &str, test: impl FnOnce(std::path::PathBuf) -> F + Send + 'static) {
    if !geteuid().is_root() {
        println!("skipped {name}: needs root");
        return;
    }
    if !ObjectSource::embedded_present() {
        println!("skipped {name}: no kernel programs in this build (cargo xtask build-ebpf)");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().to_owned();
    let worker = std::thread::spawn(move || {
        unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWNET).unwrap();
        let none = None::<&str>;
        mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
        for (kind, at) in [("bpf", path.join("bpf")), ("tmpfs", "/run/netns".into())] {
            fs::create_dir_all(&at).unwrap();
            mount(Some(kind), &at, Some(kind), MsFlags::empty(), none).unwrap();
        }
        for folder in ["manifests", "run"] {
            fs::create_dir(path.join(folder)).unwrap();
        }
        ip("link set lo up");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        LocalSet::new().block_on(&runtime, test(path));
    });
    if let Err(panic) = worker.join() {
        std::panic::resume_unwind(panic);
    }
}

fn ip(words: &str) {
    let output = Command::new("ip").args(words.split_whitespace()).output().unwrap();
    assert!(output.status.success(), "ip {words}: {}", String::from_utf8_lossy(&output.stderr));
}

/// A routed pod: namespace `pN`, host side `vN`, address 10.0.0.N.
fn pod(number: u8) {
    ip(&format!("netns add p{number}"));
    ip(&format!("link add v{number} type veth peer name eth0 netns p{number}"));
    ip(&format!("-n p{number} addr add 10.0.0.{number}/32 dev eth0"));
    ip(&format!("-n p{number} link set lo up"));
    ip(&format!("-n p{number} link set eth0 up"));
    ip(&format!("-n p{number} route add 169.254.1.1 dev eth0"));
    ip(&format!("-n p{number} route add default via 169.254.1.1 dev eth0 src 10.0.0.{number}"));
    let _ = Command::new("ip").args(["addr", "add", "169.254.1.1/32", "dev", "lo"]).output();
    ip(&format!("link set v{number} up"));
    ip(&format!("route add 10.0.0.{number}/32 dev v{number}"));
    fs::write(format!("/proc/sys/net/ipv4/conf/v{number}/proxy_arp"), "1").unwrap();
}

fn put(dir: &Path, name: &str, text: &str) {
    let temporary = dir.join("manifests").join(format!(".{name}"));
    fs::write(&temporary, text).unwrap();
    fs::rename(&temporary, dir.join("manifests").join(name)).unwrap();
}

fn stage(dir: &Path, stage: &str) {
    let text =
        format!("apiVersion: v1\nkind: Namespace\nmetadata: {{name: demo, labels: {{kumiko.dev/stage: {stage}}}}}\n");
    put(dir, "namespace.yaml", &text);
}

fn workload(dir: &Path, number: u8) {
    let text = format!(
        "apiVersion: kumiko.dev/v1alpha1\nkind: Workload\nmetadata: {{name: w{number}, namespace: demo, uid: u{number}}}\n\
         spec: {{serviceAccount: a, node: n1, ips: [10.0.0.{number}], ports: [{{port: 80}}], attachment: {{netns: \
         /run/netns/p{number}}}}}\n"
    );
    put(dir, &format!("w{number}.yaml"), &text);
}

struct Agent {
    reconciled: Reconciled,
    datapath: Arc<Datapath>,
    task: tokio::task::JoinHandle<()>,
}

fn agent(dir: &Path, generation: u32) -> Agent {
    let options = LoadOptions { object: ObjectSource::Embedded, pin_dir: pin_dir(&dir.join("bpf")) };
    let datapath = Arc::new(Datapath::load(&options).unwrap());
    datapath.maps().set_config(&Config { generation, shards: 1, ..Config::default() }).unwrap();
    let source = source::start(&SourceUrl::Dir(dir.join("manifests")), "td", Taking::default()).unwrap();
    let options = Options {
        node: "n1".into(),
        run_dir: dir.join("run"),
        datapath: datapath.clone(),
        host: Netns::current().unwrap(),
        // As if this one were the agent's too.
        agent: Netns::current().unwrap(),
        agent_ifindex: 0,
        carried: None,
    };
    let (reconciler, reconciled) = Reconciler::new(options, source.world.clone()).unwrap();
    let task = tokio::task::spawn_local(async move {
        let _source = source;
        reconciler.run().await.unwrap();
    });
    Agent { reconciled, datapath, task }
}

impl Agent {
    async fn wait(&self, what: &str, fits: impl Fn(&NodeState) -> bool) {
        let mut changed = self.reconciled.changed.clone();
        let waited = tokio::time::timeout(WITHIN, async {
            while !fits(&self.reconciled.state.load()) {
                changed.changed().await.unwrap();
            }
        });
        let reports: Vec<_> =
            self.reconciled.state.load().endpoints().map(|(u, r)| (u.to_owned(), r.clone())).collect();
        assert!(waited.await.is_ok(), "not within {WITHIN:?}: {what}; {reports:?}");
    }

    async fn wait_phase(&self, uid: &str, phase: Phase) {
        self.wait(&format!("{uid} {phase:?}"), |state| state.endpoint(uid).is_some_and(|r| r.phase == phase)).await;
    }

    fn flows(&self) -> Vec<(FlowKey, Flow)> {
        let mut flows = Vec::new();
        self.datapath.flows().scan(&mut |key, flow| flows.push((*key, *flow))).unwrap();
        flows
    }

    /// As `kill -9` leaves things.
    async fn stop(self) {
        self.task.abort();
        let _ = self.task.await;
    }
}

/// A connection from the host into a pod: both ends.
fn connection(number: u8) -> (TcpStream, TcpStream) {
    let address: SocketAddr = format!("10.0.0.{number}:80").parse().unwrap();
    let pod = Netns::open(format!("/run/netns/p{number}")).unwrap();
    let listener = pod.within(|| TcpListener::bind(address)).unwrap();
    let client = TcpStream::connect_timeout(&address, WITHIN).unwrap();
    let (server, _) = listener.accept().unwrap();
    for socket in [&client, &server] {
        socket.set_read_timeout(Some(WITHIN)).unwrap();
    }
    (client, server)
}

fn echo(client: &mut TcpStream, server: &mut TcpStream) {
    let mut buffer = [0; 4];
    client.write_all(b"ping").unwrap();
    server.read_exact(&mut buffer).unwrap();
    server.write_all(b"pong").unwrap();
    client.read_exact(&mut buffer).unwrap();
    assert_eq!(&buffer, b"pong");
}

#[test]
fn enrolling_and_leaving_cuts_nothing() {
    alone("enrolling_and_leaving_cuts_nothing", |dir| async move {
        pod(1);
        stage(&dir, "off");
        workload(&dir, 1);
        let agent = agent(&dir, 1);
        agent.wait("a first pass", |state| state.endpoint("u1").is_some()).await;
        assert!(agent.datapath.attached().unwrap().is_empty());
        let (mut client, mut server) = connection(1);
        echo(&mut client, &mut server);
        let idle = connection_idle();
        for (name, reached) in [
            ("permissive", Stage::Permissive),
            ("observe", Stage::Observe),
            ("strict", Stage::Strict),
            ("permissive", Stage::Permissive),
            ("off", Stage::Off),
            ("strict", Stage::Strict),
        ] {
            stage(&dir, name);
            agent.wait_phase("u1", Phase::Enforcing(reached)).await;
            echo(&mut client, &mut server);
            let flows = agent.flows();
            let local = client.local_addr().unwrap();
            let mine: Vec<_> = flows.iter().filter(|(key, flow)| ends(key, flow.flags).0 == local).collect();
            assert_eq!(mine.len(), 1, "at {name}: {flows:?}");
            assert!(mine[0].1.flags & flags::LEGACY != 0, "at {name}: {mine:?}");
        }
        // It said nothing since before the first raise: only the dump knew it.
        let (mut client, mut server) = idle;
        echo(&mut client, &mut server);
        assert_eq!(
            agent.reconciled.state.load().attached_ifindex("u1"),
            agent.datapath.attached().unwrap().first().copied()
        );
        let leaks = agent.datapath.maps().stats().unwrap()[kumiko_abi::Stat::LeakBytes as usize];
        assert_eq!(leaks, 0);
    });
}

/// A second connection to pod 1, on another port.
fn connection_idle() -> (TcpStream, TcpStream) {
    let address: SocketAddr = "10.0.0.1:81".parse().unwrap();
    let pod = Netns::open("/run/netns/p1").unwrap();
    let listener = pod.within(|| TcpListener::bind(address)).unwrap();
    let client = TcpStream::connect_timeout(&address, WITHIN).unwrap();
    let (server, _) = listener.accept().unwrap();
    for socket in [&client, &server] {
        socket.set_read_timeout(Some(WITHIN)).unwrap();
    }
    (client, server)
}

#[test]
fn pods_come_late_and_go() {
    alone("pods_come_late_and_go", |dir| async move {
        stage(&dir, "strict");
        workload(&dir, 1);
        let agent = agent(&dir, 1);
        let mut gone = agent.reconciled.gone.subscribe();
        agent.wait("a problem", |state| state.endpoint("u1").is_some_and(|report| !report.problem.is_empty())).await;
        pod(1);
        agent.wait_phase("u1", Phase::Enforcing(Stage::Strict)).await;
        agent.wait("attached", |state| state.attached_ifindex("u1").is_some()).await;
        let ifindex = agent.datapath.attached().unwrap()[0];
        // Down: nothing can be delivered. Up again: it can.
        ip("link set v1 down");
        agent.wait("down", |state| state.attached_ifindex("u1").is_none()).await;
        assert_eq!(gone.recv().await.unwrap().ifindex, ifindex);
        ip("link set v1 up");
        agent.wait("up", |state| state.attached_ifindex("u1").is_some()).await;
        ip("link del v1");
        agent.wait_phase("u1", Phase::Detached).await;
        assert_eq!(gone.recv().await.unwrap().uid, "u1");
        assert!(agent.datapath.attached().unwrap().is_empty());
        assert!(agent.datapath.maps().endpoints().unwrap().is_empty());
        assert!(agent.datapath.maps().uses().unwrap().is_empty());
        ip("netns del p1");
        pod(1);
        agent.wait_phase("u1", Phase::Enforcing(Stage::Strict)).await;
        assert_ne!(agent.reconciled.state.load().attached_ifindex("u1"), Some(ifindex));
    });
}

#[test]
fn the_next_agent_takes_over() {
    alone("the_next_agent_takes_over", |dir| async move {
        pod(1);
        pod(2);
        stage(&dir, "strict");
        workload(&dir, 1);
        workload(&dir, 2);
        let first = agent(&dir, 1);
        first.wait_phase("u1", Phase::Enforcing(Stage::Strict)).await;
        first.wait_phase("u2", Phase::Enforcing(Stage::Strict)).await;
        let (handle, ifindex) = {
            let state = first.reconciled.state.load();
            (state.handle("u1"), state.attached_ifindex("u1"))
        };
        let before = first.datapath.maps().endpoints().unwrap();
        first.stop().await;
        // While no agent runs, one pod leaves and its manifest with it.
        fs::remove_file(dir.join("manifests/w2.yaml")).unwrap();
        let second = agent(&dir, 2);
        second.wait_phase("u1", Phase::Enforcing(Stage::Strict)).await;
        second.wait("one hook", |state| state.endpoint("u2").is_none()).await;
        let state = second.reconciled.state.load();
        assert_eq!((state.handle("u1"), state.attached_ifindex("u1")), (handle, ifindex));
        drop(state);
        let after = second.datapath.maps().endpoints().unwrap();
        assert_eq!(after, before.into_iter().filter(|(index, _)| Some(*index) == ifindex).collect::<Vec<_>>());
        assert_eq!(second.datapath.attached().unwrap(), vec![ifindex.unwrap()]);
        assert_eq!(second.datapath.maps().addrs().unwrap().len(), 1);
    });
}
