//! Proxies in pods: what comes out of one tunnel goes into the next, copied in the kernel.

use std::fmt::Write as _;
use std::io::{Read, Write as _};
use std::net::SocketAddr;
use std::os::unix::net::UnixStream;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use kumiko_lab::pattern::{CAPTURED, Pattern};
use kumiko_lab::peer::{ConnReport, Step};
use kumiko_tests::programs::{Server, command};
use kumiko_tests::twins::Path as Way;

use crate::run::{Run, text, write};
use crate::streams::go_programs;

const BYTES: u64 = 64 << 20;
const TO_SERVER: u64 = 1;
const TO_CLIENT: u64 = 2;

/// A proxy in `pod`, from its port to the server.
struct Chain<'a> {
    run: &'a Run<'a>,
    pod: &'static str,
    /// Where the proxy listens.
    at: SocketAddr,
    /// Where the server listens.
    server: SocketAddr,
}

impl<'a> Chain<'a> {
    /// The proxy beside the client, the server on the other node; or the proxy there, and the server back here.
    fn all(run: &'a Run<'a>) -> Result<[Self; 2]> {
        let chain = |pod, server| -> Result<Self> {
            let ip = |pod| Ok::<_, anyhow::Error>(run.side.lab.pod(pod)?.ip(run.family));
            Ok(Self {
                run,
                pod,
                at: SocketAddr::new(ip(pod)?, run.port()),
                server: SocketAddr::new(ip(server)?, run.port()),
            })
        };
        Ok([chain("server-1", "server-2")?, chain("server-2", "server-1")?])
    }

    fn start(&self, log: &Path, words: &[&str]) -> Result<Server> {
        Server::start(&self.run.side.lab.pod(self.pod)?.netns, log, &mut command(words), &[self.at.port()])
    }

    /// What the client calls the proxy by: its address, and its Service's.
    fn names(&self) -> Result<[SocketAddr; 2]> {
        let ways = if self.pod == "server-1" {
            [Way::SameNode, Way::ServiceSameNode]
        } else {
            [Way::CrossNode, Way::ServiceCrossNode]
        };
        let [pod, service] = ways.map(|way| self.run.side.address(way, self.run.family));
        Ok([SocketAddr::new(pod?, self.at.port()), SocketAddr::new(service?, self.at.port())])
    }

    /// Exchanges through the proxy, each end's report in words.
    fn carries(&self, exchanges: &[Exchange]) -> Result<String> {
        let mut answer = String::new();
        let side = self.run.side;
        let server = if self.pod == "server-1" { &side.far } else { &side.near };
        server.listen(self.server)?;
        for to in self.names()? {
            for (name, client_script, server_script, clean) in exchanges {
                let serving = server.serve(self.server.port(), 1, server_script.clone())?;
                let client = side.client.connect(to, 1, client_script.clone())?.report()?;
                let served = serving.report()?;
                for (end, report) in [("client", &client), ("server", &served)] {
                    let _ = writeln!(answer, "{name}, {end}: {}", words(report, *clean).context(*name)?);
                }
            }
        }
        server.unlisten(self.server.port())?;
        Ok(answer)
    }
}

fn pattern(tag: u64) -> Pattern {
    Pattern::new(CAPTURED, tag)
}

