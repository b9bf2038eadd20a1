//! `kumiko.dev/v1alpha1` MeshBaseline, MeshPolicy, MeshException and MeshSettings, `networking.k8s.io/v1` NetworkPolicy.

mod foreign;
mod kubernetes;
mod rules;
mod settings;

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::Deserialize;

use super::broken::Broken;
use super::check::Checker;
use super::document::typed;
use super::node::{Node, Step, Value};
use super::{Claim, Kind, Place, Problem};
use crate::policy::object::{
    Action, BaselineDirection, BaselineSubject, EgressRule, IngressRule, MeshBaselineSpec, MeshExceptionSpec,
    MeshPolicySpec, Mode, OnRevoke, Peer, Port,
};
use crate::policy::rule::{Direction, Exception, List, Object, ObjectId, ObjectKind, Rule, Rules, Suspended};
use crate::policy::selector::{Requirement, Selector};

use rules::{Of, peers, ports};

pub(super) use foreign::foreign;
pub(super) use kubernetes::network_policy;
pub(super) use settings::settings;

const METADATA: Step<'_> = Step::Key("metadata");
const SPEC: Step<'_> = Step::Key("spec");
/// Most rules of a list, peers and ports of a rule, networks of pods, as in the definitions.
const MOST: usize = 256;
/// Most entries of any other list.
const MOST_OTHERS: usize = 64;

/// A baseline or policy.
#[derive(Clone, PartialEq, Debug)]
pub struct PolicyObject {
    /// What it says.
    pub object: Object,
    /// Namespace labels that it chooses by and that only the platform may set.
    pub platform_labels: Vec<PlatformLabel>,
}

/// An exception.
#[derive(Clone, PartialEq, Debug)]
pub struct ExceptionObject {
    /// What it says.
    pub exception: Exception,
    /// Namespace labels that it chooses by and that only the platform may set.
    pub platform_labels: Vec<PlatformLabel>,
}

/// A namespace label that something of the platform's chooses by.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PlatformLabel {
    /// Its key.
    pub key: String,
    /// The field that names it.
    pub path: String,
    /// Where that stands.
    pub place: Place,
}

/// As written; positions and unknown fields are the reader's.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Document<S> {
    #[serde(rename = "apiVersion")]
    _api_version: String,
    #[serde(rename = "kind")]
    _kind: String,
    metadata: ObjectMeta,
    spec: S,
}

type Read = Option<(Kind, Vec<(Claim, Place)>)>;

/// One of our own documents. A field whose lines are all commented out has no value, and is not taken for one that is
/// not there: `from:` would mean anybody, `allow:` no ceiling.
fn document<S: for<'de> Deserialize<'de>>(
    root: &Node,
    kind: &str,
    problems: &mut Vec<(Place, Problem)>,
) -> Option<Document<S>> {
    let document = typed(root, kind, problems)?;
    if let Some(spec) = root.get("spec") {
        valueless(spec, &mut vec![SPEC], problems);
    }
    Some(document)
}

fn valueless<'n>(node: &'n Node, path: &mut Vec<Step<'n>>, problems: &mut Vec<(Place, Problem)>) {
    let mut under = |step, node, problems: &mut _| {
        path.push(step);
        valueless(node, path, problems);
        path.pop();
    };
    match &node.value {
        Value::Null => {
            let rule = Broken::NoValue;
            let path = super::check::text_of(path);
            problems.push((node.place, Problem::Value { path, value: "null".to_owned(), rule }));
        }
        Value::List(items) => {
            items.iter().enumerate().for_each(|(index, item)| under(Step::Index(index), item, problems));
        }
        Value::Map(entries) => entries.iter().for_each(|(key, node)| under(Step::Key(&key.name), node, problems)),
        _ => {}
    }
}

