//! Names of the model for records.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};

use kumiko_abi::flow::{TCP, UDP};
use kumiko_core::flow_record::{Directory, PartyKind, PartyName, ServiceName};
use kumiko_core::model::{Protocol, Service, Workload};

use crate::reconcile::{NodeState, SharedState};

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
    by_uid: Arc<HashMap<String, Arc<PartyName>>>,
}

impl WorldNames {
    /// Names of a snapshot.
    pub fn new(state: Arc<NodeState>) -> Self {
        let by_uid = state.world.workloads().map(|workload| (workload.uid.clone(), Arc::new(name(workload)))).collect();
        Self { state, by_uid: Arc::new(by_uid) }
    }

    /// Names of a later snapshot; of the same model they are the same.
    fn next(&self, state: Arc<NodeState>) -> Self {
        if Arc::ptr_eq(&self.state.world, &state.world) {
            Self { state, by_uid: self.by_uid.clone() }
        } else {
            Self::new(state)
        }
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

    fn service_of(&self, number: u32, v6: bool) -> Option<Arc<ServiceName>> {
        let reference = self.state.service_of(number)?;
        let named =
            |service: &&Arc<Service>| service.namespace == reference.namespace && service.name == reference.name;
        let service = self.state.world.services().find(named)?;
        Some(Arc::new(ServiceName {
            namespace: service.namespace.clone(),
            name: service.name.clone(),
            ip: *service.cluster_ips.iter().find(|ip| ip.is_ipv6() == v6)?,
            port: reference.port,
        }))
    }
}

/// Names of the snapshot in force, whichever that is when they are looked up. A flow may be of a snapshot that is not
/// announced yet: under older names its address would be called by who had it before.
#[derive(Debug)]
pub struct CurrentNames {
    state: SharedState,
    names: Mutex<Arc<WorldNames>>,
}

impl CurrentNames {
    /// Names of whatever `state` holds.
    pub fn new(state: SharedState) -> Self {
        let names = Mutex::new(Arc::new(WorldNames::new(state.load_full())));
        Self { state, names }
    }

    fn now(&self) -> Arc<WorldNames> {
        let state = self.state.load_full();
        let mut names = self.names.lock().unwrap_or_else(PoisonError::into_inner);
        if !Arc::ptr_eq(&names.state, &state) {
            *names = Arc::new(names.next(state));
        }
        names.clone()
    }
}

impl Directory for CurrentNames {
    fn by_handle(&self, handle: u32) -> Option<Arc<PartyName>> {
        self.now().by_handle(handle)
    }

    fn by_ip(&self, ip: IpAddr) -> Option<Arc<PartyName>> {
        self.now().by_ip(ip)
    }

    fn service(&self, asked: SocketAddr, proto: u8) -> Option<Arc<ServiceName>> {
        self.now().service(asked, proto)
    }

    fn service_of(&self, number: u32, v6: bool) -> Option<Arc<ServiceName>> {
        self.now().service_of(number, v6)
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

#[cfg(test)]
mod tests {
    use arc_swap::ArcSwap;
    use kumiko_core::manifest;
    use kumiko_core::model::World;

    use super::*;

    fn state(epoch: u64, account: &str) -> Arc<NodeState> {
        let text = format!(
            "apiVersion: kumiko.dev/v1alpha1\nkind: Workload\nmetadata: {{name: {account}, namespace: demo, uid: u-{account}}}\n\
             spec: {{serviceAccount: {account}, node: n1, ips: [10.0.0.1]}}\n"
        );
        let objects = manifest::parse("test.yaml", &text).unwrap();
        let (world, _) = World::build("td", epoch, objects.iter().map(|o| ("test.yaml", o))).unwrap();
        let mut state = NodeState::default();
        state.world = Arc::new(world);
        Arc::new(state)
    }

    #[test]
    fn an_address_is_called_by_who_has_it_now() {
        let shared: SharedState = Arc::new(ArcSwap::new(state(1, "first")));
        let names = CurrentNames::new(shared.clone());
        let called = || names.by_ip("10.0.0.1".parse().unwrap()).unwrap().name.clone();
        assert_eq!(called(), "first");
        shared.store(state(2, "heir"));
        assert_eq!(called(), "heir");
    }
}
