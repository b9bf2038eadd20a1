//! What a namespace's admin may do: policies of the namespace, its pods, their labels and ports, its stage, Services and what is
//! behind them. Nothing of it is the platform's.

use std::net::IpAddr;

use serde_json::json;

use super::{NAMESPACES, PORTS, Random, STAGES, ip};
use crate::naive::Everything;
use kumiko_core::manifest::STAGE_LABEL;

/// Addresses that new pods get: of no pod before.
const FRESH: usize = 40;

impl Random {
    /// A namespace.
    pub fn namespace(&mut self) -> &'static str {
        self.pick(&NAMESPACES)
    }

    /// One thing that the admin of a namespace does. Who a pod is (its namespace, name and account) and its node stay.
    pub fn administer(&mut self, all: &mut Everything, namespace: &str) {
        let mine: Vec<usize> = (0..all.pods.len()).filter(|at| all.pods[*at].namespace == namespace).collect();
        match self.below(if mine.is_empty() { 3 } else { 9 }) {
            0 => {
                let one = (namespace.to_owned(), self.name("team", 5), self.policy());
                self.put(&mut all.policies, one, |one, other| (&one.0, &one.1) == (&other.0, &other.1));
            }
            1 => {
                let one = (namespace.to_owned(), self.name("net", 3), self.network());
                self.put(&mut all.network, one, |one, other| (&one.0, &one.1) == (&other.0, &other.1));
            }
            2 => {
                all.policies.retain(|(of, ..)| of != namespace);
                all.network.retain(|(of, ..)| of != namespace);
            }
            3 | 4 => {
                let at = self.pick(&mine);
                all.pods[at].labels = self.labels();
                if let Some(stage) = self.some(2, |r| r.pick(&STAGES).to_owned()) {
                    all.pods[at].labels.insert(STAGE_LABEL.to_owned(), stage);
                }
            }
            5 => {
                let at = self.pick(&mine);
                let (port, probe) = (self.pick(&PORTS), self.one_in(2));
                (all.pods[at].ports[0].1, all.pods[at].ports[0].3) = (port, probe);
            }
            6 => {
                let stage = u8::try_from(self.below(STAGES.len())).unwrap();
                all.pods.iter_mut().filter(|pod| pod.namespace == namespace).for_each(|pod| pod.stage = stage);
            }
            7 => {
                let (at, number) = (self.pick(&mine), FRESH + self.below(8));
                let ips = vec![ip(&format!("10.0.0.{number}")), ip(&format!("fd00::{number}"))];
                if all.pods.iter().all(|pod| pod.ips != ips) {
                    all.pods[at].ips = ips;
                    all.pods[at].labels = self.labels();
                }
            }
            _ => {
                let (one, other) = (self.pick(&mine), self.pick(&mine));
                let (a, b) = (all.pods[one].ips.clone(), all.pods[other].ips.clone());
                (all.pods[one].ips, all.pods[other].ips) = (b, a);
            }
        }
        // A policy in audit may only take the place of one that is there.
        let gone = |of: &str, name: &str| !all.policies.iter().any(|(other, its, _)| (&**other, &**its) == (of, name));
        let lost: Vec<bool> =
            all.policies.iter().map(|(of, _, spec)| spec.replaces.iter().any(|name| gone(of, name))).collect();
        for ((.., spec), lost) in all.policies.iter_mut().zip(lost) {
            if lost {
                spec.replaces.clear();
            }
        }
    }

    /// A Service of the namespace, by itself or with other pods' addresses outside, and an EndpointSlice with whatever addresses.
    pub fn service(&mut self, all: &Everything, namespace: &str, number: usize) -> String {
        let any: Vec<IpAddr> = all.pods.iter().map(|pod| pod.ips[0]).chain([ip("192.0.2.1")]).collect();
        let ports = [json!({ "name": "p", "port": self.pick(&PORTS) })];
        let outside: Vec<IpAddr> = self.list(1, |r, _| r.pick(&any));
        let service = json!({
            "apiVersion": "v1", "kind": "Service",
            "metadata": { "name": format!("s{number}"), "namespace": namespace },
            "spec": { "clusterIP": format!("10.9.0.{}", number + 1), "ports": ports, "externalIPs": outside },
        });
        let endpoints = self.list(3, |r, _| json!({ "addresses": [r.pick(&any)] }));
        let slice = json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
            "metadata": {
                "name": format!("s{number}-x"), "namespace": namespace,
                "labels": { "kubernetes.io/service-name": format!("s{number}") },
            },
            "endpoints": endpoints, "ports": ports,
        });
        format!("---\n{service}\n---\n{slice}\n")
    }
}
