//! Routes, rules and neighbours of the agent's namespace:
//!
//! | what | why |
//! |---|---|
//! | rule 10: `iif eth0 lookup local` | all that arrives looks into table *local* … |
//! | `local 0/0 dev lo` and `local ::/0 dev lo`, table *local* | … where everything is local. In that very table, because only an address found there may be the source of an RST |
//! | rule 20: `lookup main` | all that is sent … |
//! | default route via a made-up gateway | … leaves by eth0, to a neighbour that is always there |
//! | no rule 0 | it would make everything that is sent local too |

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE, Parseable};
use netlink_packet_route::neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use netlink_packet_route::rule::{RuleAction, RuleAttribute, RuleMessage};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use super::AGENT_LINK;
use crate::netlink::{Connection, errno};

/// RT_TABLE_LOCAL.
const TABLE_LOCAL: u8 = 255;
/// The step that failed, and why.
pub(super) type Failure = (&'static str, io::Error);

/// Next hop of everything that is sent; never seen on a wire.
const GATEWAY_V4: Ipv4Addr = Ipv4Addr::new(169, 254, 107, 254);
const GATEWAY_V6: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0x6b75, 0x6d69);
const RULE_ARRIVING: u32 = 10;
const RULE_SENT: u32 = 20;

pub(super) fn ensure(
    inside: &mut Connection,
    loopback: u32,
    eth0: u32,
    gateway_mac: [u8; 6],
    ipv6: bool,
) -> Result<(), Failure> {
    let fail = |what| move |error| (what, error);
    let gateways: &[IpAddr] =
        if ipv6 { &[IpAddr::V4(GATEWAY_V4), IpAddr::V6(GATEWAY_V6)] } else { &[IpAddr::V4(GATEWAY_V4)] };
    for gateway in gateways.iter().copied() {
        let family = if gateway.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
        let neighbour = RouteNetlinkMessage::NewNeighbour(neighbour(family, gateway, eth0, gateway_mac));
        inside.request(neighbour, NLM_F_CREATE | NLM_F_REPLACE).map_err(fail("set the gateway's neighbour entry"))?;
        let default = default_route(family, gateway, eth0);
        if !has_route(inside, &default).map_err(fail("look up the default route"))? {
            // While every IPv4 address is local, the kernel takes none for a gateway.
            ignore(libc::ESRCH, inside.request(RouteNetlinkMessage::DelRoute(local_route(family, loopback)), 0))
                .map_err(fail("make way for the default route"))?;
            replace_route(inside, default).map_err(fail("set the default route"))?;
        }
        replace_route(inside, local_route(family, loopback)).map_err(fail("make every address local"))?;
        // Both new rules first, then the old one goes: at no time is a packet without a rule.
        add_rule(inside, family, RULE_ARRIVING, TABLE_LOCAL, Some(AGENT_LINK)).map_err(fail("add rule 10"))?;
        add_rule(inside, family, RULE_SENT, RouteHeader::RT_TABLE_MAIN, None).map_err(fail("add rule 20"))?;
        delete_first_rule(inside, family).map_err(fail("delete rule 0"))?;
    }
    Ok(())
}

fn neighbour(family: AddressFamily, gateway: IpAddr, link: u32, mac: [u8; 6]) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = family;
    message.header.ifindex = link;
    message.header.state = NeighbourState::Permanent;
    message.header.kind = RouteType::Unicast;
    let address = match gateway {
        IpAddr::V4(v4) => NeighbourAddress::Inet(v4),
        IpAddr::V6(v6) => NeighbourAddress::Inet6(v6),
    };
    message.attributes =
        vec![NeighbourAttribute::Destination(address), NeighbourAttribute::LinkLayerAddress(mac.to_vec())];
    message
}

fn local_route(family: AddressFamily, loopback: u32) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = family;
    message.header.table = TABLE_LOCAL;
    message.header.protocol = RouteProtocol::Static;
    message.header.scope = RouteScope::Host;
    message.header.kind = RouteType::Local;
    message.attributes = vec![RouteAttribute::Oif(loopback)];
    message
}

fn default_route(family: AddressFamily, gateway: IpAddr, link: u32) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = family;
    message.header.table = RouteHeader::RT_TABLE_MAIN;
    message.header.protocol = RouteProtocol::Static;
    message.header.scope = RouteScope::Universe;
    message.header.kind = RouteType::Unicast;
    // There is no address on the link that the gateway could be near to.
    message.header.flags = RouteFlags::Onlink;
    message.attributes = vec![RouteAttribute::Gateway(RouteAddress::from(gateway)), RouteAttribute::Oif(link)];
    message
}

/// Whether a default route with the same gateway and interface is there.
fn has_route(inside: &mut Connection, wanted: &RouteMessage) -> io::Result<bool> {
    let mut question = RouteMessage::default();
    question.header.address_family = wanted.header.address_family;
    let answers = inside.dump(RouteNetlinkMessage::GetRoute(question))?;
    Ok(answers.iter().filter_map(|answer| RouteMessage::parse(&answer.payload).ok()).any(|route| {
        route.header.table == wanted.header.table
            && route.header.kind == wanted.header.kind
            && route.header.destination_prefix_length == 0
            && wanted.attributes.iter().all(|attribute| route.attributes.contains(attribute))
    }))
}

fn replace_route(inside: &mut Connection, message: RouteMessage) -> io::Result<()> {
    inside.request(RouteNetlinkMessage::NewRoute(message), NLM_F_CREATE | NLM_F_REPLACE)?;
    Ok(())
}

fn add_rule(
    inside: &mut Connection,
    family: AddressFamily,
    priority: u32,
    table: u8,
    arriving_on: Option<&str>,
) -> io::Result<()> {
    let mut message = RuleMessage::default();
    message.header.family = family;
    message.header.table = table;
    message.header.action = RuleAction::ToTable;
    message.attributes = vec![RuleAttribute::Priority(priority), RuleAttribute::Table(u32::from(table))];
    if let Some(link) = arriving_on {
        message.attributes.push(RuleAttribute::Iifname(link.to_owned()));
    }
    ignore(libc::EEXIST, inside.request(RouteNetlinkMessage::NewRule(message), NLM_F_CREATE | NLM_F_EXCL))
}

/// Deletes the rule of priority 0, `from all lookup local`, that every namespace begins with.
fn delete_first_rule(inside: &mut Connection, family: AddressFamily) -> io::Result<()> {
    let mut message = RuleMessage::default();
    message.header.family = family;
    message.header.table = TABLE_LOCAL;
    message.header.action = RuleAction::ToTable;
    message.attributes = vec![RuleAttribute::Priority(0), RuleAttribute::Table(u32::from(TABLE_LOCAL))];
    ignore(libc::ENOENT, inside.request(RouteNetlinkMessage::DelRule(message), 0))
}

fn ignore<T>(number: i32, result: io::Result<T>) -> io::Result<()> {
    match result {
        Err(error) if errno(&error) != Some(number) => Err(error),
        _ => Ok(()),
    }
}