/// Name, the client's steps, the server's steps, and whether every byte must arrive.
type Exchange = (&'static str, Vec<Step>, Vec<Step>, bool);

fn both_ways_at_once() -> Exchange {
    let both = |sent, received| Step::Duplex { send: BYTES, sent: pattern(sent), received: pattern(received) };
    let (client, server) = (both(TO_SERVER, TO_CLIENT), both(TO_CLIENT, TO_SERVER));
    ("both ways at once", vec![client, Step::Close], vec![server, Step::Close], true)
}

fn one_way_after_the_other() -> Vec<Exchange> {
    use Step::{Close, Reset, ShutdownWrite};
    let send = |bytes, tag| Step::Send { bytes, pattern: pattern(tag) };
    let recv = |bytes, tag| Step::Recv { bytes, pattern: pattern(tag) };
    let to_end = |tag| Step::RecvToEnd { pattern: pattern(tag) };
    vec![
        // The answer begins when the end of the question has come through.
        (
            "half-close of the client",
            vec![send(BYTES, TO_SERVER), ShutdownWrite, to_end(TO_CLIENT), Close],
            vec![to_end(TO_SERVER), send(BYTES, TO_CLIENT), Close],
            true,
        ),
        (
            "half-close of the server",
            vec![to_end(TO_CLIENT), send(BYTES, TO_SERVER), Close],
            vec![send(BYTES, TO_CLIENT), ShutdownWrite, to_end(TO_SERVER), Close],
            true,
        ),
        (
            "reset by the server",
            vec![send(1_000, TO_SERVER), to_end(TO_CLIENT), Close],
            vec![recv(1_000, TO_SERVER), send(1_000, TO_CLIENT), Reset],
            false,
        ),
    ]
}

/// A report without what differs from lab to lab, and, after a reset, without how many bytes it overtook.
fn words(report: &ConnReport, clean: bool) -> Result<String> {
    let broken = report.steps.iter().any(|step| !step.intact || (clean && step.error.is_some()));
    ensure!(report.connect.is_none() && !broken, "{report:?}");
    let steps = report.steps.iter().map(|step| {
        let bytes = if clean { step.bytes } else { 0 };
        format!("{} {bytes} {:?} {}", step.step, step.error, step.eof)
    });
    Ok(steps.collect::<Vec<_>>().join("; "))
}

pub(crate) fn go(run: &Run<'_>) -> Result<String> {
    let (dir, program) = (run.dir("proxy")?, text(&go_programs()?));
    let mut answer = String::new();
    for chain in Chain::all(run)? {
        let words = [&program, "proxy", &chain.at.to_string(), &chain.server.to_string()];
        let _proxy = chain.start(&dir.join(format!("{}.log", chain.pod)), &words)?;
        answer += &chain.carries(&[both_ways_at_once()])?;
        answer += &chain.carries(&one_way_after_the_other())?;
    }
    Ok(answer)
}

/// haproxy, told to use splice(2) in both directions. Not both at once: when both end at the same time, haproxy 2.6 calls
/// the connection finished and loses what is left of one in its pipe, without the mesh too.
pub(crate) fn splice(run: &Run<'_>) -> Result<String> {
    let dir = run.dir("splice")?;
    let mut answer = String::new();
    for chain in Chain::all(run)? {
        let (socket, file) = (dir.join(format!("{}.sock", chain.pod)), dir.join(format!("{}.cfg", chain.pod)));
        let config = format!(
            "global\n  stats socket {}\n  log stdout format raw local0\n\
             defaults\n  log global\n  option tcplog\n  mode tcp\n  option splice-request\n  option splice-response\n  \
             timeout connect 60s\n  timeout client 60s\n  timeout server 60s\n\
             listen proxy\n  bind {}\n  server one {}\n",
            socket.display(),
            chain.at,
            chain.server
        );
        write(&file, config)?;
        let log = dir.join(format!("{}.log", chain.pod));
        let proxy = chain.start(&log, &["haproxy", "-db", "-f", &text(&file)])?;
        answer += &chain.carries(&one_way_after_the_other()).with_context(|| proxy.said())?;
        let spliced = spliced(&socket)?;
        ensure!(spliced > BYTES, "haproxy has spliced {spliced} bytes only");
    }
    Ok(answer)
}

fn spliced(socket: &Path) -> Result<u64> {
    let mut stream = UnixStream::connect(socket).context("haproxy's socket")?;
    stream.write_all(b"show info\n").context("asking haproxy")?;
    let mut said = String::new();
    stream.read_to_string(&mut said).context("haproxy's answer")?;
    // Older ones misspell it.
    let names = ["TotalSplicdedBytesOut: ", "TotalSplicedBytesOut: "];
    let line = said.lines().find_map(|line| names.iter().find_map(|name| line.strip_prefix(name)));
    line.with_context(|| format!("haproxy does not say what it spliced:\n{said}"))?.trim().parse().context("a number")
}
