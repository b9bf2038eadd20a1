//! One flow between a plain socket and a tunnel.

mod ends;

use std::future::Future;
use std::io::{self, IoSlice};
use std::pin::pin;

use kumiko_abi::Reason;
use kumiko_core::frame::Frame;
use kumiko_core::halves::Bytes;
use tokio::io::Interest;
use tokio::net::TcpStream;
use tokio::task::coop::consume_budget;
use tokio::time::{Instant, sleep_until};

use super::{ROUNDS, RelayEnd, SideEnd, Urgent, Who, ready, would_block};
use crate::error::TunnelError;
use crate::inbound::BATCH;
use crate::outbound::Filled;
use crate::role::Event;
use crate::session::Item;
use crate::tunnel::{SETTLE_WITHIN, Tunnel};

/// Carries the open flow of `tunnel` to and from `plain` until both directions have ended, one side has failed, or
/// `stop` gives a cause.
///
/// `plain` has linger {1,0}, no delay, and `SO_OOBINLINE`; the caller closes it as [`RelayEnd::orderly`] says. The tunnel
/// may carry another flow if [`RelayEnd::reusable`]; otherwise it is to be dropped.
pub async fn relay(
    plain: &TcpStream,
    tunnel: &mut Tunnel,
    stop: impl Future<Output = Reason>,
    urgent: Option<&dyn Urgent>,
) -> RelayEnd {
    let mut flow = Flow {
        plain,
        tunnel,
        urgent,
        end: RelayEnd::new(),
        wants: Wants::default(),
        plain_read: true,
        mark: Mark::Unknown,
        urgent_next: false,
        pending: None,
        lost: None,
        counted: (0, 0),
    };
    let result = flow.run(stop).await;
    flow.close(result)
}

/// Readiness that the flow waits for, after everything that could be done was done.
#[derive(Clone, Copy, Debug, Default)]
struct Wants {
    plain_read: bool,
    plain_write: bool,
    tunnel_read: bool,
    tunnel_write: bool,
    /// There is more to do at once.
    turn: bool,
}

/// Where the plain side's reading stands towards an urgent byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mark {
    Unknown,
    /// The peer has been told that the next byte is urgent.
    Told,
}

/// The tunnel cannot be used any more.
enum Fatal {
    Tunnel(TunnelError),
    /// It has been reset: nothing more is to be sent or waited for.
    Aborted,
}

impl From<TunnelError> for Fatal {
    fn from(error: TunnelError) -> Self {
        Self::Tunnel(error)
    }
}

struct Flow<'a> {
    plain: &'a TcpStream,
    tunnel: &'a mut Tunnel,
    urgent: Option<&'a dyn Urgent>,
    end: RelayEnd,
    wants: Wants,
    /// The plain side may still have bytes.
    plain_read: bool,
    mark: Mark,
    /// The next byte for the plain side is urgent.
    urgent_next: bool,
    /// An end that came behind bytes that are not yet delivered.
    pending: Option<Event>,
    /// A write to the plain side failed: what it sent before it went is still being read.
    lost: Option<io::Error>,
    counted: (u64, u64),
}

