//! Both machines against each other, tunnel after tunnel, in any schedule: records on their way for as long as it likes,
//! lost or swapped (which TLS notices), either end gone at any moment. With a model of what each application did and saw.

mod act;
mod flow;

use std::collections::VecDeque;

use kumiko_abi::Reason;

use super::ends::{Checked, open};
use super::spec::Makes;
use crate::frame::Frame;

use self::act::{ACCEPTOR, Act, DIALLER};
use self::flow::Flow;

/// Runs the schedule that `acts` spell, one byte an act, ends what is open, and checks what became of every flow.
pub fn schedule(acts: &[u8]) {
    let mut world = World::new();
    for &act in acts.iter().take(4096) {
        world.act(Act::of(act));
    }
    world.settle();
    // After all of it flows still work: those that were not taken up, on whatever tunnel, and a new one.
    for _ in 0..=world.again.len() {
        world.act(Act::Open);
        for act in [Act::Deliver(ACCEPTOR), Act::Opened, Act::Deliver(DIALLER), Act::Bytes(DIALLER)] {
            world.act(act);
        }
        world.act(Act::Deliver(ACCEPTOR));
        let flow = &world.flows[world.carried[world.carried.len() - 1]];
        assert!(flow.opened && flow.sides[ACCEPTOR].got == 1, "{flow:?}");
        world.settle();
    }
}

/// A record on its way. TLS numbers records, so that none can be left out or come twice.
#[derive(Debug)]
struct Record {
    number: u64,
    what: What,
}

#[derive(Debug)]
enum What {
    Frame(Frame),
    /// The byte of a flow at this place.
    Byte(u32, u32),
    /// URGENT, before the byte at this place.
    Urgent(u32, u32),
}

/// What is on its way to one end.
#[derive(Default, Debug)]
struct Wire {
    records: VecDeque<Record>,
    sent: u64,
    came: u64,
    /// The connection ends behind the last record.
    ends: bool,
}

struct World {
    ends: [Checked; 2],
    /// By the end that they lead to.
    wires: [Wire; 2],
    flows: Vec<Flow>,
    /// Flows of this tunnel, by number less one.
    carried: Vec<usize>,
    /// Flows that no acceptor took up: to be opened again.
    again: VecDeque<usize>,
}

impl World {
    fn new() -> Self {
        let (ends, wires) = ([Checked::dialler(), Checked::acceptor()], [Wire::default(), Wire::default()]);
        Self { ends, wires, flows: Vec::new(), carried: Vec::new(), again: VecDeque::new() }
    }

    fn flow(&mut self, number: u32) -> &mut Flow {
        &mut self.flows[self.carried[number as usize - 1]]
    }

    fn act(&mut self, act: Act) {
        match act {
            Act::Open => self.open(),
            Act::Cancel => {
                let frame = self.ends[DIALLER].cancel();
                if let Some(Frame::Reset { flow, .. }) = frame {
                    self.flow(flow).cancelled = true;
                }
                self.say(DIALLER, frame);
            }
            Act::Opened => {
                let frame = self.ends[ACCEPTOR].opened();
                self.say(ACCEPTOR, frame);
            }
            Act::Refuse => {
                let frame = self.ends[ACCEPTOR].refuse();
                self.say(ACCEPTOR, frame);
            }
            Act::Drain => {
                let frame = self.ends[ACCEPTOR].drain();
                self.say(ACCEPTOR, frame);
            }
            Act::Fin(end) => {
                let frame = self.ends[end].finish();
                self.say(end, frame);
            }
            Act::Reset(end) => {
                let frame = self.ends[end].reset([Reason::ClientReset, Reason::ServerReset][end]);
                self.say(end, frame);
            }
            Act::Bytes(end) | Act::Urgent(end) if self.ends[end].spec.may_send() => {
                let flow = self.ends[end].spec.flow;
                let side = &mut self.flow(flow).sides[end];
                let place = side.sent;
                if matches!(act, Act::Urgent(_)) {
                    return self.send(end, What::Urgent(flow, place));
                }
                side.sent += 1;
                self.send(end, What::Byte(flow, place));
            }
            Act::Bytes(_) | Act::Urgent(_) => {}
            Act::Deliver(end) => self.deliver(end),
            Act::Lose(end) => drop(self.wires[end].records.pop_front()),
            Act::Swap(end) if self.wires[end].records.len() > 1 => self.wires[end].records.swap(0, 1),
            Act::Swap(_) => {}
            Act::Cut(end) => {
                self.wires[end].records.clear();
                self.wires[end].ends = true;
            }
            Act::Close(end) => self.close(end),
        }
    }

