//! Which stages namespaces may have: no lower ones than the platform wants, and none by a label while there is policy that nobody
//! would enforce then.

use std::collections::BTreeMap;

use kumiko_abi::Stage;

use super::{Told, Unfit};
use crate::manifest::{NamespaceObject, Place, WorkloadObject};
use crate::policy::foreign::{ForeignObject, Gates, Raised};
use crate::policy::selector::Labels;
use crate::policy::settings::Settings;

/// An object with its file and its place there.
type Written<'a, T> = (&'a str, Place, &'a T);

/// Of a namespace and its workloads, the highest.
#[derive(Clone, Copy)]
struct Stages<'a> {
    wanted: Stage,
    is: Stage,
    file: &'a str,
    place: Place,
}

/// How high namespaces may be after these stages were in force, and what is to be said.
pub(super) fn decide(
    before: &Raised,
    settings: &Settings,
    foreign: &[Written<'_, ForeignObject>],
    namespaces: &[Written<'_, NamespaceObject>],
    workloads: &[Written<'_, WorkloadObject>],
) -> (Gates, Vec<Told>) {
    let not_accepted = foreign.iter().filter(|(_, _, object)| !settings.accepted.contains(&object.kind));
    let not_accepted: Vec<_> = not_accepted.collect();
    let gates = Gates::of(not_accepted.iter().map(|(_, _, object)| *object), before);
    let mut all = Vec::new();
    let mut told = |file: &str, place, problem| all.push(Told { file: file.to_owned(), place, problem });
    let mut stages: BTreeMap<&str, Stages<'_>> = BTreeMap::new();
    for (file, place, namespace) in namespaces {
        let least = settings.least(&namespace.labels).unwrap_or_default();
        let (name, label) = (namespace.name.as_str(), namespace.stage);
        let is = gates.namespace(name, label).max(least);
        stages.insert(name, Stages { wanted: label.max(least), is, file, place: *place });
        if label < least {
            told(file, *place, Unfit::StageTooLow { namespace: name.to_owned(), is: label, least });
        }
    }
    let unnamed = settings.least(&Labels::new()).unwrap_or_default();
    for (file, at, workload) in workloads {
        let (own, place) = workload.stage.unwrap_or((Stage::Off, *at));
        let of = Stages { wanted: unnamed, is: unnamed, file, place };
        let known = stages.entry(&workload.namespace).or_insert(of);
        known.is = known.is.max(gates.workload(&workload.namespace, own));
        if known.wanted < own {
            *known = Stages { wanted: own, is: known.is, file, place };
        }
    }
    if not_accepted.is_empty() {
        return (gates, all);
    }
    let mut by_namespace: BTreeMap<&str, Vec<&Written<'_, ForeignObject>>> = BTreeMap::new();
    for one in &not_accepted {
        by_namespace.entry(&one.2.namespace).or_default().push(one);
    }
    for (name, Stages { wanted, is, file, place }) in stages.into_iter().filter(|(_, of)| of.wanted.meshed()) {
        // Those of the whole cluster are of no namespace.
        let about = [name, ""].map(|of| by_namespace.get(of).map_or(&[][..], Vec::as_slice));
        let [own, wide] = about;
        let Some((its_file, its_place, object)) = own.first().or(wide.first()) else { continue };
        let (namespace, object, others) = (name.to_owned(), ForeignObject::clone(object), own.len() + wide.len() - 1);
        if is < wanted {
            told(file, place, Unfit::NotRaised { namespace, wanted, is, object });
        } else {
            told(its_file, *its_place, Unfit::NotEnforced { object, others, namespace, is });
        }
    }
    (gates, all)
}
