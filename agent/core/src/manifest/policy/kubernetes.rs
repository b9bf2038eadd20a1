//! `networking.k8s.io/v1` NetworkPolicy, with its own meaning of empty and absent lists.

use k8s_openapi::api::networking::v1 as networking;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::super::broken::Broken;
use super::super::check::Checker;
use super::super::document::typed;
use super::super::node::{Node, Step};
use super::super::{Kind, Place, Problem, Protocol};
use super::{METADATA, PolicyObject, Read, SPEC, claim, rules};
use crate::policy::object::{IpBlock, Mode, OnRevoke};
use crate::policy::port::Ports;
use crate::policy::rule::{List, Object, ObjectId, ObjectKind, Rule, Rules};
use crate::policy::selector::{Requirement, Selector, Who};

type Steps<'a> = Vec<Step<'a>>;

fn at<'a>(path: &[Step<'a>], step: Step<'a>) -> Steps<'a> {
    [path, &[step]].concat()
}

pub(in super::super) fn network_policy(root: &Node, problems: &mut Vec<(Place, Problem)>) -> Read {
    let raw: networking::NetworkPolicy = typed(root, "NetworkPolicy", problems)?;
    let mut check = Checker::new(root, problems);
    let namespace = check.label(&[METADATA, Step::Key("namespace")], raw.metadata.namespace.as_deref());
    let name = check.subdomain(&[METADATA, Step::Key("name")], raw.metadata.name.as_deref());
    let id = claim(&mut check, ObjectId { kind: ObjectKind::NetworkPolicy, namespace, name });
    let spec = raw.spec.unwrap_or_default();
    let types = types(&mut check, &spec);
    let subject = Selector {
        namespace: Some(id.namespace.clone()),
        labels: requirements(&mut check, &[SPEC, Step::Key("podSelector")], spec.pod_selector.as_ref()),
        ..Selector::default()
    };
    let ingress = spec.ingress.unwrap_or_default().into_iter().map(|rule| (rule.from, rule.ports));
    let egress = spec.egress.unwrap_or_default().into_iter().map(|rule| (rule.to, rule.ports));
    let ingress = direction(&mut check, &id.namespace, "ingress", "from", ingress.collect());
    let egress = direction(&mut check, &id.namespace, "egress", "to", egress.collect());
    let object = Object {
        id,
        mode: Mode::Enforce,
        replaces: Vec::new(),
        on_revoke: OnRevoke::default(),
        cut_legacy: false,
        subject,
        ingress: types[0].then_some(ingress),
        egress: types[1].then_some(egress),
        invalid: false,
    };
    Some((Kind::Policy(PolicyObject { object, platform_labels: Vec::new() }), check.claims()))
}

/// Whether it is about ingress, and about egress. Without the field: about ingress, and about egress if it has rules
/// for it (SetDefaults_NetworkPolicy of pkg/apis/networking/v1/defaults.go).
fn types(check: &mut Checker<'_>, spec: &networking::NetworkPolicySpec) -> [bool; 2] {
    let written = spec.policy_types.as_deref().unwrap_or_default();
    for (index, text) in written.iter().enumerate().filter(|(_, text)| !matches!(text.as_str(), "Ingress" | "Egress")) {
        check.broken(&[SPEC, Step::Key("policyTypes"), Step::Index(index)], text, Broken::PolicyType);
    }
    if written.is_empty() {
        return [true, spec.egress.as_ref().is_some_and(|rules| !rules.is_empty())];
    }
    ["Ingress", "Egress"].map(|one| written.iter().any(|text| text == one))
}

type Written = (Option<Vec<networking::NetworkPolicyPeer>>, Option<Vec<networking::NetworkPolicyPort>>);

fn direction(
    check: &mut Checker<'_>,
    namespace: &str,
    field: &'static str,
    peers_field: &'static str,
    written: Vec<Written>,
) -> Rules {
    let mut rules = Vec::new();
    for (index, (peers, ports)) in written.into_iter().enumerate() {
        let path = [SPEC, Step::Key(field), Step::Index(index)];
        // An empty list is everybody, or every port, as an absent one is.
        let peers = peers.filter(|peers| !peers.is_empty()).map(|peers| {
            let path = at(&path, Step::Key(peers_field));
            let each = peers.iter().enumerate();
            each.filter_map(|(index, raw)| peer(check, &at(&path, Step::Index(index)), namespace, raw)).collect()
        });
        let ports = ports.filter(|ports| !ports.is_empty()).map(|ports| {
            let path = at(&path, Step::Key("ports"));
            let each = ports.iter().enumerate();
            each.filter_map(|(index, raw)| port(check, &at(&path, Step::Index(index)), raw)).collect()
        });
        rules.push(Rule { name: index.to_string(), list: List::Kubernetes, peers, ports, unauthenticated: true });
    }
    Rules { rules, ceiling: false }
}

