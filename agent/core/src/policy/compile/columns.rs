//! Groups of ports that no rule tells apart.

use std::collections::{BTreeMap, BTreeSet};

use kumiko_abi::policy::MAX_COLUMNS;

use super::super::judge::Policies;
use super::super::port::{Asked, Ports};
use super::super::rule::{Direction, Rule};
use crate::manifest::Protocol;

const PROTOCOLS: [Protocol; 2] = [Protocol::Tcp, Protocol::Udp];

/// Columns of one direction: of TCP's ports, then of UDP's.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Columns {
    /// By protocol: first ports of ranges, ascending from 0, with their columns.
    ranges: [Vec<(u16, u8)>; 2],
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
        let (mut ranges, mut ports) = ([Vec::new(), Vec::new()], Vec::new());
        for (ranges, protocol) in ranges.iter_mut().zip(PROTOCOLS) {
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
            // Ranges that the same rules mean share a column.
            let mut known: BTreeMap<(Vec<&Ports>, Option<u16>), usize> = BTreeMap::new();
            for port in edges {
                let asked = Asked { protocol, port };
                let meaning = rules.iter().filter(|rule| rule.mean(asked, None)).copied().collect();
                let column =
                    *known.entry((meaning, own.contains(&(protocol, port)).then_some(port))).or_insert_with(|| {
                        ports.push(asked);
                        ports.len() - 1
                    });
                if column >= MAX_COLUMNS as usize {
                    return Err(ports.len());
                }
                ranges.push((port, u8::try_from(column).unwrap_or(u8::MAX)));
            }
        }
        Ok(Self { ranges, ports })
    }

    /// Columns of all ports of a protocol, ascending: where a range begins, and its column.
    pub(super) fn ranges(&self, protocol: Protocol) -> &[(u16, u8)] {
        let [tcp, udp] = &self.ranges;
        if protocol == Protocol::Udp { udp } else { tcp }
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