/// The name of an object of the whole cluster.
fn cluster_wide(check: &mut Checker<'_>, kind: ObjectKind, metadata: &ObjectMeta) -> ObjectId {
    let name = check.subdomain(&[METADATA, Step::Key("name")], metadata.name.as_deref());
    if let Some(namespace) = &metadata.namespace {
        check.broken(&[METADATA, Step::Key("namespace")], namespace, Broken::ClusterWide);
    }
    claim(check, ObjectId { kind, namespace: String::new(), name })
}

/// A direction that is absent is not selected; an object without any is a slip of the pen, or a policy that was thought to close.
fn says_something(check: &mut Checker<'_>, id: &ObjectId, says: bool) {
    if !says {
        check.broken(&[SPEC], &id.to_string(), Broken::NoDirection);
    }
}

fn claim(check: &mut Checker<'_>, id: ObjectId) -> ObjectId {
    let what = Claim::Name(id.kind.name(), id.namespace.clone(), id.name.clone());
    check.claim(&[METADATA, Step::Key("name")], what);
    id
}

pub(super) fn baseline(root: &Node, problems: &mut Vec<(Place, Problem)>) -> Read {
    let raw: Document<MeshBaselineSpec> = document(root, "MeshBaseline", problems)?;
    let mut check = Checker::new(root, problems);
    let id = cluster_wide(&mut check, ObjectKind::MeshBaseline, &raw.metadata);
    let spec = raw.spec;
    says_something(&mut check, &id, spec.ingress.is_some() || spec.egress.is_some());
    let subject = baseline_subject(&mut check, &spec.subject);
    let on_revoke = on_revoke(&mut check, "onRevoke", spec.on_revoke);
    let ingress = spec.ingress.map(|raw| baseline_direction(&mut check, "ingress", "from", &raw));
    let egress = spec.egress.map(|raw| baseline_direction(&mut check, "egress", "to", &raw));
    let object = Object {
        id,
        mode: spec.mode,
        replaces: Vec::new(),
        on_revoke,
        cut_legacy: spec.cut_legacy,
        subject,
        ingress,
        egress,
        invalid: false,
    };
    let platform_labels = check.take_platforms();
    Some((Kind::Policy(PolicyObject { object, platform_labels }), check.claims()))
}

pub(super) fn mesh_policy(root: &Node, problems: &mut Vec<(Place, Problem)>) -> Read {
    let raw: Document<MeshPolicySpec> = document(root, "MeshPolicy", problems)?;
    let mut check = Checker::new(root, problems);
    let namespace = check.label(&[METADATA, Step::Key("namespace")], raw.metadata.namespace.as_deref());
    let name = check.subdomain(&[METADATA, Step::Key("name")], raw.metadata.name.as_deref());
    let id = claim(&mut check, ObjectId { kind: ObjectKind::MeshPolicy, namespace, name });
    let spec = raw.spec;
    says_something(&mut check, &id, spec.ingress.is_some() || spec.egress.is_some());
    if spec.mode == Mode::Enforce && !spec.replaces.is_empty() {
        check.broken(&[SPEC, Step::Key("replaces")], &spec.replaces.join(", "), Broken::ReplacesEnforced);
    }
    check.at_most(&[SPEC, Step::Key("replaces")], &spec.replaces, MOST_OTHERS);
    for (index, name) in spec.replaces.iter().enumerate().filter(|(_, name)| **name == id.name) {
        check.broken(&[SPEC, Step::Key("replaces"), Step::Index(index)], name, Broken::ReplacesItself);
    }
    let at = |field| [SPEC, Step::Key("subject"), Step::Key(field)];
    if let Some(account) = &spec.subject.service_account {
        check.subdomain(&at("serviceAccount"), Some(account));
    }
    let subject = Selector {
        namespace: Some(id.namespace.clone()),
        labels: requirements(&mut check, &at("labels"), &spec.subject.labels),
        service_account: spec.subject.service_account,
        ..Selector::default()
    };
    let on_revoke = on_revoke(&mut check, "onRevoke", spec.on_revoke);
    let ingress = spec.ingress.map(|raw| team(&mut check, "ingress", "from", &raw));
    let egress = spec.egress.map(|raw| team(&mut check, "egress", "to", &raw));
    let object = Object {
        id,
        mode: spec.mode,
        replaces: spec.replaces,
        on_revoke,
        cut_legacy: false,
        subject,
        ingress,
        egress,
        invalid: false,
    };
    Some((Kind::Policy(PolicyObject { object, platform_labels: Vec::new() }), check.claims()))
}

