//! Names of the model for records.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use kumiko_abi::flow::{TCP, UDP};
use kumiko_core::flow_record::{Directory, PartyKind, PartyName, ServiceName};
use kumiko_core::model::{Protocol, Workload};

use crate::reconcile::NodeState;

/// Before the first model.
#[derive(Debug)]
pub(super) struct Nobody;

impl Directory for Nobody {
    fn by_handle(&self, _: u32) -> Option<Arc<PartyName>> {
        None
    }

    fn by_ip(&self, _: IpAddr) -> Option<Arc<PartyName>> {
        None
    }

    fn service(&self, _: SocketAddr, _: u8) -> Option<Arc<ServiceName>> {
        None
    }
}

/// One snapshot's names. Handles of workloads that are gone keep their name until they are given out again.
#[derive(Debug)]
pub struct WorldNames {
    state: Arc<NodeState>,
    by_uid: HashMap<String, Arc<PartyName>>,
}

impl WorldNames {
    /// Names of a snapshot.
    pub fn new(state: Arc<NodeState>) -> Self {
        let by_uid = state.world.workloads().map(|workload| (workload.uid.clone(), Arc::new(name(workload)))).collect();
        Self { state, by_uid }
    }

    /// Principal of a class, for counters.
    pub fn class(&self, number: u32) -> Option<&str> {
        self.state.class_of(number)
    }
}

impl Directory for WorldNames {
    fn by_handle(&self, handle: u32) -> Option<Arc<PartyName>> {
        let workload = self.state.workload_of(handle)?;
        Some(self.by_uid.get(&workload.uid).cloned().unwrap_or_else(|| Arc::new(name(workload))))
    }

    fn by_ip(&self, ip: IpAddr) -> Option<Arc<PartyName>> {
        if let Some(workload) = self.state.world.workload_at(ip) {
            return self.by_uid.get(&workload.uid).cloned();
        }
        let node = self.state.world.node_at(ip)?;
        Some(Arc::new(PartyName {
            kind: PartyKind::Node,
            name: node.name.clone(),
            node: node.name.clone(),
            ..PartyName::default()
        }))
    }

    fn service(&self, asked: SocketAddr, proto: u8) -> Option<Arc<ServiceName>> {
        let protocol = match proto {
            TCP => Protocol::Tcp,
            UDP => Protocol::Udp,
            _ => return None,
        };
        let (service, _) = self.state.world.service_at(asked.ip(), asked.port(), protocol)?;
        Some(Arc::new(ServiceName {
            namespace: service.namespace.clone(),
            name: service.name.clone(),
            ip: asked.ip(),
            port: asked.port(),
        }))
    }
}

fn name(workload: &Workload) -> PartyName {
    PartyName {
        kind: PartyKind::Workload,
        namespace: workload.namespace.clone(),
        name: workload.name.clone(),
        service_account: workload.service_account.clone(),
        principal: workload.principal.to_string(),
        node: workload.node.clone(),
        stage: workload.stage,
    }
}
