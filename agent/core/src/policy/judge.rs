//! The verdict about one flow: policy.md's formula over rules, without I/O.
//!
//! ```text
//! V(flow) = egress(source, destination) AND ingress(destination, source)
//! side    = NOT D AND C AND K AND (T OR G) AND P
//! ```
//!
//! D: a baseline denies; C: every ceiling allows; K: NetworkPolicies allow; T: MeshPolicies allow; G: a baseline
//! guarantees; P: the peer is proved where that is asked for.
//!
//! Of ICMP and of protocols without ports Kubernetes says nothing (K holds), and no certificate can speak for who sends them:
//! P is asked where C or T is, which they are denied by unless a rule has them.

mod share;
mod term;

pub use term::Term;

use std::collections::BTreeSet;
use std::sync::Arc;

use kumiko_abi::Stage;

use super::labels::UsedLabels;
use super::object::Mode;
use super::port::Asked;
use super::rule::{Direction, Exception, List, Match, Object, ObjectId, ObjectKind, Rule, Suspended};
use super::selector::{Member, Peer};
use crate::model::Workload;

/// What speaks for the peer being who its address says.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Proof {
    /// Its address alone.
    Claim,
    /// The veth that its packets came by.
    Veth,
    /// Its certificate.
    Tls,
}

impl Proof {
    /// Whether it is more than a claim.
    pub fn proves(self) -> bool {
        self != Self::Claim
    }
}

/// What objects a verdict is made of.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum View {
    /// Those that are enforced.
    Enforced,
    /// Those in audit too, without what they replace.
    WithAudit,
}

/// A rule, or an object as such, that made a term what it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Source<'a> {
    /// The object.
    pub object: &'a Object,
    /// Its rule; none: what is refused because none of its rules has it.
    pub rule: Option<&'a Rule>,
}

/// One term's answer.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Answer<'a> {
    /// Which term.
    pub term: Term,
    /// Whether it lets the flow.
    pub holds: bool,
    /// Who made it so; empty: nothing speaks in it.
    pub by: Vec<Source<'a>>,
    /// Exceptions but for which it would be another answer.
    pub suspended_by: Vec<&'a Exception>,
}

/// What is asked.
#[derive(Clone, Copy, Debug)]
pub struct Question<'a> {
    /// The end that is judged.
    pub subject: Member<'a>,
    /// The other one.
    pub peer: &'a Peer<'a>,
    /// Which way the flow goes for the subject.
    pub direction: Direction,
    /// The destination's port.
    pub asked: Asked,
    /// What speaks for the peer.
    pub proof: Proof,
    /// Whether its address alone would do, too.
    pub lenient: bool,
    /// Seconds since 1970.
    pub now: i64,
}

/// Whether a workload believes an address: permissive alone does. Who only observes is judged as strict is.
pub fn lenient(subject: &Workload) -> bool {
    subject.stage == Stage::Permissive
}

impl<'a> Question<'a> {
    /// Whose port it is, if it is a pod's.
    fn destination(&self) -> Option<&'a Workload> {
        match self.direction {
            Direction::Ingress => Some(self.subject.workload),
            Direction::Egress => self.peer.member.map(|member| member.workload),
        }
    }

    fn believes(&self) -> bool {
        self.proof.proves() || self.lenient
    }

    /// Whether a rule that allows has the flow.
    fn allowed_by(&self, rule: &Rule) -> bool {
        match rule.matches(self.peer, self.asked, self.destination()) {
            Match::No => false,
            Match::IfProved => self.believes(),
            Match::Anyhow => true,
        }
    }

    /// Whether a rule that denies has it: a claim is enough.
    fn denied_by(&self, rule: &Rule) -> bool {
        rule.matches(self.peer, self.asked, self.destination()) != Match::No
    }
}

/// A side's answers, one for each term.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Side<'a> {
    /// Which way the flow goes for the subject.
    pub direction: Direction,
    /// By term, in their order.
    pub answers: Vec<Answer<'a>>,
}

impl<'a> Side<'a> {
    /// The first term that refuses the flow.
    pub fn refusal(&self) -> Option<&Answer<'a>> {
        self.answers.iter().find(|answer| !answer.holds)
    }

    /// The term that decided: the first that refuses; of those that let the flow, the last that something speaks in. `None`:
    /// nothing speaks in any.
    pub fn deciding(&self) -> Option<&Answer<'a>> {
        let speaks = |answer: &&Answer<'a>| !answer.by.is_empty() || !answer.suspended_by.is_empty();
        self.refusal().or_else(|| self.answers.iter().rev().find(speaks))
    }

    /// Whether the flow is let.
    pub fn allows(&self) -> bool {
        self.refusal().is_none()
    }
}

/// Everything that decides, in the order of its names, so that a verdict's provenance does not depend on chance.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Policies {
    objects: Vec<Arc<Object>>,
    exceptions: Vec<Arc<Exception>>,
    /// Whose place something in audit takes.
    replaced: BTreeSet<ObjectId>,
    used_labels: UsedLabels,
}

