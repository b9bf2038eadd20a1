//! What the rules of a node's endpoints ask about peers, and the classes of addresses that follow.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;

use super::super::judge::Policies;
use super::super::port::Ports;
use super::super::rule::{Direction, List, Rule};
use super::super::selector::{Block, Selector, Who};
use super::super::verdict::{End, Evaluator};
use super::columns;
use crate::manifest::Protocol;

/// Everything that is asked about peers.
pub(super) struct Facts {
    /// Selectors, those of one namespace by its name.
    selectors: BTreeMap<Option<String>, BTreeMap<Selector, u32>>,
    /// Networks that mean workloads, too.
    of_members: BTreeMap<Block, u32>,
    /// Networks that mean others.
    of_others: BTreeMap<Block, u32>,
    /// What destinations' ports are called.
    names: BTreeMap<(Protocol, String), u32>,
}

/// What is so of a peer: numbers of facts, ascending, and where it has the ports that are asked for by name.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub(super) struct Signature {
    facts: Vec<u32>,
    named: Vec<(u32, u16)>,
    entities: u8,
}

/// Bits of [`Signature::entities`].
mod entities {
    pub(super) const MEMBER: u8 = 1 << 0;
    pub(super) const NODE: u8 = 1 << 1;
    pub(super) const THIS_NODE: u8 = 1 << 2;
    pub(super) const API_SERVER: u8 = 1 << 3;
    pub(super) const OUTSIDE: u8 = 1 << 4;
}

/// Classes of all addresses.
pub(super) struct Classes {
    /// By class: what is so of it, and an address that has it. Nothing is so of the first, and it may have no address.
    pub(super) peers: Vec<(Signature, Option<End>)>,
    pub(super) addrs: BTreeMap<IpAddr, u32>,
    pub(super) nets: BTreeMap<IpNet, u32>,
    numbers: BTreeMap<Signature, u32>,
}

/// What one set asks.
pub(super) struct Asked {
    facts: BTreeSet<u32>,
    names: BTreeSet<u32>,
}

impl Facts {
    /// Of all sets of a node.
    pub(super) fn of<'a>(sets: impl Iterator<Item = &'a Policies>) -> Self {
        let (mut selectors, mut of_members, mut of_others) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
        let mut names = BTreeSet::new();
        for policies in sets {
            for rule in columns::all_rules(policies) {
                for who in rule.peers.iter().flatten() {
                    match who {
                        Who::Workload(selector) => drop(selectors.insert(selector.clone())),
                        Who::Block(block) => {
                            of_others.insert(block.clone());
                            if means_members(rule) {
                                of_members.insert(block.clone());
                            }
                        }
                        Who::Entity(_) => {}
                    }
                }
            }
            names.extend(columns::ports(policies, Direction::Egress).filter_map(name));
        }
        let mut next = 0..;
        let mut number = || next.next().unwrap_or_default();
        let mut by_namespace: BTreeMap<Option<String>, BTreeMap<Selector, u32>> = BTreeMap::new();
        for selector in selectors {
            by_namespace.entry(selector.namespace.clone()).or_default().insert(selector, number());
        }
        let of_members = of_members.into_iter().map(|block| (block, number())).collect();
        let of_others = of_others.into_iter().map(|block| (block, number())).collect();
        let names = names.into_iter().map(|name| (name, number())).collect();
        Self { selectors: by_namespace, of_members, of_others, names }
    }

    /// What a set asks of them.
    pub(super) fn asked(&self, policies: &Policies) -> Asked {
        let mut facts = BTreeSet::new();
        for rule in columns::all_rules(policies) {
            for who in rule.peers.iter().flatten() {
                match who {
                    Who::Workload(selector) => {
                        facts.extend(self.selectors.get(&selector.namespace).and_then(|of| of.get(selector)));
                    }
                    Who::Block(block) => {
                        facts.extend(self.of_others.get(block));
                        facts.extend(self.of_members.get(block).filter(|_| means_members(rule)));
                    }
                    Who::Entity(_) => {}
                }
            }
        }
        let names = columns::ports(policies, Direction::Egress).filter_map(name);
        Asked { facts, names: names.filter_map(|name| self.names.get(&name).copied()).collect() }
    }

    /// Classes of all addresses, as seen from a node.
    pub(super) fn classify(&self, evaluator: &Evaluator<'_>, node: &str) -> Classes {
        let first = (Signature::default(), None);
        let mut classes = Classes {
            numbers: BTreeMap::from([(first.0.clone(), 0)]),
            peers: vec![first],
            addrs: BTreeMap::new(),
            nets: BTreeMap::new(),
        };
        for workload in evaluator.world.workloads() {
            for ip in &workload.ips {
                let end = End { ip: *ip, workload: Some(workload.clone()) };
                let class = classes.number(self.workload(evaluator, &end), end);
                classes.addrs.insert(*ip, class);
            }
        }
        for known in evaluator.world.nodes() {
            for ip in &known.addresses {
                if classes.addrs.contains_key(ip) {
                    continue;
                }
                let own = if known.name == node { entities::THIS_NODE } else { 0 };
                let (end, signature) = self.other(evaluator, *ip, entities::NODE | own);
                let class = classes.number(signature, end);
                classes.addrs.insert(*ip, class);
            }
        }
        let nets = self.nets(evaluator);
        for net in &nets {
            // The whole network may be shared among longer ones: then nobody asks about it itself.
            let Some(ip) = own_address(*net, &nets, &classes.addrs) else { continue };
            let (end, signature) = self.other(evaluator, ip, 0);
            let class = classes.number(signature, end);
            classes.nets.insert(*net, class);
        }
        classes
    }

    fn workload(&self, evaluator: &Evaluator<'_>, end: &End) -> Signature {
        let mut signature = Signature { entities: entities::MEMBER, ..Signature::default() };
        let Some(workload) = &end.workload else { return signature };
        let member = evaluator.member(workload);
        let own = self.selectors.get(&Some(workload.namespace.clone()));
        for (selector, number) in own.into_iter().chain(self.selectors.get(&None)).flatten() {
            if selector.means(member) {
                signature.facts.push(*number);
            }
        }
        signature
            .facts
            .extend(self.of_members.iter().filter(|(block, _)| block.has(end.ip)).map(|(_, number)| *number));
        for port in &workload.ports {
            if let Some(number) = self.names.get(&(port.protocol, port.name.clone())) {
                signature.named.push((*number, port.port));
            }
        }
        signature.facts.sort_unstable();
        signature.named.sort_unstable();
        signature
    }

    /// An address that is no workload's.
    fn other(&self, evaluator: &Evaluator<'_>, ip: IpAddr, mut known: u8) -> (End, Signature) {
        let settings = evaluator.settings;
        if settings.api_server.contains(&ip) {
            known |= entities::API_SERVER;
        }
        if known & entities::NODE == 0 && settings.outside(ip) {
            known |= entities::OUTSIDE;
        }
        let facts = self.of_others.iter().filter(|(block, _)| block.has(ip)).map(|(_, number)| *number).collect();
        (End { ip, workload: None }, Signature { facts, named: Vec::new(), entities: known })
    }

    /// All networks that anything is asked about, and everything.
    fn nets(&self, evaluator: &Evaluator<'_>) -> BTreeSet<IpNet> {
        let settings = evaluator.settings;
        let blocks = self.of_others.keys().flat_map(|block| block.except.iter().chain([&block.net]));
        let cluster = [&settings.pods, &settings.services, &settings.nodes].into_iter().flatten();
        let mut nets: BTreeSet<IpNet> = blocks.chain(cluster).map(IpNet::trunc).collect();
        nets.extend(settings.api_server.iter().copied().map(IpNet::from));
        nets.extend([IpNet::V4(ipnet::Ipv4Net::default()), IpNet::V6(ipnet::Ipv6Net::default())]);
        nets
    }
}

