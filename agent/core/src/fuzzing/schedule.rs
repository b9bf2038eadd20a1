//! Both machines against each other, in any schedule, with a model of what each application sent.

use std::collections::VecDeque;

use kumiko_abi::{FlowId, Reason};

use crate::acceptor::{Acceptor, Event as AcceptorEvent};
use crate::dialler::{Dialler, Event};
use crate::frame::{Frame, Open, Refused};
use crate::halves::{Bytes, End};

/// Runs the schedule that `acts` spell, one byte an act, ends what is open, and checks that both ends agree.
pub fn schedule(acts: &[u8]) {
    let mut world = World::default();
    for &act in acts.iter().take(4096) {
        world.act(Act::of(act));
    }
    world.settle();
    assert!(world.acceptor.is_idle());
    assert!(world.dialler.is_idle() || world.dialler_closed && world.acceptor.is_draining());
    for flow in &world.flows {
        assert!(!(flow.not_processed && flow.asked), "not processed, but taken up: {flow:?}");
        for side in 0..2 {
            assert!(flow.delivered[side] <= flow.sent[side]);
            assert!(!flow.finished[side] || flow.reset || flow.delivered[side] == flow.sent[side], "{flow:?}");
        }
    }
    // After all of it a flow still works, unless the acceptor drains.
    if !world.acceptor.is_draining() {
        use Act::{Accept, DeliverToAcceptor, DeliverToDialler, DiallerBytes};
        for act in [Act::Open, DeliverToAcceptor, Accept, DeliverToDialler, DiallerBytes, DeliverToAcceptor] {
            world.act(act);
        }
        assert_eq!(world.flows.last().unwrap().delivered, [1, 0]);
    }
}

#[derive(Clone, Copy, Debug)]
enum Act {
    Open,
    Cancel,
    DiallerBytes,
    DiallerFin,
    DiallerReset,
    Accept,
    Refuse,
    AcceptorBytes,
    AcceptorFin,
    AcceptorReset,
    Drain,
    DeliverToAcceptor,
    DeliverToDialler,
}

impl Act {
    /// One of them for any byte; deliveries and bytes more often than the rest.
    fn of(byte: u8) -> Self {
        match byte & 31 {
            0..=2 => Self::Open,
            3 => Self::Cancel,
            4..=6 => Self::DiallerBytes,
            7 | 8 => Self::DiallerFin,
            9 => Self::DiallerReset,
            10..=12 => Self::Accept,
            13 => Self::Refuse,
            14..=16 => Self::AcceptorBytes,
            17 | 18 => Self::AcceptorFin,
            19 => Self::AcceptorReset,
            // Rare: after it nothing more is opened.
            20 if byte == 20 => Self::Drain,
            20..=25 => Self::DeliverToAcceptor,
            _ => Self::DeliverToDialler,
        }
    }
}

#[derive(Debug)]
enum Wire {
    Frame(Frame),
    /// Bytes of a flow.
    Bytes(u32),
}

#[derive(Default)]
struct World {
    dialler: Dialler,
    acceptor: Acceptor,
    to_acceptor: VecDeque<Wire>,
    to_dialler: VecDeque<Wire>,
    /// Per flow: bytes sent and delivered, towards acceptor and towards dialler; asked, answered with FIN only.
    flows: Vec<Flow>,
    dialler_closed: bool,
}

#[derive(Default, Debug, Clone)]
struct Flow {
    sent: [u32; 2],
    delivered: [u32; 2],
    asked: bool,
    not_processed: bool,
    reset: bool,
    finished: [bool; 2],
}

fn open() -> Box<Open> {
    Box::new(Open {
        flow_id: FlowId([0; 16]),
        client: "10.0.0.1:1".parse().unwrap(),
        destination: "10.0.0.2:2".parse().unwrap(),
        destination_uid: "d".into(),
        source_uid: "s".into(),
        label_digest: Vec::new(),
        service: None,
    })
}

impl World {
    fn flow(&mut self, number: u32) -> &mut Flow {
        &mut self.flows[number as usize - 1]
    }

