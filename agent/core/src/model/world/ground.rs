//! What a verdict about two workloads is made of, but for the workloads: kept of snapshots that are in force no more.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::{Namespace, World};
use crate::model::{Node, Workload};
use crate::policy::load::Loaded;

/// Policy, namespaces and nodes of a snapshot. Parts that are equal to those of another one are shared with it.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Ground {
    trust_domain: String,
    policy: Arc<Loaded>,
    namespaces: Arc<BTreeMap<String, Namespace>>,
    nodes: Arc<BTreeMap<String, Node>>,
}

impl Ground {
    /// Of a snapshot; what is as it was `before` takes no memory.
    pub fn of(world: &World, before: &Self) -> Self {
        let policy = &world.policy;
        let policy = if **policy == *before.policy {
            before.policy.clone()
        } else {
            let mut policy = Loaded::clone(policy);
            policy.policies.share(&before.policy.policies);
            Arc::new(policy)
        };
        Self {
            trust_domain: world.trust_domain.clone(),
            policy,
            namespaces: shared(&world.namespaces, &before.namespaces),
            nodes: shared(&world.nodes, &before.nodes),
        }
    }

    /// A snapshot with these workloads and nobody else.
    pub fn with<'a>(&self, workloads: impl IntoIterator<Item = &'a Arc<Workload>>) -> World {
        let mut world = World {
            trust_domain: self.trust_domain.clone(),
            policy: self.policy.clone(),
            namespaces: BTreeMap::clone(&self.namespaces),
            nodes: BTreeMap::clone(&self.nodes),
            ..World::default()
        };
        for node in self.nodes.values() {
            for ip in &node.addresses {
                world.node_by_ip.entry(*ip).or_insert_with(|| node.name.clone());
            }
        }
        for workload in workloads {
            for ip in &workload.ips {
                world.by_ip.entry(*ip).or_insert_with(|| workload.clone());
            }
            world.workloads.entry(workload.uid.clone()).or_insert_with(|| workload.clone());
        }
        world
    }
}

fn shared<T: Clone + PartialEq>(new: &T, before: &Arc<T>) -> Arc<T> {
    if *new == **before { before.clone() } else { Arc::new(new.clone()) }
}
