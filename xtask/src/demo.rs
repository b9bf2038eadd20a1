//! `cargo xtask demo`: real programs on two nodes, before and after one label.
//!
//! Everything it says comes from the programs, from a capture between the nodes, or from the agents.

mod stage;

use std::collections::HashSet;
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use clap::Args;
use kumiko_lab::wire::{Capture, WireReport};
use kumiko_lab::{Family, Lab, LabSpec, Net, PodSpec, ServiceSpec, Stage, agents, topology};

use crate::{build, setup};
use stage::{Programs, say, shell, title};

/// What the capture looks for: it is in every answer of the web server.
const SECRET: &str = "the-recipe-is-42-cherries";

/// Arguments of `demo`.
#[derive(Args)]
pub(crate) struct DemoArgs {
    /// How pods are joined to their node: routed or bridged.
    #[arg(long, default_value_t = Net::Routed)]
    net: Net,
}

/// Runs it.
pub(crate) fn run(args: &DemoArgs) -> Result<()> {
    setup::run(false)?;
    build::all(false)?;
    title("Two nodes, four pods");
    let lab = Lab::up(&spec(args.net))?;
    let programs = Programs::start(&lab, SECRET)?;
    let walk = Walk { lab: &lab, programs: &programs, kumiko: agents::binary("kumiko")? };
    let shown = walk.all().map_err(|cause| cause.context(lab.logs(30)));
    drop(programs);
    shown
}

fn spec(net: Net) -> LabSpec {
    let pod =
        |name: &str, namespace: &str, node, port| PodSpec { ports: vec![port], ..PodSpec::new(name, namespace, node) };
    let service = |name: &str, port, target| ServiceSpec {
        name: name.into(),
        namespace: "demo".into(),
        pods: vec![name.into()],
        ports: vec![(port, target)],
    };
    LabSpec {
        pods: vec![
            pod("shop", "demo", 1, 8080),
            pod("stranger", "elsewhere", 1, 8080),
            pod("web", "demo", 2, 8080),
            pod("db", "demo", 2, 6379),
        ],
        services: vec![service("web", 80, 8080), service("db", 6379, 6379)],
        namespaces: vec![("demo".into(), Stage::Off), ("elsewhere".into(), Stage::Off)],
        ..LabSpec::standard(&format!("demo-{}", std::process::id()), 2, net, Stage::Off)
    }
}

struct Walk<'a> {
    lab: &'a Lab,
    programs: &'a Programs,
    kumiko: PathBuf,
}

impl Walk<'_> {
    fn all(&self) -> Result<()> {
        say("n1: shop (curl, redis-cli, iperf3) and stranger      n2: web (nginx) and db (redis, iperf3)");
        say(&format!(
            "manifests in {}, one agent a node; namespace demo is at stage off",
            self.lab.manifests().display()
        ));

        title("1. Without the mesh");
        let report = self.captured(|| self.requests())?;
        ensure!(report.needle > 0, "the capture did not see the secret: {report:?}");
        say(&format!("a capture between the nodes shows it: \"{}\"", report.needle_text));

        title("2. One label");
        let mut old = self.programs.open_redis(self.lab)?;
        ensure!(old.ping()?.contains("PONG"), "redis does not answer");
        say("a connection to redis stays open meanwhile");
        self.label(Stage::Permissive)?;

        title("3. The same requests, and what passes between the nodes now");
        let report = self.captured(|| {
            self.requests()?;
            self.throughput()
        })?;
        ensure!(report.needle == 0 && report.outside_bytes == 0, "something passed in the clear: {report:?}");
        report.check()?;
        say(&format!(
            "{} bytes to port {}, all of it TLS 1.3 in {} connections; 0 bytes of the pods' TCP beside it; the secret: 0 times",
            report.tunnel_bytes,
            kumiko_lab::wire::TUNNEL_PORT,
            report.tls13 + report.unfinished,
        ));
        ensure!(old.ping()?.contains("PONG"), "the connection from before the label was cut");
        say("the redis connection from before the label answers: PONG (it is listed as legacy until it ends)");

        title("4. Who talked to whom");
        self.kumiko(1, &["flows"])?;
        self.kumiko(1, &["tunnels"])?;

        title("5. A stranger");
        say("stranger is not in the mesh. At permissive its plaintext is taken, and marked:");
        self.curl("stranger")?;
        self.kumiko(2, &["flows", "--from", "elsewhere/stranger"])?;
        self.label(Stage::Strict)?;
        let refused = self.curl("stranger");
        ensure!(refused.is_err(), "the stranger was served at strict");
        say("refused, at once. The shop is served as before:");
        self.curl("shop")?;
        self.kumiko(2, &["flows", "--verdict", "deny"])?;
        drop(old);

        title("Look further");
        say(
            "cargo xtask lab up --stage strict    the same network, to play with; `lab status` says where everything is",
        );
        say("target/debug/kumiko --socket SOCKET status | workloads | flows -f | tunnels | certs");
        say("README.md: stages, reasons, what is captured and what is not");
        Ok(())
    }

    /// Runs `work` under a capture on n1's side of the wire.
    fn captured(&self, work: impl FnOnce() -> Result<()>) -> Result<WireReport> {
        let watched: HashSet<_> = self.lab.pods.iter().flat_map(|pod| pod.ips).collect();
        let capture = Capture::start_for(&self.lab.node(1)?.netns, topology::WIRE, watched, SECRET)?;
        work()?;
        capture.finish()
    }

    fn requests(&self) -> Result<()> {
        self.curl("shop")?;
        let db = self.lab.service_ip("db", Family::V6)?.to_string();
        let pod = self.lab.pod("shop")?;
        shell(&pod.netns, "redis-cli", &["-h", &db, "set", "cherries", "42"])?;
        shell(&pod.netns, "redis-cli", &["-h", &db, "get", "cherries"]).map(drop)
    }

    fn curl(&self, pod: &str) -> Result<String> {
        let url = format!("http://{}/secret.txt", self.lab.service_ip("web", Family::V4)?);
        shell(&self.lab.pod(pod)?.netns, "curl", &["-sS", "--max-time", "10", &url])
    }

    fn throughput(&self) -> Result<()> {
        let db = self.lab.pod("db")?.ip(Family::V4).to_string();
        let json = self.lab.pod("shop")?.netns.run("iperf3", &["-c", &db, "-t", "2", "-J"])?;
        let value: serde_json::Value = serde_json::from_str(&json).context("iperf3's answer")?;
        let bits = value
            .pointer("/end/sum_received/bits_per_second")
            .and_then(serde_json::Value::as_f64)
            .context("iperf3's throughput")?;
        say(&format!("iperf3 from shop to db, encrypted between the nodes: {:.1} Gbit/s", bits / 1e9));
        Ok(())
    }

    /// Changes the namespace's label and waits until both agents have it in force.
    fn label(&self, stage: Stage) -> Result<()> {
        say(&format!("$ namespace demo: kumiko.dev/stage: {stage}"));
        self.lab.set_stage("demo", stage)?;
        self.lab.wait_stage("demo", stage)?;
        say("in force on both nodes");
        Ok(())
    }

    fn kumiko(&self, node: u8, args: &[&str]) -> Result<()> {
        let socket = self.lab.node(node)?.files.socket();
        say(&format!("$ kumiko --socket {} {}", socket.display(), args.join(" ")));
        let mut all = vec!["--socket", socket.to_str().context("a socket's path")?];
        all.extend(args);
        let text = kumiko_lab::command::run(&self.kumiko.to_string_lossy(), &all)?;
        text.lines().for_each(|line| println!("    {line}"));
        Ok(())
    }
}