pub(super) fn exception(root: &Node, problems: &mut Vec<(Place, Problem)>) -> Read {
    let raw: Document<MeshExceptionSpec> = document(root, "MeshException", problems)?;
    let mut check = Checker::new(root, problems);
    let id = cluster_wide(&mut check, ObjectKind::MeshException, &raw.metadata);
    let spec = raw.spec;
    let mut suspends = Vec::new();
    let listed = check.at_most(&[SPEC, Step::Key("suspends")], &spec.suspends, MOST_OTHERS);
    for (number, raw) in listed.iter().enumerate() {
        let path = [SPEC, Step::Key("suspends"), Step::Index(number), Step::Key("baseline")];
        check.subdomain(&path, Some(&raw.baseline));
        let path = [SPEC, Step::Key("suspends"), Step::Index(number), Step::Key("rules")];
        for (index, text) in check.at_most(&path, &raw.rules, MOST_OTHERS).iter().enumerate() {
            let path = [SPEC, Step::Key("suspends"), Step::Index(number), Step::Key("rules"), Step::Index(index)];
            match suspended(&raw.baseline, text) {
                Some(suspended) => suspends.push(suspended),
                None => check.broken(&path, text, Broken::Suspends),
            }
        }
    }
    if spec.suspends.is_empty() {
        check.broken(&[SPEC, Step::Key("suspends")], "[]", Broken::SuspendsNothing);
    }
    for number in spec.suspends.iter().enumerate().filter(|(_, raw)| raw.rules.is_empty()).map(|(number, _)| number) {
        let path = [SPEC, Step::Key("suspends"), Step::Index(number), Step::Key("rules")];
        check.broken(&path, "[]", Broken::SuspendsNothing);
    }
    check.owner(&[SPEC, Step::Key("owner")], &spec.owner);
    let subject = baseline_subject(&mut check, &spec.subject);
    let of = Of { path: &[SPEC], peers: "peers", list: List::Ceiling };
    let rule = Rule {
        name: id.name.clone(),
        list: List::Ceiling,
        peers: peers(&mut check, &of, Some(&spec.peers)),
        ports: ports(&mut check, &of, spec.ports.as_deref()),
        unauthenticated: false,
    };
    let on_expiry = on_revoke(&mut check, "onExpiry", spec.on_expiry);
    let (name, owner, expires) = (id.name, spec.owner, spec.expires.0);
    let exception = Exception { name, suspends, subject, rule, owner, expires, on_expiry };
    let platform_labels = check.take_platforms();
    Some((Kind::Exception(ExceptionObject { exception, platform_labels }), check.claims()))
}

fn suspended(baseline: &str, text: &str) -> Option<Suspended> {
    let (direction, rest) = text.split_once('.')?;
    let direction = match direction {
        "ingress" => Direction::Ingress,
        "egress" => Direction::Egress,
        _ => return None,
    };
    let deny = match rest.split_once('.') {
        None if rest == "allow" => None,
        Some(("deny", name)) if !name.is_empty() => Some(name.to_owned()),
        _ => return None,
    };
    Some(Suspended { baseline: baseline.to_owned(), direction, deny })
}

fn baseline_subject(check: &mut Checker<'_>, raw: &BaselineSubject) -> Selector {
    let path = [SPEC, Step::Key("subject")];
    let peer = Peer {
        namespace: raw.namespace.clone(),
        namespace_labels: raw.namespace_labels.clone(),
        service_account: raw.service_account.clone(),
        spiffe_id: raw.spiffe_id.clone(),
        ..Peer::default()
    };
    rules::platforms(check, &path, &peer);
    rules::selector(check, &path, &peer)
}

