//! Running a script on one connection.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use socket2::SockRef;

use super::process::{Gates, Meeting};
use super::protocol::{Step, StepReport};
use crate::pattern::Pattern;

/// The longest that one call may block.
pub(super) const CALL_LIMIT: Duration = Duration::from_secs(60);
/// A write that does not go on for so long has met a full window.
const STALL: Duration = Duration::from_millis(500);
/// Between two questions of a keep-alive client.
const PAUSE: Duration = Duration::from_millis(10);
const BUFFER: usize = 128 * 1024;

/// What scripts of one process share.
pub(super) struct Around<'a> {
    pub gates: &'a Gates,
    pub meeting: &'a Meeting,
}

/// Name of an error as reports give it.
pub(super) fn error_name(error: &io::Error) -> String {
    match (error.kind(), error.raw_os_error()) {
        (ErrorKind::WouldBlock, _) => "timed out".to_owned(),
        (_, Some(number)) => format!("{:?}", Errno::from_raw(number)),
        (kind, None) => format!("{kind:?}"),
    }
}

/// Runs all steps; those after an error run too, so that later calls' errors are seen.
pub(super) fn run(stream: TcpStream, steps: &[Step], around: &Around<'_>) -> Vec<StepReport> {
    let mut conn = Conn { stream: Some(stream), buffer: vec![0; BUFFER], scratch: Vec::new() };
    steps.iter().map(|step| conn.step(step, around)).collect()
}

