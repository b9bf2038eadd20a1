//! Frames in and out while no flow is relayed.

use std::io;

use kumiko_core::frame::Frame;
use kumiko_core::halves::Bytes;

use super::{SETTLE_WITHIN, Tunnel};
use crate::error::TunnelError;
use crate::role::Event;
use crate::session::Item;

impl Tunnel {
    pub(super) async fn send(&mut self, frame: &Frame) -> Result<(), TunnelError> {
        self.session.send(frame)?;
        self.flush().await
    }

    /// Waits for something to happen on the control channel. Bytes of a flow that this side has reset are thrown away.
    pub(super) async fn event(&mut self) -> Result<Event, TunnelError> {
        loop {
            if let Some(event) = self.step()? {
                return Ok(event);
            }
            self.flush().await?;
            if !self.try_read()? {
                self.session.inn.release();
                self.session.out.release();
                self.stream.readable().await?;
            }
        }
    }

    /// Takes the next event out of what was read.
    pub(super) fn step(&mut self) -> Result<Option<Event>, TunnelError> {
        let result = self.try_step();
        if let Err(error) = &result {
            self.fail(error);
        }
        result
    }

    fn try_step(&mut self) -> Result<Option<Event>, TunnelError> {
        loop {
            match self.session.next()? {
                None => return Ok(None),
                Some(Item::CloseNotify) => return Err(TunnelError::Closed),
                Some(Item::Bytes) => {
                    if self.role.bytes()? == Bytes::Deliver {
                        // The dialler sends bytes only after OPENED, and the caller then relays them.
                        return Err(TunnelError::Misuse("bytes came while nobody relays"));
                    }
                    self.session.inn.discard_ready();
                }
                Some(Item::Frame(frame)) => {
                    let (event, answer) = self.role.received(frame)?;
                    if let Some(answer) = answer {
                        self.session.send(&answer)?;
                        self.try_flush()?;
                    }
                    return Ok(Some(event));
                }
            }
        }
    }

    /// Tells the peer what is wrong, if it can be told at once.
    pub(crate) fn fail(&mut self, error: &TunnelError) {
        self.role.closed();
        if let Some(alert) = error.alert()
            && self.session.out.alert(alert).is_ok()
        {
            let _ = self.try_flush();
        }
    }

    /// Reads what is there; `false`: nothing.
    pub(super) fn try_read(&mut self) -> Result<bool, TunnelError> {
        let room = self.session.inn.room();
        let len = room.len();
        match self.stream.try_read(room) {
            Ok(0) => Err(TunnelError::Closed),
            Ok(n) => {
                self.session.inn.read(n, len);
                Ok(true)
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// Writes what can be written; `false`: not all of it.
    pub(crate) fn try_flush(&mut self) -> Result<bool, TunnelError> {
        while !self.session.out.is_empty() {
            let written = match self.session.out.pending() {
                [first, second] if second.is_empty() => self.stream.try_write(&first),
                both => self.stream.try_write_vectored(&both),
            };
            match written {
                Ok(n) => self.session.out.written(n),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(error) => return Err(error.into()),
            }
        }
        Ok(true)
    }

    pub(super) async fn flush(&mut self) -> Result<(), TunnelError> {
        while !self.try_flush()? {
            self.stream.writable().await?;
        }
        Ok(())
    }

    /// After a failed write: what the peer said before it closed, or else `error`.
    pub(super) async fn last_words(&mut self, error: TunnelError) -> TunnelError {
        let words = async {
            loop {
                match self.session.next() {
                    Err(error @ TunnelError::Alert(_)) => return Some(error),
                    Err(_) => return None,
                    Ok(Some(_)) => {
                        self.session.inn.discard_ready();
                        continue;
                    }
                    Ok(None) => {}
                }
                match self.try_read() {
                    Ok(true) => {}
                    Ok(false) => self.stream.readable().await.ok()?,
                    Err(_) => return None,
                }
            }
        };
        let words = tokio::time::timeout(SETTLE_WITHIN, words).await.ok().flatten();
        self.role.closed();
        words.unwrap_or(error)
    }
}
