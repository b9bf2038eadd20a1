//! A node whose hooks are run on handmade packets, one at a time.

use std::{net::TcpListener, os::fd::AsFd, path::Path};

use kumiko_abi::{
    CommandResult, Endpoint, Event, EventKind, Flow, FlowKey, FlowState, Reason, Stage, Stat, Verdict,
    flow::{TCP, flags},
    programs::{POD_EGRESS, POD_INGRESS},
};
use kumiko_kernel::bpf::{Datapath, EventRing, Maps, SynRing};

use crate::{
    fixture::{Placed, addr, config, endpoint, load, place},
    frames::Tcp,
};

/// `TC_ACT_UNSPEC`, `TC_ACT_SHOT`, `TC_ACT_REDIRECT`.
pub(crate) const PASS: i32 = -1;
pub(crate) const DROP: i32 = 2;
pub(crate) const REDIRECT: i32 = 7;
/// The pod's hook is on `lo`: a test run needs an interface that is there.
pub(crate) const HERE: u32 = 1;
pub(crate) const AGENT: u32 = 77;
pub(crate) const OTHER_POD: u32 = 78;

/// The node of a test: pod 1 at stage `stage`, a meshed pod elsewhere (2), one on this node (3), one detached (4), one
/// observed elsewhere (5).
pub(crate) struct Node {
    pub(crate) datapath: Datapath,
    pub(crate) maps: Maps,
    pub(crate) syns: SynRing,
    pub(crate) events: EventRing,
    /// Sits in the shard's slot: the agent lives.
    _listeners: Vec<TcpListener>,
}

pub(crate) const POD_4: &str = "10.1.0.1";
pub(crate) const POD_6: &str = "fd00:1::1";
pub(crate) const REMOTE_4: &str = "10.2.0.2";
pub(crate) const REMOTE_6: &str = "fd00:2::2";
pub(crate) const LOCAL_4: &str = "10.1.0.3";
pub(crate) const LOCAL_6: &str = "fd00:1::3";
pub(crate) const DETACHED: &str = "10.1.0.4";
pub(crate) const OBSERVED: &str = "10.2.0.5";
pub(crate) const OUTSIDE_4: &str = "192.0.2.1";
pub(crate) const OUTSIDE_6: &str = "2001:db8::1";

pub(crate) fn node(dir: &Path, stage: Stage) -> Node {
    let datapath = load(dir);
    let maps = datapath.maps();
    maps.set_config(&config(AGENT)).unwrap();
    let far = |handle, stage, ips| Placed { handle, stage, ips, ifindex: None, local: false };
    place(&maps, &Placed { handle: 1, stage, ips: &[POD_4, POD_6], ifindex: Some(HERE), local: true });
    place(&maps, &far(2, Stage::Strict, &[REMOTE_4, REMOTE_6]));
    let local =
        Placed { handle: 3, stage: Stage::Strict, ips: &[LOCAL_4, LOCAL_6], ifindex: Some(OTHER_POD), local: true };
    place(&maps, &local);
    place(&maps, &Placed { local: true, ..far(4, Stage::Strict, &[DETACHED]) });
    place(&maps, &far(5, Stage::Observe, &[OBSERVED]));
    let (syns, events) = (datapath.syn_ring(0).unwrap(), datapath.event_ring().unwrap());
    let mut listeners = Vec::new();
    for (v6, at) in [(false, "127.0.0.1:0"), (true, "[::1]:0")] {
        let listener = TcpListener::bind(at).unwrap();
        maps.set_listener(0, v6, listener.as_fd()).unwrap();
        listeners.push(listener);
    }
    Node { datapath, maps, syns, events, _listeners: listeners }
}

impl Node {
    pub(crate) fn run(&self, program: &str, frame: &[u8]) -> i32 {
        self.run_by(program, frame, 0)
    }

    /// `by`: the interface that the packet came in by.
    fn run_by(&self, program: &str, frame: &[u8], by: u32) -> i32 {
        self.datapath.test_run(program, frame, Some(&Self::context(by))).unwrap()
    }

