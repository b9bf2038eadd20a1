//! Peers and ports of rules.

use ipnet::IpNet;

use super::super::broken::Broken;
use super::super::check::Checker;
use super::super::node::Step;
use super::super::{Problem, check};
use super::{MOST, MOST_OTHERS, requirements};
use crate::policy::object::{IpBlock, Peer, Port, PortRef, TransportProtocol};
use crate::policy::port::Ports;
use crate::policy::rule::List;
use crate::policy::selector::{Block, Selector, Who};
use crate::principal::Principal;

/// Where a rule stands, and what may stand in it.
pub(super) struct Of<'p, 's> {
    /// The rule.
    pub(super) path: &'p [Step<'s>],
    /// The field of its peers: `from`, `to` or `peers`.
    pub(super) peers: &'static str,
    /// Of which list.
    pub(super) list: List,
}

/// The peers of a rule; an empty list is refused, for Kubernetes' own policies mean everybody by it.
pub(super) fn peers(check: &mut Checker<'_>, of: &Of<'_, '_>, raw: Option<&[Peer]>) -> Option<Vec<Who>> {
    let raw = raw?;
    let path = [of.path, &[Step::Key(of.peers)]].concat();
    if raw.is_empty() {
        // An exception has to say for whom it is.
        let rule = if of.peers == "peers" { Broken::NobodyExcepted } else { Broken::NoPeers };
        check.broken(&path, "[]", rule);
    }
    let each = check.at_most(&path, raw, MOST).iter().enumerate();
    Some(
        each.filter_map(|(index, raw)| peer(check, &[&path[..], &[Step::Index(index)]].concat(), of.list, raw))
            .collect(),
    )
}

fn peer(check: &mut Checker<'_>, path: &[Step<'_>], list: List, raw: &Peer) -> Option<Who> {
    let workload = raw.namespace.is_some()
        || raw.service_account.is_some()
        || raw.spiffe_id.is_some()
        || !raw.namespace_labels.is_empty()
        || !raw.labels.is_empty();
    match (&raw.ip_block, raw.entity, workload) {
        (Some(block), None, false) => {
            let except = [path, &[Step::Key("ipBlock"), Step::Key("except")]].concat();
            check.at_most(&except, &block.except, MOST_OTHERS);
            ip_block(check, &[path, &[Step::Key("ipBlock")]].concat(), block, net).map(Who::Block)
        }
        (None, Some(entity), false) => Some(Who::Entity(entity)),
        (None, None, true) => {
            if list.is_platforms() {
                platforms(check, path, raw);
            }
            if list.is_platforms() && !raw.labels.is_empty() {
                let rule = if list == List::Deny { Broken::LabelsDenied } else { Broken::LabelsAllowed };
                check.broken(&[path, &[Step::Key("labels")]].concat(), "pod labels", rule);
            }
            Some(Who::Workload(selector(check, path, raw)))
        }
        _ => {
            check.broken(path, "the peer", Broken::Peer);
            None
        }
    }
}

/// A workload's conditions.
pub(super) fn selector(check: &mut Checker<'_>, path: &[Step<'_>], raw: &Peer) -> Selector {
    let at = |field| [path, &[Step::Key(field)]].concat();
    if let Some(name) = &raw.namespace {
        check.label(&at("namespace"), Some(name));
    }
    let placed = raw.namespace.is_some() || !raw.namespace_labels.is_empty();
    if let Some(name) = &raw.service_account {
        check.subdomain(&at("serviceAccount"), Some(name));
        if !placed {
            check.broken(&at("serviceAccount"), name, Broken::AccountOfAny);
        }
    }
    if !raw.labels.is_empty() && !placed {
        check.broken(&at("labels"), "labels", Broken::PodsOfAny);
    }
    let principal = raw.spiffe_id.as_ref().and_then(|text| {
        text.parse::<Principal>()
            .map_err(|why| {
                let path = at("spiffeId");
                check.problem(&path, Problem::NoPrincipal { path: check::text_of(&path), why });
            })
            .ok()
    });
    if let Some(principal) = &principal {
        let said = [
            ("namespace", &raw.namespace, &principal.namespace),
            ("serviceAccount", &raw.service_account, &principal.service_account),
        ];
        for (field, said, own) in said {
            if let Some(said) = said.as_ref().filter(|said| *said != own) {
                check.broken(&at(field), said, Broken::NotOfTheId);
            }
        }
    }
    Selector {
        namespace: raw.namespace.clone(),
        namespace_labels: requirements(check, &at("namespaceLabels"), &raw.namespace_labels),
        labels: requirements(check, &at("labels"), &raw.labels),
        service_account: raw.service_account.clone(),
        principal,
    }
}

