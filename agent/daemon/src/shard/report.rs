//! What the collector is told when a flow begins.

use std::net::SocketAddr;

use kumiko_abi::SynRecord;
use kumiko_abi::flow::TCP;
use kumiko_core::addr;
use kumiko_core::flow_record::ServiceName;
use kumiko_core::frame::{AskedService, Open};
use kumiko_core::model::World;
use kumiko_core::route::{self, Accepted, Plan};

use crate::telemetry::FlowStart;

/// A flow that this node dials.
pub(super) fn dialled(syn: &SynRecord, client: SocketAddr, plan: &Plan, (target, epoch): (u32, u32)) -> FlowStart {
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
        epoch,
        peer_epoch: 0,
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
        epoch: 0,
        peer_epoch: 0,
    }
}

/// A flow that another node asks for; `accepted` when its OPEN held. A Service is named only if this node's model has it
/// so: what a record says may not be another node's invention.
pub(super) fn asked(
    open: &Open,
    world: &World,
    accepted: Option<&Accepted>,
    (handles, epoch): ([u32; 2], u32),
    node: &str,
) -> FlowStart {
    let confirmed = |service: &&AskedService| route::is_asked_service(world, service, open.destination);
    let (key, _) = addr::flow_key(open.client, open.destination, TCP);
    FlowStart {
        id: open.flow_id,
        key,
        client: open.client,
        target: Some(open.destination),
        service: open.service.as_ref().filter(confirmed).and_then(|service| {
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
        epoch,
        peer_epoch: open.epoch,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kumiko_abi::FlowId;

    const OBJECTS: &str = "
{apiVersion: v1, kind: Node, metadata: {name: n1}, status: {addresses: [{type: InternalIP, address: 192.168.0.1}]}}
---
{apiVersion: kumiko.dev/v1alpha1, kind: Workload, metadata: {name: a, namespace: x, uid: a, labels: {app: a}},
 spec: {serviceAccount: s, node: n1, ips: [10.0.0.1]}}
---
{apiVersion: v1, kind: Service, metadata: {name: shop, namespace: x},
 spec: {clusterIP: 10.9.0.1, ports: [{port: 80}], selector: {app: a}}}
";

    #[test]
    fn a_record_names_no_service_that_another_node_made_up() {
        let objects = kumiko_core::manifest::parse("f", OBJECTS).unwrap();
        let world = World::build("td", 1, objects.iter().map(|object| ("f", object))).unwrap().0;
        let named = |name: &str, destination: &str| {
            let open = Open {
                flow_id: FlowId([0; 16]),
                client: "10.0.9.9:40000".parse().unwrap(),
                destination: destination.parse().unwrap(),
                destination_uid: "a".into(),
                source_uid: "b".into(),
                label_digest: Vec::new(),
                service: Some(AskedService { name: name.into(), address: "10.9.0.1:80".parse().unwrap() }),
                epoch: 0,
            };
            asked(&open, &world, None, ([0, 0], 0), "192.168.0.2").service.map(|service| service.name)
        };
        assert_eq!(named("x/shop", "10.0.0.1:80").as_deref(), Some("shop"));
        assert_eq!(named("x/bank", "10.0.0.1:80"), None);
        assert_eq!(named("x/shop", "10.0.0.1:22"), None);
    }
}
