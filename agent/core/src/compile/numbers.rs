//! Small numbers for names, stable while anything may still refer to them.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::Principal;
use crate::model::{ServiceRef, World};

/// Highest workload handle: `WORKLOADS` has 65,536 elements and 0 means none.
pub const MAX_HANDLE: u32 = 65_535;
/// Highest number of a node: the maps have 16 bits for it.
const MAX_NODE: u32 = 65_535;

/// Numbers of names, from 1. A name that goes keeps its number until [`Numbers::release`] finds that nothing refers to
/// it; a name that comes back meanwhile gets it back.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Numbers {
    /// Highest number ever given.
    last: u32,
    live: BTreeMap<String, u32>,
    /// Names of numbers that flows and counters may still carry.
    retired: BTreeMap<u32, String>,
    /// Free again.
    free: BTreeSet<u32>,
}

impl Numbers {
    /// The number of a name in use.
    pub fn get(&self, name: &str) -> Option<u32> {
        self.live.get(name).copied()
    }

    /// The name of a number, also when it is retired.
    pub fn name(&self, number: u32) -> Option<&str> {
        // Retired names are few and live ones are asked for by records only: no second index.
        let live = || self.live.iter().find(|(_, n)| **n == number).map(|(name, _)| name.as_str());
        self.retired.get(&number).map(String::as_str).or_else(live)
    }

    /// Names in use with their numbers.
    pub fn live(&self) -> impl Iterator<Item = (&str, u32)> {
        self.live.iter().map(|(name, number)| (name.as_str(), *number))
    }

    /// Retired numbers with their names.
    pub fn retired(&self) -> impl Iterator<Item = (u32, &str)> {
        self.retired.iter().map(|(number, name)| (*number, name.as_str()))
    }

    /// Numbers exactly these names, in this order when new; says how many got none because all numbers up to `max` are
    /// taken.
    pub fn assign<'a>(&mut self, names: impl Iterator<Item = &'a str>, max: u32) -> usize {
        let names: Vec<&str> = names.collect();
        let wanted: HashSet<&str> = names.iter().copied().collect();
        let gone: Vec<String> = self.live.keys().filter(|name| !wanted.contains(name.as_str())).cloned().collect();
        for name in gone {
            if let Some(number) = self.live.remove(&name) {
                self.retired.insert(number, name);
            }
        }
        let back: BTreeMap<String, u32> = self.retired.iter().map(|(number, name)| (name.clone(), *number)).collect();
        let mut without = 0;
        for name in names {
            if self.live.contains_key(name) {
                continue;
            }
            let number = match back.get(name) {
                Some(number) => {
                    self.retired.remove(number);
                    Some(*number)
                }
                // New numbers first: a number that was used lately is the likeliest to be in somebody's records.
                None if self.last < max => {
                    self.last += 1;
                    Some(self.last)
                }
                None => self.free.pop_first(),
            };
            match number {
                Some(number) => drop(self.live.insert(name.to_owned(), number)),
                None => without += 1,
            }
        }
        without
    }

    /// Frees retired numbers that nothing refers to any more.
    pub fn release(&mut self, referenced: &HashSet<u32>) {
        let unused: Vec<u32> = self.retired.keys().filter(|number| !referenced.contains(number)).copied().collect();
        for number in unused {
            self.retired.remove(&number);
            self.free.insert(number);
        }
    }

    /// Keeps numbers up to `max` that are referred to but not known here (their file was lost) from being given out.
    pub fn reserve(&mut self, referenced: &HashSet<u32>, max: u32) {
        let known: HashSet<u32> = self.live.values().chain(self.retired.keys()).copied().collect();
        let possible = |number: &u32| (1..=max).contains(number);
        let mut unknown: Vec<u32> = referenced.difference(&known).copied().filter(possible).collect();
        unknown.sort_unstable();
        for number in unknown {
            self.free.extend(self.last.saturating_add(1)..number);
            self.free.remove(&number);
            self.retired.insert(number, String::new());
            self.last = self.last.max(number);
        }
    }

    /// Whether every number is one that was given, at most `max`, and has one place.
    fn is_sound(&self, max: u32) -> bool {
        let mut seen = HashSet::new();
        let mut numbers = self.live.values().chain(self.retired.keys()).chain(&self.free);
        self.last <= max && numbers.all(|number| (1..=self.last).contains(number) && seen.insert(*number))
    }
}

