//! What passes between the nodes: a packet capture that is read while it runs.
//!
//! It looks for canaries in every frame, and checks that what goes to the tunnel port is TLS 1.3.

mod packet;
mod pcap;
mod tls;

use std::collections::{BTreeMap, HashSet};
use std::io::{BufRead, BufReader, Read};
use std::net::{IpAddr, UdpSocket};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use memchr::memmem::Finder;
use nix::fcntl::{FcntlArg, fcntl};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::command::wait_for;
use crate::netns::Netns;
use crate::pattern::{CAPTURED, CLEAR};
use crate::spec::node_ips;
use crate::topology::ISSUER_HOST;

pub use packet::{Segment, parse};

/// Port of the tunnels.
pub const TUNNEL_PORT: u16 = 15008;
/// tcpdump's ring (it takes less than 2 GiB): at the speed of veths a gibibyte passes in half a second, for which a busy
/// machine may keep tcpdump waiting.
const BUFFER_KIB: &str = "1572864";
/// Bytes of the pipe between tcpdump and the reader, the most without privilege; by default it holds but one large frame.
const PIPE: i32 = 1 << 20;
/// Sent over the wire before a capture ends: what tcpdump has not read by then it throws away.
const MARKER: &str = "Xk7-eNd-Of-CaPtUrE";
/// How many offending frames are kept for the message.
const KEPT: usize = 5;

/// A capture that runs.
#[derive(Debug)]
pub struct Capture {
    child: Child,
    reader: JoinHandle<Result<WireReport>>,
    said: JoinHandle<String>,
    ns: Netns,
    marked: Arc<AtomicBool>,
}

/// What a capture saw.
#[derive(Clone, Debug, Default)]
pub struct WireReport {
    /// Frames.
    pub frames: u64,
    /// Frames that the kernel could not hand over.
    pub dropped: u64,
    /// Frames with the canary of captured connections.
    pub captured_canary: u64,
    /// Frames with the canary of clear connections.
    pub clear_canary: u64,
    /// TCP payload to and from the tunnel port.
    pub tunnel_bytes: u64,
    /// TCP payload of the watched addresses outside the tunnel port.
    pub outside_bytes: u64,
    /// TCP frames of the watched addresses outside the tunnel port, with payload or not.
    pub outside_frames: u64,
    /// Tunnel connections seen from their first byte that were TLS 1.3 throughout.
    pub tls13: usize,
    /// Tunnel connections seen from their first byte that ended before both sides had said hello.
    pub unfinished: usize,
    /// Frames with the needle that the capture was asked to look for.
    pub needle: u64,
    /// The readable part of the first such frame, around the needle.
    pub needle_text: String,
    /// What was wrong, the first few.
    pub offences: Vec<String>,
    /// TCP payload bytes by the lower port.
    pub bytes_by_port: BTreeMap<u16, u64>,
}

impl Capture {
    /// Starts capturing on an interface; `watched` are addresses whose TCP payload belongs into tunnels.
    pub fn start(ns: &Netns, interface: &str, watched: HashSet<IpAddr>) -> Result<Self> {
        Self::start_for(ns, interface, watched, CAPTURED)
    }

    /// The same, looking for a needle too.
    pub fn start_for(ns: &Netns, interface: &str, watched: HashSet<IpAddr>, needle: &str) -> Result<Self> {
        let mut command = Command::new("tcpdump");
        command
            .args(["-i", interface, "-w", "-", "-U", "-s", "0", "-B", BUFFER_KIB, "-Z", "root"])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = ns.spawn(&mut command)?;
        let stdout = child.stdout.take().context("tcpdump's output")?;
        fcntl(&stdout, FcntlArg::F_SETPIPE_SZ(PIPE)).context("making tcpdump's pipe larger")?;
        let mut stderr = BufReader::new(child.stderr.take().context("tcpdump's messages")?);
        let mut first = String::new();
        while !first.contains("listening on") {
            if stderr.read_line(&mut first).context("reading tcpdump's messages")? == 0 {
                bail!("tcpdump did not start: {first}");
            }
        }
        let said = std::thread::spawn(move || {
            let mut rest = String::new();
            let _ = stderr.read_to_string(&mut rest);
            rest
        });
        let marked = Arc::new(AtomicBool::new(false));
        let analyser = Analyser::new(watched, Arc::clone(&marked), needle);
        let reader = std::thread::spawn(move || analyser.read(stdout));
        Ok(Self { child, reader, said, ns: ns.clone(), marked })
    }

