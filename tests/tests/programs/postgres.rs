//! PostgreSQL: COPY both ways, and a cancel request, which is a second connection.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use kumiko_lab::Netns;
use kumiko_lab::command::{run as tool, wait_for};
use kumiko_tests::programs::{self, Client, Server, command};
use nix::sys::signal::Signal;

use crate::run::{Run, read, sum, text, write};

const ROWS: usize = 100_000;

/// It refuses to run as root. System V memory and semaphores are the process's own, so that nothing stays of them.
const AS_POSTGRES: [&str; 7] =
    ["unshare", "--ipc", "setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups", "--"];

/// Where Debian keeps the newest server's programs.
fn programs_dir() -> Result<PathBuf> {
    let versions = std::fs::read_dir("/usr/lib/postgresql").context("run `cargo xtask setup`")?;
    let dirs = versions.flatten().map(|entry| entry.path().join("bin")).filter(|bin| bin.join("postgres").exists());
    dirs.max().context("no server in /usr/lib/postgresql; run `cargo xtask setup`")
}

fn start(run: &Run<'_>, dir: &Path, port: u16) -> Result<Server> {
    let (bin, data) = (programs_dir()?, dir.join("data"));
    tool("chown", &["postgres:postgres", &text(dir)])?;
    let mut words = AS_POSTGRES.to_vec();
    let (initdb, postgres, data_text) = (text(&bin.join("initdb")), text(&bin.join("postgres")), text(&data));
    words.extend([initdb.as_str(), "--no-sync", "--auth=trust", "--username=postgres", "--no-locale"]);
    words.extend(["--encoding=UTF8", "--pgdata", data_text.as_str()]);
    let (program, args) = words.split_first().context("no words")?;
    tool(program, args)?;
    let access = data.join("pg_hba.conf");
    write(&access, "host all all 0.0.0.0/0 trust\nhost all all ::/0 trust\n")?;
    let mut server = command(&AS_POSTGRES);
    server.arg(postgres).arg("-D").arg(&data);
    for setting in [
        &format!("listen_addresses={}", run.at(port)?.ip()),
        &format!("port={port}"),
        "unix_socket_directories=",
        "fsync=off",
        // In its own directory, not in /dev/shm.
        "dynamic_shared_memory_type=mmap",
    ] {
        server.args(["-c", setting]);
    }
    let server = run.serve(dir, &mut server, &[port])?;
    // It listens before it takes sessions: until its start is over it refuses them.
    wait_for("the database takes sessions", Duration::from_secs(60), || {
        ask(run.server()?, run.at(port)?, "select 1").with_context(|| server.said()).map(drop)
    })?;
    Ok(server)
}

fn psql(to: SocketAddr) -> Command {
    let mut psql = command(&["psql", "-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-U", "postgres"]);
    psql.args(["-h", &to.ip().to_string(), "-p", &to.port().to_string(), "-d", "postgres"]);
    psql.env("PGCONNECT_TIMEOUT", "60");
    psql
}

fn ask(ns: &Netns, to: SocketAddr, statement: &str) -> Result<String> {
    programs::run(ns, psql(to).args(["-c", statement]))?.well().with_context(|| statement.to_owned())
}

pub(crate) fn copy_and_cancel(run: &Run<'_>) -> Result<String> {
    let (dir, port, ns) = (run.dir("postgres")?, run.port(), run.client()?);
    let server = start(run, &dir, port)?;
    let rows: String = (0..ROWS).map(|number| format!("{number}\t{}\n", "row ".repeat(number % 50))).collect();
    let file = dir.join("rows");
    write(&file, &rows)?;
    let mut answer = String::new();
    for to in run.to(port)? {
        ask(ns, to, "drop table if exists t; create table t (id int, body text)")?;
        ask(ns, to, &format!("\\copy t from '{}'", file.display()))?;
        answer += &ask(ns, to, "select count(*), sum(id), sum(length(body)) from t")?;
        let out = dir.join("out");
        ask(ns, to, &format!("\\copy (select * from t order by id) to '{}'", out.display()))?;
        let got = read(&out)?;
        ensure!(got == rows.as_bytes(), "COPY gave {} for {}", sum(&got), sum(rows.as_bytes()));
        let _ = writeln!(answer, "copied: {}", sum(&got));
        answer += &cancel(ns, to, "select pg_sleep(600)").context("cancelling a query")?;
        answer += &cancel(
            ns,
            to,
            "copy (select repeat('x', 100000), pg_sleep(0.01) from generate_series(1, 100000)) to stdout",
        )
        .context("cancelling a COPY")?;
        answer += &ask(ns, to, "select count(*) from t")?;
    }
    server.stop(Signal::SIGINT)?;
    Ok(answer)
}

/// A query that somebody has enough of.
fn cancel(ns: &Netns, to: SocketAddr, query: &str) -> Result<String> {
    let psql = Client::start(ns, psql(to).args(["-c", query]))?;
    let active = "select count(*) from pg_stat_activity where state = 'active' and query like '%pg_sleep%' \
                  and pid <> pg_backend_pid()";
    let count = |wanted: &str| {
        wait_for("as many queries run", Duration::from_secs(30), || {
            let count = ask(ns, to, active)?;
            ensure!(count.trim() == wanted, "{count}");
            Ok(())
        })
    };
    count("1")?;
    psql.signal(Signal::SIGINT)?;
    let ended = psql.finish()?;
    count("0")?;
    ensure!(ended.err.contains("canceling statement due to user request"), "psql: {:?} {}", ended.code, ended.err);
    Ok(format!("psql ends with {:?}: {}\n", ended.code, ended.err.trim()))
}
