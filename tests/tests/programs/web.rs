//! HTTP: nginx under keep-alive clients, and bodies that end with the connection.

use std::fmt::Write as _;
use std::io::{Read, Write as _};
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use kumiko_tests::programs::{self, Outcome, Server, command};
use socket2::SockRef;

use crate::run::{Run, bytes, read, sum, text, write};

/// Of the files that nginx serves.
const SIZES: [usize; 6] = [1, 1_000, 16_384, 65_537, 1_000_003, 20 << 20];
const CLIENTS: &str = "200";
const REQUESTS: usize = 10_000;
/// A body without a length.
const BODY: usize = 3_000_001;

pub(crate) fn nginx(run: &Run<'_>) -> Result<String> {
    let (dir, port) = (run.dir("nginx")?, run.port());
    let mut answer = String::new();
    for size in SIZES {
        write(&dir.join(format!("www/{size}")), bytes(size, size as u64))?;
    }
    let _server = start_nginx(run, &dir, port)?;
    for to in run.to(port)? {
        answer += &apache_bench(run, to)?;
        answer += &wrk(run, &dir, to)?;
        answer += &bodies(run, &dir, to)?;
    }
    Ok(answer)
}

fn start_nginx(run: &Run<'_>, dir: &Path, port: u16) -> Result<Server> {
    let at = run.at(port)?;
    let temporary = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .map(|what| format!("{what}_temp_path {}/{what};", dir.display()))
        .join(" ");
    let config = format!(
        "daemon off; user root; worker_processes 2; pid {dir}/pid; error_log stderr;\n\
         events {{ worker_connections 1024; }}\n\
         http {{ access_log off; keepalive_requests 1000000; {temporary}\n  server {{ listen {at}; root {dir}/www;\n    \
         location ~ /include {{ ssi on; default_type text/html; }} }} }}\n",
        dir = dir.display(),
    );
    write(&dir.join("nginx.conf"), config)?;
    run.serve(dir, &mut command(&["nginx", "-c", &text(&dir.join("nginx.conf")), "-p", &text(dir)]), &[port])
}

/// A fixed number of requests; what it counts must be the same.
fn apache_bench(run: &Run<'_>, to: SocketAddr) -> Result<String> {
    let (count, url) = (REQUESTS.to_string(), format!("http://{to}/1000"));
    let said =
        programs::run(run.client()?, &mut command(&["ab", "-q", "-k", "-s", "60", "-c", CLIENTS, "-n", &count, &url]))?;
    let said = said.well()?;
    let counted = ["Complete requests", "Failed requests", "Keep-Alive requests", "Non-2xx", "HTML transferred"];
    let lines = said.lines().filter(|line| counted.iter().any(|begin| line.starts_with(begin)));
    let lines: Vec<String> = lines.map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
    for wanted in [
        format!("Complete requests: {REQUESTS}"),
        "Failed requests: 0".to_owned(),
        format!("Keep-Alive requests: {REQUESTS}"),
        format!("HTML transferred: {} bytes", REQUESTS * 1_000),
    ] {
        ensure!(lines.contains(&wanted), "ab does not say {wanted:?}:\n{said}");
    }
    Ok(format!("ab: {}\n", lines.join(", ")))
}

/// Every body is compared with the file, byte by byte.
const CHECK: &str = r#"
right, wrong = 0, 0
local threads = {}
function setup(thread) table.insert(threads, thread) end
function init(args)
  local file = assert(io.open(args[1], "rb"))
  expected = file:read("*a")
  file:close()
end
function response(status, headers, body)
  if status == 200 and body == expected then right = right + 1 else wrong = wrong + 1 end
end
function done(summary)
  local all_right, all_wrong = 0, 0
  for _, thread in ipairs(threads) do
    all_right, all_wrong = all_right + thread:get("right"), all_wrong + thread:get("wrong")
  end
  local e = summary.errors
  print(string.format("more than one each: %s, wrong %d, connect %d, read %d, write %d, status %d, timeout %d",
    tostring(all_right > 200), all_wrong, e.connect, e.read, e.write, e.status, e.timeout))
end
"#;

fn wrk(run: &Run<'_>, dir: &Path, to: SocketAddr) -> Result<String> {
    let (script, file) = (dir.join("check.lua"), dir.join("www/16384"));
    write(&script, CHECK)?;
    let ask_for = |time: &str| -> Result<String> {
        let mut wrk = command(&["wrk", "-t", "2", "-c", CLIENTS, "-d", time, "--timeout", "30s", "-s", &text(&script)]);
        wrk.args([&format!("http://{to}/16384"), "--", &text(&file)]);
        let said = programs::run(run.client()?, &mut wrk)?.well()?;
        let line = said.lines().find(|line| line.starts_with("more than"));
        Ok(line.with_context(|| format!("wrk said:\n{said}"))?.to_owned())
    };
    let wanted = "more than one each: true, wrong 0, connect 0, read 0, write 0, status 0, timeout 0";
    let mut line = ask_for("2s")?;
    if line == wanted.replace("true", "false") {
        // All right, but a busy machine's connections were hardly made by then.
        line = ask_for("30s")?;
    }
    ensure!(line == wanted, "wrk: {line}");
    Ok(format!("wrk: {line}\n"))
}

