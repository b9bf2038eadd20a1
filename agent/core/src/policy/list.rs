//! Everything that decides on a node, and what it comes to.

use std::collections::BTreeMap;

use super::foreign::ForeignObject;
use super::nobody::Named;
use super::object::Mode;
use super::rule::{Exception, List, Object, ObjectId};
use super::selector::{Member, Selector};
use super::verdict::Evaluator;
use crate::api::PolicyObjectView;
use crate::manifest::Place;
use crate::model::{Workload, World};
use crate::stage;

/// All objects, by kind and name, as a node sees them at a moment (seconds since 1970).
pub fn list(world: &World, node: &str, now: i64) -> Vec<PolicyObjectView> {
    let loaded = world.policy();
    let mut all = Listing { world, node, files: &loaded.files, named: Named::of(world) };
    let mut list: Vec<PolicyObjectView> = Vec::new();
    if let Some((name, (file, _))) = loaded.files.iter().find(|(name, _)| name.starts_with(SETTINGS)) {
        let name = name.trim_start_matches(SETTINGS).to_owned();
        let kind = SETTINGS.trim_end_matches('/').to_owned();
        list.push(PolicyObjectView { kind, name, enforced: true, file: file.clone(), ..PolicyObjectView::default() });
    }
    list.extend(loaded.foreign.iter().map(|(object, accepted)| foreign(&loaded.files, object, *accepted)));
    list.extend(loaded.policies.exceptions().iter().map(|exception| all.exception(exception, now)));
    list.extend(loaded.policies.objects().iter().map(|object| all.object(object)));
    list.sort_by(|a, b| (&a.kind, &a.namespace, &a.name).cmp(&(&b.kind, &b.namespace, &b.name)));
    list
}

/// What names of settings begin with in [`super::load::Loaded::files`].
const SETTINGS: &str = "MeshSettings/";

/// Policy that nobody enforces here.
fn foreign(files: &BTreeMap<String, (String, Place)>, object: &ForeignObject, accepted: bool) -> PolicyObjectView {
    let kind = object.kind.name();
    let name = if object.namespace.is_empty() { String::new() } else { format!("{}/", object.namespace) };
    let file = files.get(&format!("{kind}/{name}{}", object.name)).map(|(file, _)| file.clone()).unwrap_or_default();
    let why = if accepted { "no kind of kumiko's, accepted" } else { "no kind of kumiko's, keeps stages at observe" };
    let (kind, namespace, name) = (kind.to_owned(), object.namespace.clone(), object.name.clone());
    PolicyObjectView { kind, namespace, name, why: why.to_owned(), file, ..PolicyObjectView::default() }
}

struct Listing<'a> {
    world: &'a World,
    node: &'a str,
    files: &'a BTreeMap<String, (String, Place)>,
    named: Named<'a>,
}

impl<'a> Listing<'a> {
    fn object(&mut self, object: &'a Object) -> PolicyObjectView {
        let why = match (object.mode, object.id.namespace.as_str()) {
            (Mode::Enforce, _) if object.invalid => "its rules are not known: it refuses".to_owned(),
            (Mode::Audit, _) => "in audit".to_owned(),
            (Mode::Enforce, "") => String::new(),
            (Mode::Enforce, namespace) => self.not_here(namespace, &object.subject),
        };
        let mode = match object.mode {
            Mode::Enforce => "enforce",
            Mode::Audit => "audit",
        };
        let nobody = self.named.rules(object);
        let degraded = object.invalid || nobody.iter().any(|(_, rule)| rule.list == List::Deny);
        let nobody = nobody.into_iter().map(|(direction, rule)| rule.path(direction)).collect();
        PolicyObjectView { mode: mode.to_owned(), degraded, nobody, ..self.view(&object.id, &object.subject, why) }
    }

    fn exception(&mut self, exception: &'a Exception, now: i64) -> PolicyObjectView {
        let ended = format!("ended {}", exception.expires.strftime("%Y-%m-%d"));
        let why = if exception.lives(now) { String::new() } else { ended };
        let nobody = if self.named.excepts_nobody(exception) { vec!["peers".to_owned()] } else { Vec::new() };
        PolicyObjectView { nobody, ..self.view(&exception.id(), &exception.subject, why) }
    }

    fn view(&self, id: &ObjectId, subject: &Selector, why: String) -> PolicyObjectView {
        let here = self.world.workloads_on(self.node);
        let selects = here.filter(|workload| self.means(subject, workload)).count();
        PolicyObjectView {
            kind: id.kind.name().to_owned(),
            namespace: id.namespace.clone(),
            name: id.name.clone(),
            mode: String::new(),
            enforced: why.is_empty(),
            why,
            degraded: false,
            selects: u32::try_from(selects).unwrap_or(u32::MAX),
            nobody: Vec::new(),
            file: self.files.get(&id.to_string()).map(|(file, _)| file.clone()).unwrap_or_default(),
        }
    }

    fn means(&self, selector: &Selector, workload: &Workload) -> bool {
        selector.means(Evaluator::of(self.world).member(workload))
    }

    /// Why nothing is enforced in a namespace, or for those of it that an object is about; empty: it is.
    fn not_here(&self, namespace: &str, subject: &Selector) -> String {
        let least = self.world.namespace_stage(namespace);
        let raised = |workload: &&std::sync::Arc<Workload>| {
            workload.namespace == namespace && workload.stage.meshed() && self.means(subject, workload)
        };
        if least.meshed() || self.world.workloads().any(|workload| raised(&workload)) {
            return String::new();
        }
        format!("stage is {}", stage::name(least))
    }
}

/// Whom an object is about on a node, for those who ask about one workload.
pub fn about(evaluator: &Evaluator<'_>, member: Member<'_>) -> Vec<ObjectId> {
    let objects = evaluator.policies.objects().iter().filter(|object| object.subject.means(member));
    objects.map(|object| object.id.clone()).collect()
}
