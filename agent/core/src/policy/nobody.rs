//! Rules that name workloads which nobody is: an allow matches nothing, and a warning says so; an object with such a deny is
//! degraded, for a slip of the pen there would let in whom it was to keep out.

use std::collections::BTreeMap;

use super::load::{Loaded, Told, Unfit};
use super::object::Entity;
use super::rule::{Direction, List, Object, ObjectKind, Rule};
use super::selector::{Selector, Who};
use crate::model::World;

/// Whom rules name, as far as it was asked.
pub(super) struct Named<'a> {
    world: &'a World,
    known: BTreeMap<&'a Selector, bool>,
}

impl<'a> Named<'a> {
    pub(super) fn of(world: &'a World) -> Self {
        Self { world, known: BTreeMap::new() }
    }

    /// Whether all that a rule names are workloads that nobody is.
    pub(super) fn is_nobody(&mut self, rule: &'a Rule) -> bool {
        let Some(peers) = &rule.peers else { return false };
        // A NetworkPolicy allows whoever is to come; its author is told nothing by Kubernetes either.
        rule.list != List::Kubernetes && !peers.is_empty() && peers.iter().all(|who| !self.is_somebody(who))
    }

    fn is_somebody(&mut self, who: &'a Who) -> bool {
        let settings = &self.world.policy().settings;
        let selector = match who {
            Who::Workload(selector) => selector,
            // Who is outside, and who the API server, MeshSettings alone say.
            Who::Entity(Entity::World) => return settings.knows_an_outside(),
            Who::Entity(Entity::KubeApiserver) => return !settings.api_server.is_empty(),
            Who::Entity(_) | Who::Block(_) => return true,
        };
        self.selects(selector)
    }

    /// Whether a selector means any workload.
    fn selects(&mut self, selector: &'a Selector) -> bool {
        if let Some(known) = self.known.get(selector) {
            return *known;
        }
        let somebody = self.world.workloads().any(|workload| selector.means(self.world.member(workload)));
        self.known.insert(selector, somebody);
        somebody
    }

    /// An object's rules that name nobody.
    pub(super) fn rules(&mut self, object: &'a Object) -> Vec<(Direction, &'a Rule)> {
        let both = [Direction::Ingress, Direction::Egress].into_iter();
        let all = both.flat_map(|direction| {
            object
                .rules(direction)
                .into_iter()
                .flat_map(move |rules| rules.rules.iter().map(move |rule| (direction, rule)))
        });
        all.filter(|(_, rule)| self.is_nobody(rule)).collect()
    }
}

/// What is to be said of all rules that name nobody of a world, and of all objects that select nobody.
pub fn told(world: &World, loaded: &Loaded) -> Vec<Told> {
    let mut named = Named::of(world);
    let mut all = rules_told(&mut named, loaded);
    // A NetworkPolicy may come before its pods; its author is told nothing by Kubernetes either.
    let ours = loaded.policies.objects().iter().filter(|object| object.id.kind != ObjectKind::NetworkPolicy);
    let subjects = ours.map(|object| (object.id.clone(), &object.subject));
    let exceptions = loaded.policies.exceptions().iter().map(|exception| (exception.id(), &exception.subject));
    // Without anybody there is nothing to be said of it: policies may be kept apart from workloads.
    let anybody = world.workloads().next().is_some();
    for (id, subject) in subjects.chain(exceptions).filter(|_| anybody) {
        if !named.selects(subject) {
            let object = id.to_string();
            let (file, place) = loaded.files.get(&object).cloned().unwrap_or_default();
            all.push(Told { file, place, problem: Unfit::SelectsNobody { object } });
        }
    }
    all
}

/// What is to be said of all rules that name nobody, by object.
fn rules_told<'a>(named: &mut Named<'a>, loaded: &'a Loaded) -> Vec<Told> {
    let mut all = Vec::new();
    let mut tell = |object: String, rule: String, denies: bool| {
        let (file, place) = loaded.files.get(&object).cloned().unwrap_or_default();
        let problem = if denies { Unfit::DeniesNobody { object, rule } } else { Unfit::AllowsNobody { object, rule } };
        all.push(Told { file, place, problem });
    };
    for object in loaded.policies.objects() {
        for (direction, rule) in named.rules(object) {
            tell(object.id.to_string(), rule.path(direction), rule.list == List::Deny);
        }
    }
    for exception in loaded.policies.exceptions() {
        if named.is_nobody(&exception.rule) {
            tell(exception.id().to_string(), "spec.peers".to_owned(), false);
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::super::list::list;
    use super::*;
    use crate::manifest::{Scope, parse_in};

    #[test]
    fn an_object_is_degraded_by_a_deny_of_nobody_alone() {
        let one = |name: &str, spec: &str| {
            format!(
                "apiVersion: kumiko.dev/v1alpha1\nkind: MeshBaseline\nmetadata: {{name: {name}}}\nspec: {{subject: {{}}, ingress: {{{spec}}}}}\n---\n"
            )
        };
        let text = [
            one("a", "deny: [{name: r, from: [{namespace: gone}]}]"),
            one("b", "deny: [{name: r, from: [{namespace: gone}, {namespace: here}]}]"),
            one("c", "guarantee: [{name: r, from: [{namespace: gone}]}], deny: [{name: r, from: [{entity: host}]}]"),
            one("d", "deny: [{name: r, from: [{entity: world}]}, {name: s, from: [{entity: kube-apiserver}]}]"),
            one("e", "deny: []").replace("subject: {}", "subject: {namespace: heer}"),
            "apiVersion: kumiko.dev/v1alpha1\nkind: Workload\nmetadata: {name: w, namespace: here, uid: u}\n\
             spec: {serviceAccount: a, node: n1, ips: [10.0.0.1]}\n"
                .to_owned(),
        ];
        let objects = parse_in(Scope::Policy, "f", &text.concat()).unwrap();
        let (world, _) = World::build("td", 1, objects.iter().map(|object| ("f", object))).unwrap();
        let said: Vec<_> =
            list(&world, "n1", 0).into_iter().map(|view| (view.name, view.degraded, view.nobody)).collect();
        let of = |name: &str, degraded, nobody: &[&str]| {
            (name.to_owned(), degraded, nobody.iter().map(|rule| (*rule).to_owned()).collect::<Vec<_>>())
        };
        assert_eq!(
            said,
            [
                of("a", true, &["ingress.deny.r"]),
                of("b", false, &[]),
                of("c", false, &["ingress.guarantee.r"]),
                of("d", true, &["ingress.deny.r", "ingress.deny.s"]),
                of("e", false, &[]),
            ]
        );
        let told: Vec<bool> = told(&world, world.policy()).iter().map(|told| told.problem.is_warning()).collect();
        assert_eq!(told, [false, true, false, false, true]);
    }
}
