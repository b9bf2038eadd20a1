//! Which rule came nearest to a flow, and what it wants.

use crate::model::Workload;
use crate::policy::judge::{Answer, Proof, Term};
use crate::policy::port::{Asked, Ports};
use crate::policy::rule::{Direction, List, Rule};
use crate::policy::selector::{Peer, Selector, Who};

/// The rule of an answer's objects that fewest conditions keep from the flow, with these. Of several the first.
pub(super) fn find<'a>(
    direction: Direction,
    answer: &Answer<'a>,
    peer: &Peer<'_>,
    asked: Asked,
    destination: Option<&Workload>,
    proof: Proof,
) -> Option<(&'a Rule, Vec<String>)> {
    let lists: &[List] = match answer.term {
        Term::Ceiling => &[List::Ceiling, List::Guarantee],
        Term::NetworkPolicy => &[List::Kubernetes],
        Term::Invalid => &[List::Kubernetes, List::Team],
        _ => &[List::Team],
    };
    let rules = answer.by.iter().filter_map(|source| source.object.rules(direction));
    let wants =
        rules.flat_map(|rules| rules.of(lists)).map(|rule| (rule, wants(rule, peer, asked, destination, proof)));
    wants.min_by_key(|(_, why)| why.len())
}

fn wants(rule: &Rule, peer: &Peer<'_>, asked: Asked, destination: Option<&Workload>, proof: Proof) -> Vec<String> {
    let mut why = match &rule.peers {
        None => Vec::new(),
        Some(peers) => {
            // Of as near ones, a network of the address' own family is the one that was meant.
            let stranger =
                |who: &Who| matches!(who, Who::Block(block) if block.net.addr().is_ipv4() != peer.ip.is_ipv4());
            let each = peers.iter().map(|who| (stranger(who), peer_wants(rule.list, who, peer)));
            each.min_by_key(|(stranger, why)| (why.len(), *stranger)).map(|(_, why)| why).unwrap_or_default()
        }
    };
    if rule.ports.as_ref().is_some_and(|ports| !ports.iter().any(|port| port.mean(asked, destination))) {
        let ports: Vec<String> = rule.ports.iter().flatten().map(ToString::to_string).collect();
        why.push(format!("port is {asked}, wants {}", ports.join(" or ")));
    }
    if why.is_empty() && !proof.proves() {
        why.push("only an address speaks for the peer, wants proof or unauthenticated: true".to_owned());
    }
    why
}

fn peer_wants(list: List, who: &Who, peer: &Peer<'_>) -> Vec<String> {
    match (who, peer.member) {
        (Who::Workload(selector), Some(member)) => selector_wants(selector, member.workload, member.namespace_labels),
        (Who::Workload(_), None) => vec![format!("{} is no workload, wants one", peer.ip)],
        (Who::Block(block), Some(_)) if list != List::Kubernetes && block.has(peer.ip) => {
            vec!["networks allow only addresses of no workload; name the workload".to_owned()]
        }
        (Who::Block(block), _) if block.has(peer.ip) => Vec::new(),
        (Who::Block(block), _) => {
            let except: Vec<String> = block.except.iter().map(ToString::to_string).collect();
            let except = if except.is_empty() { String::new() } else { format!(" except {}", except.join(", ")) };
            vec![format!("address is {}, wants {}{except}", peer.ip, block.net)]
        }
        (Who::Entity(entity), _) if peer.entities.contains(entity) => Vec::new(),
        (Who::Entity(entity), _) => vec![format!("wants the entity {}", entity.name())],
    }
}

fn selector_wants(
    selector: &Selector,
    workload: &Workload,
    namespace_labels: &super::super::selector::Labels,
) -> Vec<String> {
    let mut why = Vec::new();
    if let Some(wanted) = selector.namespace.as_ref().filter(|wanted| **wanted != workload.namespace) {
        why.push(format!("namespace is {}, wants {wanted}", workload.namespace));
    }
    if let Some(wanted) = selector.service_account.as_ref().filter(|wanted| **wanted != workload.service_account) {
        why.push(format!("service account is {}, wants {wanted}", workload.service_account));
    }
    if let Some(wanted) = selector.principal.as_ref().filter(|wanted| **wanted != workload.principal) {
        why.push(format!("SPIFFE ID is {}, wants {wanted}", workload.principal));
    }
    for wanted in selector.namespace_labels.iter().filter(|wanted| !wanted.holds(namespace_labels)) {
        why.push(format!("namespace has not {wanted}"));
    }
    for wanted in selector.labels.iter().filter(|wanted| !wanted.holds(&workload.labels)) {
        why.push(format!("pod has not {wanted}"));
    }
    why
}

impl std::fmt::Display for Ports {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::All(protocol) if !protocol.has_ports() => write!(f, "{protocol}"),
            Self::All(protocol) => write!(f, "any {protocol} port"),
            Self::Range(protocol, first, last) if first == last => write!(f, "{protocol} {first}"),
            Self::Range(protocol, first, last) => write!(f, "{protocol} {first}-{last}"),
            Self::Named(protocol, name) => write!(f, "{protocol} port {name:?}"),
        }
    }
}
