//! Random changes of a random world.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;

use super::{ACCOUNTS, NAMESPACES, NOW, PORTS, Random, TIER, TIERS, ip};
use crate::naive::Everything;
use kumiko_core::policy::object::{MeshBaselineSpec, MeshExceptionSpec, Mode};

/// Pods that may be.
const PODS: usize = 16;

impl Random {
    /// Changes one thing: a pod, a namespace, a node, an object, a setting, the time.
    pub fn change(&mut self, all: &mut Everything) {
        match self.below(16) {
            0..=2 => self.change_pod(all),
            3 | 4 => self.relabel(all),
            5 => drop(self.gone(&mut all.pods, 1)),
            6 => self.move_address(all),
            7 => self.change_namespace(all),
            8 | 9 => {
                let namespace = self.pick(&NAMESPACES).to_owned();
                let one = (namespace, self.name("team", 5), self.policy());
                self.put(&mut all.policies, one, |one, other| one.1 == other.1);
            }
            10 => {
                let one = (self.name("base", 3), self.baseline());
                self.put(&mut all.baselines, one, |one, other| one.0 == other.0);
            }
            11 => {
                let one = (self.pick(&NAMESPACES).to_owned(), self.name("net", 3), self.network());
                self.put(&mut all.network, one, |one, other| one.1 == other.1);
            }
            12 if !all.baselines.is_empty() => {
                let mut spec = self.exception(&all.baselines);
                let seconds = spec.expires.0.as_second() - NOW + all.now;
                spec.expires = Time(Timestamp::from_second(seconds).unwrap());
                let one = (self.name("exc", 3), spec);
                self.put(&mut all.exceptions, one, |one, other| one.0 == other.0);
            }
            13 => self.change_node(all),
            14 => {
                let nets = ["10.0.0.0/8", "fd00::/16", "172.16.0.0/16", "192.0.2.0/25"];
                all.inside = nets[..self.below(nets.len() + 1)].iter().map(ToString::to_string).collect();
                all.api_server = vec![ip(&format!("172.16.0.{}", 1 + self.below(3)))];
            }
            _ => all.now += 1,
        }
        self.mend(all);
    }

    /// Another order.
    pub fn shuffle<T>(&mut self, all: &mut [T]) {
        for at in (1..all.len()).rev() {
            let other = self.below(at + 1);
            all.swap(at, other);
        }
    }

    pub(super) fn name(&mut self, kind: &str, of: usize) -> String {
        format!("{kind}{}", self.below(of))
    }

    /// Adds it, puts it in the place of another one, or takes that away.
    pub(super) fn put<T>(&mut self, all: &mut Vec<T>, one: T, is_it: impl Fn(&T, &T) -> bool) {
        let before = all.len();
        all.retain(|other| !is_it(&one, other));
        if all.len() == before || !self.one_in(3) {
            let at = self.below(all.len() + 1);
            all.insert(at, one);
        }
    }

    fn gone<T>(&mut self, all: &mut Vec<T>, least: usize) -> Option<T> {
        (all.len() > least).then(|| {
            let at = self.below(all.len());
            all.remove(at)
        })
    }

    /// One thing about a pod that is there.
    fn relabel(&mut self, all: &mut Everything) {
        let at = self.below(all.pods.len());
        let labels = self.labels();
        let pod = &mut all.pods[at];
        match self.below(4) {
            0 => pod.labels = labels,
            1 => self.pick(&ACCOUNTS).clone_into(&mut pod.account),
            2 => pod.ports[0].1 = self.pick(&PORTS),
            _ => pod.ports[0].3 = !pod.ports[0].3,
        }
    }

    fn change_pod(&mut self, all: &mut Everything) {
        let tiers: Vec<&str> = NAMESPACES
            .iter()
            .map(|name| {
                let one = all.pods.iter().find(|pod| pod.namespace == *name);
                let of = one.map(|pod| pod.namespace_labels[TIER].as_str());
                of.and_then(|of| TIERS.into_iter().find(|tier| *tier == of)).unwrap_or(self.pick(&TIERS))
            })
            .collect();
        let stages: Vec<usize> = NAMESPACES
            .iter()
            .map(|name| {
                let one = all.pods.iter().find(|pod| pod.namespace == *name);
                one.map_or_else(|| self.below(4), |pod| usize::from(pod.stage))
            })
            .collect();
        let number = self.below(PODS);
        let pod = self.pod(number, &tiers, &stages);
        self.put(&mut all.pods, pod, |one, other| one.ips == other.ips || one.name == other.name);
        if all.pods.is_empty() {
            let pod = self.pod(number, &tiers, &stages);
            all.pods.push(pod);
        }
    }