    /// Ends it and says what was seen.
    pub fn finish(mut self) -> Result<WireReport> {
        let [issuer, _] = node_ips(ISSUER_HOST);
        wait_for("the capture has read everything", Duration::from_secs(60), || {
            self.ns.within(|| {
                let socket = UdpSocket::bind("0.0.0.0:0").context("a socket for the end marker")?;
                socket.send_to(MARKER.as_bytes(), (issuer, 9)).context("sending the end marker")
            })?;
            ensure!(self.marked.load(Ordering::Acquire), "the end marker was not seen");
            Ok(())
        })?;
        kill(Pid::from_raw(i32::try_from(self.child.id())?), Signal::SIGINT).context("ending tcpdump")?;
        self.child.wait().context("waiting for tcpdump")?;
        let Ok(report) = self.reader.join() else { bail!("the reader of the capture panicked") };
        let mut report = report?;
        let said = self.said.join().unwrap_or_default();
        report.dropped = dropped(&said).with_context(|| format!("tcpdump does not say what it dropped: {said}"))?;
        Ok(report)
    }
}

impl WireReport {
    /// Refuses a capture in which anything of captured connections was in the clear, or that could not tell.
    pub fn check(&self) -> Result<()> {
        if self.captured_canary > 0 || self.outside_bytes > 0 || !self.offences.is_empty() {
            bail!("bytes of captured connections outside the tunnels, or tunnels that are no TLS 1.3: {self:#?}");
        }
        if self.dropped > 0 {
            bail!("the capture is not whole: {self:#?}");
        }
        Ok(())
    }
}

/// How many frames the kernel dropped, by what tcpdump says at its end.
fn dropped(said: &str) -> Option<u64> {
    let line = said.lines().find(|line| line.ends_with(" dropped by kernel"))?;
    line.split_once(" packet")?.0.parse().ok()
}

/// The printable bytes before and after a place in a frame.
fn readable_around(frame: &[u8], at: usize) -> String {
    let readable = |byte: &&u8| byte.is_ascii_graphic() || **byte == b' ';
    let before = frame.get(..at).unwrap_or_default().iter().rev().take_while(readable).count();
    let after = frame.get(at..).unwrap_or_default().iter().take_while(readable).count();
    String::from_utf8_lossy(frame.get(at - before..at + after).unwrap_or_default()).into_owned()
}

/// Reads a capture frame by frame.
struct Analyser {
    report: WireReport,
    watched: HashSet<IpAddr>,
    captured: Finder<'static>,
    clear: Finder<'static>,
    marker: Finder<'static>,
    needle: Finder<'static>,
    marked: Arc<AtomicBool>,
    tunnels: tls::Tunnels,
}

impl Analyser {
    fn new(watched: HashSet<IpAddr>, marked: Arc<AtomicBool>, needle: &str) -> Self {
        Self {
            report: WireReport::default(),
            watched,
            captured: Finder::new(CAPTURED),
            clear: Finder::new(CLEAR),
            marker: Finder::new(MARKER),
            needle: Finder::new(needle).into_owned(),
            marked,
            tunnels: tls::Tunnels::default(),
        }
    }

    fn read(mut self, input: impl Read) -> Result<WireReport> {
        pcap::each_frame(BufReader::with_capacity(1 << 20, input), |frame| self.frame(frame))?;
        let (whole, unfinished, offences) = self.tunnels.verdict();
        (self.report.tls13, self.report.unfinished) = (whole, unfinished);
        self.report.offences.extend(offences.into_iter().take(KEPT));
        Ok(self.report)
    }

    fn frame(&mut self, frame: &[u8]) {
        self.report.frames += 1;
        self.report.clear_canary += u64::from(self.clear.find(frame).is_some());
        if self.captured.find(frame).is_some() {
            self.report.captured_canary += 1;
            self.offence(format!("captured canary in a frame of {} bytes: {:?}", frame.len(), packet::parse(frame)));
        }
        if let Some(at) = self.needle.find(frame) {
            self.report.needle += 1;
            if self.report.needle_text.is_empty() {
                self.report.needle_text = readable_around(frame, at);
            }
        }
        let Some(segment) = packet::parse(frame) else {
            if self.marker.find(frame).is_some() {
                self.marked.store(true, Ordering::Release);
            }
            return;
        };
        let length = segment.payload.len() as u64;
        *self.report.bytes_by_port.entry(segment.from.port().min(segment.to.port())).or_default() += length;
        if segment.from.port() == TUNNEL_PORT || segment.to.port() == TUNNEL_PORT {
            self.report.tunnel_bytes += length;
            self.tunnels.segment(&segment);
        } else if self.watched.contains(&segment.from.ip()) || self.watched.contains(&segment.to.ip()) {
            self.report.outside_frames += 1;
            self.report.outside_bytes += length;
            if length > 0 {
                self.offence(format!("{length} payload bytes outside the tunnels: {segment:?}"));
            }
        }
    }

    fn offence(&mut self, what: String) {
        if self.report.offences.len() < KEPT {
            self.report.offences.push(what);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_dropped_is_read() {
        let said = |last: &str| dropped(&format!("7 packets captured\n8 packets received by filter\n{last}"));
        assert_eq!(said("0 packets dropped by kernel\n"), Some(0));
        assert_eq!(said("1 packet dropped by kernel\n"), Some(1));
        assert_eq!(said(""), None);
    }
}
