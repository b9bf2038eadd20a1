//! Values of networks, found by the address.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;

/// Values by network. A look-up asks once for each length that any of them has.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Prefixes<T> {
    of: BTreeMap<IpNet, T>,
    /// Lengths of IPv4's and of IPv6's, longest first.
    lengths: [Vec<u8>; 2],
}

impl<T> Default for Prefixes<T> {
    fn default() -> Self {
        Self { of: BTreeMap::new(), lengths: [Vec::new(), Vec::new()] }
    }
}

impl<T> FromIterator<(IpNet, T)> for Prefixes<T> {
    fn from_iter<I: IntoIterator<Item = (IpNet, T)>>(nets: I) -> Self {
        let of: BTreeMap<IpNet, T> = nets.into_iter().map(|(net, value)| (net.trunc(), value)).collect();
        let lengths = [true, false].map(|v4| {
            let own = of.keys().filter(|net| matches!(net, IpNet::V4(_)) == v4);
            own.map(IpNet::prefix_len).collect::<BTreeSet<u8>>().into_iter().rev().collect()
        });
        Self { of, lengths }
    }
}

impl<T> Prefixes<T> {
    /// Networks with their values, in order.
    pub fn iter(&self) -> impl Iterator<Item = (&IpNet, &T)> {
        self.of.iter()
    }

    /// How many networks there are.
    pub fn len(&self) -> usize {
        self.of.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.of.is_empty()
    }

    /// Values of all networks that have an address, the longest first.
    pub fn of(&self, ip: IpAddr) -> impl Iterator<Item = &T> {
        let [v4, v6] = &self.lengths;
        let lengths = if ip.is_ipv4() { v4 } else { v6 };
        lengths.iter().filter_map(move |length| self.of.get(&IpNet::new(ip, *length).ok()?.trunc()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_network_first_and_each_family_for_itself() {
        let nets = ["0.0.0.0/0", "10.0.0.0/8", "10.1.0.0/16", "10.1.2.3/32", "::/0", "fd00::/8"];
        let nets: Prefixes<&str> = nets.iter().map(|net| (net.parse().unwrap(), *net)).collect();
        let of = |ip: &str| nets.of(ip.parse().unwrap()).copied().collect::<Vec<_>>();
        assert_eq!(of("10.1.2.3"), ["10.1.2.3/32", "10.1.0.0/16", "10.0.0.0/8", "0.0.0.0/0"]);
        assert_eq!(of("10.2.0.1"), ["10.0.0.0/8", "0.0.0.0/0"]);
        assert_eq!(of("192.0.2.1"), ["0.0.0.0/0"]);
        assert_eq!(of("fd00::1"), ["fd00::/8", "::/0"]);
        assert_eq!(of("2001:db8::1"), ["::/0"]);
    }
}
