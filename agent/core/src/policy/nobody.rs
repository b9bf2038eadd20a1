//! Rules that name workloads which nobody is: an allow matches nothing, and a warning says so; an object with such a deny is
//! degraded, for a slip of the pen there would let in whom it was to keep out. And what else is good and does nothing.

use std::collections::BTreeMap;

use super::load::{Loaded, Told, Unfit};
use super::object::Entity;
use super::port::Ports;
use super::rule::{Direction, Exception, List, Object, ObjectKind, Rule};
use super::selector::{Selector, Who};
use crate::manifest::Protocol;
use crate::model::{Workload, World};

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
    fn is_nobody(&mut self, direction: Direction, rule: &'a Rule) -> bool {
        let Some(peers) = &rule.peers else { return false };
        // A NetworkPolicy allows whoever is to come; its author is told nothing by Kubernetes either.
        rule.list != List::Kubernetes && !peers.is_empty() && peers.iter().all(|who| !self.is_somebody(direction, who))
    }

    /// Whether nobody has an exception.
    pub(super) fn excepts_nobody(&mut self, exception: &'a Exception) -> bool {
        let is_egress = |suspended: &super::rule::Suspended| suspended.direction == Direction::Egress;
        let egress = exception.suspends.iter().all(is_egress);
        self.is_nobody(if egress { Direction::Egress } else { Direction::Ingress }, &exception.rule)
    }

    fn is_somebody(&mut self, direction: Direction, who: &'a Who) -> bool {
        let settings = &self.world.policy().settings;
        let selector = match who {
            Who::Workload(selector) => selector,
            // Who is outside, and who the API server, MeshSettings alone say.
            Who::Entity(Entity::World) => return settings.knows_an_outside(),
            Who::Entity(Entity::KubeApiserver) => return !settings.api_server.is_empty(),
            // Probes come; nobody goes to one.
            Who::Entity(Entity::Probe) => return direction == Direction::Ingress,
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
        all_rules(object).filter(|(direction, rule)| self.is_nobody(*direction, rule)).collect()
    }
}

fn all_rules(object: &Object) -> impl Iterator<Item = (Direction, &Rule)> {
    let of = |direction| object.rules(direction).into_iter().map(move |rules| (direction, rules));
    let both = of(Direction::Ingress).chain(of(Direction::Egress));
    both.flat_map(|(direction, rules)| rules.rules.iter().map(move |rule| (direction, rule)))
}

/// What is to be said of all rules that name nobody of a world, and of all objects that select nobody.
///
/// `now` is in seconds since 1970.
pub fn told(world: &World, loaded: &Loaded, now: i64) -> Vec<Told> {
    let mut named = Named::of(world);
    let mut all = rules_told(&mut named, loaded);
    all.extend(idle_told(world, loaded));
    for exception in loaded.policies.exceptions().iter().filter(|exception| !exception.lives(now)) {
        let day = exception.expires.strftime("%Y-%m-%d").to_string();
        all.push(of(loaded, exception.id().to_string(), |exception| Unfit::HasEnded { exception, day }));
    }
    // A NetworkPolicy may come before its pods; its author is told nothing by Kubernetes either.
    let ours = loaded.policies.objects().iter().filter(|object| object.id.kind != ObjectKind::NetworkPolicy);
    let subjects = ours.map(|object| (object.id.clone(), &object.subject));
    let exceptions = loaded.policies.exceptions().iter().map(|exception| (exception.id(), &exception.subject));
    // Without anybody there is nothing to be said of it: policies may be kept apart from workloads.
    let anybody = world.workloads().next().is_some();
    for (id, subject) in subjects.chain(exceptions).filter(|_| anybody) {
        if !named.selects(subject) {
            all.push(of(loaded, id.to_string(), |object| Unfit::SelectsNobody { object }));
        }
    }
    all
}

/// What is wrong with an object, and where it stands.
fn of(loaded: &Loaded, object: String, problem: impl FnOnce(String) -> Unfit) -> Told {
    let (file, place) = loaded.files.get(&object).cloned().unwrap_or_default();
    Told { file, place, problem: problem(object) }
}

