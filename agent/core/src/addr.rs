//! Addresses as the kernel's maps hold them, to and from those of the standard library.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use kumiko_abi::flow::flags;
use kumiko_abi::{Addr, FlowKey};

/// 16 bytes in network order; IPv4 as `::ffff:a.b.c.d`.
pub fn to_abi(ip: IpAddr) -> Addr {
    match ip {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
        IpAddr::V6(v6) => v6.octets(),
    }
}

/// The address of 16 bytes; IPv4-mapped ones come back as IPv4.
pub fn from_abi(addr: &Addr) -> IpAddr {
    Ipv6Addr::from(*addr).to_canonical()
}

/// Key of the flow from `client` to `server`, with the flag that tells the initiator.
pub fn flow_key(client: SocketAddr, server: SocketAddr, proto: u8) -> (FlowKey, u32) {
    let (key, client_is_lo) =
        FlowKey::of_packet(&to_abi(client.ip()), client.port(), &to_abi(server.ip()), server.port(), proto);
    (key, if client_is_lo { flags::INITIATOR_IS_LO } else { 0 })
}

/// Initiator and target of a key.
pub fn ends(key: &FlowKey, flow_flags: u32) -> (SocketAddr, SocketAddr) {
    let lo = SocketAddr::new(from_abi(&key.lo), key.lo_port);
    let hi = SocketAddr::new(from_abi(&key.hi), key.hi_port);
    if flow_flags & flags::INITIATOR_IS_LO != 0 { (lo, hi) } else { (hi, lo) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn key_is_canonical_and_reversible(a: u32, b: u32, ap: u16, bp: u16, v6: bool) {
            let ip = |n: u32| if v6 { IpAddr::V6(Ipv6Addr::from((0xfd00_u128 << 112) | u128::from(n))) } else { IpAddr::V4(n.into()) };
            let (client, server) = (SocketAddr::new(ip(a), ap), SocketAddr::new(ip(b), bp));
            let (key, f) = flow_key(client, server, 6);
            prop_assert_eq!(ends(&key, f), (client, server));
            let (other, g) = flow_key(server, client, 6);
            prop_assert_eq!(key, other);
            prop_assert!(client == server || f != g);
        }
    }
}
