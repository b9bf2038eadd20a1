//! What either end of a tunnel may do, said a second time: as what has happened to the current flow, not as phases. The
//! machines are compared with it at every step.

use kumiko_abi::Reason;

use crate::frame::{Frame, Refused};

/// How a direction has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum How {
    Fin,
    Reset,
}

/// What one end has to make of something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Makes {
    Nothing,
    Asked,
    Cancelled,
    Opened,
    Refused(Refused),
    NotProcessed,
    Finished,
    Reset(u16),
    Urgent,
    Draining,
}

/// What an end makes of a frame, and its answer; none: it closes the tunnel.
pub(super) type Verdict = Option<(Makes, Option<Frame>)>;

/// One end's history of the current flow.
#[derive(Clone, Debug)]
pub(super) struct Spec {
    dials: bool,
    pub(super) flow: u32,
    pub(super) closed: bool,
    pub(super) draining: bool,
    cancelled: bool,
    /// OPENED or REFUSED was said: which.
    opened: Option<bool>,
    sent: Option<How>,
    received: Option<How>,
}

impl Spec {
    pub(super) fn new(dials: bool) -> Self {
        let (flow, closed, draining, cancelled) = (0, false, false, false);
        Self { dials, flow, closed, draining, cancelled, opened: Some(false), sent: None, received: None }
    }

    /// Nothing of the current flow can come any more.
    fn over(&self) -> bool {
        self.opened == Some(false) || self.opened == Some(true) && self.sent.is_some() && self.received.is_some()
    }

    pub(super) fn idle(&self) -> bool {
        !self.closed && self.over()
    }

    pub(super) fn in_flow(&self) -> bool {
        !self.closed && self.opened == Some(true) && !self.over()
    }

    /// Whether bytes and URGENT may be sent.
    pub(super) fn may_send(&self) -> bool {
        self.in_flow() && self.sent.is_none()
    }

    fn waits(&self) -> bool {
        !self.closed && self.opened.is_none()
    }

    fn begin(&mut self) {
        self.flow += 1;
        (self.opened, self.sent, self.received, self.cancelled) = (None, None, None, false);
    }

    pub(super) fn open(&mut self) -> Option<u32> {
        (self.idle() && !self.draining).then(|| {
            self.begin();
            self.flow
        })
    }

    pub(super) fn cancel(&mut self, reason: Reason) -> Option<Frame> {
        (self.waits() && !self.cancelled).then(|| {
            self.cancelled = true;
            Frame::Reset { flow: self.flow, reason: reason as u16 }
        })
    }

    pub(super) fn opened(&mut self) -> Option<Frame> {
        self.waits().then(|| {
            self.opened = Some(true);
            Frame::Opened { flow: self.flow, epoch: 0 }
        })
    }

    pub(super) fn refuse(&mut self, refused: Refused) -> Option<Frame> {
        self.waits().then(|| {
            self.opened = Some(false);
            Frame::Refused { flow: self.flow, refused }
        })
    }

    pub(super) fn drain(&mut self) -> Option<Frame> {
        (!self.closed && !self.draining).then(|| {
            self.draining = true;
            Frame::Drain { last: self.flow }
        })
    }

    pub(super) fn finish(&mut self) -> Option<Frame> {
        self.may_send().then(|| {
            self.sent = Some(How::Fin);
            Frame::Fin { flow: self.flow }
        })
    }

    pub(super) fn reset(&mut self, reason: Reason) -> Option<Frame> {
        (self.in_flow() && self.sent != Some(How::Reset)).then(|| {
            self.sent = Some(How::Reset);
            Frame::Reset { flow: self.flow, reason: reason as u16 }
        })
    }

    /// Whether bytes are handed on or thrown away; none: they may not come.
    pub(super) fn bytes(&mut self) -> Option<bool> {
        let may = self.in_flow() && self.received.is_none();
        self.closed |= !may;
        may.then(|| self.sent != Some(How::Reset))
    }

    pub(super) fn received(&mut self, frame: &Frame) -> Verdict {
        let verdict = self.judge(frame);
        self.closed |= verdict.is_none();
        verdict
    }

    fn judge(&mut self, frame: &Frame) -> Verdict {
        let quiet = |makes| Some((makes, None));
        let number = match *frame {
            Frame::Ignored(_) => return quiet(Makes::Nothing),
            Frame::Drain { last } => return self.drained(last),
            Frame::Open { flow, .. } => return self.asked(flow),
            Frame::Opened { flow, .. }
            | Frame::Refused { flow, .. }
            | Frame::Fin { flow }
            | Frame::Reset { flow, .. }
            | Frame::Urgent { flow } => flow,
        };
        let late = number < self.flow || number == self.flow && self.over();
        if late {
            // They may cross the end of their flow; the others end or begin something.
            return matches!(frame, Frame::Reset { .. } | Frame::Urgent { .. }).then_some((Makes::Nothing, None));
        }
        if number > self.flow {
            return None;
        }
        match (self.opened, frame) {
            (None, Frame::Opened { .. }) if self.dials => {
                self.opened = Some(true);
                if self.cancelled {
                    self.sent = Some(How::Reset);
                    return quiet(Makes::Nothing);
                }
                quiet(Makes::Opened)
            }
            (None, Frame::Refused { refused, .. }) if self.dials => {
                self.opened = Some(false);
                quiet(match refused.reason() {
                    _ if self.cancelled => Makes::Nothing,
                    Reason::NotProcessed => Makes::NotProcessed,
                    _ => Makes::Refused(*refused),
                })
            }
            (None, Frame::Reset { flow, .. }) if !self.dials => {
                self.opened = Some(false);
                let refused = Refused::by_agent(Reason::ClientGone);
                Some((Makes::Cancelled, Some(Frame::Refused { flow: *flow, refused })))
            }
            (Some(true), Frame::Fin { .. }) if self.received.is_none() => {
                self.received = Some(How::Fin);
                quiet(Makes::Finished)
            }
            (Some(true), Frame::Urgent { .. }) if self.received.is_none() => quiet(Makes::Urgent),
            (Some(true), Frame::Reset { flow, reason }) if self.received != Some(How::Reset) => {
                self.received = Some(How::Reset);
                let answer = self.sent.is_none().then_some(Frame::Reset { flow: *flow, reason: *reason });
                self.sent.get_or_insert(How::Reset);
                Some((Makes::Reset(*reason), answer))
            }
            _ => None,
        }
    }

    fn drained(&mut self, last: u32) -> Verdict {
        if !self.dials {
            return None;
        }
        self.draining = true;
        // Asked for, and not taken up: whatever comes, it is not for this flow.
        if self.opened.is_none() && last < self.flow {
            self.closed = true;
            return Some((Makes::NotProcessed, None));
        }
        Some((Makes::Draining, None))
    }

    fn asked(&mut self, flow: u32) -> Verdict {
        if self.dials || !self.idle() || flow != self.flow + 1 {
            return None;
        }
        self.begin();
        if self.draining {
            self.opened = Some(false);
            let refused = Refused::by_agent(Reason::NotProcessed);
            return Some((Makes::Nothing, Some(Frame::Refused { flow, refused })));
        }
        Some((Makes::Asked, None))
    }
}
