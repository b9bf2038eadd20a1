//! Which end of the tunnel this is: one face for both machines.

use kumiko_abi::Reason;
use kumiko_core::acceptor::{self, Acceptor};
use kumiko_core::dialler::{self, Dialler};
use kumiko_core::frame::{Frame, Open, Refused};
use kumiko_core::halves::{Bytes, Halves, Violation};

/// One of the two machines.
#[derive(Debug)]
pub(crate) enum Role {
    Dialler(Dialler),
    Acceptor(Acceptor),
}

/// What a frame meant, for either end.
#[derive(Debug)]
pub(crate) enum Event {
    Nothing,
    Asked(Box<Open>),
    Cancelled,
    Opened(u32),
    Refused(Refused),
    NotProcessed,
    Finished,
    Reset(u16),
    Urgent,
    Draining,
}

impl Role {
    pub(crate) fn flow(&self) -> u32 {
        match self {
            Self::Dialler(d) => d.flow(),
            Self::Acceptor(a) => a.flow(),
        }
    }

    pub(crate) fn is_idle(&self) -> bool {
        match self {
            Self::Dialler(d) => d.is_idle(),
            Self::Acceptor(a) => a.is_idle(),
        }
    }

    pub(crate) fn is_draining(&self) -> bool {
        match self {
            Self::Dialler(d) => d.is_draining(),
            Self::Acceptor(a) => a.is_draining(),
        }
    }

    pub(crate) fn halves(&self) -> Option<Halves> {
        match self {
            Self::Dialler(d) => d.halves(),
            Self::Acceptor(a) => a.halves(),
        }
    }

    pub(crate) fn finish(&mut self) -> Option<Frame> {
        match self {
            Self::Dialler(d) => d.finish(),
            Self::Acceptor(a) => a.finish(),
        }
    }

    pub(crate) fn reset(&mut self, reason: Reason) -> Option<Frame> {
        match self {
            Self::Dialler(d) => d.reset(reason),
            Self::Acceptor(a) => a.reset(reason),
        }
    }

    pub(crate) fn bytes(&mut self) -> Result<Bytes, Violation> {
        match self {
            Self::Dialler(d) => d.bytes(),
            Self::Acceptor(a) => a.bytes(),
        }
    }

    pub(crate) fn closed(&mut self) {
        match self {
            Self::Dialler(d) => d.closed(),
            Self::Acceptor(a) => a.closed(),
        }
    }

    /// Takes a frame; the second is what has to be sent in answer.
    pub(crate) fn received(&mut self, frame: Frame) -> Result<(Event, Option<Frame>), Violation> {
        match self {
            Self::Dialler(d) => {
                let step = d.received(&frame)?;
                let event = match step.event {
                    dialler::Event::Nothing => Event::Nothing,
                    dialler::Event::Opened(epoch) => Event::Opened(epoch),
                    dialler::Event::Refused(refused) => Event::Refused(refused),
                    dialler::Event::NotProcessed => Event::NotProcessed,
                    dialler::Event::Finished => Event::Finished,
                    dialler::Event::Reset(reason) => Event::Reset(reason),
                    dialler::Event::Urgent => Event::Urgent,
                    dialler::Event::Draining => Event::Draining,
                };
                Ok((event, step.answer))
            }
            Self::Acceptor(a) => {
                let step = a.received(frame)?;
                let event = match step.event {
                    acceptor::Event::Nothing => Event::Nothing,
                    acceptor::Event::Asked(open) => Event::Asked(open),
                    acceptor::Event::Cancelled => Event::Cancelled,
                    acceptor::Event::Finished => Event::Finished,
                    acceptor::Event::Reset(reason) => Event::Reset(reason),
                    acceptor::Event::Urgent => Event::Urgent,
                };
                Ok((event, step.answer))
            }
        }
    }
}
