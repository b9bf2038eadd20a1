//! The accepting end of a tunnel, as a value: what came in, what has to go out. No socket, no clock.
//!
//! idle -> asked -> flow (both directions, each ends by FIN or RESET) -> idle again; asked -> idle when refused or when
//! the dialler gives up. The acceptor never closes an idle tunnel of its own accord: it sends DRAIN and waits.

use kumiko_abi::Reason;

use crate::frame::{Frame, Open, Refused};
use crate::halves::{Bytes, FlowEvent, Halves, Violation, frame_name};

/// The accepting end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Acceptor {
    flow: u32,
    phase: Phase,
    draining: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Idle,
    Asked,
    Flow(Halves),
    Closed,
}

/// What a frame of the dialler means for the caller.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// Nothing to do.
    Nothing,
    /// A flow is asked for: check, connect, then [`Acceptor::opened`] or [`Acceptor::refuse`].
    Asked(Box<Open>),
    /// The dialler gave up before an answer: stop connecting. The tunnel is idle again.
    Cancelled,
    /// The peer's bytes end here: shut the plain side's sending half down.
    Finished,
    /// The flow was cut off: abort the plain side. A [`Reason`] number.
    Reset(u16),
    /// The next byte is urgent.
    Urgent,
}

/// An event and the frame that answers it, which has to be sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// What it means.
    pub event: Event,
    /// What to send.
    pub answer: Option<Frame>,
}

impl Default for Acceptor {
    fn default() -> Self {
        Self { flow: 0, phase: Phase::Idle, draining: false }
    }
}

impl Acceptor {
    /// Number of the current or last flow.
    pub fn flow(&self) -> u32 {
        self.flow
    }

    /// Whether no flow is on the tunnel and the tunnel lives.
    pub fn is_idle(&self) -> bool {
        self.phase == Phase::Idle
    }

    /// Whether DRAIN was sent.
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

    /// The destination has accepted, and this node let it by an epoch of its policy; 0: none.
    pub fn opened(&mut self, epoch: u32) -> Option<Frame> {
        if self.phase != Phase::Asked {
            return None;
        }
        self.phase = Phase::Flow(Halves::open());
        Some(Frame::Opened { flow: self.flow, epoch })
    }

    /// Nothing comes of it.
    pub fn refuse(&mut self, refused: Refused) -> Option<Frame> {
        if self.phase != Phase::Asked {
            return None;
        }
        self.phase = Phase::Idle;
        Some(Frame::Refused { flow: self.flow, refused })
    }

    /// Takes no more flows.
    pub fn drain(&mut self) -> Option<Frame> {
        if self.draining || self.phase == Phase::Closed {
            return None;
        }
        self.draining = true;
        Some(Frame::Drain { last: self.flow })
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
    pub fn received(&mut self, frame: Frame) -> Result<Step, Violation> {
        let result = self.judge(frame);
        self.close_on_error(result)
    }

    /// The tunnel ended.
    pub fn closed(&mut self) {
        self.phase = Phase::Closed;
    }

    fn judge(&mut self, frame: Frame) -> Result<Step, Violation> {
        let step = |event, answer| Ok(Step { event, answer });
        match &frame {
            Frame::Ignored(_) => return step(Event::Nothing, None),
            // It crossed the end of its flow.
            Frame::Reset { flow, .. } | Frame::Urgent { flow } if self.is_over(*flow) => {
                return step(Event::Nothing, None);
            }
            Frame::Fin { flow } | Frame::Reset { flow, .. } | Frame::Urgent { flow } if *flow != self.flow => {
                return Err(Violation::Number { frame: frame_name(&frame), got: *flow, expected: self.flow });
            }
            _ => {}
        }
        match (&mut self.phase, frame) {
            (Phase::Idle, Frame::Open { flow, open }) => {
                let expected = self.flow.wrapping_add(1);
                if flow != expected {
                    return Err(Violation::Number { frame: "OPEN", got: flow, expected });
                }
                self.flow = flow;
                if self.draining {
                    let refused = Refused::by_agent(Reason::NotProcessed);
                    return step(Event::Nothing, Some(Frame::Refused { flow, refused }));
                }
                self.phase = Phase::Asked;
                step(Event::Asked(open), None)
            }
            (Phase::Asked, Frame::Reset { flow, .. }) => {
                self.phase = Phase::Idle;
                let refused = Refused::by_agent(Reason::ClientGone);
                step(Event::Cancelled, Some(Frame::Refused { flow, refused }))
            }
            (Phase::Flow(halves), frame @ (Frame::Fin { .. } | Frame::Reset { .. } | Frame::Urgent { .. })) => {
                let (event, answer) = halves.received(&frame)?;
                if halves.ended() {
                    self.phase = Phase::Idle;
                }
                let event = match event {
                    FlowEvent::Finished => Event::Finished,
                    FlowEvent::Reset(reason) => Event::Reset(reason),
                    FlowEvent::Urgent => Event::Urgent,
                };
                step(event, answer)
            }
            (phase, frame) => Err(Violation::Frame { frame: frame_name(&frame), state: phase.name() }),
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
            Self::Asked => "connecting",
            Self::Flow(_) => "in a flow",
            Self::Closed => "closed",
        }
    }
}
