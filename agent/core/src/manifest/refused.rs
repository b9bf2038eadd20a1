//! What can still be read of policy in a file that is refused. A policy of which no version ever was in force must not
//! count as none: whom it selects is refused what no other policy allows.

use super::broken::Meanwhile;
use super::document;
use super::node::{self, Key, Node, Value};
use super::{API_VERSION, Kind, Object, Place, PolicyObject, Problem, Scope, check, policy};
use crate::policy::object::{Mode, OnRevoke};
use crate::policy::rule::{self, ObjectId, ObjectKind, Rules};
use crate::policy::selector::Selector;

/// A document of policy that is refused.
#[derive(Clone, PartialEq, Debug)]
pub(super) struct Refused {
    /// Its kind.
    pub(super) kind: &'static str,
    /// Namespace and name, as far as they can be read.
    pub(super) name: (String, String),
    /// Where it begins.
    pub(super) place: Place,
    /// What stands for it until it is valid: a policy without rules. `None`: it would refuse nothing, or nobody knows whom.
    closed: Option<rule::Object>,
}

/// The kinds of which anything is said here.
const KINDS: [&str; 5] = ["MeshPolicy", "NetworkPolicy", "MeshBaseline", "MeshException", "MeshSettings"];

impl Refused {
    /// What stands for it, and what that means, for people. `unique` names it where nothing else does.
    pub(super) fn stand_in(&self, unique: &str, taken: bool) -> (Option<Object>, Problem) {
        let (namespace, name) = &self.name;
        let mut shown = [self.kind, namespace, name].into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>();
        if name.is_empty() {
            shown.push("(without a name)");
        }
        let means = match (&self.closed, self.kind) {
            (Some(_), _) => Meanwhile::Closed,
            (None, "MeshBaseline") => Meanwhile::Baseline,
            (None, "MeshException") => Meanwhile::Exception,
            (None, "MeshSettings") => Meanwhile::Settings,
            (None, _) => Meanwhile::Nobody,
        };
        let object = self.closed.clone().map(|mut object| {
            if name.is_empty() || taken {
                object.id.name = format!("{name} ({unique})").trim_start().to_owned();
            }
            let kind = Kind::Policy(PolicyObject { object, platform_labels: Vec::new() });
            Object { kind, place: self.place, claims: Vec::new() }
        });
        (object, Problem::NeverValid { object: shown.join("/"), means })
    }
}

/// Policy among objects that are fine, of a file that is refused all the same.
pub(super) fn of_objects(objects: &[Object]) -> Vec<Refused> {
    let one = |object: &Object| {
        let (name, closed) = match &object.kind {
            Kind::Policy(policy) => {
                let id = &policy.object.id;
                let closes = matches!(id.kind, ObjectKind::MeshPolicy | ObjectKind::NetworkPolicy)
                    && policy.object.mode == Mode::Enforce;
                ((id.namespace.clone(), id.name.clone()), closes.then(|| policy.object.closed()))
            }
            Kind::Exception(exception) => ((String::new(), exception.exception.name.clone()), None),
            Kind::Settings(_) => ((String::new(), "mesh".to_owned()), None),
            _ => return None,
        };
        Some(Refused { kind: object.kind.name(), name, place: object.place, closed })
    };
    objects.iter().filter_map(one).collect()
}

/// Policy in a text that is refused.
pub(super) fn of_text(scope: Scope, text: &str) -> Vec<Refused> {
    let mut found = Vec::new();
    if scope != Scope::Policy {
        return found;
    }
    let mut parses = true;
    for (first, text) in chunks(text) {
        let documents = if parses { node::parse(text) } else { Ok(Vec::new()) };
        match documents {
            Ok(documents) if parses => {
                documents.iter().for_each(|document| of_document(document, first, 0, &mut found));
            }
            other => {
                // What is too large for the reader once is not read again and again.
                let too_much = matches!(other, Err((_, Problem::TooManyValues { .. } | Problem::TooDeep { .. })));
                parses &= !too_much;
                found.extend(of_lines(text, first));
            }
        }
    }
    found
}

