//! Long streams of messages: WebSocket and gRPC, in Go.

use std::path::PathBuf;
use std::sync::OnceLock;

use anyhow::{Context, Result, anyhow, ensure};
use kumiko_lab::agents::binary;
use kumiko_tests::programs::{self, command};

use crate::run::{Run, text};

/// The Go programs, built when they are first asked for.
pub(crate) fn go_programs() -> Result<PathBuf> {
    static BUILT: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    let built = BUILT.get_or_init(|| build().map_err(|cause| format!("{cause:#}")));
    built.clone().map_err(|cause| anyhow!(cause))
}

fn build() -> Result<PathBuf> {
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/programs");
    let to = binary("kumiko-peer")?.with_file_name("kumiko-go-programs");
    let mut go = command(&["go", "build", "-trimpath", "-o", &text(&to), "."]);
    // The compiler that is there: none is fetched.
    let built = go.current_dir(source).env("GOTOOLCHAIN", "local").env("CGO_ENABLED", "0").output();
    let built = built.context("no Go compiler; run `cargo xtask setup`")?;
    ensure!(built.status.success(), "building tests/programs: {}", String::from_utf8_lossy(&built.stderr));
    Ok(to)
}

pub(crate) fn websocket(run: &Run<'_>) -> Result<String> {
    pair(run, "websocket", "cut after 2000: websocket: close 1006")
}

pub(crate) fn grpc(run: &Run<'_>) -> Result<String> {
    pair(run, "grpc", "Slow: 300 messages, then EOF")
}

/// A server and its client; the client's words are the answer.
fn pair(run: &Run<'_>, what: &str, said: &str) -> Result<String> {
    let (dir, port, program) = (run.dir(what)?, run.port(), text(&go_programs()?));
    let mut server = command(&[&program, &format!("{what}-server"), &run.at(port)?.to_string()]);
    let _server = run.serve(&dir, &mut server, &[port])?;
    let mut answer = String::new();
    for to in run.to(port)? {
        let mut client = command(&[&program, &format!("{what}-client"), &to.to_string()]);
        let words = programs::run(run.client()?, &mut client)?.well()?;
        ensure!(words.contains(said) && !words.contains("wrong"), "the client said:\n{words}");
        answer += &words;
    }
    Ok(answer)
}
