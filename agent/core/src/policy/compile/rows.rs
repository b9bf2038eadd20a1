//! Verdicts of a set's cells.

use std::collections::{BTreeMap, BTreeSet};

use kumiko_abi::policy::{REVOKE_CUT, REVOKE_KEEP};

use super::super::judge::{Answer, Policies, Proof, Question, Side, Term, View};
use super::super::object::{Action, Entity, OnRevoke};
use super::super::port::Asked;
use super::super::rule::{Direction, ObjectId};
use super::super::verdict::{End, Evaluator};
use super::columns::Columns;
use super::facts::{Classes, Facts, Signature};
use super::{Group, Key, Set, TooComplex, Verdict, Why};

/// Columns, rows by class, distinct rows.
type Table = (Columns, Vec<u32>, Vec<Vec<[Verdict; 2]>>);

/// Makes sets.
pub(super) struct Rows<'a> {
    pub(super) evaluator: &'a Evaluator<'a>,
    pub(super) now: i64,
    /// What decided, with its number.
    pub(super) whys: BTreeMap<Why, u32>,
}

impl Rows<'_> {
    /// One set.
    pub(super) fn set(
        &mut self,
        key: &Key,
        group: &Group,
        facts: &Facts,
        classes: &Classes,
    ) -> Result<Set, TooComplex> {
        // Classes that this set does not tell apart, each with a peer.
        let asked = facts.asked(&group.policies);
        let mut seen: BTreeMap<Signature, u32> = BTreeMap::new();
        let (mut peers, mut rows) = (Vec::new(), Vec::new());
        for (signature, end) in &classes.peers {
            let next = u32::try_from(seen.len()).unwrap_or(u32::MAX);
            let row = *seen.entry(asked.of(signature)).or_insert(next);
            if row == next {
                peers.push(end.clone());
            } else if let Some(none @ None) = peers.get_mut(row as usize) {
                none.clone_from(end);
            }
            rows.push(row);
        }
        let probed = key.probed.iter().copied();
        let own = key.named.iter().map(|(protocol, _, port)| (*protocol, *port)).chain(probed).collect();
        let called: BTreeSet<u16> = seen.keys().flat_map(Signature::named_ports).collect();
        let both =
            |port| [crate::manifest::Protocol::Tcp, crate::manifest::Protocol::Udp].map(|protocol| (protocol, port));
        let called = called.into_iter().flat_map(both).collect();
        let ingress = self.table(group, Direction::Ingress, &own, &peers, &rows)?;
        let egress = self.table(group, Direction::Egress, &called, &peers, &rows)?;
        Ok(Set {
            objects: key.objects.clone(),
            columns: [ingress.0, egress.0],
            rows: [ingress.1, egress.1],
            lines: [ingress.2, egress.2],
        })
    }

    fn table(
        &mut self,
        group: &Group,
        direction: Direction,
        own: &BTreeSet<(crate::manifest::Protocol, u16)>,
        peers: &[Option<End>],
        rows: &[u32],
    ) -> Result<Table, TooComplex> {
        let columns = Columns::of(&group.policies, direction, own).map_err(|columns| TooComplex::Columns {
            of: format!("{}/{}", group.subject.namespace, group.subject.name),
            direction,
            columns,
        })?;
        let mut lines: Vec<Vec<[Verdict; 2]>> = Vec::new();
        let mut known: BTreeMap<Vec<[Verdict; 2]>, u32> = BTreeMap::new();
        let mut line_of = Vec::new();
        for peer in peers {
            // Nobody has the class: what is said of it is never read, and is what is said of an unknown address.
            let nobody = End { ip: std::net::Ipv4Addr::UNSPECIFIED.into(), workload: None };
            let peer = peer.as_ref().unwrap_or(&nobody);
            let line: Vec<[Verdict; 2]> = columns
                .ports
                .iter()
                .map(|asked| {
                    [Proof::Claim, Proof::Veth].map(|proof| self.verdict(group, direction, peer, *asked, proof))
                })
                .collect();
            let next = u32::try_from(lines.len()).unwrap_or(u32::MAX);
            let number = *known.entry(line.clone()).or_insert(next);
            if number == next {
                lines.push(line);
            }
            line_of.push(number);
        }
        let rows = rows.iter().map(|row| line_of.get(*row as usize).copied().unwrap_or_default()).collect();
        Ok((columns, rows, lines))
    }

    fn verdict(&mut self, group: &Group, direction: Direction, end: &End, asked: Asked, proof: Proof) -> Verdict {
        let subject = self.evaluator.member(&group.subject);
        let mut peer = self.evaluator.peer(end, &group.subject, direction, asked);
        // From the node's own address: proved is what the kubelet sends, claimed what any other process does.
        if !proof.proves() {
            peer.entities.retain(|entity| *entity != Entity::Probe);
        }
        let lenient = super::judge::lenient(&group.subject);
        let question = Question { subject, peer: &peer, direction, asked, proof, lenient, now: self.now };
        let strict = Question { lenient: false, ..question };
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
        let next = u32::try_from(self.whys.len()).unwrap_or(u32::MAX);
        let why = *self.whys.entry(why).or_insert(next);
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