fn send_to_error(stream: &mut TcpStream) -> io::Result<()> {
    let deadline = Instant::now() + CALL_LIMIT;
    while Instant::now() < deadline {
        stream.write_all(b".")?;
        // Slow enough that no buffer on the way fills.
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

struct Conn {
    stream: Option<TcpStream>,
    buffer: Vec<u8>,
    scratch: Vec<u8>,
}

/// What a step did, before it has a name.
#[derive(Default)]
struct Outcome {
    bytes: u64,
    error: Option<io::Error>,
    eof: bool,
    broken: bool,
}

impl Outcome {
    fn of(result: io::Result<()>) -> Self {
        Self { error: result.err(), ..Self::default() }
    }
}

impl Conn {
    fn step(&mut self, step: &Step, around: &Around<'_>) -> StepReport {
        let (name, outcome) = self.act(step, around);
        StepReport {
            step: name.to_owned(),
            bytes: outcome.bytes,
            error: outcome.error.as_ref().map(error_name),
            eof: outcome.eof,
            intact: !outcome.broken,
        }
    }

    fn act(&mut self, step: &Step, around: &Around<'_>) -> (&'static str, Outcome) {
        match step {
            Step::Gate { name } => ("gate", Outcome::of(around.gates.wait(name))),
            Step::Open { name } => {
                around.gates.open(name);
                ("open", Outcome::default())
            }
            Step::Meet => ("meet", Outcome::of(around.meeting.wait())),
            Step::Close => {
                self.stream = None;
                ("close", Outcome::default())
            }
            Step::Reset => {
                let stream = self.stream.take();
                let linger = stream.map_or(Ok(()), |s| SockRef::from(&s).set_linger(Some(Duration::ZERO)));
                ("reset", Outcome::of(linger))
            }
            other => match self.stream.take() {
                None => ("closed", Outcome::of(Err(io::Error::from(Errno::EBADF)))),
                Some(mut stream) => {
                    let result = self.talk(&mut stream, other, around);
                    self.stream = Some(stream);
                    result
                }
            },
        }
    }

    fn talk(&mut self, stream: &mut TcpStream, step: &Step, around: &Around<'_>) -> (&'static str, Outcome) {
        match step {
            Step::Send { bytes, pattern } => ("send", self.send(stream, *bytes, pattern, || false)),
            Step::SendUntil { gate, pattern } => {
                ("send_until", self.send(stream, u64::MAX, pattern, || around.gates.is_open(gate)))
            }
            Step::Recv { bytes, pattern } => ("recv", self.recv(stream, Some(*bytes), pattern)),
            Step::RecvToEnd { pattern } => ("recv_to_end", self.recv(stream, None, pattern)),
            Step::Duplex { send, sent, received } => ("duplex", self.duplex(stream, *send, sent, received)),
            Step::Echo { bytes } => ("echo", self.echo(stream, *bytes)),
            Step::Ask { times, bytes, pattern } => {
                let mut left = *times;
                let more = || {
                    left = left.saturating_sub(1);
                    left > 0
                };
                ("ask", self.ask(stream, *bytes, pattern, more))
            }
            Step::AskUntil { gate, bytes, pattern } => {
                ("ask_until", self.ask(stream, *bytes, pattern, || !around.gates.opens_within(gate, PAUSE)))
            }
            Step::Fill { limit, pattern } => {
                let _ = stream.set_write_timeout(Some(STALL));
                let outcome = self.send(stream, *limit, pattern, || false);
                let _ = stream.set_write_timeout(Some(CALL_LIMIT));
                ("fill", outcome)
            }
            Step::SendToError => ("send_to_error", Outcome::of(send_to_error(stream))),
            Step::Urgent { byte } => {
                ("urgent", Outcome::of(SockRef::from(&*stream).send_out_of_band(&[*byte]).map(drop)))
            }
            Step::ShutdownWrite => ("shutdown_write", Outcome::of(stream.shutdown(Shutdown::Write))),
            Step::Gate { .. } | Step::Open { .. } | Step::Meet | Step::Close | Step::Reset => {
                ("none", Outcome::default())
            }
        }
    }

    /// Writes `bytes`, or fewer when `enough` says so between two writes.
    fn send(&mut self, stream: &mut TcpStream, bytes: u64, pattern: &Pattern, enough: impl Fn() -> bool) -> Outcome {
        let mut outcome = Outcome::default();
        while outcome.bytes < bytes && !enough() {
            let length = usize::try_from(bytes - outcome.bytes).unwrap_or(BUFFER).min(BUFFER);
            let part = self.buffer.get_mut(..length).unwrap_or_default();
            pattern.fill(outcome.bytes, part);
            match stream.write(part) {
                Ok(written) => outcome.bytes += written as u64,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => {
                    outcome.error = Some(error);
                    break;
                }
            }
        }
        outcome
    }

    /// Reads `bytes`, or to the end.
    fn recv(&mut self, stream: &mut TcpStream, bytes: Option<u64>, pattern: &Pattern) -> Outcome {
        let mut outcome = Outcome::default();
        loop {
            let left = bytes.map_or(u64::MAX, |bytes| bytes - outcome.bytes);
            if left == 0 {
                return outcome;
            }
            let length = usize::try_from(left).unwrap_or(BUFFER).min(BUFFER);
            match stream.read(self.buffer.get_mut(..length).unwrap_or_default()) {
                Ok(0) => {
                    outcome.eof = true;
                    return outcome;
                }
                Ok(read) => {
                    let part = self.buffer.get(..read).unwrap_or_default();
                    outcome.broken |= !pattern.matches(outcome.bytes, part, &mut self.scratch);
                    outcome.bytes += read as u64;
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => {
                    outcome.error = Some(error);
                    return outcome;
                }
            }
        }
    }

    fn duplex(&mut self, stream: &mut TcpStream, send: u64, sent: &Pattern, received: &Pattern) -> Outcome {
        let writer = match stream.try_clone() {
            Ok(writer) => writer,
            Err(error) => return Outcome::of(Err(error)),
        };
        std::thread::scope(|scope| {
            let sender = scope.spawn(move || {
                let mut conn = Conn { stream: None, buffer: vec![0; BUFFER], scratch: Vec::new() };
                let mut writer = writer;
                let outcome = conn.send(&mut writer, send, sent, || false);
                match outcome.error {
                    Some(error) => Err(error),
                    None => writer.shutdown(Shutdown::Write),
                }
            });
            let mut outcome = self.recv(stream, None, received);
            match sender.join() {
                Ok(Err(error)) => outcome.error = outcome.error.or(Some(error)),
                Ok(Ok(())) => {}
                Err(_) => outcome.broken = true,
            }
            outcome
        })
    }

    fn echo(&mut self, stream: &mut TcpStream, bytes: u64) -> Outcome {
        let mut outcome = Outcome::default();
        let mut message = vec![0; usize::try_from(bytes).unwrap_or(1)];
        loop {
            let mut filled = 0;
            while let Some(rest) = message.get_mut(filled..).filter(|rest| !rest.is_empty()) {
                match stream.read(rest) {
                    Ok(0) => {
                        outcome.eof = true;
                        outcome.broken |= filled != 0;
                        return outcome;
                    }
                    Ok(read) => filled += read,
                    Err(error) if error.kind() == ErrorKind::Interrupted => {}
                    Err(error) => {
                        outcome.error = Some(error);
                        return outcome;
                    }
                }
            }
            outcome.bytes += bytes;
            if let Err(error) = stream.write_all(&message) {
                outcome.error = Some(error);
                return outcome;
            }
        }
    }

    fn ask(
        &mut self,
        stream: &mut TcpStream,
        bytes: u64,
        pattern: &Pattern,
        mut more: impl FnMut() -> bool,
    ) -> Outcome {
        let mut total = Outcome::default();
        loop {
            let sent = self.send(stream, bytes, pattern, || false);
            if sent.error.is_some() {
                return Outcome { error: sent.error, ..total };
            }
            let answer = self.recv(stream, Some(bytes), pattern);
            total.bytes += answer.bytes;
            total.broken |= answer.broken;
            if answer.error.is_some() || answer.eof {
                return Outcome { error: answer.error, eof: answer.eof, ..total };
            }
            if !more() {
                return total;
            }
        }
    }
}
