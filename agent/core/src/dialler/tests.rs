//! Both machines against each other, in random schedules, with a model of what each application sent.

use std::collections::VecDeque;

use kumiko_abi::FlowId;
use proptest::prelude::*;

use super::*;
use crate::acceptor::{Acceptor, Event as AcceptorEvent};
use crate::frame::Open;

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

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        4 => Just(Act::Open),
        1 => Just(Act::Cancel),
        4 => Just(Act::DiallerBytes),
        3 => Just(Act::DiallerFin),
        1 => Just(Act::DiallerReset),
        4 => Just(Act::Accept),
        1 => Just(Act::Refuse),
        4 => Just(Act::AcceptorBytes),
        3 => Just(Act::AcceptorFin),
        1 => Just(Act::AcceptorReset),
        1 => (0..10_u8).prop_map(|n| if n == 0 { Act::Drain } else { Act::DiallerBytes }),
        12 => Just(Act::DeliverToAcceptor),
        12 => Just(Act::DeliverToDialler),
    ]
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
                if self.dialler.phase == Phase::Closed {
                    return;
                }
                let step = self.dialler.received(&frame).unwrap();
                let flow = self.dialler.flow();
                match step.event {
                    Event::NotProcessed => self.flow(flow).not_processed = true,
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

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]
    #[test]
    fn any_schedule_keeps_both_ends_agreed(acts in proptest::collection::vec(act(), 0..200)) {
        let mut world = World::default();
        for act in acts {
            world.act(act);
        }
        world.settle();
        prop_assert!(world.acceptor.is_idle());
        prop_assert!(world.dialler.is_idle() || world.dialler.phase == Phase::Closed && world.acceptor.is_draining());
        for flow in &world.flows {
            prop_assert!(!(flow.not_processed && flow.asked), "not processed, but taken up: {:?}", flow);
            for side in 0..2 {
                prop_assert!(flow.delivered[side] <= flow.sent[side]);
                prop_assert!(!flow.finished[side] || flow.reset || flow.delivered[side] == flow.sent[side], "{:?}", flow);
            }
        }
        // After all of it a flow still works, unless the acceptor drains.
        if !world.acceptor.is_draining() {
            for act in [Act::Open, Act::DeliverToAcceptor, Act::Accept, Act::DeliverToDialler, Act::DiallerBytes, Act::DeliverToAcceptor] {
                world.act(act);
            }
            prop_assert_eq!(world.flows.last().unwrap().delivered, [1, 0]);
        }
    }
}

#[test]
fn a_reset_after_fin_does_not_meet_the_next_flow() {
    let (mut d, mut a) = (Dialler::default(), Acceptor::default());
    let flow = d.open().unwrap();
    a.received(Frame::Open { flow, open: open() }).unwrap();
    d.received(&a.opened().unwrap()).unwrap();
    let (fin_d, fin_a) = (d.finish().unwrap(), a.finish().unwrap());
    let late = a.reset(Reason::ServerReset).unwrap();
    d.received(&fin_a).unwrap();
    assert!(d.can_open());
    a.received(fin_d).unwrap();
    assert!(a.is_idle());
    let next = d.open().unwrap();
    assert_eq!(d.received(&late).unwrap().event, Event::Nothing);
    a.received(Frame::Open { flow: next, open: open() }).unwrap();
    assert_eq!(d.received(&a.opened().unwrap()).unwrap().event, Event::Opened);
}

#[test]
fn drain_that_crosses_an_open_says_not_processed() {
    let (mut d, mut a) = (Dialler::default(), Acceptor::default());
    let drain = a.drain().unwrap();
    let flow = d.open().unwrap();
    let answer = a.received(Frame::Open { flow, open: open() }).unwrap().answer.unwrap();
    assert!(matches!(answer, Frame::Refused { refused, .. } if refused.reason() == Reason::NotProcessed));
    assert_eq!(d.received(&drain).unwrap().event, Event::NotProcessed);
    assert!(!d.can_open());
}

#[test]
fn what_is_not_allowed_closes() {
    let mut d = Dialler::default();
    assert!(d.bytes().is_err());
    assert!(d.open().is_none());
    let mut d = Dialler::default();
    d.open().unwrap();
    assert!(d.received(&Frame::Fin { flow: 1 }).is_err());
    let mut a = Acceptor::default();
    assert!(a.received(Frame::Open { flow: 2, open: open() }).is_err());
    let mut a = Acceptor::default();
    assert!(a.received(Frame::Drain { last: 0 }).is_err());
}