impl Classes {
    fn number(&mut self, signature: Signature, end: End) -> u32 {
        let next = u32::try_from(self.peers.len()).unwrap_or(u32::MAX);
        let number = *self.numbers.entry(signature.clone()).or_insert(next);
        if number == next {
            self.peers.push((signature, Some(end)));
        } else if let Some((_, none @ None)) = self.peers.get_mut(number as usize) {
            *none = Some(end);
        }
        number
    }
}

impl Asked {
    /// What is so of a peer as far as this set asks.
    pub(super) fn of(&self, signature: &Signature) -> Signature {
        Signature {
            facts: signature.facts.iter().filter(|fact| self.facts.contains(fact)).copied().collect(),
            named: signature.named.iter().filter(|(name, _)| self.names.contains(name)).copied().collect(),
            entities: signature.entities,
        }
    }
}

impl Signature {
    /// Ports that its rules ask for by name.
    pub(super) fn named_ports(&self) -> impl Iterator<Item = u16> {
        self.named.iter().map(|(_, port)| *port)
    }
}

/// An allow's networks mean addresses of no workload only.
fn means_members(rule: &Rule) -> bool {
    matches!(rule.list, List::Deny | List::Kubernetes)
}

fn name(ports: &Ports) -> Option<(Protocol, String)> {
    match ports {
        Ports::Named(protocol, name) => Some((*protocol, name.clone())),
        Ports::All(_) | Ports::Range(..) => None,
    }
}

/// An address of a network whose longest network among `nets` it is, and that is not `known` itself.
fn own_address(net: IpNet, nets: &BTreeSet<IpNet>, known: &BTreeMap<IpAddr, u32>) -> Option<IpAddr> {
    let inner: Vec<&IpNet> = nets.iter().filter(|other| **other != net && net.contains(*other)).collect();
    let mut candidate = net.network();
    loop {
        if let Some(other) = inner.iter().find(|other| other.contains(&candidate)) {
            candidate = after(other.broadcast())?;
        } else if known.contains_key(&candidate) {
            candidate = after(candidate)?;
        } else {
            return net.contains(&candidate).then_some(candidate);
        }
    }
}

fn after(ip: IpAddr) -> Option<IpAddr> {
    match ip {
        IpAddr::V4(ip) => u32::from(ip).checked_add(1).map(|ip| IpAddr::V4(ip.into())),
        IpAddr::V6(ip) => u128::from(ip).checked_add(1).map(|ip| IpAddr::V6(ip.into())),
    }
}