impl Policies {
    /// Of objects and exceptions in any order.
    pub fn new(mut objects: Vec<Object>, mut exceptions: Vec<Exception>) -> Self {
        objects.sort_by(|a, b| a.id.cmp(&b.id));
        exceptions.sort_by(|a, b| a.name.cmp(&b.name));
        let in_audit = objects.iter().filter(|object| object.mode == Mode::Audit);
        let taken =
            in_audit.flat_map(|by| by.replaces.iter().map(|name| ObjectId { name: name.clone(), ..by.id.clone() }));
        let replaced = taken.collect();
        let used_labels = UsedLabels::of(&objects, &exceptions);
        let (objects, exceptions) = (objects.into_iter().map(Arc::new), exceptions.into_iter().map(Arc::new));
        Self { objects: objects.collect(), exceptions: exceptions.collect(), replaced, used_labels }
    }

    /// The same with these of them alone, in their order.
    pub(super) fn only(&self, objects: Vec<Arc<Object>>, exceptions: Vec<Arc<Exception>>) -> Self {
        let replaced = objects.iter().map(|object| &object.id).filter(|id| self.replaced.contains(*id)).cloned();
        Self { replaced: replaced.collect(), objects, exceptions, used_labels: UsedLabels::default() }
    }

    /// All baselines and policies.
    pub fn objects(&self) -> &[Arc<Object>] {
        &self.objects
    }

    /// Keys of the labels that anything chooses by.
    pub fn used_labels(&self) -> &UsedLabels {
        &self.used_labels
    }

    /// All exceptions.
    pub fn exceptions(&self) -> &[Arc<Exception>] {
        &self.exceptions
    }

    /// Objects that say something about a subject's direction.
    pub fn selecting<'a, 's>(
        &'a self,
        subject: Member<'s>,
        direction: Direction,
        view: View,
    ) -> impl Iterator<Item = &'a Object> + Clone + use<'a, 's> {
        self.objects.iter().map(Arc::as_ref).filter(move |object| {
            self.counts(object, view) && object.rules(direction).is_some() && object.subject.means(subject)
        })
    }

    fn counts(&self, object: &Object, view: View) -> bool {
        match view {
            View::Enforced => object.mode == Mode::Enforce,
            View::WithAudit => !self.replaced.contains(&object.id),
        }
    }

    /// One side's terms.
    pub fn side<'a>(&'a self, question: &Question<'_>, view: View) -> Side<'a> {
        let selecting: Vec<&Object> = self.selecting(question.subject, question.direction, view).collect();
        let of = |kind| selecting.iter().copied().filter(move |object| object.id.kind == kind);
        let (baselines, policies) = (of(ObjectKind::MeshBaseline), of(ObjectKind::MeshPolicy));
        let deny = self.deny(question, baselines.clone());
        let ceiling = self.ceiling(question, baselines.clone());
        let network = network_policies(question, of(ObjectKind::NetworkPolicy));
        let has_ceiling = |object: &Object| object.rules(question.direction).is_some_and(|of| of.ceiling);
        let ruled = policies.clone().next().is_some() || baselines.clone().any(has_ceiling);
        let team = team(question, policies, baselines);
        let proof = proof(question, ruled, &ceiling, &team);
        Side { direction: question.direction, answers: vec![deny, ceiling, network, team, proof] }
    }

    fn deny<'a>(&'a self, q: &Question<'_>, baselines: impl Iterator<Item = &'a Object>) -> Answer<'a> {
        let mut answer = Answer { term: Term::Deny, holds: true, by: Vec::new(), suspended_by: Vec::new() };
        for (object, rule) in baselines.flat_map(|object| rules(object, q.direction, &[List::Deny])) {
            if !q.denied_by(rule) {
                continue;
            }
            let exceptions = self.suspending(q, object, Some(&rule.name));
            if exceptions.is_empty() {
                answer.holds = false;
                answer.by.push(Source { object, rule: Some(rule) });
            } else {
                answer.suspended_by.extend(exceptions);
            }
        }
        answer.by.sort_by_key(|source| (&source.object.id, source.rule.map(|rule| &rule.name)));
        answer
    }

    fn ceiling<'a>(&'a self, q: &Question<'_>, baselines: impl Iterator<Item = &'a Object>) -> Answer<'a> {
        let mut answer = Answer { term: Term::Ceiling, holds: true, by: Vec::new(), suspended_by: Vec::new() };
        let mut within = Vec::new();
        for object in baselines.filter(|object| object.rules(q.direction).is_some_and(|rules| rules.ceiling)) {
            let lists = [List::Ceiling, List::Guarantee];
            let matching = rules(object, q.direction, &lists).filter(|(_, rule)| q.allowed_by(rule));
            let before = within.len();
            within.extend(matching.map(|(object, rule)| Source { object, rule: Some(rule) }));
            if within.len() > before {
                continue;
            }
            let exceptions = self.suspending(q, object, None);
            if exceptions.is_empty() {
                answer.holds = false;
                answer.by.push(Source { object, rule: None });
            } else {
                answer.suspended_by.extend(exceptions);
            }
        }
        if answer.holds {
            answer.by = within;
        }
        answer
    }

    /// Live exceptions that suspend a baseline's deny rule, or its ceiling.
    fn suspending<'a>(&'a self, q: &Question<'_>, baseline: &Object, deny: Option<&str>) -> Vec<&'a Exception> {
        self.about(q, baseline, deny).filter(|exception| exception.lives(q.now)).collect()
    }

    /// Exceptions that would suspend it, had they not ended.
    pub fn lapsed<'a>(&'a self, q: &Question<'_>, source: &Source<'_>) -> Vec<&'a Exception> {
        let deny = source.rule.map(|rule| rule.name.as_str());
        self.about(q, source.object, deny).filter(|exception| !exception.lives(q.now)).collect()
    }

    fn about<'a>(
        &'a self,
        q: &Question<'_>,
        baseline: &Object,
        deny: Option<&str>,
    ) -> impl Iterator<Item = &'a Exception> {
        let names = move |suspended: &Suspended| {
            suspended.is_of(baseline) && suspended.direction == q.direction && suspended.deny.as_deref() == deny
        };
        self.exceptions.iter().map(Arc::as_ref).filter(move |exception| {
            exception.suspends.iter().any(names) && exception.subject.means(q.subject) && q.allowed_by(&exception.rule)
        })
    }
}

