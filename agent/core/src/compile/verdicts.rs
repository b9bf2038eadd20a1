//! Which verdicts hold for whom: classes of addresses and sets of endpoints, in the slots of an epoch's parity.
//!
//! From one epoch to the next: [`Desired::prepare`] fills the slots of what is there already, the epoch is stored, and
//! then [`Desired::judge_by`] says what is new.

use std::collections::BTreeMap;
use std::net::IpAddr;

use kumiko_abi::policy::{DENY_CLASS, DENY_SET, NO_SET, UNKNOWN_CLASS};
use kumiko_abi::{Addr, Stage};

use super::{Attached, Desired};
use crate::addr::{from_abi, to_abi};
use crate::model::World;
use crate::policy::compile::Image;

type NetId = (Addr, u32);

impl Desired {
    /// Fills the slots of an image's epoch of everything that stands in the maps; the slots in force stay as they are.
    /// Networks that are new come with the class that their addresses have had.
    pub fn prepare(&mut self, image: &Image, world: &World, attached: &Attached) {
        let (at, nets) = (slot(image), nets(image));
        let outside = |net: &NetId| longest(&nets, net).copied().unwrap_or(UNKNOWN_CLASS);
        for (addr, entry) in &mut self.addrs {
            set(&mut entry.class, at, image.class(from_abi(addr)));
        }
        for (uid, here) in attached {
            if let Some(endpoint) = self.endpoints.get_mut(&here.ifindex) {
                set(&mut endpoint.set, at, set_of(image, world, uid));
            }
        }
        let before = self.nets.clone();
        for net in nets.keys().filter(|net| !before.contains_key(*net)) {
            self.nets.insert(*net, longest(&before, net).copied().unwrap_or([UNKNOWN_CLASS; 2]));
        }
        for (net, slots) in &mut self.nets {
            set(slots, at, nets.get(net).copied().unwrap_or_else(|| outside(net)));
        }
    }

    /// Leaves everybody's verdicts as they are in `before`; who is new is denied everything. For who cannot make tables.
    pub fn keep_verdicts(&mut self, world: &World, attached: &Attached, before: &Self) {
        for (addr, entry) in &mut self.addrs {
            entry.class = before.addrs.get(addr).map_or([UNKNOWN_CLASS; 2], |entry| entry.class);
        }
        self.set_ends(None, world, attached, before);
        self.nets.clone_from(&before.nets);
    }

    /// Gives everybody what an image says that is in force and was made of the model `judged`. The slots of the epoch before
    /// stay as they are in `before`; who is new, or has an address that was another's, has the same in both. Of whom the image
    /// was not made is denied: it inherits neither from who had its address nor from the network around it.
    pub fn judge_by(&mut self, image: &Image, judged: &World, world: &World, attached: &Attached, before: &Self) {
        let at = slot(image);
        for (addr, entry) in &mut self.addrs {
            let ip = from_abi(addr);
            let class = if judged.has_the_holder_of(ip, world) { image.class(ip) } else { DENY_CLASS };
            let same = before.addrs.get(addr).filter(|before| before.handle == entry.handle);
            entry.class = same.map_or([class; 2], |before| before.class);
            set(&mut entry.class, at, class);
        }
        self.set_ends(Some(image), world, attached, before);
        for (net, class) in nets(image) {
            let mut slots = before.nets.get(&net).copied().unwrap_or([class; 2]);
            set(&mut slots, at, class);
            self.nets.insert(net, slots);
        }
    }
}

impl Desired {
    fn set_ends(&mut self, image: Option<&Image>, world: &World, attached: &Attached, before: &Self) {
        for (uid, here) in attached {
            if let Some(endpoint) = self.endpoints.get_mut(&here.ifindex) {
                endpoint.set = sets_of(image, world, uid, before.endpoints.get(&here.ifindex).map(|before| before.set));
            }
        }
    }
}

/// Sets of an endpoint by epoch parity: the image's that is in force, beside what was `before`. Without any image what was
/// before stays; who is enrolled and had none is denied everything.
pub fn sets_of(image: Option<&Image>, world: &World, uid: &str, before: Option<[u32; 2]>) -> [u32; 2] {
    let Some(image) = image else {
        let new = if enrolled(world, uid) { DENY_SET } else { NO_SET };
        return before.unwrap_or([new; 2]).map(|set| if set == NO_SET { new } else { set });
    };
    let number = set_of(image, world, uid);
    let mut sets = before.unwrap_or([number; 2]);
    set(&mut sets, slot(image), number);
    sets
}

fn slot(image: &Image) -> usize {
    (image.epoch % 2) as usize
}

fn set(slots: &mut [u32; 2], at: usize, value: u32) {
    if let Some(slot) = slots.get_mut(at) {
        *slot = value;
    }
}

/// Whoever is enrolled and was not there when the image was made is denied everything.
fn set_of(image: &Image, world: &World, uid: &str) -> u32 {
    image.ends.get(uid).copied().unwrap_or(if enrolled(world, uid) { DENY_SET } else { NO_SET })
}

fn enrolled(world: &World, uid: &str) -> bool {
    world.workload(uid).is_some_and(|workload| workload.stage != Stage::Off)
}

fn nets(image: &Image) -> BTreeMap<NetId, u32> {
    // IPv4 is a part of the sixteen bytes' space.
    let outer = |ip| if matches!(ip, IpAddr::V4(_)) { 96 } else { 0 };
    let key = |net: &ipnet::IpNet| (to_abi(net.network()), u32::from(net.prefix_len()) + outer(net.network()));
    image.nets.iter().map(|(net, class)| (key(net), *class)).collect()
}

/// What stands for the longest network that has all of `net`.
fn longest<'n, T>(nets: &'n BTreeMap<NetId, T>, net: &NetId) -> Option<&'n T> {
    let bits = u128::from_be_bytes(net.0);
    (0..=net.1).rev().find_map(|prefix| {
        let mask = if prefix == 0 { 0 } else { u128::MAX << (128 - prefix) };
        nets.get(&((bits & mask).to_be_bytes(), prefix))
    })
}