/// Notes labels that only the platform may choose by, for when the settings are known.
pub(super) fn platforms(check: &mut Checker<'_>, path: &[Step<'_>], raw: &Peer) {
    let path_of_all = [path, &[Step::Key("namespaceLabels")]].concat();
    let found = raw.namespace_labels.len();
    if found > MOST_OTHERS {
        let path = check::text_of(&path_of_all);
        return check.problem(&path_of_all, Problem::TooLong { path, found, max: MOST_OTHERS });
    }
    for key in raw.namespace_labels.keys() {
        let path = [path, &[Step::Key("namespaceLabels"), Step::Key(key)]].concat();
        check.platforms(&path, key);
    }
}

/// The ports of a rule.
pub(super) fn ports(check: &mut Checker<'_>, of: &Of<'_, '_>, raw: Option<&[Port]>) -> Option<Vec<Ports>> {
    let raw = raw?;
    let path = [of.path, &[Step::Key("ports")]].concat();
    if raw.is_empty() {
        check.broken(&path, "[]", Broken::NoPorts);
    }
    for (index, raw) in check.at_most(&path, raw, MOST).iter().enumerate() {
        let at = |field| [&path[..], &[Step::Index(index), Step::Key(field)]].concat();
        match &raw.port {
            Some(_) if raw.protocol == TransportProtocol::Icmp => {
                check.broken(&at("port"), "ICMP", Broken::PortOfIcmp);
            }
            None => {
                if let Some(end) = raw.end_port {
                    check.broken(&at("endPort"), &end.to_string(), Broken::EndOfName);
                }
            }
            Some(PortRef::Number(number)) => {
                check.port(&at("port"), i64::from(*number));
                if let Some(end) = raw.end_port.filter(|end| end < number) {
                    check.broken(&at("endPort"), &end.to_string(), Broken::EndBeforePort);
                }
            }
            Some(PortRef::Name(name)) => {
                check.port_name(&at("port"), name);
                if of.list.is_platforms() {
                    let rule = if of.list == List::Deny { Broken::NameDenied } else { Broken::NameAllowed };
                    check.broken(&at("port"), name, rule);
                }
                if let Some(end) = raw.end_port {
                    check.broken(&at("endPort"), &end.to_string(), Broken::EndOfName);
                }
            }
        }
    }
    Some(raw.iter().map(Ports::from).collect())
}

/// How a network is read.
type ReadNet = fn(&mut Checker<'_>, &[Step<'_>], &str) -> Option<IpNet>;

/// A network without parts of it.
pub(super) fn ip_block(check: &mut Checker<'_>, path: &[Step<'_>], raw: &IpBlock, read: ReadNet) -> Option<Block> {
    let net = read(check, &[path, &[Step::Key("cidr")]].concat(), &raw.cidr)?;
    let mut except = Vec::new();
    for (index, text) in raw.except.iter().enumerate() {
        let path = [path, &[Step::Key("except"), Step::Index(index)]].concat();
        let Some(part) = read(check, &path, text) else { continue };
        if !net.contains(&part) || part == net {
            check.broken(&path, text, Broken::NotAPart);
        }
        except.push(part);
    }
    Some(Block { net, except })
}

/// Networks of a list.
pub(super) fn nets(check: &mut Checker<'_>, path: &[Step<'_>], texts: &[String]) -> Vec<IpNet> {
    let each = texts.iter().enumerate();
    each.filter_map(|(index, text)| net(check, &[path, &[Step::Index(index)]].concat(), text)).collect()
}

fn net(check: &mut Checker<'_>, path: &[Step<'_>], text: &str) -> Option<IpNet> {
    let net = parsed(check, path, text)?;
    if net.addr() != net.network() {
        check.broken(path, text, Broken::HostBits);
        return None;
    }
    Some(net)
}

/// As Kubernetes takes a network: bits behind its prefix mean nothing.
pub(super) fn masked(check: &mut Checker<'_>, path: &[Step<'_>], text: &str) -> Option<IpNet> {
    parsed(check, path, text).map(|net| net.trunc())
}

fn parsed(check: &mut Checker<'_>, path: &[Step<'_>], text: &str) -> Option<IpNet> {
    let Ok(net) = text.parse::<IpNet>() else {
        check.broken(path, text, Broken::Net);
        return None;
    };
    if matches!(net, IpNet::V6(net) if net.addr().to_ipv4_mapped().is_some()) {
        check.broken(path, text, Broken::MappedNet);
        return None;
    }
    Some(net)
}
