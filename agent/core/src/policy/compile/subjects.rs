//! The endpoints of a node, grouped by the rules about them.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use kumiko_abi::Stage;

use super::super::judge::{self, Policies};
use super::super::port::Ports;
use super::super::rule::{Direction, Exception, Object, ObjectId, Suspended};
use super::super::selector::Member;
use super::super::verdict::Evaluator;
use super::columns;
use crate::manifest::Protocol;
use crate::model::{Workload, WorkloadPort};

/// What makes a set, beside what its objects say: who has the same has the same verdicts.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct Key {
    pub(super) objects: Vec<ObjectId>,
    exceptions: Vec<String>,
    lenient: bool,
    /// What rules about it call its ports.
    pub(super) named: Vec<(Protocol, String, u16)>,
    /// Where it is probed.
    pub(super) probed: Vec<(Protocol, u16)>,
}

/// Endpoints with one key.
#[derive(Clone, Debug)]
pub(super) struct Group {
    /// One of them: any stands for all.
    pub(super) subject: Arc<Workload>,
    pub(super) policies: Policies,
}

/// All endpoints of a node.
pub(super) struct Subjects {
    pub(super) groups: BTreeMap<Key, Group>,
    /// Keys by UID.
    pub(super) ends: BTreeMap<String, Key>,
}

/// Baselines, policies and exceptions by the namespace that they are about, if they name one.
struct Index<'a> {
    objects: HashMap<Option<&'a str>, Vec<(usize, &'a Arc<Object>)>>,
    exceptions: HashMap<Option<&'a str>, Vec<(usize, &'a Arc<Exception>)>>,
}

impl<'a> Index<'a> {
    fn of(policies: &'a Policies) -> Self {
        let mut index = Self { objects: HashMap::new(), exceptions: HashMap::new() };
        for (at, object) in policies.objects().iter().enumerate() {
            index.objects.entry(object.subject.namespace.as_deref()).or_default().push((at, object));
        }
        for (at, exception) in policies.exceptions().iter().enumerate() {
            index.exceptions.entry(exception.subject.namespace.as_deref()).or_default().push((at, exception));
        }
        index
    }

    /// Those alone that may decide about a subject, in their order, exceptions that have ended among them.
    fn about(&self, policies: &Policies, subject: Member<'_>) -> Policies {
        let names = [Some(subject.workload.namespace.as_str()), None];
        let objects = names.iter().filter_map(|name| self.objects.get(name)).flatten();
        let mut objects: Vec<_> = objects.filter(|(_, object)| object.subject.means(subject)).collect();
        objects.sort_by_key(|(at, _)| *at);
        let objects: Vec<Arc<Object>> = objects.into_iter().map(|(_, object)| (*object).clone()).collect();
        let known = |suspended: &Suspended| objects.iter().any(|object| suspended.is_of(object));
        let exceptions = names.iter().filter_map(|name| self.exceptions.get(name)).flatten();
        let mut exceptions: Vec<_> = exceptions
            .filter(|(_, exception)| exception.subject.means(subject) && exception.suspends.iter().any(known))
            .collect();
        exceptions.sort_by_key(|(at, _)| *at);
        let exceptions = exceptions.into_iter().map(|(_, exception)| (*exception).clone()).collect();
        policies.only(objects, exceptions)
    }
}

impl Subjects {
    /// Of a node's endpoints that are enrolled.
    pub(super) fn of(evaluator: &Evaluator<'_>, node: &str) -> Self {
        let index = Index::of(evaluator.policies);
        let mut all = Self { groups: BTreeMap::new(), ends: BTreeMap::new() };
        for workload in evaluator.world.workloads_on(node).filter(|workload| workload.stage != Stage::Off) {
            let policies = index.about(evaluator.policies, evaluator.member(workload));
            let key = key(workload, &policies);
            all.ends.insert(workload.uid.clone(), key.clone());
            all.groups.entry(key).or_insert_with(|| Group { subject: workload.clone(), policies });
        }
        all
    }
}

fn key(workload: &Workload, policies: &Policies) -> Key {
    let asked: Vec<&Ports> = columns::ports(policies, Direction::Ingress).collect();
    let called = |port: &&WorkloadPort| {
        asked.iter().any(
            |ports| matches!(ports, Ports::Named(protocol, name) if *protocol == port.protocol && *name == port.name),
        )
    };
    let mut named: Vec<_> =
        workload.ports.iter().filter(called).map(|port| (port.protocol, port.name.clone(), port.port)).collect();
    let mut probed: Vec<_> =
        workload.ports.iter().filter(|port| port.probe).map(|port| (port.protocol, port.port)).collect();
    named.sort();
    probed.sort();
    Key {
        objects: policies.objects().iter().map(|object| object.id.clone()).collect(),
        exceptions: policies.exceptions().iter().map(|exception| exception.name.clone()).collect(),
        lenient: judge::lenient(workload),
        named,
        probed,
    }
}
