//! Classes of addresses: who has the same class cannot be told apart by any rule of this node's endpoints.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use kumiko_abi::policy::{NETS_LEN, UNKNOWN_CLASS};

use super::super::selector::Labels;
use super::super::settings::Settings;
use super::super::verdict::{End, Evaluator};
use super::facts::{Asking, Facts, Signature, entities};
use super::prefixes::Prefixes;
use super::{TooComplex, room};
use crate::model::{Node, Workload};

/// Most networks of one image: an epoch's and the next one's are in the map at once.
const MAX_NETS: usize = 8_192;
const _: () = assert!(MAX_NETS * 2 == NETS_LEN as usize);

/// Classes of all addresses, as seen from a node.
#[derive(Debug)]
pub(super) struct Classes {
    slots: Vec<Slot>,
    numbers: HashMap<Signature, u32>,
    free: BTreeSet<u32>,
    /// Slots that have another signature than at the last call.
    changed: BTreeSet<u32>,
    pub(super) addrs: Arc<BTreeMap<IpAddr, u32>>,
    pub(super) nets: Arc<Prefixes<u32>>,
    /// An address of each network that is of no longer one.
    own: BTreeMap<IpNet, IpAddr>,
    before: Before,
}

/// One class. Nothing is so of the first, which always is there; who has a free one is nobody.
#[derive(Clone, Debug, Default)]
struct Slot {
    signature: Option<Signature>,
    addresses: usize,
}

/// What the classes were made of.
#[derive(Debug, Default)]
struct Before {
    workloads: BTreeMap<String, Arc<Workload>>,
    namespaces: BTreeMap<String, Labels>,
    nodes: Vec<Node>,
    settings: Option<Settings>,
}

impl Default for Classes {
    fn default() -> Self {
        let unknown = Signature::default();
        Self {
            numbers: HashMap::from([(unknown.clone(), UNKNOWN_CLASS)]),
            slots: vec![Slot { signature: Some(unknown), addresses: 0 }],
            free: BTreeSet::new(),
            changed: BTreeSet::from([UNKNOWN_CLASS]),
            addrs: Arc::default(),
            nets: Arc::default(),
            own: BTreeMap::new(),
            before: Before::default(),
        }
    }
}

impl Classes {
    /// Follows the model; `anew`: other things are asked than before.
    pub(super) fn follow(
        &mut self,
        evaluator: &Evaluator<'_>,
        facts: &Facts,
        node: &str,
        anew: bool,
    ) -> Result<(), TooComplex> {
        let mut asking = Asking::new(facts, evaluator);
        let settings = self.before.settings.as_ref() != Some(evaluator.settings);
        let nodes = self.follow_nodes(evaluator);
        let mut addresses = self.follow_workloads(evaluator, anew);
        if settings || anew || nodes.is_some() {
            self.follow_nets(evaluator, facts, &asking)?;
            addresses.extend(evaluator.world.nodes().flat_map(|node| &node.addresses));
            addresses.extend(nodes.into_iter().flatten());
        }
        self.before.settings = Some(evaluator.settings.clone());
        let addrs = self.addrs.clone();
        let mut classes = Vec::new();
        for ip in addresses {
            let (is_node, own) = match evaluator.world.node_at(ip) {
                Some(known) => (true, if known.name == node { entities::THIS_NODE } else { 0 }),
                None => (false, 0),
            };
            let signature = match evaluator.world.workload_at(ip) {
                Some(workload) => Some(asking.member(ip, workload)),
                None => is_node.then(|| asking.other(ip, entities::NODE | own)),
            };
            let (before, class) = (addrs.get(&ip).copied(), signature.map(|signature| self.enter(signature)));
            before.into_iter().for_each(|class| self.leave(class));
            if before != class {
                classes.push((ip, class));
            }
        }
        drop(addrs);
        if !classes.is_empty() {
            let addrs = Arc::make_mut(&mut self.addrs);
            for (ip, class) in classes {
                match class {
                    Some(class) => drop(addrs.insert(ip, class)),
                    None => drop(addrs.remove(&ip)),
                }
            }
        }
        self.shrink();
        Ok(())
    }