/// Documents, each with the number of lines before it.
fn chunks(text: &str) -> impl Iterator<Item = (u32, &str)> {
    let mut rest = Some((0, text));
    std::iter::from_fn(move || {
        let (first, text) = rest.take()?;
        let mut at = 0;
        for (number, line) in (0..).zip(text.split_inclusive('\n')) {
            if number > 0 && line.starts_with("---") {
                let (own, others) = text.split_at_checked(at)?;
                rest = Some((first + number, others));
                return Some((first, own));
            }
            at += line.len();
        }
        Some((first, text))
    })
}

fn of_document(document: &Node, lines: u32, depth: usize, found: &mut Vec<Refused>) {
    if let (Some("List"), Some(Value::List(items)), 0) =
        (document.text("kind"), document.get("items").map(|items| &items.value), depth)
    {
        return items.iter().for_each(|item| of_document(item, lines, depth + 1, found));
    }
    let place = Place { line: document.place.line.saturating_add(lines), ..document.place };
    let mut objects = Vec::new();
    document::read(Scope::Policy, document, &mut objects, &mut Vec::new());
    if !objects.is_empty() {
        return found.extend(of_objects(&objects).into_iter().map(|refused| Refused { place, ..refused }));
    }
    let Some(kind) = kind(document.text("kind"), document.text("apiVersion")) else { return };
    let metadata = document.get("metadata");
    let part = |name| metadata.and_then(|metadata| metadata.text(name)).unwrap_or_default().to_owned();
    let (namespace, name) = (part("namespace"), part("name"));
    let closed = closed(kind, &namespace, &name, Some(document));
    found.push(Refused { kind, name: (namespace, name), place, closed });
}

/// A kind of policy, by whatever version of its API.
fn kind(kind: Option<&str>, api_version: Option<&str>) -> Option<&'static str> {
    let kind = KINDS.into_iter().find(|known| Some(*known) == kind)?;
    // Others have a NetworkPolicy of their own, with another meaning.
    let group = |version: &str| version.split('/').next() == Some("networking.k8s.io");
    (kind != "NetworkPolicy" || api_version.is_none_or(group)).then_some(kind)
}

/// What stands for a policy, from what can be read of it: its mode, its subject, its directions.
fn closed(kind: &'static str, namespace: &str, name: &str, document: Option<&Node>) -> Option<rule::Object> {
    let (of, of_kind, subject) = match kind {
        "MeshPolicy" => (API_VERSION, ObjectKind::MeshPolicy, "subject"),
        "NetworkPolicy" => ("networking.k8s.io/v1", ObjectKind::NetworkPolicy, "podSelector"),
        _ => return None,
    };
    if !check::is_label(namespace) {
        return None;
    }
    let spec = document.and_then(|document| document.get("spec"));
    if kind == "MeshPolicy" && spec.and_then(|spec| spec.text("mode")) == Some("audit") {
        return None;
    }
    let readable = |fields: &[&str]| read_alone(of, kind, namespace, spec?, fields);
    let read = readable(&[subject, "onRevoke"]).or_else(|| readable(&[subject]));
    let id = ObjectId { kind: of_kind, namespace: namespace.to_owned(), name: name.to_owned() };
    let (subject, on_revoke) = match read {
        Some(object) => (object.subject, object.on_revoke),
        None => {
            let whole = Selector { namespace: Some(namespace.to_owned()), ..Selector::default() };
            (whole, readable(&["onRevoke"]).map_or_else(OnRevoke::default, |object| object.on_revoke))
        }
    };
    let [ingress, egress] = directions(kind, spec).map(|selected| selected.then(Rules::default));
    let (mode, replaces) = (Mode::Enforce, Vec::new());
    Some(rule::Object { id, mode, replaces, on_revoke, cut_legacy: false, subject, ingress, egress, invalid: true })
}

