//! Names of the model for records.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use kumiko_abi::flow::{TCP, UDP};
use kumiko_core::compile::Handles;
use kumiko_core::flow_record::{Directory, PartyKind, PartyName, ServiceName};
use kumiko_core::model::{Protocol, Workload, World};

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

/// One model's names. Handles of workloads that are gone keep the name they had, until they are given out again.
#[derive(Debug)]
pub struct WorldNames {
    world: Arc<World>,
    by_uid: HashMap<String, Arc<PartyName>>,
    by_handle: HashMap<u32, Arc<PartyName>>,
    classes: HashMap<u32, String>,
}

impl WorldNames {
    /// Names of `world`; `before` lends those of handles that are retired.
    pub fn new(world: Arc<World>, handles: &Handles, before: Option<&WorldNames>) -> Self {
        let by_uid: HashMap<String, Arc<PartyName>> =
            world.workloads().map(|workload| (workload.uid.clone(), Arc::new(name(workload)))).collect();
        let mut by_handle = HashMap::new();
        for (number, _) in handles.workloads.retired() {
            if let Some(old) = before.and_then(|before| before.by_handle.get(&number)) {
                by_handle.insert(number, old.clone());
            }
        }
        for (uid, number) in handles.workloads.live() {
            if let Some(name) = by_uid.get(uid) {
                by_handle.insert(number, name.clone());
            }
        }
        let classes = handles.classes.live().map(|(principal, number)| (number, principal.to_owned())).collect();
        Self { world, by_uid, by_handle, classes }
    }

    /// Principal of a class, for counters.
    pub fn class(&self, number: u32) -> Option<&str> {
        self.classes.get(&number).map(String::as_str)
    }
}

impl Directory for WorldNames {
    fn by_handle(&self, handle: u32) -> Option<Arc<PartyName>> {
        self.by_handle.get(&handle).cloned()
    }

    fn by_ip(&self, ip: IpAddr) -> Option<Arc<PartyName>> {
        if let Some(workload) = self.world.workload_at(ip) {
            return self.by_uid.get(&workload.uid).cloned();
        }
        let node = self.world.node_at(ip)?;
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
        let (service, _) = self.world.service_at(asked.ip(), asked.port(), protocol)?;
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
