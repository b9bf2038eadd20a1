//! Between whom a flow is, as rules are asked about it, and who can end those that an agent carries.

use std::net::{IpAddr, SocketAddr};

use kumiko_abi::policy::{Cell, DENY_SET, Question, View, find, flags_of_both};
use kumiko_abi::{FlowId, Reason};
use kumiko_core::policy::revoke::Refused;

use super::NodeState;
use crate::clock;

/// Both ends of a flow: behind a Service, the pod that was chosen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Between {
    /// The source's UID; empty: no workload.
    pub source_uid: String,
    /// The destination's UID; empty: no workload.
    pub target_uid: String,
    /// The source's address.
    pub client: IpAddr,
    /// The destination's address and port.
    pub to: SocketAddr,
    /// IP protocol number.
    pub proto: u8,
    /// The source is a process of this node, whatever its address.
    pub host: bool,
    /// Each end is more to the other than its address.
    pub proved: bool,
}

/// Flows that the agent carries.
pub trait Carried: std::fmt::Debug + Send {
    /// Asks about each flow between known ends whether it has to end by the verdicts of an epoch, and ends it then.
    fn end_those(&self, epoch: u32, judge: &mut dyn FnMut(FlowId, &Between) -> Option<Reason>);
}

impl NodeState {
    /// Why, and with what end, the rules of a flow's ends refuse it, as far as these are on this node; `None`: they do not.
    pub fn refusal(&self, between: &Between) -> Option<Refused> {
        self.judge(between).0
    }

    /// The same, with the flags of its entry: what would be said if more were enforced.
    pub fn judge(&self, between: &Between) -> (Option<Refused>, u32) {
        if !self.policy.enforced || (between.source_uid == between.target_uid && !between.source_uid.is_empty()) {
            return (None, 0);
        }
        let (egress, one) = self.judge_end(&between.source_uid, between.to.ip(), between, false);
        let (ingress, other) = self.judge_end(&between.target_uid, between.client, between, true);
        let flags = flags_of_both((egress.is_none(), one), (ingress.is_none(), other));
        (Refused::of_both(egress, ingress), flags)
    }

    /// What one end's rules say; `ingress`: it is the destination.
    fn judge_end(&self, uid: &str, peer: IpAddr, between: &Between, ingress: bool) -> (Option<Refused>, u32) {
        // Who has just left the mesh finishes what was begun; nobody asks about it any more.
        let asked = self.world.workload(uid).is_some_and(|own| own.node == self.node && own.stage.meshed());
        if !asked {
            return (None, 0);
        }
        let cell = self.cell(uid, peer, between, ingress);
        let now = u32::try_from(clock::boot_seconds()).unwrap_or(u32::MAX);
        let refused = cell.refusal(View::Enforced, now).map(|reason| Refused { reason, revoke: cell.revoke });
        (refused, cell.flags(now))
    }

    fn cell(&self, uid: &str, peer: IpAddr, between: &Between, ingress: bool) -> Cell {
        let Some((verdicts, judged)) = &self.verdicts else { return Cell::default() };
        let by_address = !(ingress && between.host);
        if by_address && !judged.has_the_holder_of(peer, &self.world) {
            return Cell::default();
        }
        let set = verdicts.ends.get(uid).copied().unwrap_or(DENY_SET);
        // As the programs ask: addresses of this node's processes that are not the node's stand for its first one.
        let this_node = || self.world.node(&self.node).is_some_and(|node| node.addresses.contains(&peer));
        let stands_for = ingress && between.host && !this_node();
        let class = if stands_for { verdicts.host } else { verdicts.class(peer) };
        let (port, proved) = (between.to.port(), between.proved);
        find(verdicts.as_ref(), Question { set, class, ingress, proto: between.proto, proved, port })
            .unwrap_or_default()
    }
}