    fn context(by: u32) -> [u8; 192] {
        // `struct __sk_buff`: 48 words, the tenth and the eleventh are the indices of that interface and of the hook's.
        let mut context = [0u8; 192];
        context[36..40].copy_from_slice(&by.to_ne_bytes());
        context[40..44].copy_from_slice(&HERE.to_ne_bytes());
        context
    }

    /// What is done with a packet that the pod sends, and what is left of it.
    pub(crate) fn sends_and_shows(&self, frame: &[u8]) -> (i32, Vec<u8>) {
        self.shows(POD_INGRESS, frame)
    }

    /// The same of one that reaches the pod.
    pub(crate) fn gets_and_shows(&self, frame: &[u8]) -> (i32, Vec<u8>) {
        self.shows(POD_EGRESS, frame)
    }

    fn shows(&self, program: &str, frame: &[u8]) -> (i32, Vec<u8>) {
        let mut out = vec![0; frame.len()];
        let action = self.datapath.test_run_shows(program, frame, Some(&Self::context(0)), &mut out).unwrap();
        (action, out)
    }

    pub(crate) fn sends(&self, frame: &[u8]) -> i32 {
        self.run(POD_INGRESS, frame)
    }

    pub(crate) fn gets(&self, frame: &[u8]) -> i32 {
        self.run(POD_EGRESS, frame)
    }

    /// From what interface `by` received.
    pub(crate) fn gets_by(&self, by: u32, frame: &[u8]) -> i32 {
        self.run_by(POD_EGRESS, frame, by)
    }

    pub(crate) fn flow(&self, of: &Tcp<'_>) -> Option<Flow> {
        self.datapath.flows().get(&key(of))
    }

    pub(crate) fn stat(&self, stat: Stat) -> u64 {
        self.maps.stats().unwrap()[stat as usize]
    }

    pub(crate) fn event(&mut self) -> Option<(EventKind, Reason, Event)> {
        let event = self.events.next()?;
        let kind = [EventKind::New, EventKind::Denied, EventKind::Over, EventKind::Replaced];
        let kind = kind.into_iter().find(|k| *k as u8 == event.kind).unwrap();
        Some((kind, Reason::from_u16(event.flow.reason).unwrap(), event))
    }

    pub(crate) fn endpoint(&self, change: impl FnOnce(&mut Endpoint), stage: Stage) {
        let mut of = endpoint(1, stage);
        change(&mut of);
        self.maps.set_endpoint(HERE, &of).unwrap();
    }

    pub(crate) fn set_state(&self, of: &Tcp<'_>, state: FlowState) {
        let id = self.flow(of).unwrap().id;
        let done =
            self.datapath.commands().set_state(&key(of), &id, state, Reason::Allowed, Verdict::Allow, 0).unwrap();
        assert_eq!(done, CommandResult::Done);
    }
}

pub(crate) fn key(of: &Tcp<'_>) -> FlowKey {
    FlowKey::of_packet(&addr(of.src), of.sport, &addr(of.dst), of.dport, TCP).0
}

/// The other direction, without SYN.
pub(crate) fn reply<'a>(of: &Tcp<'a>, flags: u8) -> Tcp<'a> {
    Tcp { src: of.dst, dst: of.src, sport: of.dport, dport: of.sport, flags, ..of.clone() }
}

/// A direct flow from the host's stack to the host's stack.
pub(crate) fn fake(of: &Tcp<'_>) -> Flow {
    let lo = key(of).lo == addr(of.src);
    Flow {
        id: kumiko_abi::FlowId([0; 16]),
        first_ns: 0,
        last_syn_ns: 0,
        last_ns: 0,
        over_ns: 0,
        src: 0,
        dst: 0,
        service: 0,
        src_ifindex: 0,
        dst_ifindex: 0,
        generation: 1,
        epoch: 0,
        isn: of.seq,
        flags: if lo { flags::INITIATOR_IS_LO } else { 0 },
        shard: 0,
        reason: 0,
        state: FlowState::Direct as u8,
        verdict: 1,
        _pad: [0; 2],
        not_after: 0,
        dir: Default::default(),
    }
}