    /// Another pod has a pod's addresses; or the same one has others.
    fn move_address(&mut self, all: &mut Everything) {
        let (at, free) = (self.below(all.pods.len()), PODS + self.below(4));
        if self.one_in(2) {
            let other = self.below(all.pods.len());
            let (a, b) = (all.pods[at].ips.clone(), all.pods[other].ips.clone());
            (all.pods[at].ips, all.pods[other].ips) = (b, a);
        } else {
            let ips = vec![ip(&format!("10.0.0.{}", free * 5 + 1)), ip(&format!("fd00::{}", free + 1))];
            if all.pods.iter().all(|pod| pod.ips != ips) {
                all.pods[at].ips = ips;
            }
        }
    }

    fn change_namespace(&mut self, all: &mut Everything) {
        let (name, stage, tier) = (self.pick(&NAMESPACES), self.below(4), self.pick(&TIERS).to_owned());
        let stages = self.one_in(2);
        for pod in all.pods.iter_mut().filter(|pod| pod.namespace == name) {
            if stages {
                pod.stage = u8::try_from(stage).unwrap();
            } else {
                pod.namespace_labels.insert(TIER.to_owned(), tier.clone());
            }
        }
    }

    fn change_node(&mut self, all: &mut Everything) {
        let of = if self.one_in(3) {
            format!("2001:db8::{}", 5 + self.below(4))
        } else {
            format!("172.16.0.{}", 1 + self.below(6))
        };
        let one = (self.pick(&["n1", "n2", "n3"]).to_owned(), ip(&of));
        if all.nodes.iter().all(|(name, ip)| *name == one.0 || *ip != one.1) {
            self.put(&mut all.nodes, one, |one, other| one.0 == other.0 && one.1.is_ipv4() == other.1.is_ipv4());
        }
    }

    /// What a document may not say: a name of what is not there.
    fn mend(&mut self, all: &mut Everything) {
        let names: Vec<(String, String)> =
            all.policies.iter().map(|(namespace, name, _)| (namespace.clone(), name.clone())).collect();
        for (namespace, name, spec) in &mut all.policies {
            let there = |other: &String| names.contains(&(namespace.clone(), other.clone())) && other != name;
            spec.replaces.retain(|other| there(other));
            if spec.mode == Mode::Audit && spec.replaces.is_empty() {
                let others = names.iter().filter(|(other, its)| other == namespace && its != name);
                spec.replaces = others.map(|(_, name)| name.clone()).take(self.below(2)).collect();
            }
        }
        let baselines = &all.baselines;
        all.exceptions.retain(|(_, spec)| !spec.suspends.is_empty() && is_fit(spec, baselines));
    }
}

fn is_fit(spec: &MeshExceptionSpec, baselines: &[(String, MeshBaselineSpec)]) -> bool {
    let has = |spec: &MeshBaselineSpec, rule: &str| {
        let denies = |names: Vec<&String>, name: &str| names.iter().any(|known| *known == name);
        match rule.split_once('.').unwrap() {
            ("ingress", "allow") => spec.ingress.as_ref().is_some_and(|of| of.allow.is_some()),
            ("egress", "allow") => spec.egress.as_ref().is_some_and(|of| of.allow.is_some()),
            (direction, deny) => {
                let names = match direction {
                    "ingress" => spec.ingress.iter().flat_map(|of| &of.deny).map(|rule| &rule.name).collect(),
                    _ => spec.egress.iter().flat_map(|of| &of.deny).map(|rule| &rule.name).collect(),
                };
                denies(names, deny.strip_prefix("deny.").unwrap())
            }
        }
    };
    spec.suspends.iter().all(|suspends| {
        let baseline = baselines.iter().find(|(name, _)| *name == suspends.baseline);
        baseline.is_some_and(|(_, spec)| suspends.rules.iter().all(|rule| has(spec, rule)))
    })
}

impl Everything {
    /// Lets all exceptions that have not ended live for years.
    pub fn without_ends(&mut self) {
        for (_, spec) in &mut self.exceptions {
            if spec.expires.0.as_second() > self.now {
                spec.expires = Time(Timestamp::from_second(self.now + 100_000_000).unwrap());
            }
        }
    }
}
