//! Whose an address is: one workload's that may have it, or nobody's.
//!
//! A node that reports another pod's address as its own must not get it, nor may the order of two documents decide. So an
//! address counts only inside its node's `podCIDRs` (where these are said), and one that is claimed twice, or that two nodes'
//! networks have, is nobody's.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;

use ipnet::IpNet;

use super::Node;
use crate::manifest::{Diagnostic, NotHad, Place, Problem};

/// A workload that says an address is its own.
#[derive(Clone, Debug)]
pub(super) struct Claimant<'a> {
    pub(super) file: &'a str,
    pub(super) place: Place,
    pub(super) workload: String,
    pub(super) uid: &'a str,
    pub(super) node: &'a str,
    /// It is in force, not only told of.
    pub(super) here: bool,
}

/// What came of all claims.
#[derive(Debug, Default)]
pub(super) struct Settled {
    /// UIDs of who has an address.
    pub(super) owners: HashMap<IpAddr, String>,
    /// Nobody's addresses.
    pub(super) disputed: BTreeSet<IpAddr>,
    pub(super) diagnostics: Vec<Diagnostic>,
}

/// Gives every address to the one workload that may have it, or to nobody.
pub(super) fn settle(nodes: &BTreeMap<String, Node>, claims: BTreeMap<IpAddr, Vec<Claimant<'_>>>) -> Settled {
    let shared = Shared::of(nodes);
    let mut settled = Settled::default();
    for (ip, claimants) in claims {
        let mut tell = |of: &Claimant<'_>, why: NotHad| {
            let problem = Problem::Disputed { workload: of.workload.clone(), address: ip, why };
            settled.diagnostics.push(Diagnostic { file: of.file.to_owned(), place: of.place, problem });
        };
        let inside = |of: &&Claimant<'_>| {
            let nets = nodes.get(of.node).map_or(&[][..], |node| &node.pod_cidrs);
            nets.is_empty() || nets.iter().any(|net| net.contains(&ip))
        };
        let (may, may_not): (Vec<&Claimant<'_>>, Vec<&Claimant<'_>>) = claimants.iter().partition(inside);
        for of in may_not {
            tell(of, NotHad::Outside { node: of.node.to_owned() });
        }
        let between = shared.nodes(ip);
        for (of, others) in may.iter().filter_map(|of| Some((of, may.iter().find(|other| other.uid != of.uid)?))) {
            tell(of, NotHad::Claimed { other: others.workload.clone() });
        }
        match (may.as_slice(), between) {
            ([of, others @ ..], None) if of.here && others.iter().all(|other| other.uid == of.uid) => {
                settled.owners.insert(ip, of.uid.to_owned());
            }
            ([of, ..], Some((one, other))) => {
                tell(of, NotHad::Shared { one: one.to_owned(), other: other.to_owned() });
                settled.disputed.insert(ip);
            }
            _ => drop(settled.disputed.insert(ip)),
        }
    }
    settled
}

/// Networks that more than one node has.
struct Shared<'a>(Vec<(IpNet, &'a str, &'a str)>);

impl<'a> Shared<'a> {
    fn of(nodes: &'a BTreeMap<String, Node>) -> Self {
        let mut nets: Vec<(IpNet, &str)> =
            nodes.values().flat_map(|node| node.pod_cidrs.iter().map(|net| (*net, node.name.as_str()))).collect();
        nets.sort_by_key(|(net, name)| (net.network(), net.prefix_len(), *name));
        let (mut shared, mut around): (Vec<_>, Vec<(IpNet, &str)>) = (Vec::new(), Vec::new());
        for (net, name) in nets {
            // Networks are apart, or one is within the other.
            while around.last().is_some_and(|(outer, _)| !outer.contains(&net)) {
                around.pop();
            }
            if let Some((_, other)) = around.iter().find(|(_, other)| *other != name) {
                shared.push((net, *other, name));
            }
            around.push((net, name));
        }
        Self(shared)
    }

    fn nodes(&self, ip: IpAddr) -> Option<(&'a str, &'a str)> {
        self.0.iter().find(|(net, ..)| net.contains(&ip)).map(|(_, one, other)| (*one, *other))
    }
}

#[cfg(test)]
mod tests;
