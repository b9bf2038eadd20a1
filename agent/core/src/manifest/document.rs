//! One document, whatever its kind: to an object, or to what is wrong with it.

use super::node::{Node, Step, Value};
use super::{API_VERSION, Claim, Kind, Object, Place, Problem, Scope, de, kinds, policy, workload};
use crate::policy::foreign::ForeignKind;

/// A `v1` List holds objects, not lists; this bounds a list in a list.
const LIST: &str = "List";

/// Reads one document; a `v1` List counts as its items.
pub(super) fn read(scope: Scope, root: &Node, objects: &mut Vec<Object>, problems: &mut Vec<(Place, Problem)>) {
    if !matches!(root.value, Value::Map(_)) {
        problems.push((root.place, Problem::NotAnObject));
        return;
    }
    let (version, kind) = (root.text("apiVersion"), root.text("kind"));
    for (path, value) in [("apiVersion", version), ("kind", kind)] {
        if value.is_none() {
            problems.push((root.place, Problem::Missing { path: path.to_owned() }));
        }
    }
    let (Some(version), Some(kind)) = (version, kind) else { return };
    if (version, kind) == ("v1", LIST) {
        return list(scope, root, objects, problems);
    }
    let before = problems.len();
    let read = match (version, kind) {
        ("v1", "Namespace") => kinds::namespace(root, problems),
        ("v1", "Node") => kinds::node(root, problems),
        ("v1", "ServiceAccount") => kinds::service_account(root, problems),
        ("v1", "Service") => kinds::service(root, problems),
        ("discovery.k8s.io/v1", "EndpointSlice") => kinds::endpoint_slice(root, problems),
        (API_VERSION, "Workload") => workload::read(root, problems).map(|(w, claims)| (Kind::Workload(w), claims)),
        (API_VERSION, "MeshBaseline") if scope == Scope::Policy => policy::baseline(root, problems),
        (API_VERSION, "MeshPolicy") if scope == Scope::Policy => policy::mesh_policy(root, problems),
        (API_VERSION, "MeshException") if scope == Scope::Policy => policy::exception(root, problems),
        (API_VERSION, "MeshSettings") if scope == Scope::Policy => policy::settings(root, problems),
        ("networking.k8s.io/v1", "NetworkPolicy") if scope == Scope::Policy => policy::network_policy(root, problems),
        _ => match ForeignKind::of(version, kind).filter(|_| scope == Scope::Policy) {
            Some(kind) => policy::foreign(kind, root, problems),
            None => {
                let place = root.place_of(&[Step::Key("kind")]);
                problems.push((place, Problem::UnknownKind { api_version: short(version), kind: short(kind), scope }));
                None
            }
        },
    };
    if let Some((kind, claims)) = read.filter(|_| problems.len() == before) {
        objects.push(Object { kind, place: root.place, claims });
    }
}

fn short(text: &str) -> String {
    text.chars().take(80).collect()
}

fn list(scope: Scope, root: &Node, objects: &mut Vec<Object>, problems: &mut Vec<(Place, Problem)>) {
    let Value::Map(entries) = &root.value else { return };
    for (key, node) in entries {
        match (key.name.as_str(), &node.value) {
            ("apiVersion" | "kind" | "metadata", _) => {}
            ("items", Value::List(items)) => {
                for item in items {
                    if item.text("kind") == Some(LIST) {
                        let (api_version, kind) = ("v1".to_owned(), LIST.to_owned());
                        problems.push((item.place, Problem::UnknownKind { api_version, kind, scope }));
                    } else {
                        read(scope, item, objects, problems);
                    }
                }
            }
            ("items", _) => {
                let why = de::mismatch(node, "a list");
                problems.push((node.place, Problem::Shape { path: "items".to_owned(), why }));
            }
            (path, _) => {
                let (kind, path) = (LIST.to_owned(), short(path));
                problems.push((key.place, Problem::UnknownField { kind, path }));
            }
        }
    }
}

/// Reads a type; reports a wrong shape and every field that the type does not have.
pub(super) fn typed<'a, T: serde::Deserialize<'a>>(
    root: &'a Node,
    kind: &str,
    problems: &mut Vec<(Place, Problem)>,
) -> Option<T> {
    let (value, unknown) = de::read(root);
    for field in unknown {
        problems.push((field.place, Problem::UnknownField { kind: kind.to_owned(), path: field.path }));
    }
    match value {
        Ok(value) => Some(value),
        Err(error) => {
            let (place, path, why) = error.parts();
            let path = if path.is_empty() { kind.to_owned() } else { path };
            problems.push((place, Problem::Shape { path, why }));
            None
        }
    }
}

/// What a document is, if it is good, and what it claims.
pub(super) type Read = Option<(Kind, Vec<(Claim, Place)>)>;