    fn act(&mut self, act: Act) {
        let from_dialler = match act {
            Act::Open => self.dialler.open().map(|flow| {
                self.flows.push(Flow::default());
                assert_eq!(self.flows.len(), flow as usize);
                Frame::Open { flow, open: open() }
            }),
            Act::Cancel => self.dialler.cancel(Reason::ClientGone),
            Act::DiallerFin => self.dialler.finish(),
            Act::DiallerReset => self.dialler.reset(Reason::ClientReset),
            _ => None,
        };
        let from_acceptor = match act {
            Act::Accept => self.acceptor.opened(),
            Act::Refuse => self.acceptor.refuse(Refused::by_destination(Reason::ConnectRefused, 111)),
            Act::AcceptorFin => self.acceptor.finish(),
            Act::AcceptorReset => self.acceptor.reset(Reason::ServerReset),
            Act::Drain => self.acceptor.drain(),
            _ => None,
        };
        for (frame, queue) in [(from_dialler, &mut self.to_acceptor), (from_acceptor, &mut self.to_dialler)] {
            if let Some(Frame::Reset { flow, .. }) = frame {
                self.flows[flow as usize - 1].reset = true;
            }
            queue.extend(frame.map(Wire::Frame));
        }
        match act {
            Act::DiallerBytes if self.dialler.halves().is_some_and(|h| h.sent == End::Open) => {
                let flow = self.dialler.flow();
                self.flow(flow).sent[0] += 1;
                self.to_acceptor.push_back(Wire::Bytes(flow));
            }
            Act::AcceptorBytes if self.acceptor.halves().is_some_and(|h| h.sent == End::Open) => {
                let flow = self.acceptor.flow();
                self.flow(flow).sent[1] += 1;
                self.to_dialler.push_back(Wire::Bytes(flow));
            }
            Act::DeliverToAcceptor => self.deliver_to_acceptor(),
            Act::DeliverToDialler => self.deliver_to_dialler(),
            _ => {}
        }
    }

    fn deliver_to_acceptor(&mut self) {
        match self.to_acceptor.pop_front() {
            None => {}
            Some(Wire::Bytes(flow)) => {
                assert_eq!(flow, self.acceptor.flow());
                if self.acceptor.bytes().unwrap() == Bytes::Deliver {
                    self.flow(flow).delivered[0] += 1;
                }
            }
            Some(Wire::Frame(frame)) => {
                let step = self.acceptor.received(frame).unwrap();
                let flow = self.acceptor.flow();
                match step.event {
                    AcceptorEvent::Asked(_) => self.flow(flow).asked = true,
                    AcceptorEvent::Finished => self.flow(flow).finished[0] = true,
                    _ => {}
                }
                self.to_dialler.extend(step.answer.map(Wire::Frame));
            }
        }
    }

    fn deliver_to_dialler(&mut self) {
        match self.to_dialler.pop_front() {
            None => {}
            Some(Wire::Bytes(flow)) => {
                assert_eq!(flow, self.dialler.flow());
                if self.dialler.bytes().unwrap() == Bytes::Deliver {
                    self.flow(flow).delivered[1] += 1;
                }
            }
            Some(Wire::Frame(frame)) => {
                if self.dialler_closed {
                    return;
                }
                let step = self.dialler.received(&frame).unwrap();
                let flow = self.dialler.flow();
                match step.event {
                    Event::NotProcessed => {
                        self.flow(flow).not_processed = true;
                        self.dialler_closed = !self.dialler.is_idle();
                    }
                    Event::Finished => self.flow(flow).finished[1] = true,
                    _ => {}
                }
                self.to_acceptor.extend(step.answer.map(Wire::Frame));
            }
        }
    }

    /// Ends what is open and delivers what is on its way.
    fn settle(&mut self) {
        for _ in 0..4 {
            for end in [Act::DiallerFin, Act::AcceptorFin, Act::Refuse] {
                self.act(end);
            }
            while !self.to_acceptor.is_empty() || !self.to_dialler.is_empty() {
                self.deliver_to_acceptor();
                self.deliver_to_dialler();
            }
        }
    }
}
