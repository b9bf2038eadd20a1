//! Trees of files: git over its own protocol, and rsync's daemon.

use std::fmt::Write as _;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use kumiko_tests::programs::{self, command};

use crate::run::{Run, bytes, sum, text, tree, write};

const FILES: usize = 300;
/// Too large for one pack window, and for every buffer on the way.
const LARGE: usize = 12 << 20;

/// Many small files in directories, and a large one.
fn fill(dir: &Path) -> Result<()> {
    for number in 0..FILES {
        let path = dir.join(format!("dir-{}/file-{number}", number % 17));
        write(&path, bytes(number * 97 % 40_000, number as u64))?;
    }
    write(&dir.join("large"), noise(LARGE))
}

/// Bytes that do not compress.
fn noise(length: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut step = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    (0..length / 8).flat_map(|_| step()).collect()
}

/// git without anybody's settings, and with the same names and dates in every run.
fn git(home: &Path, dir: &Path, words: &[&str]) -> Command {
    let mut git = command(&["git", "-C", &text(dir)]);
    git.args(words).env("HOME", home).env("GIT_CONFIG_NOSYSTEM", "1").env("GIT_TERMINAL_PROMPT", "0");
    for who in ["AUTHOR", "COMMITTER"] {
        git.env(format!("GIT_{who}_NAME"), "Tester").env(format!("GIT_{who}_EMAIL"), "tester@example.org");
        git.env(format!("GIT_{who}_DATE"), "2026-01-01T00:00:00Z");
    }
    git
}

pub(crate) fn git_protocol(run: &Run<'_>) -> Result<String> {
    let (dir, port, ns) = (run.dir("git")?, run.port(), run.client()?);
    let do_git = |at: &Path, words: &[&str]| -> Result<String> {
        programs::run(ns, &mut git(&dir, at, words))?.well().with_context(|| format!("git {words:?}"))
    };
    let work = dir.join("work");
    fill(&work)?;
    do_git(&work, &["init", "-q", "-b", "main"])?;
    do_git(&work, &["add", "."])?;
    do_git(&work, &["commit", "-q", "-m", "All of it"])?;
    do_git(&dir, &["clone", "-q", "--bare", "work", "served/repo.git"])?;
    let served = text(&dir.join("served"));
    let mut daemon = git(&dir, &dir, &["daemon", "--reuseaddr", "--export-all", "--enable=receive-pack"]);
    daemon.arg(format!("--base-path={served}")).arg(format!("--listen={}", run.at(port)?.ip()));
    let _server = run.serve(&dir, daemon.arg(format!("--port={port}")).arg(served), &[port])?;
    let expected = tree(&work)?;
    let mut answer = String::new();
    for (number, to) in run.to(port)?.into_iter().enumerate() {
        let url = format!("git://{to}/repo.git");
        let clone = dir.join(format!("clone-{number}"));
        do_git(&dir, &["clone", "-q", &url, &text(&clone)])?;
        do_git(&clone, &["fsck", "--strict"])?;
        let mut got = tree(&clone)?;
        got.retain(|name, _| !name.starts_with("more-"));
        ensure!(got == expected, "a clone has other files");
        answer += &do_git(&clone, &["rev-parse", "HEAD"])?;
        // And the other way: a commit as large as the first.
        let mut more = noise(LARGE);
        more.reverse();
        more.extend(number.to_le_bytes());
        write(&clone.join(format!("more-{number}")), more)?;
        do_git(&clone, &["add", "."])?;
        do_git(&clone, &["commit", "-q", "-m", "More"])?;
        do_git(&clone, &["push", "-q", "origin", "main"])?;
        answer += &do_git(&dir, &["ls-remote", &url])?;
        do_git(&dir.join("served/repo.git"), &["fsck", "--strict"])?;
    }
    Ok(answer)
}

pub(crate) fn rsync(run: &Run<'_>) -> Result<String> {
    let (dir, port) = (run.dir("rsync")?, run.port());
    let served = dir.join("served");
    fill(&served)?;
    let config = dir.join("rsyncd.conf");
    let module = format!(
        "use chroot = no\nuid = root\ngid = root\npid file = {}\n[files]\n  path = {}\n  read only = no\n",
        dir.join("pid").display(),
        served.display()
    );
    write(&config, module)?;
    let mut daemon = command(&["rsync", "--daemon", "--no-detach", "--address", &run.at(port)?.ip().to_string()]);
    daemon.arg(format!("--port={port}")).arg(format!("--config={}", config.display()));
    let _server = run.serve(&dir, &mut daemon, &[port])?;
    let mut answer = String::new();
    for (number, to) in run.to(port)?.into_iter().enumerate() {
        let copy = dir.join(format!("copy-{number}"));
        let url = format!("rsync://{to}/files/");
        answer += &transfer(run, &["-a", &url, &text(&copy)])?;
        ensure!(tree(&copy)? == tree(&served)?, "the copy has other files");
        // A change in the middle of the large file, a new file and a lost one, the other way.
        let mut large = noise(LARGE);
        large.splice(LARGE / 2..LARGE / 2, format!("change {number}").bytes());
        write(&copy.join("large"), large)?;
        write(&copy.join(format!("new-{number}")), bytes(100_000, 1))?;
        std::fs::remove_file(copy.join(format!("dir-{number}/file-{number}"))).context("removing a file")?;
        answer += &transfer(run, &["-a", "--delete", "--checksum", &format!("{}/", text(&copy)), &url])?;
        let now = tree(&served)?;
        ensure!(tree(&copy)? == now, "the daemon has other files");
        let _ = writeln!(answer, "{} files: {}", now.len(), sum(format!("{now:?}").as_bytes()));
    }
    Ok(answer)
}

/// What rsync counts, without what depends on time.
fn transfer(run: &Run<'_>, words: &[&str]) -> Result<String> {
    let said = programs::run(run.client()?, command(&["rsync", "--stats", "--timeout=60"]).args(words))?.well()?;
    let counted =
        ["Number of files", "Number of created", "Number of deleted", "Number of regular", "Literal", "Matched"];
    let lines = said.lines().filter(|line| counted.iter().any(|begin| line.starts_with(begin)));
    Ok(lines.map(|line| format!("{line}\n")).collect())
}
