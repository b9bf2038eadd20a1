//! The cases that the machines were made for; random schedules are in [`crate::fuzzing`].

use kumiko_abi::FlowId;

use super::*;
use crate::acceptor::Acceptor;
use crate::frame::Open;

fn open() -> Box<Open> {
    Box::new(Open {
        flow_id: FlowId([0; 16]),
        client: "10.0.0.1:1".parse().unwrap(),
        destination: "10.0.0.2:2".parse().unwrap(),
        destination_uid: "d".into(),
        source_uid: "s".into(),
        label_digest: Vec::new(),
        service: None,
        epoch: 0,
    })
}

#[test]
fn a_reset_after_fin_does_not_meet_the_next_flow() {
    let (mut d, mut a) = (Dialler::default(), Acceptor::default());
    let flow = d.open().unwrap();
    a.received(Frame::Open { flow, open: open() }).unwrap();
    d.received(&a.opened(0).unwrap()).unwrap();
    let (fin_d, fin_a) = (d.finish().unwrap(), a.finish().unwrap());
    let late = a.reset(Reason::ServerReset).unwrap();
    d.received(&fin_a).unwrap();
    assert!(d.can_open());
    a.received(fin_d).unwrap();
    assert!(a.is_idle());
    let next = d.open().unwrap();
    assert_eq!(d.received(&late).unwrap().event, Event::Nothing);
    a.received(Frame::Open { flow: next, open: open() }).unwrap();
    assert_eq!(d.received(&a.opened(9).unwrap()).unwrap().event, Event::Opened(9));
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
    let mut d = Dialler::default();
    let flow = d.open().unwrap();
    d.received(&Frame::Opened { flow, epoch: 0 }).unwrap();
    assert!(d.received(&Frame::Urgent { flow: flow + 1 }).is_err(), "URGENT of a flow that is not there yet");
    let mut a = Acceptor::default();
    assert!(a.received(Frame::Open { flow: 2, open: open() }).is_err());
    let mut a = Acceptor::default();
    assert!(a.received(Frame::Drain { last: 0 }).is_err());
}
