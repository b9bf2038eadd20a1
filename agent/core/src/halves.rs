//! The two directions of one flow on a tunnel; what dialler and acceptor have in common.
//!
//! A direction ends with FIN (all bytes came) or RESET (cut off). A RESET may follow a FIN: the application went away
//! after it had ended its stream. Who is reset ends its own direction with RESET too, unless it has ended already. So
//! after both directions have ended nothing of the flow is on its way, except a RESET after a FIN, which is told from
//! one of the next flow by its number.

use thiserror::Error;

use crate::frame::Frame;

/// State of one direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// Bytes may still come.
    Open,
    /// Ended with FIN: all bytes were sent.
    Finished,
    /// Cut off, with a [`kumiko_abi::Reason`] number.
    Reset(u16),
}

/// What to do with bytes that came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bytes {
    /// Hand them on.
    Deliver,
    /// This side has reset the flow: throw them away.
    Discard,
}

/// What the peer may not do. The tunnel has to be closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum Violation {
    /// A frame that is not allowed now.
    #[error("peer sent {frame} while {state}: compare the versions of both agents")]
    Frame {
        /// Kind of the frame.
        frame: &'static str,
        /// What this side was doing.
        state: &'static str,
    },
    /// Bytes where no flow is open.
    #[error("peer sent bytes while {0}: compare the versions of both agents")]
    Bytes(&'static str),
    /// A flow number that is not the next one, or not the current one.
    #[error("peer sent {frame} for flow {got} of this tunnel, expected {expected}")]
    Number {
        /// Kind of the frame.
        frame: &'static str,
        /// What it said.
        got: u32,
        /// What it should have said.
        expected: u32,
    },
}

/// Both directions of a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Halves {
    /// Towards the peer.
    pub sent: End,
    /// From the peer.
    pub received: End,
}

/// What a FIN, RESET or URGENT of the peer means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FlowEvent {
    Finished,
    Reset(u16),
    Urgent,
}

impl Halves {
    /// Both open.
    pub(crate) fn open() -> Self {
        Self { sent: End::Open, received: End::Open }
    }

    /// Whether nothing of this flow can come any more.
    pub(crate) fn ended(&self) -> bool {
        self.sent != End::Open && self.received != End::Open
    }

    pub(crate) fn finish(&mut self, flow: u32) -> Option<Frame> {
        if self.sent != End::Open {
            return None;
        }
        self.sent = End::Finished;
        Some(Frame::Fin { flow })
    }

    pub(crate) fn reset(&mut self, flow: u32, reason: u16) -> Option<Frame> {
        if matches!(self.sent, End::Reset(_)) {
            return None;
        }
        self.sent = End::Reset(reason);
        Some(Frame::Reset { flow, reason })
    }

    pub(crate) fn bytes(&self) -> Result<Bytes, Violation> {
        match (self.received, self.sent) {
            (End::Open, End::Reset(_)) => Ok(Bytes::Discard),
            (End::Open, _) => Ok(Bytes::Deliver),
            _ => Err(Violation::Bytes("its direction had ended")),
        }
    }

    /// Takes a FIN, RESET or URGENT of this flow; the frame, if any, is the answer.
    pub(crate) fn received(&mut self, frame: &Frame) -> Result<(FlowEvent, Option<Frame>), Violation> {
        match *frame {
            Frame::Fin { .. } if self.received == End::Open => {
                self.received = End::Finished;
                Ok((FlowEvent::Finished, None))
            }
            Frame::Reset { flow, reason } if !matches!(self.received, End::Reset(_)) => {
                self.received = End::Reset(reason);
                let answer = if self.sent == End::Open { self.reset(flow, reason) } else { None };
                Ok((FlowEvent::Reset(reason), answer))
            }
            Frame::Urgent { .. } if self.received == End::Open => Ok((FlowEvent::Urgent, None)),
            _ => Err(Violation::Frame { frame: frame_name(frame), state: "its direction had ended" }),
        }
    }
}

pub(crate) fn frame_name(frame: &Frame) -> &'static str {
    match frame {
        Frame::Open { .. } => "OPEN",
        Frame::Opened { .. } => "OPENED",
        Frame::Refused { .. } => "REFUSED",
        Frame::Fin { .. } => "FIN",
        Frame::Reset { .. } => "RESET",
        Frame::Drain { .. } => "DRAIN",
        Frame::Urgent { .. } => "URGENT",
        Frame::Ignored(_) => "an unknown frame",
    }
}