/// A document with some fields of its spec alone, if these are fine.
fn read_alone(api_version: &str, kind: &str, namespace: &str, spec: &Node, fields: &[&str]) -> Option<rule::Object> {
    let Value::Map(entries) = &spec.value else { return None };
    let mut kept: Vec<_> = entries.iter().filter(|(key, _)| fields.contains(&key.name.as_str())).cloned().collect();
    let text = |text: &str| Value::Text(text.to_owned());
    let metadata = map(vec![("name", text("x")), ("namespace", text(namespace))]);
    let mut all = map(vec![("apiVersion", text(api_version)), ("kind", text(kind)), ("metadata", metadata)]);
    if let Value::Map(all) = &mut all {
        // Its directions are read by [`directions`]; without any it would be refused for that.
        let none = Key { name: "ingress".to_owned(), place: Place::FILE };
        kept.push((none, Node { place: Place::FILE, value: Value::List(Vec::new()) }));
        let key = Key { name: "spec".to_owned(), place: Place::FILE };
        all.push((key, Node { place: Place::FILE, value: Value::Map(kept) }));
    }
    let document = Node { place: Place::FILE, value: all };
    let mut problems = Vec::new();
    let read = match kind {
        "MeshPolicy" => policy::mesh_policy(&document, &mut problems),
        _ => policy::network_policy(&document, &mut problems),
    };
    match read {
        Some((Kind::Policy(policy), _)) if problems.is_empty() => Some(policy.object),
        _ => None,
    }
}

fn map(entries: Vec<(&str, Value)>) -> Value {
    let entry = |(name, value): (&str, Value)| {
        (Key { name: name.to_owned(), place: Place::FILE }, Node { place: Place::FILE, value })
    };
    Value::Map(entries.into_iter().map(entry).collect())
}

/// Whether it selects in ingress, and in egress. A field that the kind does not have may be a misspelt direction; one of
/// which nothing is left may have been cut off.
fn directions(kind: &str, spec: Option<&Node>) -> [bool; 2] {
    let Some(Value::Map(entries)) = spec.map(|spec| &spec.value) else { return [true; 2] };
    let has = |name: &str| entries.iter().any(|(key, _)| key.name == name);
    let knows = |known: &[&str]| entries.iter().all(|(key, _)| known.contains(&key.name.as_str()));
    if kind == "MeshPolicy" {
        let known = knows(&["mode", "replaces", "onRevoke", "subject", "ingress", "egress"]);
        let selected = [has("ingress"), has("egress")];
        return if known && selected != [false; 2] { selected } else { [true; 2] };
    }
    if !knows(&["podSelector", "policyTypes", "ingress", "egress"]) {
        return [true; 2];
    }
    match entries.iter().find(|(key, _)| key.name == "policyTypes").map(|(_, node)| &node.value) {
        None => [true, has("egress")],
        Some(Value::List(types)) => {
            let named = |name: &str| types.iter().any(|node| node.value == Value::Text(name.to_owned()));
            let fine = |node: &Node| matches!(&node.value, Value::Text(text) if text == "Ingress" || text == "Egress");
            if types.iter().all(fine) && !types.is_empty() { [named("Ingress"), named("Egress")] } else { [true; 2] }
        }
        Some(_) => [true; 2],
    }
}

/// Of a document that is no YAML: its kind and, before its spec, its names.
fn of_lines(text: &str, first: u32) -> Option<Refused> {
    let head = |name: &str| {
        let before_spec = text.lines().take_while(|line| !line.starts_with("spec"));
        before_spec.filter_map(|line| word(line, name)).next()
    };
    let at_edge = |name: &str| text.lines().filter(|line| line.starts_with(name)).find_map(|line| word(line, name));
    let kind = kind(at_edge("kind"), at_edge("apiVersion"))?;
    let (namespace, name) = (head("namespace").unwrap_or_default(), head("name").unwrap_or_default());
    let line = text.lines().take_while(|line| line.starts_with("---") || line.trim().is_empty()).count();
    let line = first.saturating_add(u32::try_from(line).unwrap_or(u32::MAX)).saturating_add(1);
    let closed = closed(kind, namespace, name, None);
    Some(Refused { kind, name: (namespace.to_owned(), name.to_owned()), place: Place { line, column: 1 }, closed })
}

/// The word behind `name:` in a line.
fn word<'t>(line: &'t str, name: &str) -> Option<&'t str> {
    let part = |c: char| c.is_ascii_alphanumeric() || "-_./".contains(c);
    let (before, behind) = line.match_indices(name).find_map(|(at, _)| {
        let behind = line.get(at + name.len()..)?.strip_prefix(':')?;
        Some((line.get(..at)?, behind))
    })?;
    let quoted = behind.trim_start().trim_start_matches(['"', '\'']);
    let end = quoted.find(|c| !part(c)).unwrap_or(quoted.len());
    let word = quoted.get(..end).filter(|word| !word.is_empty())?;
    (!before.ends_with(part)).then_some(word)
}

#[cfg(test)]
mod tests;
