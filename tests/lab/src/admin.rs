//! A small client of the agent's admin API: HTTP/1.1 over its Unix socket.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::Value;

/// Asks for `path` and returns the body.
pub fn get(socket: &Path, path: &str) -> Result<String> {
    let mut stream = UnixStream::connect(socket).with_context(|| format!("connecting to {}", socket.display()))?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: kumiko\r\nConnection: close\r\n\r\n")?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).with_context(|| format!("reading the answer to {path}"))?;
    let answer = String::from_utf8_lossy(&answer);
    let (head, body) = answer.split_once("\r\n\r\n").with_context(|| format!("no HTTP answer to {path}"))?;
    let head = head.to_ascii_lowercase();
    let body = if head.contains("transfer-encoding: chunked") { unchunk(body)? } else { body.to_owned() };
    if !head.lines().next().is_some_and(|line| line.contains(" 200")) {
        bail!("{path}: {}: {}", head.lines().next().unwrap_or(""), body.trim());
    }
    Ok(body)
}

/// Asks for `path` and parses the body as JSON; NDJSON becomes an array.
pub fn get_json(socket: &Path, path: &str) -> Result<Value> {
    let body = get(socket, path)?;
    if let Ok(value) = serde_json::from_str(&body) {
        return Ok(value);
    }
    let lines: Result<Vec<Value>, _> = body.lines().filter(|l| !l.is_empty()).map(serde_json::from_str).collect();
    lines.map(Value::Array).with_context(|| format!("{path} did not answer JSON: {body}"))
}

fn unchunk(mut body: &str) -> Result<String> {
    let mut whole = String::new();
    while let Some((size, rest)) = body.split_once("\r\n") {
        let size = usize::from_str_radix(size.trim(), 16).context("a chunk's size")?;
        whole += rest.get(..size).context("a chunk is cut short")?;
        if size == 0 {
            break;
        }
        body = rest.get(size + 2..).unwrap_or("");
    }
    Ok(whole)
}
