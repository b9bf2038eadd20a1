//! One flow between two plain sockets: a Service's pod on the client's own node, and the yardstick of benchmarks.

use std::future::Future;
use std::io;
use std::pin::pin;

use kumiko_abi::Reason;
use tokio::io::Interest;
use tokio::net::TcpStream;
use tokio::task::coop::consume_budget;

use super::{ROUNDS, RelayEnd, SideEnd, Urgent, Who, plain_end, ready, shut, would_block};
use crate::buffer::{Adaptive, Buffer};

/// Copies between `client` and `server` until both have ended, one has failed, or `stop` gives a cause. Ends travel as
/// in [`super::relay`]; the caller closes both sockets as [`RelayEnd::orderly`] says.
pub async fn plain_relay(
    client: &TcpStream,
    server: &TcpStream,
    stop: impl Future<Output = Reason>,
    urgent: Option<&dyn Urgent>,
) -> RelayEnd {
    let mut stop = pin!(stop);
    let mut end = RelayEnd::new();
    let mut up = Copy::new(client, server, Who::Plain);
    let mut down = Copy::new(server, client, Who::Far);
    let (mut client_errors, mut server_errors) = (true, true);
    // Errors that were reported and not yet met by a read or write.
    let (mut client_told, mut server_told) = (false, false);
    loop {
        // Whatever a socket keeps reporting, the shard's other flows get their turn.
        consume_budget().await;
        // Not the second after the first failed: the failing call took the error with it, and a read of the same socket
        // would take the reset for an end of stream.
        let turn = match up.run(urgent).and_then(|more| Ok(more | down.run(urgent)?)) {
            Ok(turn) => turn,
            Err((who, error)) => {
                // What there is to read is known after the runtime's next look at its sockets.
                tokio::task::yield_now().await;
                let last = if who == Who::Plain { &mut up } else { &mut down };
                last.run_out(urgent);
                return failed(end, &up, &down, who, &error);
            }
        };
        for copy in [&up, &down] {
            if copy.done {
                let side = if copy.from == Who::Plain { &mut end.plain } else { &mut end.far };
                if *side == SideEnd::Open {
                    *side = SideEnd::Finished;
                    end.ended_by(copy.from);
                }
            }
        }
        (end.to_far, end.from_far) = (up.moved, down.moved);
        if up.done && down.done {
            return end;
        }
        if turn {
            tokio::select! {
                biased;
                reason = &mut stop => return stopped(end, reason),
                () = tokio::task::yield_now() => continue,
            }
        }
        // Whoever reads or writes a socket meets its error, after the bytes that came before.
        let used = |reads: &Copy<'_>, writes: &Copy<'_>| reads.wants_read() || writes.wants_write();
        if client_told && !used(&up, &down) {
            client_told = false;
            match client.take_error() {
                Ok(None) => client_errors = false,
                Ok(Some(error)) | Err(error) => return failed(end, &up, &down, Who::Plain, &error),
            }
        }
        if server_told && !used(&down, &up) {
            server_told = false;
            match server.take_error() {
                Ok(None) => server_errors = false,
                Ok(Some(error)) | Err(error) => return failed(end, &up, &down, Who::Far, &error),
            }
        }
        // Of each socket: what both directions want, and errors always.
        let client_wait = wait(up.wants_read(), down.wants_write(), client_errors);
        let server_wait = wait(down.wants_read(), up.wants_write(), server_errors);
        tokio::select! {
            biased;
            reason = &mut stop => return stopped(end, reason),
            error = ready(client, client_wait) => client_told |= error,
            error = ready(server, server_wait) => server_told |= error,
        }
    }
}

fn stopped(mut end: RelayEnd, reason: Reason) -> RelayEnd {
    end.stopped = Some(reason);
    end.ended_by(Who::Agent);
    end
}

fn failed(mut end: RelayEnd, up: &Copy<'_>, down: &Copy<'_>, who: Who, error: &io::Error) -> RelayEnd {
    (end.to_far, end.from_far) = (up.moved, down.moved);
    match who {
        Who::Plain => end.plain = plain_end(error, Reason::ClientReset),
        _ => end.far = plain_end(error, Reason::ServerReset),
    }
    end.ended_by(who);
    end
}

