//! Verdicts as plain functions over values: the programs and the tests call the same code.
//!
//! Nothing here looks anything up. The programs find out who the two ends are and what stage the endpoint has, ask one
//! of these functions, and carry out the [`Decision`].

use crate::{AddrKind, Reason, ServiceEntry, Stage, TUNNEL_PORT, Verdict, Workload, flow, map};

/// What to do with the packet that begins a flow.
#[repr(u8)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Action {
    /// Pass, and make no entry: the endpoint is not enrolled.
    Untouched = 0,
    /// Make a `Direct` entry and pass.
    Direct = 1,
    /// Honest connect: make a `Pending` entry and hand the SYN to the agent.
    Capture = 2,
    /// Make a `Fast` entry and redirect into the other pod.
    Fast = 3,
    /// Into the agent's namespace, whose kernel answers RST. No entry.
    Refuse = 4,
    /// Drop without an answer; the client sends it again. No entry.
    Drop = 5,
}

/// What was decided, and why.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Decision {
    /// What to do.
    pub action: Action,
    /// As told in flow records and counters.
    pub verdict: Verdict,
    /// Why.
    pub reason: Reason,
    /// [`crate::flow::flags`] that the entry starts with.
    pub flags: u32,
}

impl Decision {
    const UNTOUCHED: Self = Self::allow(Action::Untouched, Reason::None, 0);

    #[inline(always)]
    const fn allow(action: Action, reason: Reason, flags: u32) -> Self {
        Self { action, verdict: Verdict::Allow, reason, flags }
    }

    /// Deny with an RST.
    #[inline(always)]
    pub const fn refuse(reason: Reason) -> Self {
        Self { action: Action::Refuse, verdict: Verdict::Deny, reason, flags: 0 }
    }

    #[inline(always)]
    const fn drop(reason: Reason) -> Self {
        Self { action: Action::Drop, verdict: Verdict::Deny, reason, flags: 0 }
    }
}

/// The far end of a flow that a local endpoint begins.
#[repr(u8)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Peer {
    /// Not in the mesh: no workload, a workload that is off or observed, or a node.
    Outside = 0,
    /// The tunnel port of a node.
    Tunnel = 1,
    /// An address that is nobody's: two workloads claim it, or one that may not have it.
    Disputed = 2,
    /// A Service whose ready endpoints are all meshed.
    Service = 3,
    /// A Service that is left to kube-proxy.
    OpenService = 4,
    /// A meshed workload of another node.
    Remote = 5,
    /// A meshed workload of this node with both hooks on its veth.
    Local = 6,
    /// A meshed workload of this node without them: its replies would leave in the clear.
    LocalDetached = 7,
    /// A Service's node port, external or load-balancer address: kube-proxy or the network picks the endpoint.
    Outer = 8,
}

/// Who is behind an address and port, from what the maps say about them: `addr` is the [`AddrKind`] of the address.
#[inline(always)]
pub fn peer(service: Option<&ServiceEntry>, addr: Option<u8>, workload: Option<&Workload>, port: u16) -> Peer {
    if let Some(service) = service {
        return if service.flags & map::service_flags::CAPTURE != 0 {
            Peer::Service
        } else if service.flags & map::service_flags::OUTER != 0 {
            Peer::Outer
        } else {
            Peer::OpenService
        };
    }
    let Some(kind) = addr else { return Peer::Outside };
    if kind == AddrKind::Disputed as u8 {
        return Peer::Disputed;
    }
    if kind != AddrKind::Workload as u8 {
        return if port == TUNNEL_PORT { Peer::Tunnel } else { Peer::Outside };
    }
    let Some(workload) = workload else { return Peer::Outside };
    if workload.flags & map::workload_flags::LIVE == 0 || !Stage::from_u8(workload.stage).meshed() {
        return Peer::Outside;
    }
    if workload.flags & map::workload_flags::LOCAL == 0 {
        Peer::Remote
    } else if workload.flags & map::workload_flags::ATTACHED != 0 && workload.ifindex != 0 {
        Peer::Local
    } else {
        Peer::LocalDetached
    }
}

/// A SYN that a local endpoint sends.
#[derive(Clone, Copy, Debug)]
pub struct Outbound {
    /// The endpoint's stage.
    pub stage: Stage,
    /// It is being raised (`endpoint_flags::LEARN`).
    pub learn: bool,
    /// Clean-up has begun (`config_flags::CLOSING`).
    pub closing: bool,
    /// Both ends may take the fast path.
    pub fast: bool,
    /// The other end.
    pub peer: Peer,
}

/// Judges a SYN that a local endpoint sends.
#[inline(always)]
pub fn outbound(q: Outbound) -> Decision {
    let both = flow::flags::JUDGED_BOTH | flow::flags::VETH_PROVED;
    match q.stage {
        Stage::Off => return Decision::UNTOUCHED,
        Stage::Observe => {
            // A strict pod of this node takes it: the veth proves who sends, and it never leaves the kernel.
            let proof = if matches!(q.peer, Peer::Local) { both } else { 0 };
            return Decision::allow(Action::Direct, Reason::Observed, flow::flags::OBSERVED | proof);
        }
        Stage::Permissive | Stage::Strict => {}
    }
    let strict = matches!(q.stage, Stage::Strict);
    if q.closing {
        return Decision::refuse(Reason::AgentClosing);
    }
    if q.learn {
        // A SYN from before may be on its way already: capturing its retransmission would meet the real SYN-ACK.
        return if strict {
            Decision::drop(Reason::Learning)
        } else {
            Decision::allow(Action::Direct, Reason::LegacyFlow, flow::flags::LEGACY)
        };
    }
    match q.peer {
        Peer::Outside => Decision::allow(Action::Direct, Reason::PeerOutsideMesh, flow::flags::PLAINTEXT),
        Peer::OpenService => Decision::allow(Action::Direct, Reason::ServiceNotMeshed, flow::flags::PLAINTEXT),
        Peer::Outer if strict => Decision::refuse(Reason::OuterAddressRefused),
        Peer::Outer => Decision::allow(Action::Direct, Reason::OuterAddress, flow::flags::PLAINTEXT),
        Peer::Tunnel => Decision::refuse(Reason::TunnelPortRefused),
        Peer::Disputed => Decision::refuse(Reason::DisputedAddress),
        // A pod of this node without hooks: the agent knows whether they are on now, or says EHOSTUNREACH.
        Peer::Service | Peer::Remote | Peer::LocalDetached => Decision::allow(Action::Capture, Reason::Allowed, 0),
        Peer::Local if q.fast => Decision::allow(Action::Fast, Reason::Allowed, both),
        Peer::Local => Decision::allow(Action::Direct, Reason::Allowed, both),
    }
}

