//! A new policy, or new workloads under it: tables of verdicts, and the epoch from which they hold.

use std::sync::Arc;

use kumiko_core::api::PolicyStatus;
use kumiko_core::compile::diff;
use kumiko_core::policy::compile::{Image, TooComplex, compile};
use kumiko_core::policy::verdict::Evaluator;
use thiserror::Error;
use tracing::{info, warn};

use super::super::edge::{Edge, EdgeError};
use super::Engine;
use crate::clock;

/// What the engine knows of verdicts.
#[derive(Debug, Default)]
pub(super) struct Judging {
    /// The tables of that epoch, if this agent made them.
    pub(super) image: Option<Arc<Image>>,
    /// When the next exception ends, in seconds since 1970.
    pub(super) lapses: Option<i64>,
    /// What is in force, with its epoch in the maps.
    pub(super) status: PolicyStatus,
    /// Tables are yet to be made.
    pub(super) due: bool,
}

impl Judging {
    /// What an agent before us left.
    pub(super) fn from_epoch(epoch: u32) -> Self {
        Self { status: PolicyStatus { enforced: true, epoch, ..PolicyStatus::default() }, ..Self::default() }
    }
}

#[derive(Debug, Error)]
enum JudgeError {
    #[error("{0}")]
    TooComplex(#[from] TooComplex),
    #[error("verdicts could not be written: {0}")]
    Edge(#[from] EdgeError),
    #[error("not everybody has a class in the maps yet")]
    Unwritten,
}

impl<E: Edge> Engine<E> {
    /// Whether the clock has made the tables old.
    pub(super) fn lapsed(&self) -> bool {
        self.judging.as_ref().and_then(|judging| judging.lapses).is_some_and(|at| at <= clock::unix_seconds())
    }

    /// Makes the tables of the model in force, and lets them hold. What cannot be made or written leaves those before in
    /// force; who is not in them is denied.
    pub(super) fn judge(&mut self) {
        let Some(judging) = &mut self.judging else { return };
        judging.due = false;
        let before = judging.status.epoch;
        let problem = match self.judge_anew(before) {
            Ok(()) => String::new(),
            Err(error) => {
                if !matches!(error, JudgeError::TooComplex(_)) {
                    self.unfinished = true;
                }
                error.to_string()
            }
        };
        let Some(judging) = &mut self.judging else { return };
        if !problem.is_empty() {
            judging.due = self.unfinished;
            if judging.status.problem != problem {
                warn!(problem, "the policy before stays in force");
            }
        }
        judging.status.problem = problem;
    }

    fn judge_anew(&mut self, before: u32) -> Result<(), JudgeError> {
        let (now, epoch) = (clock::unix_seconds(), before.wrapping_add(1));
        let compiled = compile(&Evaluator::of(&self.world), &self.node, now)?;
        let image = Image::of(&compiled, now - clock::boot_seconds(), epoch)?;
        self.edge.set_verdicts(&image)?;
        let mut prepared = self.written.clone();
        prepared.prepare(&image, &self.world, &self.attached());
        self.write_all(diff(&self.written, &prepared));
        if self.written != prepared {
            return Err(JudgeError::Unwritten);
        }
        self.edge.set_epoch(epoch)?;
        let exceptions = self.world.policy().policies.exceptions().iter();
        let ends = exceptions.map(|exception| exception.expires.as_second()).filter(|at| *at > now);
        let policies = &self.world.policy().policies;
        let number = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
        let status = PolicyStatus {
            enforced: true,
            epoch,
            source_epoch: self.world.epoch(),
            objects: number(policies.objects().len() + policies.exceptions().len()),
            sets: number(compiled.sets.len()),
            classes: compiled.classes,
            problem: String::new(),
        };
        info!(epoch, sets = status.sets, classes = status.classes, "verdicts came into force");
        self.judging = Some(Judging { image: Some(Arc::new(image)), lapses: ends.min(), status, due: false });
        Ok(())
    }
}