/// One direction.
struct Copy<'a> {
    source: &'a TcpStream,
    sink: &'a TcpStream,
    from: Who,
    buffer: Option<Buffer>,
    start: usize,
    end: usize,
    adaptive: Adaptive,
    /// The source has ended.
    eof: bool,
    /// And the sink was told.
    done: bool,
    urgent_next: bool,
    moved: u64,
}

impl<'a> Copy<'a> {
    fn new(source: &'a TcpStream, sink: &'a TcpStream, from: Who) -> Self {
        Self {
            source,
            sink,
            from,
            buffer: None,
            start: 0,
            end: 0,
            adaptive: Adaptive::default(),
            eof: false,
            done: false,
            urgent_next: false,
            moved: 0,
        }
    }

    fn wants_write(&self) -> bool {
        self.start < self.end
    }

    fn wants_read(&self) -> bool {
        !self.eof && !self.wants_write()
    }

    /// Copies until something blocks; says whether there is more to do at once, or who failed.
    fn run(&mut self, urgent: Option<&dyn Urgent>) -> Result<bool, (Who, io::Error)> {
        let to = if self.from == Who::Plain { Who::Far } else { Who::Plain };
        for _ in 0..ROUNDS {
            if !self.write(urgent).map_err(|e| (to, e))? {
                return Ok(false);
            }
            if self.done {
                return Ok(false);
            }
            if self.eof {
                shut(self.sink).map_err(|e| (to, e))?;
                self.done = true;
                return Ok(false);
            }
            if !self.read(urgent).map_err(|e| (self.from, e))? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// The source has failed: hands on what it sent before it went, as far as the sink takes it at once. Without the
    /// mesh the sink's kernel would hold it by now.
    fn run_out(&mut self, urgent: Option<&dyn Urgent>) {
        while let Ok(true) = self.write(urgent) {
            if self.eof || !matches!(self.read(urgent), Ok(true)) {
                return;
            }
        }
    }

    /// Writes what was read; `false`: the sink takes no more now.
    fn write(&mut self, urgent: Option<&dyn Urgent>) -> io::Result<bool> {
        while let Some(bytes) = self.buffer.as_ref().and_then(|b| b.get(self.start..self.end)) {
            let written = match (urgent, bytes) {
                (_, []) => break,
                (Some(urgent), [byte, ..]) if self.urgent_next => urgent.send(self.sink, *byte).map(|()| 1),
                _ => self.sink.try_write(bytes),
            };
            match written {
                Ok(n) => {
                    self.urgent_next = false;
                    self.start += n;
                    self.moved += n as u64;
                }
                Err(error) if would_block(&error) => return Ok(false),
                Err(error) => return Err(error),
            }
        }
        Ok(true)
    }

    /// `false`: nothing there.
    fn read(&mut self, urgent: Option<&dyn Urgent>) -> io::Result<bool> {
        self.urgent_next = urgent.is_some_and(|u| u.at_mark(self.source));
        let wanted = self.adaptive.size();
        if self.buffer.as_ref().is_none_or(|b| b.size() != wanted) {
            self.buffer = Some(Buffer::take(wanted));
        }
        let Some(buffer) = &mut self.buffer else { return Ok(false) };
        (self.start, self.end) = (0, 0);
        match self.source.try_read(buffer) {
            Ok(0) => {
                self.eof = true;
                self.buffer = None;
                Ok(true)
            }
            Ok(n) => {
                self.adaptive.read(n, buffer.len());
                self.end = n;
                Ok(true)
            }
            Err(error) => {
                self.buffer = None;
                if would_block(&error) { Ok(false) } else { Err(error) }
            }
        }
    }
}

fn wait(read: bool, write: bool, error: bool) -> Option<Interest> {
    let wanted = [(read, Interest::READABLE), (write, Interest::WRITABLE), (error, Interest::ERROR)];
    wanted.into_iter().filter(|(on, _)| *on).map(|(_, interest)| interest).reduce(Interest::add)
}