/// Bodies of every size, over one connection.
fn bodies(run: &Run<'_>, dir: &Path, to: SocketAddr) -> Result<String> {
    let mut curl = command(&["curl", "-sS", "--fail", "-w", "%{http_code} %{num_connects} %{size_download}\n"]);
    for size in SIZES {
        curl.args(["-o", &text(&dir.join(format!("got-{size}"))), &format!("http://{to}/{size}")]);
    }
    let mut answer = programs::run(run.client()?, &mut curl)?.well()?;
    for size in SIZES {
        let got = read(&dir.join(format!("got-{size}")))?;
        ensure!(got == bytes(size, size as u64), "a body of {size} bytes came as {}", sum(&got));
        let _ = writeln!(answer, "{}", sum(&got));
    }
    Ok(answer)
}

/// What a server of HTTP/1.0 does after a body without a length.
#[derive(Clone, Copy, Debug)]
enum End {
    Close,
    Reset,
}

pub(crate) fn close_delimited(run: &Run<'_>) -> Result<String> {
    let mut answer = String::new();
    let dir = run.dir("http10")?;
    let port = run.port();
    let (body, at) = (bytes(BODY, 7), run.at(port)?);
    let listener = run.server()?.within(|| TcpListener::bind(at).context("listening"))?;
    SockRef::from(&listener).set_read_timeout(Some(Duration::from_secs(60)))?;
    for to in run.to(port)? {
        for end in [End::Close, End::Reset] {
            let outcome = between(run, &listener, &body, end, to)?;
            // An RST overtakes bytes: how many arrive is chance, that they are the first ones is not.
            let whole = outcome.out == body;
            ensure!(body.starts_with(&outcome.out), "the body is wrong: {}", sum(&outcome.out));
            let code = outcome.code;
            match end {
                End::Close => ensure!(code == Some(0) && whole, "{code:?}, {} {}", sum(&outcome.out), outcome.err),
                // 56: failure in receiving network data.
                End::Reset => ensure!(code == Some(56) && !whole, "{code:?}, {} {}", sum(&outcome.out), outcome.err),
            }
            let _ = writeln!(answer, "{end:?}: curl ends with {code:?}, {}", outcome.err.trim());
        }
    }
    write(&dir.join("www/include.html"), "<p><!--#include virtual=\"/included.html\" --></p>".as_bytes())?;
    write(&dir.join("www/included.html"), &body)?;
    let port = run.port();
    let _server = start_nginx(run, &dir, port)?;
    for to in run.to(port)? {
        let url = format!("http://{to}/include.html");
        let got = programs::run(run.client()?, &mut command(&["curl", "-sS", "--http1.0", "-i", &url]))?;
        ensure!(got.code == Some(0), "curl ended with {:?}: {}", got.code, got.err);
        let end = got.out.windows(4).position(|four| four == b"\r\n\r\n").context("no header")?;
        let (header, got) = got.out.split_at(end + 4);
        let header = String::from_utf8_lossy(header);
        ensure!(!header.contains("Content-Length") && header.contains("Connection: close"), "nginx: {header}");
        ensure!(got.get(3..3 + BODY) == Some(&body), "nginx's body is another");
        let _ = writeln!(answer, "nginx: {}", sum(got));
    }
    Ok(answer)
}

/// One connection to a server that sends a body without a length, and ends the connection.
fn between(run: &Run<'_>, listener: &TcpListener, body: &[u8], end: End, to: SocketAddr) -> Result<Outcome> {
    std::thread::scope(|scope| {
        let serving = scope.spawn(|| answer_once(listener, body, end));
        let url = format!("http://{to}/");
        let outcome = programs::run(run.client()?, &mut command(&["curl", "-sS", "--http1.0", &url]));
        match serving.join() {
            Ok(served) => served.context("the server")?,
            Err(_) => bail!("the server panicked"),
        }
        outcome
    })
}

fn answer_once(listener: &TcpListener, body: &[u8], end: End) -> Result<()> {
    let (mut stream, _) = listener.accept().context("accepting")?;
    let mut request = Vec::new();
    while !request.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte).context("reading the request")?;
        request.extend(byte);
    }
    stream.write_all(b"HTTP/1.0 200 OK\r\nContent-Type: application/octet-stream\r\n\r\n").context("answering")?;
    let part = match end {
        End::Close => body,
        End::Reset => body.get(..BODY / 2).unwrap_or_default(),
    };
    stream.write_all(part).context("sending the body")?;
    if matches!(end, End::Reset) {
        SockRef::from(&stream).set_linger(Some(Duration::ZERO))?;
    }
    Ok(())
}
