//! What the rules of a node's endpoints ask about peers, and what is so of a peer.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::rc::Rc;

use kumiko_abi::Stage;

use super::super::judge::Policies;
use super::super::port::Ports;
use super::super::rule::{Direction, List, Rule};
use super::super::selector::{Block, Selector, Who};
use super::super::verdict::Evaluator;
use super::columns;
use super::prefixes::Prefixes;
use crate::manifest::Protocol;
use crate::model::Workload;

/// One thing that is asked about peers.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Fact {
    /// Whether it is a workload of these.
    Selector(Selector),
    /// Whether a workload's address is of a network.
    OfMembers(Block),
    /// Whether another address is.
    OfOthers(Block),
    /// Where it has a port of this name.
    Name(Protocol, String),
}

/// Everything that is asked about peers, numbered. A number is never given twice, so what is so of a peer is not mistaken
/// for something else after a change.
#[derive(Debug, Default)]
pub(super) struct Facts {
    next: u32,
    /// Numbers, with how many sets ask.
    numbers: BTreeMap<Fact, (u32, usize)>,
    /// The numbers are not those of the index.
    changed: bool,
    index: Index,
}

/// The same in the order in which it is asked.
#[derive(Debug, Default)]
struct Index {
    /// Selectors, those of one namespace by its name.
    selectors: HashMap<Option<String>, Vec<(Selector, u32)>>,
    /// Keys of labels that they look at.
    keys: BTreeSet<String>,
    of_members: Prefixes<Vec<(Block, u32)>>,
    of_others: Prefixes<Vec<(Block, u32)>>,
    names: HashMap<(Protocol, String), u32>,
}

/// What is so of a peer: numbers of facts, ascending, and where it has the ports that are asked for by name.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub(super) struct Signature {
    facts: Vec<u32>,
    named: Vec<(u32, u16)>,
    entities: u8,
}

/// Bits of [`Signature::entities`].
pub(super) mod entities {
    pub(in crate::policy::compile) const MEMBER: u8 = 1 << 0;
    pub(in crate::policy::compile) const NODE: u8 = 1 << 1;
    pub(in crate::policy::compile) const THIS_NODE: u8 = 1 << 2;
    pub(in crate::policy::compile) const API_SERVER: u8 = 1 << 3;
    pub(in crate::policy::compile) const OUTSIDE: u8 = 1 << 4;
    /// A member at observe or above.
    pub(in crate::policy::compile) const ENROLLED: u8 = 1 << 5;
}

/// What one set asks.
#[derive(Debug)]
pub(super) struct Asked {
    facts: Vec<Fact>,
    /// Their numbers, ascending.
    numbers: Vec<u32>,
}

impl Facts {
    /// Numbers what a set asks.
    pub(super) fn take(&mut self, policies: &Policies) -> Asked {
        let facts: Vec<Fact> = facts(policies).into_iter().collect();
        let mut numbers = Vec::new();
        for fact in &facts {
            let (next, changed) = (&mut self.next, &mut self.changed);
            let (number, sets) = self.numbers.entry(fact.clone()).or_insert_with(|| {
                *changed = true;
                *next += 1;
                (*next, 0)
            });
            *sets += 1;
            numbers.push(*number);
        }
        numbers.sort_unstable();
        Asked { facts, numbers }
    }

    /// A set asks no more.
    pub(super) fn give_back(&mut self, asked: &Asked) {
        for fact in &asked.facts {
            if let Some((_, sets)) = self.numbers.get_mut(fact) {
                *sets -= 1;
                if *sets == 0 {
                    self.numbers.remove(fact);
                    self.changed = true;
                }
            }
        }
    }

    /// Whether other things are asked than at the last call.
    pub(super) fn changed(&mut self) -> bool {
        let changed = std::mem::take(&mut self.changed);
        if changed {
            self.index = Index::of(&self.numbers);
        }
        changed
    }

    /// Networks that are asked about, with those that are left out of them.
    pub(super) fn blocks(&self) -> impl Iterator<Item = &Block> {
        self.index.of_others.iter().flat_map(|(_, blocks)| blocks.iter().map(|(block, _)| block))
    }
}

impl Index {
    fn of(numbers: &BTreeMap<Fact, (u32, usize)>) -> Self {
        let mut index = Self::default();
        let (mut of_members, mut of_others) = (BTreeMap::new(), BTreeMap::new());
        let put = |to: &mut BTreeMap<_, Vec<_>>, block: &Block, number| {
            to.entry(block.net.trunc()).or_default().push((block.clone(), number));
        };
        for (fact, (number, _)) in numbers {
            match fact {
                Fact::Selector(selector) => {
                    index.keys.extend(selector.labels.iter().map(|requirement| requirement.key().to_owned()));
                    let principals = selector.principal.as_ref().map(|principal| principal.namespace.clone());
                    let namespace = selector.namespace.clone().or(principals);
                    index.selectors.entry(namespace).or_default().push((selector.clone(), *number));
                }
                Fact::OfMembers(block) => put(&mut of_members, block, *number),
                Fact::OfOthers(block) => put(&mut of_others, block, *number),
                Fact::Name(protocol, name) => drop(index.names.insert((*protocol, name.clone()), *number)),
            }
        }
        (index.of_members, index.of_others) = (of_members.into_iter().collect(), of_others.into_iter().collect());
        index
    }
}