/// Why kept numbers cannot be taken over.
#[derive(Debug, Error)]
pub enum HandlesError {
    /// Not such a file.
    #[error(transparent)]
    Json(#[from] serde_json::Error),
    /// A number stands twice, or is none that a map has.
    #[error("the numbers of {0} contradict one another")]
    Unsound(&'static str),
}

/// All numbers of a node; written beside the pinned maps, since flow entries there carry them.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Handles {
    /// Workload handles by UID.
    pub workloads: Numbers,
    /// Classes by SPIFFE ID.
    pub classes: Numbers,
    /// Service ids by namespace, name, port and protocol.
    pub services: Numbers,
    /// Nodes by name.
    pub nodes: Numbers,
}

/// Names that got no number because too many are in use.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Shortage {
    /// Workloads: they count as outside the mesh.
    pub workloads: usize,
    /// Service ports: left to kube-proxy.
    pub services: usize,
}

impl Handles {
    /// Reads what an agent wrote before. Two names with one number would be taken for each other by the kernel.
    ///
    /// # Errors
    /// Damaged: to be treated as lost.
    pub fn read(bytes: &[u8]) -> Result<Self, HandlesError> {
        let handles: Self = serde_json::from_slice(bytes)?;
        let parts = [
            ("workloads", &handles.workloads, MAX_HANDLE),
            ("classes", &handles.classes, u32::MAX),
            ("Services", &handles.services, u32::MAX),
            ("nodes", &handles.nodes, MAX_NODE),
        ];
        match parts.iter().find(|(_, numbers, max)| !numbers.is_sound(*max)) {
            Some((what, ..)) => Err(HandlesError::Unsound(what)),
            None => Ok(handles),
        }
    }

    /// Numbers everything in a model; what is gone is retired.
    pub fn assign(&mut self, world: &World, node: &str) -> Shortage {
        // Local ones first: without a handle they could not be attached.
        let (local, remote): (Vec<_>, Vec<_>) = world.workloads().partition(|workload| workload.node == node);
        let uids = local.iter().chain(&remote).map(|workload| workload.uid.as_str());
        let workloads = self.workloads.assign(uids, MAX_HANDLE);
        let principals: BTreeSet<&Principal> = world.workloads().map(|workload| &workload.principal).collect();
        let principals: Vec<String> = principals.into_iter().map(Principal::to_string).collect();
        self.classes.assign(principals.iter().map(String::as_str), u32::MAX);
        let mut services = Vec::new();
        for service in world.services() {
            services.extend(service.ports.iter().map(|port| service_name(&service.reference(port))));
        }
        let services = self.services.assign(services.iter().map(String::as_str), u32::MAX);
        let nodes: BTreeSet<&str> =
            world.nodes().map(|node| node.name.as_str()).chain(world.workloads().map(|w| w.node.as_str())).collect();
        self.nodes.assign(nodes.into_iter(), MAX_NODE);
        Shortage { workloads, services }
    }

    /// Handle of a workload.
    pub fn workload(&self, uid: &str) -> Option<u32> {
        self.workloads.get(uid)
    }

    /// Class of a principal.
    pub fn class(&self, principal: &Principal) -> Option<u32> {
        self.classes.get(&principal.to_string())
    }

    /// Id of a Service's port.
    pub fn service(&self, service: &ServiceRef) -> Option<u32> {
        self.services.get(&service_name(service))
    }

    /// Number of a node.
    pub fn node(&self, name: &str) -> Option<u16> {
        self.nodes.get(name).and_then(|number| u16::try_from(number).ok())
    }
}

fn service_name(service: &ServiceRef) -> String {
    format!("{}/{}/{}/{}", service.namespace, service.name, service.port, service.protocol)
}
