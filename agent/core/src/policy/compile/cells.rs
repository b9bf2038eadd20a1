//! Verdicts of a set's cells.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use kumiko_abi::Stage;
use kumiko_abi::policy::{REVOKE_CUT, REVOKE_KEEP};

use super::super::judge::{Answer, Policies, Proof, Question, Side, Term, View};
use super::super::object::{Action, Entity, OnRevoke};
use super::super::port::Asked;
use super::super::rule::{Direction, ObjectId};
use super::super::verdict::{End, Evaluator};
use super::subjects::Group;
use super::{Verdict, Why};
use crate::manifest::Protocol;

/// Reasons that nobody gives any more may be so many before all are begun anew: no fewer, and no more than were needed at
/// the beginning.
const WORN: usize = 1_024;

/// Whom verdicts are about.
#[derive(Clone, Copy)]
pub(super) struct About<'a> {
    pub(super) evaluator: &'a Evaluator<'a>,
    pub(super) group: &'a Group,
    pub(super) now: i64,
}

/// Judges, and numbers what decided.
#[derive(Debug, Default)]
pub(super) struct Judge {
    numbers: HashMap<Why, u32>,
    whys: Arc<Vec<Why>>,
    /// How many there were at the beginning.
    begun: Option<usize>,
}

impl Judge {
    /// What decided, by number.
    pub(super) fn whys(&mut self) -> Arc<Vec<Why>> {
        self.begun.get_or_insert(self.whys.len());
        self.whys.clone()
    }

    /// Whether most of what decided decides no more.
    pub(super) fn is_worn(&self) -> bool {
        self.begun.is_some_and(|begun| self.whys.len() > 2 * begun + WORN)
    }

    fn number(&mut self, why: Why) -> u32 {
        if let Some(number) = self.numbers.get(&why) {
            return *number;
        }
        let number = u32::try_from(self.whys.len()).unwrap_or(u32::MAX);
        Arc::make_mut(&mut self.whys).push(why.clone());
        self.numbers.insert(why, number);
        number
    }

    /// What is said of a peer that its address alone speaks for, and of one that is proved.
    pub(super) fn both(&mut self, about: &About<'_>, direction: Direction, end: &End, asked: Asked) -> [Verdict; 2] {
        [Proof::Claim, Proof::Veth].map(|proof| self.verdict(about, direction, end, asked, proof))
    }

    fn verdict(&mut self, about: &About<'_>, direction: Direction, end: &End, asked: Asked, proof: Proof) -> Verdict {
        let About { evaluator, group, now } = *about;
        let subject = evaluator.member(&group.subject);
        let mut peer = evaluator.peer(end, &group.subject, direction, asked);
        // From the node's own address: proved is what the kubelet sends, claimed what any other process does.
        if !proof.proves() {
            peer.entities.retain(|entity| *entity != Entity::Probe);
        }
        let lenient = super::super::judge::lenient(&group.subject);
        let question = Question { subject, peer: &peer, direction, asked, proof, lenient, now };
        // Were all strict that are enrolled, a tunnel would prove the peer; datagrams between nodes go without one.
        let enrolled = end.workload.as_ref().is_some_and(|workload| workload.stage != Stage::Off);
        let tunnelled = asked.protocol == Protocol::Tcp && enrolled;
        let proof = if tunnelled { Proof::Tls } else { proof };
        let strict = Question { lenient: false, proof, ..question };
        let policies = &group.policies;
        let enforced = policies.side(&question, View::Enforced);
        let sides = [&enforced, &policies.side(&question, View::WithAudit), &policies.side(&strict, View::Enforced)];
        let refusals = sides.map(|side| side.refusal().map(|answer| answer.term));
        let lapse = if enforced.allows() { lapse(policies, &question, &enforced) } else { None };
        let revoke = match (&lapse, enforced.refusal()) {
            (Some((_, _, revoke)), _) => *revoke,
            (None, Some(answer)) => {
                // What an exception let be until it ended goes as the exception says.
                let ended = answer.by.iter().flat_map(|source| policies.lapsed(&question, source));
                let ended: Vec<_> = ended.map(|exception| exception.on_expiry).collect();
                let objects = answer.by.iter().map(|source| source.object.on_revoke);
                if ended.is_empty() { strictest(objects) } else { strictest(ended.into_iter()) }
            }
            (None, None) => REVOKE_CUT,
        };
        let why = Why(sides.map(deciding));
        let why = self.number(why);
        Verdict { refusals, until: lapse.map(|(at, term, _)| (at, term)), revoke, why }
    }
}

/// When the end of exceptions makes an allowed flow a refused one: the moment, why not then, what becomes of it.
fn lapse(policies: &Policies, question: &Question<'_>, side: &Side<'_>) -> Option<(i64, Term, u32)> {
    let suspending: Vec<_> = side.answers.iter().flat_map(|answer| &answer.suspended_by).collect();
    let ends: BTreeSet<i64> = suspending.iter().map(|exception| exception.expires.as_second()).collect();
    ends.into_iter().find_map(|at| {
        let then = policies.side(&Question { now: at, ..*question }, View::Enforced);
        let term = then.refusal()?.term;
        let ended = suspending.iter().filter(|exception| exception.expires.as_second() == at);
        Some((at, term, strictest(ended.map(|exception| exception.on_expiry))))
    })
}

/// What made the first term that refuses, or each that allows, what it is.
fn deciding(side: &Side<'_>) -> Vec<(ObjectId, Option<String>)> {
    let of = |answer: &Answer<'_>| {
        let names =
            answer.by.iter().map(|source| (source.object.id.clone(), source.rule.map(|rule| rule.name.clone())));
        names.collect::<Vec<_>>()
    };
    match side.refusal() {
        Some(answer) => of(answer),
        None => side.answers.iter().flat_map(of).collect(),
    }
}

/// [`kumiko_abi::policy::Cell::revoke`] of the strictest; of none, it is cut.
fn strictest(all: impl Iterator<Item = OnRevoke>) -> u32 {
    let one = |on_revoke: OnRevoke| match on_revoke.action {
        Action::Cut => REVOKE_CUT,
        Action::Grace => on_revoke.seconds.unwrap_or(0),
        Action::Keep => REVOKE_KEEP,
    };
    all.map(one).min().unwrap_or(REVOKE_CUT)
}