fn rules<'a, 'l>(
    object: &'a Object,
    direction: Direction,
    lists: &'l [List],
) -> impl Iterator<Item = (&'a Object, &'a Rule)> + use<'a, 'l> {
    object.rules(direction).into_iter().flat_map(|rules| rules.of(lists)).map(move |rule| (object, rule))
}

/// A union: whoever is selected needs a rule of one of those that select.
fn union<'a>(
    q: &Question<'_>,
    term: Term,
    list: List,
    selecting: impl Iterator<Item = &'a Object> + Clone,
) -> Answer<'a> {
    let lists = [list];
    let matching = selecting.clone().flat_map(|object| rules(object, q.direction, &lists));
    let allowed: Vec<Source<'_>> = matching
        .filter(|(_, rule)| q.allowed_by(rule))
        .map(|(object, rule)| Source { object, rule: Some(rule) })
        .collect();
    let selected: Vec<Source<'_>> = selecting.map(|object| Source { object, rule: None }).collect();
    let holds = selected.is_empty() || !allowed.is_empty();
    let invalid = !holds && selected.iter().any(|source| source.object.invalid);
    let term = if invalid { Term::Invalid } else { term };
    Answer { term, holds, by: if holds { allowed } else { selected }, suspended_by: Vec::new() }
}

/// Kubernetes' own verdict, about what has ports: a pod's own node always passes, and an address is enough.
fn network_policies<'a>(q: &Question<'_>, selecting: impl Iterator<Item = &'a Object> + Clone) -> Answer<'a> {
    if q.peer.entities.contains(&super::object::Entity::Host) || !q.asked.protocol.has_ports() {
        return Answer { term: Term::NetworkPolicy, holds: true, by: Vec::new(), suspended_by: Vec::new() };
    }
    union(q, Term::NetworkPolicy, List::Kubernetes, selecting)
}

fn team<'a>(
    q: &Question<'_>,
    policies: impl Iterator<Item = &'a Object> + Clone,
    baselines: impl Iterator<Item = &'a Object>,
) -> Answer<'a> {
    let mut answer = union(q, Term::Team, List::Team, policies);
    let guarantees = baselines.flat_map(|object| rules(object, q.direction, &[List::Guarantee]));
    let guaranteed: Vec<Source<'_>> = guarantees
        .filter(|(_, rule)| q.allowed_by(rule))
        .map(|(object, rule)| Source { object, rule: Some(rule) })
        .collect();
    if !guaranteed.is_empty() {
        if !answer.holds {
            answer.by.clear();
        }
        (answer.holds, answer.term) = (true, Term::Team);
        answer.by.extend(guaranteed);
    }
    answer
}

/// `ruled`: the end has a ceiling or a team's rules in this direction.
fn proof<'a>(q: &Question<'_>, ruled: bool, ceiling: &Answer<'a>, team: &Answer<'a>) -> Answer<'a> {
    let mut answer = Answer { term: Term::Proof, holds: true, by: Vec::new(), suspended_by: Vec::new() };
    let probe = q.peer.entities.contains(&super::object::Entity::Probe);
    let unasked = !q.asked.protocol.has_ports() && !ruled;
    if q.direction == Direction::Egress || q.believes() || probe || unasked {
        return answer;
    }
    let lenient =
        |source: &&Source<'a>| source.rule.is_some_and(|rule| rule.takes_unproved(q.peer, q.asked, q.destination()));
    for source in [ceiling, team].iter().filter(|term| term.holds).flat_map(|term| &term.by).filter(lenient) {
        // A guarantee speaks in both.
        let same =
            |known: &Source<'_>| known.rule.zip(source.rule).is_some_and(|(one, other)| std::ptr::eq(one, other));
        if !answer.by.iter().any(same) {
            answer.by.push(*source);
        }
    }
    answer.holds = !answer.by.is_empty();
    answer
}