    /// Addresses of nodes that were there, if others are there now.
    fn follow_nodes(&mut self, evaluator: &Evaluator<'_>) -> Option<Vec<IpAddr>> {
        if evaluator.world.nodes().eq(&self.before.nodes) {
            return None;
        }
        let before = std::mem::replace(&mut self.before.nodes, evaluator.world.nodes().cloned().collect());
        Some(before.into_iter().flat_map(|node| node.addresses).collect())
    }

    /// Addresses of workloads that came, went or are others than before.
    fn follow_workloads(&mut self, evaluator: &Evaluator<'_>, anew: bool) -> BTreeSet<IpAddr> {
        let labels = |name: &str| evaluator.world.namespace_labels(name);
        let names: BTreeSet<&str> = evaluator.world.namespaces().map(|(name, _)| name).collect();
        let known = self.before.namespaces.keys().map(String::as_str);
        let none = Labels::new();
        let is_another = |name: &str| self.before.namespaces.get(name).unwrap_or(&none) != labels(name);
        let others: BTreeSet<String> =
            names.iter().copied().chain(known).filter(|name| is_another(name)).map(str::to_owned).collect();
        if !others.is_empty() {
            self.before.namespaces = names.iter().map(|name| ((*name).to_owned(), labels(name).clone())).collect();
        }
        let (mut addresses, mut gone, mut new) = (BTreeSet::new(), Vec::new(), Vec::new());
        // Both by UID.
        let mut before = self.before.workloads.iter_mut().peekable();
        for workload in evaluator.world.workloads() {
            // Most are the very same: nothing of theirs is looked at.
            if !anew && others.is_empty() && before.next_if(|(_, old)| Arc::ptr_eq(old, workload)).is_some() {
                continue;
            }
            while let Some((uid, old)) = before.next_if(|(uid, _)| **uid < workload.uid) {
                addresses.extend(&old.ips);
                gone.push(uid.clone());
            }
            match before.next_if(|(uid, _)| **uid == workload.uid) {
                Some((_, old)) => {
                    if anew || !same(old, workload) || others.contains(&workload.namespace) {
                        addresses.extend(old.ips.iter().chain(&workload.ips));
                    }
                    old.clone_from(workload);
                }
                None => {
                    addresses.extend(&workload.ips);
                    new.push((workload.uid.clone(), workload.clone()));
                }
            }
        }
        for (uid, old) in before {
            addresses.extend(&old.ips);
            gone.push(uid.clone());
        }
        gone.iter().for_each(|uid| drop(self.before.workloads.remove(uid)));
        self.before.workloads.extend(new);
        addresses
    }

    fn follow_nets(&mut self, evaluator: &Evaluator<'_>, facts: &Facts, asking: &Asking<'_>) -> Result<(), TooComplex> {
        let settings = evaluator.settings;
        let blocks = facts.blocks().flat_map(|block| block.except.iter().chain([&block.net]));
        let cluster = [&settings.pods, &settings.services, &settings.nodes].into_iter().flatten();
        let mut nets: BTreeSet<IpNet> = blocks.chain(cluster).map(IpNet::trunc).collect();
        nets.extend(settings.api_server.iter().copied().map(IpNet::from));
        nets.extend([IpNet::V4(ipnet::Ipv4Net::default()), IpNet::V6(ipnet::Ipv6Net::default())]);
        room("networks", nets.len(), MAX_NETS)?;
        let (before, mut classes) = (self.nets.clone(), Vec::new());
        self.own.clear();
        for net in &nets {
            // The whole network may be shared among longer ones: then nobody asks about it itself.
            let Some(ip) = own_address(*net, &nets, evaluator) else { continue };
            classes.push((*net, self.enter(asking.other(ip, 0))));
            self.own.insert(*net, ip);
        }
        before.iter().for_each(|(_, class)| self.leave(*class));
        self.nets = Arc::new(classes.into_iter().collect());
        Ok(())
    }

