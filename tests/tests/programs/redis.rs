//! redis: pipelines in both directions, and messages to a subscriber.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use kumiko_lab::Netns;
use kumiko_tests::programs::{self, Client, Server, command};
use nix::sys::signal::Signal;

use crate::run::{Run, sum, text, write};

const SETS: usize = 100_000;
const MESSAGES: usize = 5_000;

fn start(run: &Run<'_>, dir: &Path, port: u16) -> Result<Server> {
    let (at, port_text) = (run.at(port)?, port.to_string());
    let mut server = command(&["redis-server", "--port", &port_text, "--bind", &at.ip().to_string()]);
    server.args(["--save", "", "--appendonly", "no", "--protected-mode", "no", "--enable-debug-command", "yes"]);
    run.serve(dir, server.args(["--dir", &text(dir)]), &[port])
}

fn cli(to: SocketAddr) -> Command {
    command(&["redis-cli", "-h", &to.ip().to_string(), "-p", &to.port().to_string()])
}

fn ask(ns: &Netns, to: SocketAddr, words: &[&str]) -> Result<String> {
    programs::run(ns, cli(to).args(words))?.well()
}

/// Commands as the protocol has them, one after another without waiting for answers.
fn pipe(ns: &Netns, to: SocketAddr, file: &Path, count: usize) -> Result<String> {
    let said = programs::run_with(ns, cli(to).arg("--pipe"), file)?.well()?;
    let last = said.lines().last().context("redis-cli says nothing")?;
    ensure!(last == format!("errors: 0, replies: {count}"), "redis-cli: {said}");
    Ok(format!("{last}\n"))
}

fn protocol(words: &[&str]) -> String {
    let mut text = format!("*{}\r\n", words.len());
    for word in words {
        let _ = write!(text, "${}\r\n{word}\r\n", word.len());
    }
    text
}

pub(crate) fn pipelines(run: &Run<'_>) -> Result<String> {
    let (dir, port, ns) = (run.dir("redis")?, run.port(), run.client()?);
    let _server = start(run, &dir, port)?;
    let commands: String = (0..SETS)
        .map(|number| protocol(&["SET", &format!("key:{number}"), &format!("{number}-{}", "v".repeat(number % 200))]))
        .collect();
    write(&dir.join("sets"), commands)?;
    let mut answer = String::new();
    for to in run.to(port)? {
        ask(ns, to, &["FLUSHALL"])?;
        answer += &pipe(ns, to, &dir.join("sets"), SETS)?;
        ensure!(ask(ns, to, &["DBSIZE"])?.trim() == SETS.to_string(), "not every key is there");
        // All keys and values at once, and as one large answer.
        answer += &ask(ns, to, &["DEBUG", "DIGEST"])?;
        let values =
            "local r = {} for n = 0, tonumber(ARGV[1]) - 1 do r[n + 1] = redis.call('GET', 'key:' .. n) end return r";
        let values = ask(ns, to, &["EVAL", values, "0", &SETS.to_string()])?;
        let right = values.lines().enumerate().all(|(number, value)| {
            value.strip_prefix(&format!("{number}-")).is_some_and(|rest| rest.len() == number % 200)
        });
        ensure!(right && values.lines().count() == SETS, "wrong values: {}", sum(values.as_bytes()));
        let _ = writeln!(answer, "values: {}", sum(values.as_bytes()));
        // 50 clients, each with 64 commands under way.
        let (host, port) = (to.ip().to_string(), to.port().to_string());
        let mut bench = command(&["redis-benchmark", "-h", &host, "-p", &port, "-q", "-c", "50", "-P", "64"]);
        let said = programs::run(ns, bench.args(["-n", "64000", "-r", "1000", "-t", "set,get,incr"]))?;
        ensure!(said.code == Some(0), "redis-benchmark: {said:?}");
        answer += &format!("counted: {}", ask(ns, to, &["DBSIZE"])?);
    }
    Ok(answer)
}

pub(crate) fn pub_sub(run: &Run<'_>) -> Result<String> {
    let (dir, port, ns) = (run.dir("redis")?, run.port(), run.client()?);
    let _server = start(run, &dir, port)?;
    let message = |number: usize| format!("{number}-{}", "m".repeat(number % 500));
    let commands: String = (0..MESSAGES).map(|number| protocol(&["PUBLISH", "news", &message(number)])).collect();
    write(&dir.join("messages"), commands)?;
    let mut answer = String::new();
    for to in run.to(port)? {
        let subscribers = (0..3)
            .map(|_| {
                let subscriber = Client::start(ns, cli(to).args(["SUBSCRIBE", "news"]))?;
                subscriber.wait_said(|said| said.contains("subscribe\nnews\n1\n"))?;
                Ok(subscriber)
            })
            .collect::<Result<Vec<_>>>()?;
        answer += &pipe(ns, to, &dir.join("messages"), MESSAGES)?;
        for subscriber in subscribers {
            subscriber.wait_said(|said| said.ends_with(&format!("\n{}\n", message(MESSAGES - 1))))?;
            subscriber.signal(Signal::SIGKILL)?;
            let said = String::from_utf8_lossy(&subscriber.finish()?.out).into_owned();
            let got: Vec<&str> = said.split("message\nnews\n").skip(1).map(str::trim_end).collect();
            let right = got.iter().enumerate().all(|(number, got)| *got == message(number));
            ensure!(right && got.len() == MESSAGES, "{} messages, in order: {right}", got.len());
            let _ = writeln!(answer, "a subscriber got {} messages in order", got.len());
        }
    }
    Ok(answer)
}
