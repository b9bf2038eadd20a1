//! Which stages namespaces may have: no lower ones than the platform wants, and none that policy forbids which nobody enforces.

use std::collections::BTreeMap;

use kumiko_abi::Stage;

use super::{Told, Unfit};
use crate::manifest::{NamespaceObject, Place, WorkloadObject};
use crate::policy::foreign::{ForeignObject, Gates};
use crate::policy::settings::Settings;

/// An object with its file and its place there.
type Written<'a, T> = (&'a str, Place, &'a T);

/// How high namespaces may be after these stages were in force, and what is to be said.
pub(super) fn decide(
    before: &BTreeMap<String, Stage>,
    settings: &Settings,
    foreign: &[Written<'_, ForeignObject>],
    namespaces: &[Written<'_, NamespaceObject>],
    workloads: &[Written<'_, WorkloadObject>],
) -> (Gates, Vec<Told>) {
    let not_accepted = foreign.iter().filter(|(_, _, object)| !settings.accepted.contains(&object.kind));
    let gates = Gates::of(not_accepted.clone().map(|(_, _, object)| *object), before);
    let mut all = Vec::new();
    let mut told = |file: &str, place, problem| all.push(Told { file: file.to_owned(), place, problem });
    let mut wanted: BTreeMap<&str, (Stage, &str, Place)> = BTreeMap::new();
    for (file, place, namespace) in namespaces {
        let least = settings.least(&namespace.labels).unwrap_or_default();
        wanted.insert(&namespace.name, (namespace.stage.max(least), file, *place));
        let least = gates.cap(&namespace.name, least);
        if namespace.stage < least {
            let (namespace, is) = (namespace.name.clone(), namespace.stage);
            told(file, *place, Unfit::StageTooLow { namespace, is, least });
        }
    }
    for (file, _, workload) in workloads {
        let Some((own, place)) = workload.stage else { continue };
        let known = wanted.entry(&workload.namespace).or_insert((own, file, place));
        if known.0 < own {
            *known = (own, file, place);
        }
    }
    for (name, (wanted, file, place)) in wanted.into_iter().filter(|(_, (wanted, _, _))| wanted.meshed()) {
        let is = gates.cap(name, wanted);
        let mut about = not_accepted.clone().filter(|(_, _, object)| object.is_about(name));
        if is < wanted {
            if let Some((_, _, object)) = about.next() {
                let (namespace, object) = (name.to_owned(), ForeignObject::clone(object));
                told(file, place, Unfit::NotRaised { namespace, wanted, is, object });
            }
            continue;
        }
        for (file, place, object) in about {
            let (namespace, object) = (name.to_owned(), ForeignObject::clone(object));
            told(file, *place, Unfit::NotEnforced { object, namespace, is });
        }
    }
    (gates, all)
}