fn peer(
    check: &mut Checker<'_>,
    path: &[Step<'_>],
    namespace: &str,
    raw: &networking::NetworkPolicyPeer,
) -> Option<Who> {
    if let Some(block) = &raw.ip_block {
        if raw.pod_selector.is_some() || raw.namespace_selector.is_some() {
            check.broken(&at(path, Step::Key("ipBlock")), &block.cidr, Broken::BlockBeside);
        }
        let raw = IpBlock { cidr: block.cidr.clone(), except: block.except.clone().unwrap_or_default() };
        return rules::ip_block(check, &at(path, Step::Key("ipBlock")), &raw, rules::masked).map(Who::Block);
    }
    if raw.pod_selector.is_none() && raw.namespace_selector.is_none() {
        check.broken(path, "{}", Broken::EmptyPeer);
        return None;
    }
    let labels = requirements(check, &at(path, Step::Key("podSelector")), raw.pod_selector.as_ref());
    let of = at(path, Step::Key("namespaceSelector"));
    let namespace_labels = requirements(check, &of, raw.namespace_selector.as_ref());
    let namespace = raw.namespace_selector.is_none().then(|| namespace.to_owned());
    Some(Who::Workload(Selector { namespace, namespace_labels, labels, ..Selector::default() }))
}

fn requirements(check: &mut Checker<'_>, path: &[Step<'_>], raw: Option<&LabelSelector>) -> Vec<Requirement> {
    let Some(raw) = raw else { return Vec::new() };
    let none = std::collections::BTreeMap::new();
    let labels = raw.match_labels.as_ref().unwrap_or(&none);
    let mut all = super::requirements(check, &at(path, Step::Key("matchLabels")), labels);
    for (index, raw) in raw.match_expressions.iter().flatten().enumerate() {
        let path = [path, &[Step::Key("matchExpressions"), Step::Index(index)]].concat();
        let (key, values) = (raw.key.clone(), raw.values.clone().unwrap_or_default());
        check.label_key(&at(&path, Step::Key("key")), &key);
        for (index, value) in values.iter().enumerate() {
            check.label_value(&[&path[..], &[Step::Key("values"), Step::Index(index)]].concat(), value);
        }
        let wants_values = matches!(raw.operator.as_str(), "In" | "NotIn");
        let is_known = wants_values || matches!(raw.operator.as_str(), "Exists" | "DoesNotExist");
        if is_known && wants_values == values.is_empty() {
            let rule = if wants_values { Broken::WithoutValues } else { Broken::WithValues };
            check.broken(&at(&path, Step::Key("operator")), &raw.operator, rule);
        }
        match raw.operator.as_str() {
            "In" => all.push(Requirement::In(key, values)),
            "NotIn" => all.push(Requirement::NotIn(key, values)),
            "Exists" => all.push(Requirement::Exists(key)),
            "DoesNotExist" => all.push(Requirement::DoesNotExist(key)),
            other => {
                check.broken(&at(&path, Step::Key("operator")), other, Broken::Operator);
            }
        }
    }
    all
}

fn port(check: &mut Checker<'_>, path: &[Step<'_>], raw: &networking::NetworkPolicyPort) -> Option<Ports> {
    let protocol: Protocol = check.protocol(&at(path, Step::Key("protocol")), raw.protocol.as_deref());
    match (&raw.port, raw.end_port) {
        (None, None) => Some(Ports::All(protocol)),
        (Some(IntOrString::Int(first)), end) => {
            let first_port = check.port(&at(path, Step::Key("port")), i64::from(*first));
            let last = end.map_or(first_port, |end| check.port(&at(path, Step::Key("endPort")), i64::from(end)));
            if last < first_port {
                check.broken(&at(path, Step::Key("endPort")), &last.to_string(), Broken::EndBeforePort);
            }
            Some(Ports::Range(protocol, first_port, last))
        }
        (Some(IntOrString::String(name)), None) => {
            check.port_name(&at(path, Step::Key("port")), name);
            Some(Ports::Named(protocol, name.clone()))
        }
        (_, Some(end)) => {
            check.broken(&at(path, Step::Key("endPort")), &end.to_string(), Broken::EndOfName);
            None
        }
    }
}
