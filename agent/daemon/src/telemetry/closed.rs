//! How finished flows went, counted for metrics.

use std::collections::BTreeMap;

use kumiko_abi::Reason;
use kumiko_core::flow_record::{FlowClose, FlowPath, FlowRecord};

/// Path, end and reason. Bounded by their numbers.
pub(super) type ClosedCounts = BTreeMap<(&'static str, &'static str, &'static str), u64>;

/// What a finished flow is counted under.
pub(super) fn closed_key(record: &FlowRecord) -> (&'static str, &'static str, &'static str) {
    let path = match record.path {
        FlowPath::Tunnel => "tunnel",
        FlowPath::Agent => "agent",
        FlowPath::Fast => "fast",
        FlowPath::Local => "local",
        FlowPath::Clear => "clear",
        FlowPath::Refused => "refused",
    };
    let close = match record.close {
        Some(FlowClose::Fin) => "fin",
        Some(FlowClose::Rst) => "rst",
        Some(FlowClose::Refused) => "refused",
        Some(FlowClose::TimedOut) => "timed_out",
        Some(FlowClose::GaveUp) => "gave_up",
        Some(FlowClose::EndpointGone) => "endpoint_gone",
        Some(FlowClose::Idle) => "idle",
        Some(FlowClose::Replaced) => "replaced",
        Some(FlowClose::TunnelLost) => "tunnel_lost",
        Some(FlowClose::Agent) => "agent",
        None => "unknown",
    };
    let reason = Reason::ALL.iter().find(|reason| reason.name() == record.reason).map_or("none", |r| r.name());
    (path, close, reason)
}
