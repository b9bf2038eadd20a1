//! Policy of other products: whose it is, and no word of what it says.

use super::super::check::Checker;
use super::super::node::{Node, Step};
use super::super::{Claim, Kind, Place, Problem};
use super::{METADATA, Read};
use crate::policy::foreign::{ForeignKind, ForeignObject};

pub(in super::super) fn foreign(kind: ForeignKind, root: &Node, problems: &mut Vec<(Place, Problem)>) -> Read {
    let said = |field| root.get("metadata").and_then(|metadata| metadata.text(field));
    let mut check = Checker::new(root, problems);
    // Without a namespace `kubectl` puts it into its own, and nobody here knows which.
    let namespace = if kind.is_namespaced() {
        check.label(&[METADATA, Step::Key("namespace")], said("namespace"))
    } else {
        String::new()
    };
    let path = [METADATA, Step::Key("name")];
    let name = check.subdomain(&path, said("name"));
    check.claim(&path, Claim::Name(kind.name(), namespace.clone(), name.clone()));
    Some((Kind::Foreign(ForeignObject { kind, namespace, name }), check.claims()))
}
