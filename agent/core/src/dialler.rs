//! The dialling end of a tunnel, as a value: what came in, what has to go out. No socket, no clock.
//!
//! idle -> opening -> flow (both directions, each ends by FIN or RESET) -> idle again. A dialler that gives up while
//! opening sends RESET and is idle again after the acceptor's answer.

use kumiko_abi::Reason;

use crate::frame::{Frame, Refused};
use crate::halves::{Bytes, End, FlowEvent, Halves, Violation, frame_name};

/// The dialling end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dialler {
    flow: u32,
    phase: Phase,
    draining: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Idle,
    Opening,
    Cancelled,
    Flow(Halves),
    Closed,
}

/// What a frame of the acceptor means for the caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// Nothing to do.
    Nothing,
    /// The flow is open; by which epoch of the other node's policy it was let, 0: not said.
    Opened(u32),
    /// The flow was refused; the tunnel is idle again.
    Refused(Refused),
    /// The acceptor did not begin with the flow: open it on another tunnel.
    NotProcessed,
    /// The peer's bytes end here: shut the plain side's sending half down.
    Finished,
    /// The flow was cut off: abort the plain side. A [`Reason`] number.
    Reset(u16),
    /// The next byte is urgent.
    Urgent,
    /// No more flows on this tunnel: close it once it is idle.
    Draining,
}

/// An event and the frame that answers it, which has to be sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// What it means.
    pub event: Event,
    /// What to send.
    pub answer: Option<Frame>,
}

impl Default for Dialler {
    fn default() -> Self {
        Self { flow: 0, phase: Phase::Idle, draining: false }
    }
}

impl Dialler {
    /// Number of the current or last flow.
    pub fn flow(&self) -> u32 {
        self.flow
    }

    /// Whether a flow can be opened.
    pub fn can_open(&self) -> bool {
        self.phase == Phase::Idle && !self.draining && self.flow != u32::MAX
    }

    /// Whether no flow is on the tunnel and the tunnel lives.
    pub fn is_idle(&self) -> bool {
        self.phase == Phase::Idle
    }

    /// Whether the acceptor takes no more flows.
    pub fn is_draining(&self) -> bool {
        self.draining
    }

    /// Both directions, while a flow is open.
    pub fn halves(&self) -> Option<Halves> {
        match self.phase {
            Phase::Flow(halves) => Some(halves),
            _ => None,
        }
    }

    /// Begins a flow; the number goes into its OPEN. `None`: not idle, or no more flows on this tunnel.
    pub fn open(&mut self) -> Option<u32> {
        if !self.can_open() {
            return None;
        }
        self.flow += 1;
        self.phase = Phase::Opening;
        Some(self.flow)
    }

    /// Gives up while opening. The tunnel is idle again after the answer.
    pub fn cancel(&mut self, reason: Reason) -> Option<Frame> {
        if self.phase != Phase::Opening {
            return None;
        }
        self.phase = Phase::Cancelled;
        Some(Frame::Reset { flow: self.flow, reason: reason as u16 })
    }

    /// The plain side has ended its stream.
    pub fn finish(&mut self) -> Option<Frame> {
        let flow = self.flow;
        self.in_flow(|h| h.finish(flow))
    }

    /// The plain side has gone, or the flow has to end.
    pub fn reset(&mut self, reason: Reason) -> Option<Frame> {
        let flow = self.flow;
        self.in_flow(|h| h.reset(flow, reason as u16))
    }

    /// Bytes came.
    pub fn bytes(&mut self) -> Result<Bytes, Violation> {
        let result = match &self.phase {
            Phase::Flow(halves) => halves.bytes(),
            other => Err(Violation::Bytes(other.name())),
        };
        self.close_on_error(result)
    }

    /// A frame came.
    pub fn received(&mut self, frame: &Frame) -> Result<Step, Violation> {
        let result = self.judge(frame);
        self.close_on_error(result)
    }

    /// The tunnel ended.
    pub fn closed(&mut self) {
        self.phase = Phase::Closed;
    }

    fn judge(&mut self, frame: &Frame) -> Result<Step, Violation> {
        let step = |event| Ok(Step { event, answer: None });
        match frame {
            Frame::Ignored(_) => return step(Event::Nothing),
            Frame::Drain { last } => {
                self.draining = true;
                let asked = matches!(self.phase, Phase::Opening | Phase::Cancelled);
                if asked && *last < self.flow {
                    self.phase = Phase::Closed;
                    return step(Event::NotProcessed);
                }
                return step(Event::Draining);
            }
            // It crossed the end of its flow.
            Frame::Reset { flow, .. } | Frame::Urgent { flow } if self.is_over(*flow) => return step(Event::Nothing),
            Frame::Opened { flow, .. }
            | Frame::Refused { flow, .. }
            | Frame::Fin { flow }
            | Frame::Reset { flow, .. }
            | Frame::Urgent { flow }
                if *flow != self.flow =>
            {
                return Err(Violation::Number { frame: frame_name(frame), got: *flow, expected: self.flow });
            }
            _ => {}
        }
        match (&mut self.phase, frame) {
            (Phase::Opening, Frame::Opened { epoch, .. }) => {
                self.phase = Phase::Flow(Halves::open());
                step(Event::Opened(*epoch))
            }
            // It crossed our giving up: the acceptor answers our RESET with its own.
            (Phase::Cancelled, Frame::Opened { .. }) => {
                self.phase = Phase::Flow(Halves { sent: End::Reset(0), received: End::Open });
                step(Event::Nothing)
            }
            (Phase::Opening, Frame::Refused { refused, .. }) => {
                self.phase = Phase::Idle;
                if refused.reason() == Reason::NotProcessed {
                    return step(Event::NotProcessed);
                }
                step(Event::Refused(*refused))
            }
            (Phase::Cancelled, Frame::Refused { .. }) => {
                self.phase = Phase::Idle;
                step(Event::Nothing)
            }
            (Phase::Flow(halves), Frame::Fin { .. } | Frame::Reset { .. } | Frame::Urgent { .. }) => {
                let (event, answer) = halves.received(frame)?;
                if halves.ended() {
                    self.phase = Phase::Idle;
                }
                let event = match event {
                    FlowEvent::Finished => Event::Finished,
                    FlowEvent::Reset(reason) => Event::Reset(reason),
                    FlowEvent::Urgent => Event::Urgent,
                };
                Ok(Step { event, answer })
            }
            (phase, _) => Err(Violation::Frame { frame: frame_name(frame), state: phase.name() }),
        }
    }

    /// Whether a flow of this tunnel has ended on both sides' account.
    fn is_over(&self, flow: u32) -> bool {
        flow < self.flow || (flow == self.flow && self.phase == Phase::Idle)
    }

    fn in_flow(&mut self, act: impl FnOnce(&mut Halves) -> Option<Frame>) -> Option<Frame> {
        let Phase::Flow(halves) = &mut self.phase else { return None };
        let frame = act(halves);
        if halves.ended() {
            self.phase = Phase::Idle;
        }
        frame
    }

    fn close_on_error<T>(&mut self, result: Result<T, Violation>) -> Result<T, Violation> {
        if result.is_err() {
            self.phase = Phase::Closed;
        }
        result
    }
}

impl Phase {
    fn name(&self) -> &'static str {
        match self {
            Self::Idle => "idle",
            Self::Opening => "opening",
            Self::Cancelled => "cancelling",
            Self::Flow(_) => "in a flow",
            Self::Closed => "closed",
        }
    }
}

#[cfg(test)]
mod tests;