/// What becomes of a SYN that was to be captured when no agent listens.
#[inline(always)]
pub const fn without_agent(stage: Stage, permissive_clear: bool) -> Decision {
    if matches!(stage, Stage::Permissive) && permissive_clear {
        let flags = flow::flags::PLAINTEXT | flow::flags::DOWNGRADED;
        Decision::allow(Action::Direct, Reason::AgentDown, flags)
    } else {
        Decision::refuse(Reason::AgentDown)
    }
}

/// What becomes of a SYN that was to be captured but carries an option that two connections cannot carry. The agent
/// refuses it: a socket that signs does not take an RST without a signature, nor does the kernel send one.
#[inline(always)]
pub const fn uncarriable(stage: Stage) -> Decision {
    if matches!(stage, Stage::Permissive) {
        Decision::allow(Action::Direct, Reason::MethodRefused, flow::flags::PLAINTEXT)
    } else {
        let (action, verdict, reason) = (Action::Capture, Verdict::Deny, Reason::MethodRefused);
        Decision { action, verdict, reason, flags: flow::flags::UNCARRIABLE }
    }
}

/// Who sends a SYN that reaches a pod through the host's stack.
#[repr(u8)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Asker {
    /// Nobody who could be told: another node, or a pod whose packets the host forwarded.
    Unknown = 0,
    /// A socket of the node itself.
    Host = 1,
    /// A socket in the kubelet's cgroup, to a port that the pod declares for probes.
    Probe = 2,
    /// An address that is nobody's.
    Disputed = 3,
    /// A pod of this node whose packets the host has translated on their way: they came by its veth.
    Neighbour = 4,
}

/// Flags of a flow that comes in the clear.
#[inline(always)]
pub const fn clear_flags(asker: Asker) -> u32 {
    match asker {
        Asker::Probe => flow::flags::PROBE,
        Asker::Host => flow::flags::PLAINTEXT | flow::flags::HOST,
        Asker::Neighbour => flow::flags::VETH_PROVED,
        Asker::Unknown | Asker::Disputed => flow::flags::PLAINTEXT,
    }
}

/// Judges a SYN (or the SYN-ACK that answers an unseen one) that reaches a local endpoint in the clear.
#[inline(always)]
pub fn inbound(stage: Stage, learn: bool, asker: Asker) -> Decision {
    let host = if matches!(asker, Asker::Host) { flow::flags::HOST } else { 0 };
    match stage {
        Stage::Off => return Decision::UNTOUCHED,
        Stage::Observe => return Decision::allow(Action::Direct, Reason::Observed, flow::flags::OBSERVED | host),
        Stage::Permissive | Stage::Strict => {}
    }
    let strict = matches!(stage, Stage::Strict);
    match asker {
        Asker::Probe => Decision::allow(Action::Direct, Reason::Probe, flow::flags::PROBE),
        Asker::Disputed => Decision::refuse(Reason::DisputedAddress),
        _ if learn && strict => Decision::drop(Reason::Learning),
        _ if learn => Decision::allow(Action::Direct, Reason::LegacyFlow, flow::flags::LEGACY | host),
        Asker::Neighbour => Decision::allow(Action::Direct, Reason::Allowed, flow::flags::VETH_PROVED),
        Asker::Host if strict => Decision::refuse(Reason::HostRefused),
        Asker::Unknown if strict => Decision::refuse(Reason::PlaintextRefused),
        _ => Decision::allow(Action::Direct, Reason::PlaintextAccepted, flow::flags::PLAINTEXT | host),
    }
}

/// What becomes of a TCP packet that begins nothing and belongs to no known flow.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Stray {
    /// Passes.
    Pass,
    /// Older than the enrolment: a legacy entry is made, and it passes.
    Learn,
    /// Into the agent's namespace, whose kernel resets it: nothing of a lost flow may reach the wire.
    Reset,
}

/// Judges a TCP packet without a flow that is no SYN.
#[inline(always)]
pub const fn stray(stage: Stage, learn: bool) -> Stray {
    if !stage.meshed() {
        Stray::Pass
    } else if learn {
        Stray::Learn
    } else {
        Stray::Reset
    }
}

/// Whether a VLAN-tagged frame is dropped: its inside is not looked at, so strict cannot let it be.
#[inline(always)]
pub const fn drops_tagged(stage: Stage) -> bool {
    matches!(stage, Stage::Strict)
}

/// Whether spoofed sources, TCP fragments and unreadable headers are dropped (else they are only counted).
#[inline(always)]
pub const fn enforces(stage: Stage) -> bool {
    stage.meshed()
}

#[cfg(test)]
#[path = "judge_tests.rs"]
mod tests;
