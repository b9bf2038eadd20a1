//! The two machines, each beside its [`Spec`]: every call is made to both, and they have to agree.

use kumiko_abi::{FlowId, Reason};

use super::spec::{Makes, Spec, Verdict};
use crate::acceptor::{Acceptor, Event as AcceptorEvent};
use crate::dialler::{Dialler, Event};
use crate::frame::{Frame, Open, Refused};
use crate::halves::{Bytes, Violation};

/// OPEN's content; the flow's id tells one flow from another across tunnels.
pub(super) fn open(id: u16) -> Box<Open> {
    let mut flow_id = FlowId([0; 16]);
    flow_id.0[..2].copy_from_slice(&id.to_be_bytes());
    Box::new(Open {
        flow_id,
        client: "10.0.0.1:1".parse().unwrap(),
        destination: "10.0.0.2:2".parse().unwrap(),
        destination_uid: "d".into(),
        source_uid: "s".into(),
        label_digest: Vec::new(),
        service: None,
        epoch: 0,
    })
}

enum Machine {
    Dialler(Dialler),
    Acceptor(Acceptor),
}

/// One end.
pub(super) struct Checked {
    machine: Machine,
    pub(super) spec: Spec,
}

/// Calls one function of whichever machine it is.
macro_rules! both {
    ($end:expr, $machine:ident => $call:expr) => {
        match &mut $end.machine {
            Machine::Dialler($machine) => $call,
            Machine::Acceptor($machine) => $call,
        }
    };
}

impl Checked {
    pub(super) fn dialler() -> Self {
        Self { machine: Machine::Dialler(Dialler::default()), spec: Spec::new(true) }
    }

    pub(super) fn acceptor() -> Self {
        Self { machine: Machine::Acceptor(Acceptor::default()), spec: Spec::new(false) }
    }

    /// What can be seen of the machine is what the spec says.
    fn agree(&mut self) {
        let spec = &self.spec;
        let (flow, idle, draining) = both!(self, m => (m.flow(), m.is_idle(), m.is_draining()));
        assert_eq!((flow, idle, draining), (spec.flow, spec.idle(), spec.draining), "{spec:?}");
        assert_eq!(both!(self, m => m.halves()).is_some(), spec.in_flow(), "{spec:?}");
        if let Machine::Dialler(dialler) = &self.machine {
            assert_eq!(dialler.can_open(), spec.idle() && !spec.draining, "{spec:?}");
        }
    }

    pub(super) fn open(&mut self) -> Option<u32> {
        let Machine::Dialler(dialler) = &mut self.machine else { return None };
        let flow = dialler.open();
        assert_eq!(flow, self.spec.open());
        self.agree();
        flow
    }

    pub(super) fn cancel(&mut self) -> Option<Frame> {
        let Machine::Dialler(dialler) = &mut self.machine else { return None };
        let frame = dialler.cancel(Reason::ClientGone);
        assert_eq!(frame, self.spec.cancel(Reason::ClientGone));
        self.agree();
        frame
    }

    pub(super) fn opened(&mut self) -> Option<Frame> {
        let Machine::Acceptor(acceptor) = &mut self.machine else { return None };
        let frame = acceptor.opened(0);
        assert_eq!(frame, self.spec.opened());
        self.agree();
        frame
    }

    pub(super) fn refuse(&mut self) -> Option<Frame> {
        let refused = Refused::by_destination(Reason::ConnectRefused, 111);
        let Machine::Acceptor(acceptor) = &mut self.machine else { return None };
        let frame = acceptor.refuse(refused);
        assert_eq!(frame, self.spec.refuse(refused));
        self.agree();
        frame
    }

    pub(super) fn drain(&mut self) -> Option<Frame> {
        let Machine::Acceptor(acceptor) = &mut self.machine else { return None };
        let frame = acceptor.drain();
        assert_eq!(frame, self.spec.drain());
        self.agree();
        frame
    }

    pub(super) fn finish(&mut self) -> Option<Frame> {
        let frame = both!(self, m => m.finish());
        assert_eq!(frame, self.spec.finish(), "{:?}", self.spec);
        self.agree();
        frame
    }

    pub(super) fn reset(&mut self, reason: Reason) -> Option<Frame> {
        let frame = both!(self, m => m.reset(reason));
        assert_eq!(frame, self.spec.reset(reason), "{:?}", self.spec);
        self.agree();
        frame
    }