    fn enter(&mut self, signature: Signature) -> u32 {
        let class = self.numbers.get(&signature).copied().unwrap_or_else(|| {
            let class = self.free.pop_first().unwrap_or_else(|| {
                self.slots.push(Slot::default());
                self.slots.len().saturating_sub(1).try_into().unwrap_or(u32::MAX)
            });
            self.numbers.insert(signature.clone(), class);
            self.changed.insert(class);
            class
        });
        if let Some(slot) = self.slots.get_mut(class as usize) {
            slot.signature = Some(signature);
            slot.addresses += 1;
        }
        class
    }

    fn leave(&mut self, class: u32) {
        let Some(slot) = self.slots.get_mut(class as usize) else { return };
        slot.addresses = slot.addresses.saturating_sub(1);
        if slot.addresses == 0 && class != UNKNOWN_CLASS {
            if let Some(signature) = slot.signature.take() {
                self.numbers.remove(&signature);
            }
            self.free.insert(class);
            self.changed.insert(class);
        }
    }

    /// Gives up free classes at the end.
    fn shrink(&mut self) {
        while self.slots.last().is_some_and(|slot| slot.signature.is_none()) {
            self.slots.pop();
            self.free.remove(&(self.slots.len().try_into().unwrap_or(u32::MAX)));
        }
    }

    /// How many there are, free ones among them.
    pub(super) fn len(&self) -> usize {
        self.slots.len()
    }

    /// How many of them are free.
    pub(super) fn free(&self) -> usize {
        self.free.len()
    }

    /// What is so of a class; `None`: nobody has it.
    pub(super) fn signature(&self, class: u32) -> Option<&Signature> {
        self.slots.get(class as usize)?.signature.as_ref()
    }

    /// Whether nobody has it.
    pub(super) fn is_empty(&self, class: u32) -> bool {
        self.slots.get(class as usize).is_none_or(|slot| slot.addresses == 0)
    }

    /// Classes of which something else is so than at the last call.
    pub(super) fn changed(&mut self) -> BTreeSet<u32> {
        std::mem::take(&mut self.changed)
    }

    /// By class: one that has it.
    pub(super) fn witnesses(&self, evaluator: &Evaluator<'_>) -> Vec<Option<End>> {
        let mut ends: Vec<Option<End>> = vec![None; self.slots.len()];
        let mut offer = |class: u32, end: &dyn Fn() -> End| {
            if let Some(none @ None) = ends.get_mut(class as usize) {
                *none = Some(end());
            }
        };
        for (ip, class) in self.addrs.iter() {
            offer(*class, &|| End::at(evaluator.world, *ip));
        }
        for (net, class) in self.nets.iter() {
            if let Some(ip) = self.own.get(net) {
                offer(*class, &|| End { ip: *ip, workload: None });
            }
        }
        ends
    }
}

/// Whether rules can ask the same about both.
fn same(one: &Arc<Workload>, other: &Arc<Workload>) -> bool {
    Arc::ptr_eq(one, other)
        || (one.namespace == other.namespace
            && one.principal == other.principal
            && one.service_account == other.service_account
            && one.labels == other.labels
            && one.ips == other.ips
            && one.ports == other.ports)
}

/// An address of a network whose longest network among `nets` it is, and that is no node's.
fn own_address(net: IpNet, nets: &BTreeSet<IpNet>, evaluator: &Evaluator<'_>) -> Option<IpAddr> {
    let mut candidate = net.network();
    // In their order an outer network comes before its inner ones, and these by their addresses.
    let mut inner = nets.range(net..).skip(1).take_while(|other| net.contains(*other)).peekable();
    loop {
        if let Some(other) = inner.next_if(|other| other.network() <= candidate) {
            if other.contains(&candidate) {
                candidate = after(other.broadcast())?;
            }
        } else if evaluator.world.node_at(candidate).is_some() {
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
