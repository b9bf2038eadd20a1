//! The demo's programs, and how it speaks.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result};
use kumiko_lab::command::wait_for;
use kumiko_lab::{Family, Lab, Netns};

/// A headline.
pub(super) fn title(text: &str) {
    println!("\n=== {text}");
}

/// A line.
pub(super) fn say(text: &str) {
    println!("  {text}");
}

/// Runs a command in a pod, and shows it with what it printed.
pub(super) fn shell(ns: &Netns, program: &str, args: &[&str]) -> Result<String> {
    let pod = ns.name.split_once('-').map_or(ns.name.as_str(), |(_, pod)| pod);
    println!("  {pod}$ {program} {}", args.join(" "));
    let result = ns.run(program, args);
    match &result {
        Ok(text) => text.lines().for_each(|line| println!("    {line}")),
        Err(cause) => {
            let text = cause.root_cause().to_string();
            println!("    {}", text.split_once("): ").map_or(text.as_str(), |(_, said)| said));
        }
    }
    result
}

/// nginx, redis and iperf3, running in their pods. They end with it.
pub(super) struct Programs {
    children: Vec<Child>,
}

impl Programs {
    /// Starts them and waits until each is listening.
    pub(super) fn start(lab: &Lab, secret: &str) -> Result<Self> {
        let dir = lab.dir().join("programs");
        fs::create_dir_all(dir.join("www")).context("making the web server's directory")?;
        fs::write(dir.join("www/secret.txt"), format!("{secret}\n")).context("writing the web server's page")?;
        fs::write(dir.join("nginx.conf"), nginx(&dir)).context("writing nginx's configuration")?;
        // The workers run as another user and must reach their files.
        let mut programs = Self { children: Vec::new() };
        let conf = dir.join("nginx.conf").to_string_lossy().into_owned();
        programs.spawn(lab, "web", "nginx", &["-c", &conf, "-p", &dir.to_string_lossy()])?;
        let redis = ["--port", "6379", "--bind", "*", "-::*", "--protected-mode", "no", "--save", "", "--dir", "/tmp"];
        programs.spawn(lab, "db", "redis-server", &redis)?;
        programs.spawn(lab, "db", "iperf3", &["-s"])?;
        for (pod, port) in [("web", 8080), ("db", 6379), ("db", 5201)] {
            let pod = lab.pod(pod)?;
            wait_for(&format!("{} listens on {port}", pod.name), Duration::from_secs(10), || {
                let address = std::net::SocketAddr::new(pod.ip(Family::V4), port);
                // From inside the pod: nothing of it passes a node.
                pod.netns.within(|| std::net::TcpStream::connect(address).map(drop).context("connecting"))
            })?;
        }
        Ok(programs)
    }

    fn spawn(&mut self, lab: &Lab, pod: &str, program: &str, args: &[&str]) -> Result<()> {
        let log = File::create(lab.dir().join(format!("programs/{program}.log"))).context("making a log")?;
        let mut command = Command::new(program);
        command.args(args).stdin(Stdio::null()).stdout(log.try_clone().context("sharing a log")?).stderr(log);
        self.children.push(lab.pod(pod)?.netns.spawn(&mut command)?);
        Ok(())
    }

    /// Opens a connection to redis that stays.
    pub(super) fn open_redis(&self, lab: &Lab) -> Result<Redis> {
        let address = lab.service_ip("db", Family::V4)?.to_string();
        let mut command = Command::new("ncat");
        command.args([&address, "6379"]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = lab.pod("shop")?.netns.spawn(&mut command)?;
        let input = child.stdin.take().context("ncat's input")?;
        let output = BufReader::new(child.stdout.take().context("ncat's output")?);
        Ok(Redis { child, input, output })
    }
}

impl Drop for Programs {
    fn drop(&mut self) {
        for child in &mut self.children {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn nginx(dir: &Path) -> String {
    let dir = dir.display();
    format!(
        "daemon off;\nmaster_process off;\npid {dir}/nginx.pid;\nerror_log {dir}/nginx-error.log;\n\
         events {{}}\nhttp {{\n  access_log off;\n  client_body_temp_path {dir}/body;\n  proxy_temp_path {dir}/proxy;\n  \
         fastcgi_temp_path {dir}/fastcgi;\n  uwsgi_temp_path {dir}/uwsgi;\n  scgi_temp_path {dir}/scgi;\n  \
         server {{\n    listen 8080;\n    listen [::]:8080;\n    root {dir}/www;\n  }}\n}}\n"
    )
}

/// A connection to redis by way of ncat.
pub(super) struct Redis {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Redis {
    /// Asks for a PONG on it.
    pub(super) fn ping(&mut self) -> Result<String> {
        self.input.write_all(b"PING\r\n").context("asking redis")?;
        let mut line = String::new();
        self.output.read_line(&mut line).context("redis' answer")?;
        Ok(line)
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