/// What is to be said of what does nothing, though it names somebody.
fn idle_told(world: &World, loaded: &Loaded) -> Vec<Told> {
    let mut all = Vec::new();
    let ports = NamedPorts::of(world);
    let services = &loaded.settings.services;
    for object in loaded.policies.objects().iter().filter(|object| object.id.kind != ObjectKind::NetworkPolicy) {
        let id = object.id.to_string();
        let mut tell = |problem: &dyn Fn(String) -> Unfit| all.push(of(loaded, id.clone(), problem));
        if object.id.kind == ObjectKind::MeshBaseline && !object.invalid {
            for direction in [Direction::Ingress, Direction::Egress] {
                if object.rules(direction).is_some_and(|rules| rules.rules.is_empty() && !rules.ceiling) {
                    tell(&|object| Unfit::SaysNothing { object, direction });
                }
            }
        }
        for (direction, rule) in all_rules(object) {
            for (protocol, name) in ports.of_nobody(world, object, direction, rule) {
                tell(&|object| {
                    let (rule, name) = (rule.path(direction), name.to_owned());
                    Unfit::PortOfNobody { object, rule, protocol, name }
                });
            }
            let blocks = rule.peers.iter().flatten().filter_map(|who| match who {
                Who::Block(block) if direction == Direction::Egress => Some(block.net),
                _ => None,
            });
            for net in blocks.filter(|net| services.iter().any(|services| services.contains(net))) {
                tell(&|object| Unfit::ServicesNetwork { object, rule: rule.path(direction), net });
            }
        }
    }
    all
}

/// Who has ports by which names.
struct NamedPorts<'a>(BTreeMap<(Protocol, &'a str), Vec<&'a Workload>>);

impl<'a> NamedPorts<'a> {
    fn of(world: &'a World) -> Self {
        let mut named: BTreeMap<_, Vec<&Workload>> = BTreeMap::new();
        for workload in world.workloads() {
            for port in &workload.ports {
                named.entry((port.protocol, port.name.as_str())).or_default().push(workload);
            }
        }
        Self(named)
    }

    /// Names of a rule's ports that nobody has at whom they would be looked for.
    fn of_nobody<'r>(
        &self,
        world: &World,
        object: &Object,
        direction: Direction,
        rule: &'r Rule,
    ) -> Vec<(Protocol, &'r str)> {
        let is_meant = |workload: &Workload| {
            let member = world.member(workload);
            match (direction, &rule.peers) {
                (Direction::Ingress, _) => object.subject.means(member),
                (Direction::Egress, None) => true,
                (Direction::Egress, Some(peers)) => {
                    peers.iter().any(|who| matches!(who, Who::Workload(selector) if selector.means(member)))
                }
            }
        };
        let names = rule.ports.iter().flatten().filter_map(|port| match port {
            Ports::Named(protocol, name) => Some((*protocol, name.as_str())),
            Ports::All(_) | Ports::Range(..) => None,
        });
        let is_nobodys =
            |name: &(Protocol, &str)| !self.0.get(name).into_iter().flatten().any(|workload| is_meant(workload));
        // Without anybody to look at, that is told, and is enough.
        let somebody = || world.workloads().any(|workload| is_meant(workload));
        let nobodys: Vec<_> = names.filter(is_nobodys).collect();
        if nobodys.is_empty() || somebody() { nobodys } else { Vec::new() }
    }
}

/// What is to be said of all rules that name nobody, by object.
fn rules_told<'a>(named: &mut Named<'a>, loaded: &'a Loaded) -> Vec<Told> {
    let mut all = Vec::new();
    for object in loaded.policies.objects() {
        for (direction, rule) in named.rules(object) {
            let path = rule.path(direction);
            all.push(of(loaded, object.id.to_string(), |object| match rule.list {
                List::Deny => Unfit::DeniesNobody { object, rule: path },
                _ => Unfit::AllowsNobody { object, rule: path },
            }));
        }
    }
    for exception in loaded.policies.exceptions() {
        if named.excepts_nobody(exception) {
            let rule = "spec.peers".to_owned();
            all.push(of(loaded, exception.id().to_string(), |object| Unfit::AllowsNobody { object, rule }));
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
        let told: Vec<bool> = told(&world, world.policy(), 0).iter().map(|told| told.problem.is_warning()).collect();
        assert_eq!(told, [false, true, false, false, true, true]);
    }
}