impl Flow<'_> {
    async fn run(&mut self, stop: impl Future<Output = Reason>) -> Result<(), Fatal> {
        let mut stop = pin!(stop);
        let mut deadline: Option<Instant> = None;
        let (mut plain_error, mut tunnel_error) = (true, true);
        // Errors that were reported and not yet met by a read or write.
        let (mut plain_told, mut tunnel_told) = (false, false);
        loop {
            // Whatever a socket keeps reporting, the shard's other flows get their turn.
            consume_budget().await;
            self.wants = Wants::default();
            self.up()?;
            self.down()?;
            self.count();
            if self.done() {
                return Ok(());
            }
            if self.plain_gone() && deadline.is_none() {
                deadline = Some(Instant::now() + SETTLE_WITHIN);
            }
            if self.wants.turn {
                // Others' turn; stop is looked at when there is nothing to do, or at the latest after one more round.
                tokio::select! {
                    biased;
                    reason = &mut stop => return self.stop(reason),
                    () = tokio::task::yield_now() => continue,
                }
            }
            let wants = self.wants;
            if plain_told && !wants.plain_read && !wants.plain_write {
                plain_told = false;
                plain_error = self.check_plain()?;
                continue;
            }
            if tunnel_told && !wants.tunnel_read && !wants.tunnel_write {
                tunnel_told = false;
                tunnel_error = self.check_tunnel()?;
                continue;
            }
            let plain_wait = interest(wants.plain_read, wants.plain_write, plain_error && !self.plain_gone());
            let tunnel_wait = interest(wants.tunnel_read, wants.tunnel_write, tunnel_error);
            tokio::select! {
                biased;
                reason = &mut stop => return self.stop(reason),
                error = ready(self.plain, plain_wait) => plain_told |= error,
                error = ready(&self.tunnel.stream, tunnel_wait) => tunnel_told |= error,
                () = expired(deadline) => {
                    // The other end does not answer: only an RST gets through to it.
                    self.tunnel.set_abort();
                    return Err(Fatal::Aborted);
                }
            }
        }
    }

    /// Plain side to tunnel.
    fn up(&mut self) -> Result<(), Fatal> {
        for _ in 0..ROUNDS {
            if !self.tunnel.try_flush().map_err(|e| self.write_failed(e))? {
                if let Some(error) = self.lost.take() {
                    return self.plain_failed(&error);
                }
                self.wants.tunnel_write = true;
                return Ok(());
            }
            if !self.plain_read {
                self.tunnel.session.out.release();
                return Ok(());
            }
            if self.look_for_mark()? {
                continue;
            }
            let plain = self.plain;
            let (out, rekey) = self.tunnel.session.sender();
            match out.fill(rekey, |places| plain.try_read_vectored(places))? {
                Filled::Bytes(n) => {
                    self.end.to_far += n as u64;
                    self.mark = Mark::Unknown;
                }
                Filled::Flush => {}
                Filled::End => {
                    if let Some(error) = self.lost.take() {
                        return self.plain_failed(&error);
                    }
                    self.plain_read = false;
                    self.end.plain = SideEnd::Finished;
                    self.end.ended_by(Who::Plain);
                    let fin = self.tunnel.role.finish();
                    self.send(fin)?;
                }
                Filled::Failed(error) if would_block(&error) => {
                    if let Some(error) = self.lost.take() {
                        return self.plain_failed(&error);
                    }
                    self.wants.plain_read = true;
                    self.tunnel.session.out.release();
                    return Ok(());
                }
                Filled::Failed(error) => return self.plain_failed(&error),
            }
        }
        self.wants.turn = true;
        Ok(())
    }

    /// Tunnel to plain side.
    fn down(&mut self) -> Result<(), Fatal> {
        for _ in 0..ROUNDS {
            if self.lost.is_some() {
                self.wants.turn = true;
                return Ok(());
            }
            let more = self.open_records()?;
            if !self.deliver()? {
                return Ok(());
            }
            if let Some(event) = self.pending.take() {
                self.far_ended(event)?;
                continue;
            }
            // Read on after FIN as well: a RESET may follow it.
            if self.tunnel.role.halves().is_none() {
                return Ok(());
            }
            if more {
                continue;
            }
            let room = self.tunnel.session.inn.room();
            let len = room.len();
            match self.tunnel.stream.try_read(room) {
                Ok(0) => return Err(TunnelError::Closed.into()),
                Ok(n) => self.tunnel.session.inn.read(n, len),
                Err(error) if would_block(&error) => {
                    self.wants.tunnel_read = true;
                    self.tunnel.session.inn.release();
                    return Ok(());
                }
                Err(error) => return Err(TunnelError::from(error).into()),
            }
        }
        self.wants.turn = true;
        Ok(())
    }

    /// Opens what was read, up to an end or a full batch; says whether there may be more to open.
    fn open_records(&mut self) -> Result<bool, Fatal> {
        while self.pending.is_none() && self.tunnel.role.halves().is_some() {
            match self.tunnel.session.next()? {
                None => return Ok(self.tunnel.session.inn.is_full()),
                Some(Item::Bytes) => {
                    if self.tunnel.role.bytes().map_err(TunnelError::from)? == Bytes::Discard {
                        self.tunnel.session.inn.discard_ready();
                    } else if self.urgent_next {
                        // Its first byte is delivered by itself.
                        return Ok(true);
                    }
                }
                Some(Item::CloseNotify) => return Err(TunnelError::Closed.into()),
                Some(Item::Frame(frame)) => {
                    let (event, answer) = self.tunnel.role.received(frame).map_err(TunnelError::from)?;
                    self.send(answer)?;
                    match event {
                        Event::Finished | Event::Reset(_) | Event::Urgent => self.pending = Some(event),
                        _ => {}
                    }
                }
            }
        }
        Ok(true)
    }

    /// Writes opened bytes; `false`: the plain side takes no more, or is gone.
    fn deliver(&mut self) -> Result<bool, Fatal> {
        while self.tunnel.session.inn.has_ready() {
            let inn = &self.tunnel.session.inn;
            let written = match (self.urgent, inn.first_ready()) {
                (Some(urgent), Some(byte)) if self.urgent_next => urgent.send(self.plain, byte).map(|()| 1),
                _ => {
                    let mut pieces = [IoSlice::new(&[]); BATCH];
                    let n = inn.pieces(&mut pieces);
                    self.plain.try_write_vectored(pieces.get(..n).unwrap_or_default())
                }
            };
            match written {
                Ok(n) => {
                    self.urgent_next = false;
                    self.end.from_far += n as u64;
                    self.tunnel.session.inn.delivered(n);
                }
                Err(error) if would_block(&error) => {
                    if let Some(Event::Reset(_)) = self.pending {
                        // What the application has not taken by now it would have lost without the mesh as well.
                        self.tunnel.session.inn.discard_ready();
                        return Ok(true);
                    }
                    self.wants.plain_write = true;
                    return Ok(false);
                }
                Err(error) => {
                    self.plain_lost(error)?;
                    return Ok(false);
                }
            }
        }
        Ok(true)
    }

    fn send(&mut self, frame: Option<Frame>) -> Result<(), Fatal> {
        if let Some(frame) = frame {
            self.tunnel.session.send(&frame)?;
        }
        Ok(())
    }

    /// Tells the peer when the next byte is urgent; `true`: that has to be written first.
    fn look_for_mark(&mut self) -> Result<bool, Fatal> {
        if let Some(urgent) = self.urgent
            && self.mark == Mark::Unknown
            && urgent.at_mark(self.plain)
        {
            self.mark = Mark::Told;
            let flow = self.tunnel.role.flow();
            self.send(Some(Frame::Urgent { flow }))?;
            return Ok(true);
        }
        Ok(false)
    }

    fn plain_gone(&self) -> bool {
        matches!(self.end.plain, SideEnd::Reset(_) | SideEnd::Failed(_))
    }

    /// Both directions have ended, and everything is handed over.
    fn done(&self) -> bool {
        let session = &self.tunnel.session;
        self.tunnel.role.halves().is_none()
            && self.pending.is_none()
            && !session.inn.has_ready()
            && session.out.is_empty()
    }

    fn count(&mut self) {
        let now = (self.end.to_far, self.end.from_far);
        if now != self.counted {
            self.tunnel.info().count(now.0 - self.counted.0, now.1 - self.counted.1);
            self.counted = now;
        }
    }

    fn close(mut self, result: Result<(), Fatal>) -> RelayEnd {
        self.count();
        if let Err(fatal) = result {
            if let Fatal::Tunnel(error) = fatal {
                if self.end.far == SideEnd::Open {
                    self.end.far = SideEnd::Lost(error.reason());
                    self.end.ended_by(Who::Far);
                }
                self.tunnel.fail(&error);
                self.end.error = Some(error);
            }
            self.tunnel.role.closed();
        }
        self.tunnel.session.inn.discard_ready();
        self.tunnel.session.inn.release();
        self.tunnel.session.out.release();
        self.tunnel.ended();
        self.end.reusable = self.tunnel.is_reusable();
        self.end
    }
}

fn interest(read: bool, write: bool, error: bool) -> Option<Interest> {
    let wanted = [(read, Interest::READABLE), (write, Interest::WRITABLE), (error, Interest::ERROR)];
    wanted.into_iter().filter(|(on, _)| *on).map(|(_, interest)| interest).reduce(Interest::add)
}

async fn expired(deadline: Option<Instant>) {
    match deadline {
        Some(at) => sleep_until(at).await,
        None => std::future::pending().await,
    }
}
