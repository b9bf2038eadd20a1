//! Connections that are older than their pods' enrolment, as a sweep looks at them.

use std::net::SocketAddr;

use kumiko_abi::flow::{TCP, flags};
use kumiko_abi::{Flow, FlowKey, FlowState, Reason};
use kumiko_core::addr;
use kumiko_core::manifest::Protocol;
use kumiko_core::model::{WorkloadPort, World};
use kumiko_core::policy::legacy::{Fate, can_end, either, fate};
use kumiko_core::policy::port::Asked;
use kumiko_core::policy::verdict::{self, End, Evaluator};

use super::super::super::state::NodeState;
use super::ends;
use crate::clock;

/// Longest time between two looks, in seconds: what became legacy meanwhile is found then.
const LOOK: i64 = 60;

/// Whether a workload declares this port of its own.
fn declares(world: &World, end: SocketAddr) -> bool {
    let is_it = |port: &WorkloadPort| port.protocol == Protocol::Tcp && port.port == end.port();
    world.workload_at(end.ip()).is_some_and(|workload| workload.ports.iter().any(is_it))
}

/// One look at all of them.
pub(super) struct Looking<'a> {
    state: &'a NodeState,
    /// Seconds of the boot.
    now: i64,
    /// Seconds until the next look; none: none of them can have to end.
    again: Option<i64>,
}

impl<'a> Looking<'a> {
    pub(super) fn new(state: &'a NodeState, now: i64) -> Self {
        let policy = state.world.policy();
        let again = can_end(&policy.policies, &policy.settings).then_some(LOOK);
        Self { state, now, again }
    }

    /// Why a flow has to end now, if it is older than its pod's enrolment and has to. One that goes to a Service's address is
    /// not asked about: which pod is behind it was chosen elsewhere. That pod's node sees the pod's own address.
    pub(super) fn has_to_end(&mut self, key: &FlowKey, flow: &Flow) -> Option<Reason> {
        let again = self.again.as_mut()?;
        let passes = FlowState::from_u8(flow.state) == Some(FlowState::Direct) && flow.flags & flags::OVER == 0;
        if !passes || flow.flags & flags::LEGACY == 0 || key.proto != TCP || flow.service != 0 {
            return None;
        }
        let (client, server) = addr::ends(key, flow.flags);
        let world = &self.state.world;
        if world.service_at(server.ip(), server.port(), Protocol::Tcp).is_some() {
            return None;
        }
        let about = |client: SocketAddr, server: SocketAddr| {
            let asked = Asked { protocol: Protocol::Tcp, port: server.port() };
            verdict::Flow::new(End::at(world, client.ip()), End::at(world, server.ip()), asked)
        };
        let age = clock::monotonic_ns().saturating_sub(flow.first_ns) / 1_000_000_000;
        let age = i64::try_from(age).unwrap_or(i64::MAX);
        let fate = |client, server, flow: &Flow| {
            let refused = self.state.refusal(&ends(self.state, key, flow));
            fate(&Evaluator::of(world), &about(client, server), refused, age, clock::unix_seconds())
        };
        let seen = || fate(client, server, flow);
        let reversed = || {
            let (src_ifindex, dst_ifindex) = (flow.dst_ifindex, flow.src_ifindex);
            let other = Flow { flags: flow.flags ^ flags::INITIATOR_IS_LO, src_ifindex, dst_ifindex, ..*flow };
            fate(server, client, &other)
        };
        let fate = match (flow.flags & flags::LEARNED != 0, declares(world, client), declares(world, server)) {
            (false, ..) | (true, false, true) => seen(),
            (true, true, false) => reversed(),
            // Nobody saw it begin, and nothing tells who did.
            (true, ..) => either(seen(), reversed()),
        };
        match fate {
            Fate::GoesOn => None,
            Fate::Left(seconds) => {
                *again = seconds.min(*again);
                None
            }
            Fate::Ends(reason) => Some(reason),
        }
    }

    /// When to look again, in seconds of the boot.
    pub(super) fn again(&self) -> Option<i64> {
        self.again.map(|seconds| self.now + seconds)
    }
}
