//! From one compilation to the next: what a change does not touch is kept.

use std::collections::BTreeMap;

use kumiko_abi::policy::{CELLS_LEN, ROWS_LEN, SETS_LEN, UNKNOWN_CLASS};

use super::super::verdict::Evaluator;
use super::cells::Judge;
use super::classes::Classes;
use super::facts::Facts;
use super::rows::SetState;
use super::subjects::{Key, Subjects};
use super::{Compiled, TooComplex, room};

/// Most verdicts that a node's tables are made of: twice as many cells as there are, since equal runs of them stand once.
const MAX_JUDGED: usize = 1_048_576;
const _: () = assert!(MAX_JUDGED == 2 * CELLS_LEN as usize);

/// Makes a node's verdicts, and keeps what it made: the next call touches what has changed since.
///
/// Classes and sets keep their numbers, so what is written to the maps from one epoch to the next is what changed, too.
/// What it says is what a new one would say, by other numbers.
#[derive(Debug)]
pub struct Compiler {
    node: String,
    facts: Facts,
    classes: Classes,
    sets: BTreeMap<Key, SetState>,
    judge: Judge,
    /// Numbers of sets: given once.
    next: u32,
}

impl Compiler {
    /// For a node.
    pub fn new(node: &str) -> Self {
        Self {
            node: node.to_owned(),
            facts: Facts::default(),
            classes: Classes::default(),
            sets: BTreeMap::new(),
            judge: Judge::default(),
            next: 0,
        }
    }

    /// Verdicts of the node's endpoints at a moment (seconds since 1970).
    ///
    /// # Errors
    /// More than the maps hold, or than can be judged in a reasonable time; found before the work is done.
    pub fn compile(&mut self, evaluator: &Evaluator<'_>, now: i64) -> Result<Compiled, TooComplex> {
        let kept = !self.sets.is_empty();
        let compiled = self.follow(evaluator, now);
        // Numbers that nobody has any more take room: begun anew they do not.
        if kept && (compiled.is_err() || self.is_worn()) {
            *self = Self::new(&self.node);
            return self.compile(evaluator, now);
        }
        if compiled.is_err() {
            *self = Self::new(&self.node);
        }
        compiled
    }

    fn is_worn(&self) -> bool {
        self.classes.free() > self.classes.len() / 2 + 64 || self.judge.is_worn()
    }

    fn follow(&mut self, evaluator: &Evaluator<'_>, now: i64) -> Result<Compiled, TooComplex> {
        let mut subjects = Subjects::of(evaluator, &self.node);
        // The first of each half is nobody's.
        room("sets", subjects.groups.len() + 1, (SETS_LEN / 2) as usize)?;
        self.follow_sets(&mut subjects, now);
        let anew = self.facts.changed();
        self.classes.follow(evaluator, &self.facts, &self.node, anew)?;
        room("rows", self.classes.len().saturating_mul(self.sets.len()), (ROWS_LEN / 2) as usize)?;
        let changed = self.classes.changed();
        let mut judged = 0_usize;
        for set in self.sets.values_mut() {
            set.classify(&self.classes, &changed)?;
            judged = judged.saturating_add(set.verdicts());
        }
        room("verdicts", judged, MAX_JUDGED)?;
        if self.sets.values().any(SetState::is_due) {
            let witnesses = self.classes.witnesses(evaluator);
            for set in self.sets.values_mut().filter(|set| set.is_due()) {
                set.judge(&mut self.judge, evaluator, &witnesses, now);
            }
        }
        let numbers: BTreeMap<&Key, usize> = self.sets.keys().zip(0..).collect();
        let ends = subjects.ends.iter().filter_map(|(uid, key)| Some((uid.clone(), *numbers.get(key)?))).collect();
        let own = evaluator.world.node(&self.node).and_then(|node| node.addresses.first());
        let host = own.and_then(|ip| self.classes.addrs.get(ip)).copied().unwrap_or(UNKNOWN_CLASS);
        Ok(Compiled {
            classes: u32::try_from(self.classes.len()).unwrap_or(u32::MAX),
            host,
            addrs: self.classes.addrs.clone(),
            nets: self.classes.nets.clone(),
            ends,
            sets: self.sets.values().map(SetState::made).collect(),
            whys: self.judge.whys(),
        })
    }

    /// Keeps the sets whose rules are the same, drops those that nobody has any more, begins new ones.
    fn follow_sets(&mut self, subjects: &mut Subjects, now: i64) {
        let mut before = std::mem::take(&mut self.sets);
        let groups = std::mem::take(&mut subjects.groups);
        for (key, group) in groups {
            let old = before.remove(&key);
            let number = old.as_ref().map_or_else(
                || {
                    self.next += 1;
                    self.next
                },
                SetState::number,
            );
            let state = match old {
                Some(mut old) if old.is_of(&group, now) => {
                    old.subject(group);
                    old
                }
                old => {
                    // Before the old ones are given back: what both ask keeps its number.
                    let asked = self.facts.take(&group.policies);
                    if let Some(old) = old {
                        self.facts.give_back(old.asked());
                    }
                    SetState::new(number, &key, group, asked, now)
                }
            };
            self.sets.insert(key, state);
        }
        for old in before.values() {
            self.facts.give_back(old.asked());
        }
    }
}
