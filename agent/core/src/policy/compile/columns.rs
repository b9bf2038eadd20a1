//! Groups of ports, and of protocols without any, that no rule tells apart.

use std::collections::{BTreeMap, BTreeSet};

use kumiko_abi::policy::MAX_COLUMNS;

use super::super::judge::Policies;
use super::super::port::{Asked, Ports};
use super::super::rule::{Direction, Rule};
use crate::manifest::Protocol;

/// Protocols with ports.
pub(super) const PORTED: [Protocol; 3] = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp];
const PORTLESS: [Protocol; 2] = [Protocol::Icmp, Protocol::Other];

const _: () = assert!(MAX_COLUMNS == 1 << u8::BITS);

/// What the formula tells protocols apart by.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Carried {
    /// TCP, which tunnels carry.
    Tunnel,
    /// What else has ports.
    Ports,
    /// What has none.
    Portless,
}

impl Carried {
    fn of(protocol: Protocol) -> Self {
        match protocol {
            Protocol::Tcp => Self::Tunnel,
            _ if protocol.has_ports() => Self::Ports,
            _ => Self::Portless,
        }
    }
}

/// What rules make of a port: how it is carried, which of them mean it, and the port itself if it is one for itself.
type Meaning<'a> = (Carried, Vec<&'a Ports>, Option<(Protocol, u16)>);

/// Columns of one direction.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Columns {
    /// By protocol: first ports of ranges, ascending from 0, with their columns.
    ranges: [Vec<(u16, u8)>; 3],
    /// Columns of ICMP and of all the rest.
    pub(super) portless: [u8; 2],
    /// By column: a port of it.
    pub(super) ports: Vec<Asked>,
}

impl Columns {
    /// Of rules in a direction; `own` are ports that are each one for itself. The error is how many columns it takes, or
    /// more.
    pub(super) fn of(
        policies: &Policies,
        direction: Direction,
        own: &BTreeSet<(Protocol, u16)>,
    ) -> Result<Self, usize> {
        let rules: BTreeSet<&Ports> = ports(policies, direction).collect();
        let (mut ranges, mut portless) = ([Vec::new(), Vec::new(), Vec::new()], [0; 2]);
        // What the same rules mean shares a column; not so with protocols that only some terms are asked about, nor with what a
        // tunnel would prove.
        let mut known: BTreeMap<Meaning<'_>, usize> = BTreeMap::new();
        let mut ports = Vec::new();
        let mut column = |asked: Asked| {
            let meaning = rules.iter().filter(|rule| rule.mean(asked, None)).copied().collect();
            let alone = Some((asked.protocol, asked.port)).filter(|port| own.contains(port));
            let column = *known.entry((Carried::of(asked.protocol), meaning, alone)).or_insert_with(|| {
                ports.push(asked);
                ports.len() - 1
            });
            u8::try_from(column).map_err(|_| column + 1)
        };
        for (ranges, protocol) in ranges.iter_mut().zip(PORTED) {
            let mut edges = BTreeSet::from([0]);
            let mut edge = |first: u16, last: u16| {
                edges.insert(first);
                edges.extend(last.checked_add(1));
            };
            for rule in &rules {
                match rule {
                    Ports::Range(of, first, last) if *of == protocol => edge(*first, *last),
                    _ => {}
                }
            }
            own.iter().filter(|(of, _)| *of == protocol).for_each(|(_, port)| edge(*port, *port));
            for port in edges {
                ranges.push((port, column(Asked { protocol, port })?));
            }
        }
        for (place, protocol) in portless.iter_mut().zip(PORTLESS) {
            *place = column(Asked { protocol, port: 0 })?;
        }
        Ok(Self { ranges, portless, ports })
    }

    /// Columns of all ports of a protocol, ascending: where a range begins, and its column.
    pub(super) fn ranges(&self, protocol: Protocol) -> &[(u16, u8)] {
        let place = PORTED.iter().position(|of| *of == protocol);
        place.and_then(|at| self.ranges.get(at)).map_or(&[], Vec::as_slice)
    }
}

/// All rules, with the exceptions', in a direction.
fn rules(policies: &Policies, direction: Direction) -> impl Iterator<Item = &Rule> {
    let of_objects = policies.objects().iter().filter_map(move |object| object.rules(direction));
    let exceptions = policies.exceptions().iter().map(|exception| &exception.rule);
    of_objects.flat_map(|rules| &rules.rules).chain(exceptions)
}

/// All rules of both directions.
pub(super) fn all_rules(policies: &Policies) -> impl Iterator<Item = &Rule> {
    rules(policies, Direction::Ingress).chain(rules(policies, Direction::Egress))
}

/// Ports of all rules in a direction.
pub(super) fn ports(policies: &Policies, direction: Direction) -> impl Iterator<Item = &Ports> {
    rules(policies, direction).flat_map(|rule| rule.ports.iter().flatten())
}