fn on_revoke(check: &mut Checker<'_>, field: &'static str, raw: Option<OnRevoke>) -> OnRevoke {
    let on_revoke = raw.unwrap_or_default();
    let path = [SPEC, Step::Key(field), Step::Key("seconds")];
    match (on_revoke.action, on_revoke.seconds) {
        (Action::Grace, None) => check.problem(&path, Problem::Missing { path: super::check::text_of(&path) }),
        (Action::Grace, Some(seconds)) if !(1..=86_400).contains(&seconds) => {
            check.broken(&path, &seconds.to_string(), Broken::Seconds);
        }
        (Action::Keep | Action::Cut, Some(seconds)) => {
            check.broken(&path, &seconds.to_string(), Broken::SecondsWithoutGrace);
        }
        _ => {}
    }
    on_revoke
}

/// What both types of rules have.
trait Written {
    fn parts(&self) -> (&str, Option<&[Peer]>, Option<&[Port]>, bool);
}

impl Written for IngressRule {
    fn parts(&self) -> (&str, Option<&[Peer]>, Option<&[Port]>, bool) {
        (&self.name, self.from.as_deref(), self.ports.as_deref(), self.unauthenticated)
    }
}

impl Written for EgressRule {
    fn parts(&self) -> (&str, Option<&[Peer]>, Option<&[Port]>, bool) {
        (&self.name, self.to.as_deref(), self.ports.as_deref(), self.unauthenticated)
    }
}

fn baseline_direction<R: Written>(
    check: &mut Checker<'_>,
    direction: &'static str,
    field: &'static str,
    raw: &BaselineDirection<R>,
) -> Rules {
    let mut rules = Vec::new();
    let allow = raw.allow.as_deref().unwrap_or_default();
    let lists = [
        ("deny", List::Deny, &raw.deny[..]),
        ("allow", List::Ceiling, allow),
        ("guarantee", List::Guarantee, &raw.guarantee),
    ];
    for (name, list, raw) in lists {
        read(check, &[SPEC, Step::Key(direction), Step::Key(name)], field, list, raw, &mut rules);
    }
    Rules { rules, ceiling: raw.allow.is_some() }
}

fn team<R: Written>(check: &mut Checker<'_>, direction: &'static str, field: &'static str, raw: &[R]) -> Rules {
    let mut rules = Vec::new();
    read(check, &[SPEC, Step::Key(direction)], field, List::Team, raw, &mut rules);
    Rules { rules, ceiling: false }
}

/// Reads a list of rules.
fn read<R: Written>(
    check: &mut Checker<'_>,
    path: &[Step<'_>],
    field: &'static str,
    list: List,
    raw: &[R],
    rules: &mut Vec<Rule>,
) {
    for (index, raw) in check.at_most(path, raw, MOST).iter().enumerate() {
        let path = [path, &[Step::Index(index)]].concat();
        let (name, peers_written, ports_written, unauthenticated) = raw.parts();
        let at = |step| [path.as_slice(), &[Step::Key(step)]].concat();
        let named = check.label(&at("name"), Some(name));
        if rules.iter().any(|other| other.list == list && other.name == named) {
            check.broken(&at("name"), name, Broken::RuleName);
        }
        if list == List::Deny && unauthenticated {
            check.broken(&at("unauthenticated"), "true", Broken::UnprovedDeny);
        }
        let of = Of { path: &path, peers: field, list };
        let (peers, ports) = (peers(check, &of, peers_written), ports(check, &of, ports_written));
        rules.push(Rule { name: named, list, peers, ports, unauthenticated });
    }
}

/// All of these labels.
fn requirements(check: &mut Checker<'_>, path: &[Step<'_>], labels: &BTreeMap<String, String>) -> Vec<Requirement> {
    let each = labels.iter().map(|(key, value)| {
        check.label_key(path, key);
        check.label_value(&[path, &[Step::Key(key)]].concat(), value);
        Requirement::In(key.clone(), vec![value.clone()])
    });
    each.collect()
}