    pub(super) fn close(&mut self) {
        both!(self, m => m.closed());
        self.spec.closed = true;
        self.agree();
    }

    /// Bytes came: whether they are handed on; none: the tunnel is closed.
    pub(super) fn bytes(&mut self) -> Option<bool> {
        let before = self.spec.clone();
        let bytes = both!(self, m => m.bytes()).ok().map(|bytes| bytes == Bytes::Deliver);
        assert_eq!(bytes, self.spec.bytes(), "{before:?}");
        self.agree();
        bytes
    }

    /// A frame came.
    pub(super) fn received(&mut self, frame: &Frame) -> Verdict {
        let before = self.spec.clone();
        let verdict = match &mut self.machine {
            Machine::Dialler(dialler) => dialler_makes(dialler.received(frame)),
            Machine::Acceptor(acceptor) => acceptor_makes(acceptor.received(frame.clone()), frame),
        };
        assert_eq!(verdict, self.spec.received(frame), "{frame:?} at {before:?}");
        self.agree();
        verdict
    }
}

fn dialler_makes(step: Result<crate::dialler::Step, Violation>) -> Verdict {
    let step = step.ok()?;
    let makes = match step.event {
        Event::Nothing => Makes::Nothing,
        Event::Opened(_) => Makes::Opened,
        Event::Refused(refused) => Makes::Refused(refused),
        Event::NotProcessed => Makes::NotProcessed,
        Event::Finished => Makes::Finished,
        Event::Reset(reason) => Makes::Reset(reason),
        Event::Urgent => Makes::Urgent,
        Event::Draining => Makes::Draining,
    };
    Some((makes, step.answer))
}

fn acceptor_makes(step: Result<crate::acceptor::Step, Violation>, frame: &Frame) -> Verdict {
    let step = step.ok()?;
    let makes = match step.event {
        AcceptorEvent::Nothing => Makes::Nothing,
        AcceptorEvent::Asked(asked) => {
            assert!(matches!(frame, Frame::Open { open, .. } if *open == asked));
            Makes::Asked
        }
        AcceptorEvent::Cancelled => Makes::Cancelled,
        AcceptorEvent::Finished => Makes::Finished,
        AcceptorEvent::Reset(reason) => Makes::Reset(reason),
        AcceptorEvent::Urgent => Makes::Urgent,
    };
    Some((makes, step.answer))
}

/// Any frames at either machine, honest or not, between calls of its own side: it does what its spec does.
pub fn machines(script: &[u8]) {
    let Some((&which, script)) = script.split_first() else { return };
    let mut end = if which & 1 == 0 { Checked::dialler() } else { Checked::acceptor() };
    for &[act, arg] in script.as_chunks::<2>().0.iter().take(2048) {
        // Numbers around the current one: the last two flows, this one, the next two.
        let flow = (end.spec.flow + u32::from(arg & 7)).saturating_sub(3).max(1);
        let reasons = [Reason::NotProcessed, Reason::ConnectRefused, Reason::ClientReset, Reason::None];
        let reason = reasons[usize::from(arg >> 3) & 3];
        let frame = match act % 18 {
            0 => Frame::Open { flow, open: open(0) },
            1 => Frame::Opened { flow, epoch: u32::from(arg) },
            2 => Frame::Refused { flow, refused: Refused::by_agent(reason) },
            3 | 4 => Frame::Fin { flow },
            5 => Frame::Reset { flow, reason: reason as u16 },
            6 => Frame::Drain { last: flow - u32::from(arg >> 7) },
            7 => Frame::Urgent { flow },
            8 => Frame::Ignored(0x90),
            other => {
                match other {
                    9 => drop(end.open()),
                    10 => drop(end.cancel()),
                    11 => drop(end.opened()),
                    12 => drop(end.refuse()),
                    13 => drop(end.drain()),
                    14 => drop(end.finish()),
                    15 => drop(end.reset(reason)),
                    16 if !end.spec.closed => drop(end.bytes()),
                    17 if arg == 255 => end.close(),
                    _ => {}
                }
                continue;
            }
        };
        // Nothing is handed to an end that has closed its tunnel.
        if !end.spec.closed {
            end.received(&frame);
        }
    }
}
