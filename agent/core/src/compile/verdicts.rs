//! Which verdicts hold for whom: classes of addresses and sets of endpoints, in the slots of an epoch's parity.

use std::collections::BTreeMap;
use std::net::IpAddr;

use kumiko_abi::Addr;
use kumiko_abi::policy::{NO_SET, UNKNOWN_CLASS};

use super::{Attached, Desired};
use crate::addr::to_abi;
use crate::policy::compile::Image;

impl Desired {
    /// Gives everybody what an image says, in the slots of its epoch. The other slots, which are in force until the epoch
    /// is stored, stay as they are in `before`; who is new has the same in both, and may be written only afterwards.
    pub fn judge_by(&mut self, image: &Image, attached: &Attached, before: &Self) {
        let (at, classes) = ((image.epoch % 2) as usize, &image.addrs);
        let classes: BTreeMap<Addr, u32> = classes.iter().map(|(ip, class)| (to_abi(*ip), *class)).collect();
        for (addr, entry) in &mut self.addrs {
            let class = classes.get(addr).copied().unwrap_or(UNKNOWN_CLASS);
            entry.class = slots(at, class, before.addrs.get(addr).map(|entry| entry.class));
        }
        for (uid, here) in attached {
            let set = image.ends.get(uid).copied().unwrap_or(NO_SET);
            if let Some(endpoint) = self.endpoints.get_mut(&here.ifindex) {
                endpoint.set = slots(at, set, before.endpoints.get(&here.ifindex).map(|endpoint| endpoint.set));
            }
        }
        for (net, class) in &image.nets {
            // IPv4 is a part of the sixteen bytes' space.
            let outer = if matches!(net.addr(), IpAddr::V4(_)) { 96 } else { 0 };
            let key = (to_abi(net.network()), u32::from(net.prefix_len()) + outer);
            self.nets.insert(key, slots(at, *class, before.nets.get(&key).copied()));
        }
    }
}

fn slots(at: usize, value: u32, before: Option<[u32; 2]>) -> [u32; 2] {
    let mut slots = before.unwrap_or([value; 2]);
    if let Some(slot) = slots.get_mut(at) {
        *slot = value;
    }
    slots
}
