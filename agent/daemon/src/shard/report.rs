//! What the collector is told when a flow begins.

use std::net::SocketAddr;

use kumiko_abi::SynRecord;
use kumiko_abi::flow::TCP;
use kumiko_core::addr;
use kumiko_core::flow_record::ServiceName;
use kumiko_core::frame::Open;
use kumiko_core::route::{Accepted, Plan};

use crate::telemetry::FlowStart;

/// A flow that this node dials.
pub(super) fn dialled(syn: &SynRecord, client: SocketAddr, plan: &Plan, target: u32) -> FlowStart {
    let (_, asked) = addr::ends(&syn.key, syn.flags);
    FlowStart {
        id: syn.id,
        key: syn.key,
        client,
        target: Some(plan.target_addr),
        service: plan.service.as_ref().map(|service| ServiceName {
            namespace: service.namespace.clone(),
            name: service.name.clone(),
            ip: asked.ip(),
            port: asked.port(),
        }),
        source: syn.src,
        destination: target,
        delivering: plan.node_addr.is_none(),
        remote: plan.node_addr.is_some(),
        peer_node: plan.node_addr.map_or_else(String::new, |_| plan.target.node.clone()),
    }
}

/// A flow for which there was no way.
pub(super) fn unplanned(syn: &SynRecord) -> FlowStart {
    let (client, _) = addr::ends(&syn.key, syn.flags);
    FlowStart {
        id: syn.id,
        key: syn.key,
        client,
        target: None,
        service: None,
        source: syn.src,
        destination: syn.dst,
        delivering: false,
        remote: false,
        peer_node: String::new(),
    }
}

/// A flow that another node asks for; `accepted` when its OPEN held.
pub(super) fn asked(open: &Open, accepted: Option<&Accepted>, handles: [u32; 2], node: &str) -> FlowStart {
    let (key, _) = addr::flow_key(open.client, open.destination, TCP);
    FlowStart {
        id: open.flow_id,
        key,
        client: open.client,
        target: Some(open.destination),
        service: open.service.as_ref().and_then(|service| {
            let (namespace, name) = service.name.split_once('/')?;
            Some(ServiceName {
                namespace: namespace.to_owned(),
                name: name.to_owned(),
                ip: service.address.ip(),
                port: service.address.port(),
            })
        }),
        source: handles[0],
        destination: handles[1],
        delivering: true,
        remote: true,
        peer_node: accepted.map_or_else(|| node.to_owned(), |accepted| accepted.source.node.clone()),
    }
}