fn facts(policies: &Policies) -> BTreeSet<Fact> {
    let mut facts = BTreeSet::new();
    for rule in columns::all_rules(policies) {
        for who in rule.peers.iter().flatten() {
            match who {
                Who::Workload(selector) => drop(facts.insert(Fact::Selector(selector.clone()))),
                Who::Block(block) => {
                    facts.insert(Fact::OfOthers(block.clone()));
                    if means_members(rule) {
                        facts.insert(Fact::OfMembers(block.clone()));
                    }
                }
                Who::Entity(_) => {}
            }
        }
    }
    facts.extend(columns::ports(policies, Direction::Egress).filter_map(name));
    facts
}

/// An allow's networks mean addresses of no workload only.
fn means_members(rule: &Rule) -> bool {
    matches!(rule.list, List::Deny | List::Kubernetes)
}

fn name(ports: &Ports) -> Option<Fact> {
    match ports {
        Ports::Named(protocol, name) => Some(Fact::Name(*protocol, name.clone())),
        Ports::All(_) | Ports::Range(..) => None,
    }
}

/// Selectors with their numbers.
type Numbered<'a> = Rc<[(&'a Selector, u32)]>;
/// Namespace, service account, and the labels that are looked at.
type Profile<'a> = (&'a str, &'a str, Vec<(&'a str, &'a str)>);

/// Asks about peers. Workloads that no selector can tell apart are asked about once.
pub(super) struct Asking<'a> {
    index: &'a Index,
    evaluator: &'a Evaluator<'a>,
    /// By namespace: selectors that may mean its workloads.
    namespaces: HashMap<&'a str, Numbered<'a>>,
    profiles: HashMap<Profile<'a>, Rc<[u32]>>,
}

impl<'a> Asking<'a> {
    pub(super) fn new(facts: &'a Facts, evaluator: &'a Evaluator<'a>) -> Self {
        Self { index: &facts.index, evaluator, namespaces: HashMap::new(), profiles: HashMap::new() }
    }

    /// Of a workload's address.
    pub(super) fn member(&mut self, ip: IpAddr, workload: &'a Workload) -> Signature {
        let mut facts = self.selectors(workload).to_vec();
        let blocks = self.index.of_members.of(ip).flatten().filter(|(block, _)| block.has(ip));
        facts.extend(blocks.map(|(_, number)| *number));
        let mut named = Vec::new();
        if !self.index.names.is_empty() {
            for port in &workload.ports {
                let number = self.index.names.get(&(port.protocol, port.name.clone()));
                named.extend(number.map(|number| (*number, port.port)));
            }
        }
        facts.sort_unstable();
        named.sort_unstable();
        let mut entities = entities::MEMBER;
        if workload.stage != Stage::Off {
            entities |= entities::ENROLLED;
        }
        Signature { facts, named, entities }
    }

    fn selectors(&mut self, workload: &'a Workload) -> Rc<[u32]> {
        let mut labels: Vec<(&str, &str)> = Vec::new();
        if !self.index.keys.is_empty() {
            let asked = workload.labels.iter().filter(|(key, _)| self.index.keys.contains(*key));
            labels.extend(asked.map(|(key, value)| (key.as_str(), value.as_str())));
        }
        let profile = (workload.namespace.as_str(), workload.service_account.as_str(), labels);
        if let Some(known) = self.profiles.get(&profile) {
            return known.clone();
        }
        let member = self.evaluator.member(workload);
        let candidates = self.of_namespace(&workload.namespace);
        let meant = candidates.iter().filter(|(selector, _)| selector.means(member));
        let meant: Rc<[u32]> = meant.map(|(_, number)| *number).collect();
        self.profiles.insert(profile, meant.clone());
        meant
    }

    fn of_namespace(&mut self, name: &'a str) -> Numbered<'a> {
        if let Some(known) = self.namespaces.get(name) {
            return known.clone();
        }
        let labels = self.evaluator.world.namespace_labels(name);
        let own = self.index.selectors.get(&Some(name.to_owned()));
        let all = own.into_iter().chain(self.index.selectors.get(&None)).flatten();
        let may = |selector: &Selector| selector.namespace_labels.iter().all(|requirement| requirement.holds(labels));
        let may: Numbered<'a> =
            all.filter(|(selector, _)| may(selector)).map(|(selector, number)| (selector, *number)).collect();
        self.namespaces.insert(name, may.clone());
        may
    }

    /// Of an address that is no workload's, of which something is known already.
    pub(super) fn other(&self, ip: IpAddr, mut known: u8) -> Signature {
        let settings = self.evaluator.settings;
        if settings.api_server.contains(&ip) {
            known |= entities::API_SERVER;
        }
        if known & entities::NODE == 0 && settings.outside(ip) {
            known |= entities::OUTSIDE;
        }
        let blocks = self.index.of_others.of(ip).flatten().filter(|(block, _)| block.has(ip));
        let mut facts: Vec<u32> = blocks.map(|(_, number)| *number).collect();
        facts.sort_unstable();
        Signature { facts, named: Vec::new(), entities: known }
    }
}

impl Asked {
    /// What is so of a peer as far as this set asks.
    pub(super) fn of(&self, signature: &Signature) -> Signature {
        let asks = |number: &u32| self.numbers.binary_search(number).is_ok();
        Signature {
            facts: signature.facts.iter().filter(|fact| asks(fact)).copied().collect(),
            named: signature.named.iter().filter(|(name, _)| asks(name)).copied().collect(),
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
