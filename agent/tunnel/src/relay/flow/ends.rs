//! How a flow's ends are told to the other side.

use std::io;

use kumiko_abi::Reason;
use kumiko_core::frame::Frame;

use super::{Fatal, Flow};
use crate::error::TunnelError;
use crate::relay::{SideEnd, Who, plain_end, shut};
use crate::role::{Event, Role};
use crate::session::Item;

impl Flow<'_> {
    pub(super) fn far_ended(&mut self, event: Event) -> Result<(), Fatal> {
        match event {
            Event::Finished => {
                if self.plain_gone() {
                    return Ok(());
                }
                self.end.far = SideEnd::Finished;
                self.end.ended_by(Who::Far);
                if let Err(error) = shut(self.plain) {
                    return self.plain_failed(&error);
                }
            }
            Event::Reset(reason) => {
                self.plain_read = false;
                if !self.plain_gone() {
                    self.end.far = SideEnd::Reset(Reason::from_u16(reason).unwrap_or(Reason::None));
                    self.end.ended_by(Who::Far);
                }
                // The answer, if one is due, stands behind bytes that nobody wants: when these are blocked, an RST.
                self.flush_or_abort()?;
            }
            Event::Urgent => self.urgent_next = self.urgent.is_some(),
            _ => {}
        }
        Ok(())
    }

    /// A write to the plain side failed. What it sent before it went (an answer, then a close with bytes unread) is read
    /// first: without the mesh the far application's kernel would hold it by now. Not while the tunnel takes nothing: there
    /// is no room for it, and the error, which the write took from the socket, would wake nobody again.
    pub(super) fn plain_lost(&mut self, error: io::Error) -> Result<(), Fatal> {
        self.tunnel.session.inn.discard_ready();
        if !self.plain_read || self.wants.tunnel_write {
            return self.plain_failed(&error);
        }
        self.lost = Some(error);
        Ok(())
    }

    /// The plain side is gone: the far one is told by RESET, or, when that is blocked, by an RST of the tunnel.
    pub(super) fn plain_failed(&mut self, error: &io::Error) -> Result<(), Fatal> {
        let reset = match self.tunnel.role {
            Role::Dialler(_) => Reason::ClientReset,
            Role::Acceptor(_) => Reason::ServerReset,
        };
        self.plain_read = false;
        self.lost = None;
        self.end.plain = plain_end(error, reset);
        self.end.ended_by(Who::Plain);
        self.tunnel.session.inn.discard_ready();
        let frame = self.tunnel.role.reset(reset);
        self.send(frame)?;
        self.flush_or_abort()
    }

    pub(super) fn stop(&mut self, reason: Reason) -> Result<(), Fatal> {
        self.end.stopped = Some(reason);
        self.end.ended_by(Who::Agent);
        let frame = self.tunnel.role.reset(reason);
        self.send(frame)?;
        self.flush_or_abort()
    }

    pub(super) fn flush_or_abort(&mut self) -> Result<(), Fatal> {
        if self.tunnel.try_flush()? {
            return Ok(());
        }
        self.tunnel.set_abort();
        Err(Fatal::Aborted)
    }

    /// A write into the tunnel failed. What the peer said before it went tells more than the error.
    pub(super) fn write_failed(&mut self, error: TunnelError) -> Fatal {
        loop {
            match self.tunnel.session.next() {
                Err(error @ TunnelError::Alert(_)) => return error.into(),
                Ok(Some(Item::Frame(Frame::Reset { reason, .. }))) => {
                    self.end.far = SideEnd::Reset(Reason::from_u16(reason).unwrap_or(Reason::None));
                    return error.into();
                }
                Ok(Some(_)) => {
                    self.tunnel.session.inn.discard_ready();
                    continue;
                }
                Err(_) => return error.into(),
                Ok(None) => {}
            }
            self.tunnel.session.inn.discard_ready();
            let room = self.tunnel.session.inn.room();
            let len = room.len();
            match self.tunnel.stream.try_read(room) {
                Ok(n) if n > 0 => self.tunnel.session.inn.read(n, len),
                _ => return error.into(),
            }
        }
    }

    /// After an error event on the plain socket while nothing is read from it or written to it (a read would say so,
    /// after the bytes that came before): `false` when there is no error to see.
    pub(super) fn check_plain(&mut self) -> Result<bool, Fatal> {
        if self.plain_gone() {
            return Ok(true);
        }
        match self.plain.take_error() {
            Ok(None) => Ok(false),
            Ok(Some(error)) | Err(error) => self.plain_failed(&error).map(|()| true),
        }
    }

    /// The same for the tunnel, which nobody reads while the plain side takes nothing.
    pub(super) fn check_tunnel(&mut self) -> Result<bool, Fatal> {
        match self.tunnel.stream.take_error() {
            Ok(None) => Ok(false),
            Ok(Some(error)) | Err(error) => Err(TunnelError::from(error).into()),
        }
    }
}