    /// Opens a flow, on another tunnel if this one takes no more.
    fn open(&mut self) {
        let spec = &self.ends[DIALLER].spec;
        if spec.closed || spec.draining && spec.idle() {
            self.settle();
            self.close(DIALLER);
            self.settle();
            self.ends = [Checked::dialler(), Checked::acceptor()];
            self.wires = [Wire::default(), Wire::default()];
            self.carried.clear();
        }
        let Some(number) = self.ends[DIALLER].open() else { return };
        // Nothing of the last flow can come any more, but a RESET that crossed its end.
        let late = |record: &Record| matches!(record.what, What::Frame(Frame::Reset { .. } | Frame::Drain { .. }));
        assert!(self.wires[DIALLER].records.iter().all(late), "reused in doubt: {:?}", self.wires[DIALLER]);
        let flow = self.again.pop_front().unwrap_or_else(|| {
            self.flows.push(Flow::default());
            self.flows.len() - 1
        });
        self.carried.push(flow);
        assert_eq!(self.carried.len(), number as usize);
        let open = open(flow as u16);
        self.send(DIALLER, What::Frame(Frame::Open { flow: number, open }));
    }

    /// Notes what a frame says about its flow, and sends it.
    fn say(&mut self, end: usize, frame: Option<Frame>) {
        let Some(frame) = frame else { return };
        match &frame {
            Frame::Opened { flow, .. } => {
                let flow = self.flow(*flow);
                assert!(flow.taken == 1 && !flow.said_opened && !flow.said_refused, "{flow:?}");
                flow.said_opened = true;
            }
            Frame::Refused { flow, refused } => {
                let flow = self.flow(*flow);
                let taken_up = refused.reason() != Reason::NotProcessed;
                assert!(!flow.said_opened && !flow.said_refused && (flow.taken == 1) == taken_up, "{flow:?}");
                flow.said_refused = taken_up;
            }
            Frame::Fin { flow } => self.flow(*flow).sides[end].fin = true,
            Frame::Reset { flow, .. } => self.flow(*flow).sides[end].reset = true,
            _ => {}
        }
        self.send(end, What::Frame(frame));
    }

    fn send(&mut self, end: usize, what: What) {
        let wire = &mut self.wires[1 - end];
        let number = wire.sent;
        wire.sent += 1;
        if !wire.ends {
            wire.records.push_back(Record { number, what });
        }
    }

    fn close(&mut self, end: usize) {
        let spec = &self.ends[end].spec;
        if spec.closed {
            return;
        }
        let (number, busy) = (spec.flow, !spec.idle());
        if busy {
            self.flow(number).sides[end].lost = true;
        }
        self.ends[end].close();
        self.wires[1 - end].ends = true;
    }

    fn deliver(&mut self, end: usize) {
        let wire = &mut self.wires[end];
        let Some(record) = wire.records.pop_front() else {
            if wire.ends {
                self.close(end);
            }
            return;
        };
        if self.ends[end].spec.closed {
            return;
        }
        // TLS: a record that is not the next one cannot be opened.
        if record.number != wire.came {
            return self.close(end);
        }
        wire.came += 1;
        match record.what {
            What::Frame(frame) => self.hear(end, &frame, None),
            What::Urgent(flow, place) => self.hear(end, &Frame::Urgent { flow }, Some(place)),
            What::Byte(flow, place) => {
                let deliver = self.ends[end].bytes().unwrap_or_else(|| panic!("bytes of an honest peer refused"));
                assert_eq!(flow, self.ends[end].spec.flow);
                let side = &mut self.flow(flow).sides[end];
                assert_eq!(deliver, !side.reset, "{side:?}");
                if deliver {
                    assert_eq!(side.got, place);
                    side.got += 1;
                }
            }
        }
    }

    fn hear(&mut self, end: usize, frame: &Frame, place: Option<u32>) {
        let verdict = self.ends[end].received(frame);
        let (makes, answer) = verdict.unwrap_or_else(|| panic!("{frame:?} of an honest peer refused"));
        if let Frame::Drain { .. } = frame {
            assert!(matches!(makes, Makes::Draining | Makes::NotProcessed));
            if makes == Makes::NotProcessed {
                // This tunnel is in doubt: the answer to its last OPEN may come, or not.
                let number = self.ends[end].spec.flow;
                self.not_processed(number);
                self.wires[ACCEPTOR].ends = true;
            }
            return;
        }
        let number = match *frame {
            Frame::Open { flow, .. }
            | Frame::Opened { flow, .. }
            | Frame::Refused { flow, .. }
            | Frame::Fin { flow }
            | Frame::Reset { flow, .. }
            | Frame::Urgent { flow } => flow,
            Frame::Drain { .. } | Frame::Ignored(_) => return,
        };
        let drains = self.ends[end].spec.draining;
        let flow = self.flow(number);
        let other = flow.sides[1 - end].clone();
        let side = &mut flow.sides[end];
        match makes {
            Makes::Nothing | Makes::Draining => {}
            Makes::Asked => {
                flow.taken += 1;
                assert!(flow.taken == 1 && !drains, "{flow:?}");
            }
            Makes::Cancelled => assert!(flow.cancelled && !flow.said_opened, "{flow:?}"),
            Makes::Opened => {
                assert!(flow.said_opened && !flow.said_refused && !flow.cancelled && !flow.refused, "{flow:?}");
                flow.opened = true;
            }
            Makes::Refused(_) => {
                assert!(flow.said_refused && !flow.said_opened && !flow.cancelled && flow.taken == 1, "{flow:?}");
                flow.refused = true;
            }
            Makes::NotProcessed => self.not_processed(number),
            Makes::Finished => {
                assert!(other.fin && !side.end && !side.hit, "{flow:?}");
                // Unless this side has thrown bytes away itself.
                assert!(side.reset || side.got == other.sent, "an end before its bytes: {flow:?}");
                side.end = true;
            }
            Makes::Reset(_) => {
                assert!(other.reset && !side.hit, "{flow:?}");
                side.hit = true;
            }
            Makes::Urgent => assert!(side.reset || place == Some(side.got), "{flow:?}"),
        }
        self.say(end, answer);
    }

    fn not_processed(&mut self, number: u32) {
        let index = self.carried[number as usize - 1];
        let flow = &mut self.flows[index];
        assert!(flow.taken == 0 && !flow.opened && !flow.refused, "not processed, but taken up: {flow:?}");
        // Who has given up does not try again.
        if !flow.cancelled {
            *flow = Flow::default();
            self.again.push_back(index);
        }
    }

    /// Ends what is open, delivers what is on its way, and looks at the flows of this tunnel.
    fn settle(&mut self) {
        for round in 0..4 {
            self.act(Act::Fin(DIALLER));
            self.act(Act::Fin(ACCEPTOR));
            self.act(if round % 2 == 0 { Act::Opened } else { Act::Refuse });
            while self.wires.iter().any(|wire| !wire.records.is_empty()) {
                self.deliver(ACCEPTOR);
                self.deliver(DIALLER);
            }
            // What was lost with nothing behind it ends the connection too: it is not acknowledged in time.
            for wire in &mut self.wires {
                wire.ends |= wire.came != wire.sent;
            }
            self.deliver(ACCEPTOR);
            self.deliver(DIALLER);
        }
        let whole = self.ends.iter().all(|end| !end.spec.closed) && self.wires.iter().all(|w| w.sent == w.came);
        if whole {
            assert!(self.ends.iter().all(|end| end.spec.idle()));
        }
        for index in self.carried.clone() {
            if !self.again.contains(&index) {
                self.flows[index].check(whole);
            }
        }
    }
}
