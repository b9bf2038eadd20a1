//! An endpoint's way up and down the stages, decided without I/O.
//!
//! Raising to a capturing stage, every time: the hooks go on in `learn`, the pod's sockets are dumped and become legacy
//! entries, then it is enforced. Otherwise a SYN from before, sent again, would be parked while its SYN-ACK arrives.
//! Lowering only stops capturing new flows: the programs stay until no captured or fast-path flow is left, since what
//! they carry would go on in the clear without them.

use kumiko_abi::Stage;

/// Where an endpoint is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Phase {
    /// No hooks on its veth.
    #[default]
    Detached,
    /// Hooks on, on the way to this stage: what is not known yet passes and is learnt.
    Learning(Stage),
    /// Hooks on, judged by this stage; `Off`: only flows that were captured before still use them.
    Enforcing(Stage),
}

/// What the edge knows.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Facts {
    /// The pod's sockets of before have become entries since the hooks are in `learn`.
    pub learnt: bool,
    /// A captured or fast-path flow of the endpoint lives.
    pub carried: bool,
}

/// The next thing to do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Action {
    /// Nothing until something changes.
    Wait,
    /// Write the endpoint with this phase, then put both hooks on.
    Attach(Phase),
    /// Write the endpoint with this phase; `lowered` tells that it has just left the mesh.
    Set {
        /// The phase.
        phase: Phase,
        /// It was meshed and is no more: acceptors still take OPEN for a while.
        lowered: bool,
    },
    /// Dump the pod's sockets and make legacy entries of them.
    Learn,
    /// Take both hooks off, then remove the endpoint.
    Detach,
}

/// Decides the next action for an endpoint whose veth is there.
pub fn next(phase: Phase, wanted: Stage, facts: Facts) -> Action {
    let way_to = |stage: Stage| if stage.meshed() { Phase::Learning(stage) } else { Phase::Enforcing(stage) };
    match phase {
        Phase::Detached if wanted == Stage::Off => Action::Wait,
        Phase::Detached => Action::Attach(way_to(wanted)),
        Phase::Learning(stage) if stage != wanted => Action::Set { phase: way_to(wanted), lowered: !wanted.meshed() },
        Phase::Learning(_) if !facts.learnt => Action::Learn,
        Phase::Learning(stage) => Action::Set { phase: Phase::Enforcing(stage), lowered: false },
        Phase::Enforcing(stage) if stage == wanted => {
            if stage == Stage::Off && !facts.carried {
                Action::Detach
            } else {
                Action::Wait
            }
        }
        Phase::Enforcing(stage) if wanted > stage => Action::Set { phase: way_to(wanted), lowered: false },
        Phase::Enforcing(stage) => {
            Action::Set { phase: Phase::Enforcing(wanted), lowered: stage.meshed() && !wanted.meshed() }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Stage::{Observe, Off, Permissive, Strict};
    use proptest::prelude::*;

    /// Runs until nothing is left to do, learning and draining at once.
    fn settle(mut phase: Phase, wanted: Stage) -> (Phase, Vec<Action>) {
        let (mut facts, mut done) = (Facts::default(), Vec::new());
        loop {
            let action = next(phase, wanted, facts);
            match action {
                Action::Wait => return (phase, done),
                Action::Attach(to) | Action::Set { phase: to, .. } => {
                    phase = to;
                    facts.learnt = false;
                }
                Action::Learn => facts.learnt = true,
                Action::Detach => phase = Phase::Detached,
            }
            done.push(action);
            assert!(done.len() < 8, "never settles: {done:?}");
        }
    }

    #[test]
    fn raising_learns_first_every_time() {
        let (phase, done) = settle(Phase::Detached, Strict);
        assert_eq!(phase, Phase::Enforcing(Strict));
        assert_eq!(
            done,
            [
                Action::Attach(Phase::Learning(Strict)),
                Action::Learn,
                Action::Set { phase: Phase::Enforcing(Strict), lowered: false }
            ]
        );
        for from in [Off, Observe, Permissive] {
            assert!(settle(Phase::Enforcing(from), Strict).1.contains(&Action::Learn), "{from:?}");
        }
        assert_eq!(settle(Phase::Detached, Observe).1, [Action::Attach(Phase::Enforcing(Observe))]);
    }

    #[test]
    fn programs_stay_until_nothing_is_carried() {
        let carried = Facts { carried: true, ..Facts::default() };
        assert_eq!(
            next(Phase::Enforcing(Strict), Off, carried),
            Action::Set { phase: Phase::Enforcing(Off), lowered: true }
        );
        assert_eq!(next(Phase::Enforcing(Off), Off, carried), Action::Wait);
        assert_eq!(next(Phase::Enforcing(Off), Off, Facts::default()), Action::Detach);
        // Raised again while it drains: it learns again.
        assert_eq!(
            next(Phase::Enforcing(Off), Permissive, carried),
            Action::Set { phase: Phase::Learning(Permissive), lowered: false }
        );
    }

    #[test]
    fn within_the_mesh_nothing_is_lowered_out_of_it() {
        assert_eq!(
            next(Phase::Enforcing(Strict), Permissive, Facts::default()),
            Action::Set { phase: Phase::Enforcing(Permissive), lowered: false }
        );
    }

    fn stages() -> impl Strategy<Value = Stage> {
        (0_u8..4).prop_map(Stage::from_u8)
    }

    proptest! {
        /// Whatever was wanted on the way, it ends where it should, and capturing always began with learning.
        #[test]
        fn settles_anywhere(way in proptest::collection::vec(stages(), 1..12)) {
            let mut phase = Phase::Detached;
            for wanted in way {
                let before = phase;
                let (after, done) = settle(phase, wanted);
                let there = if wanted == Off { Phase::Detached } else { Phase::Enforcing(wanted) };
                prop_assert_eq!(after, there);
                let was = match before { Phase::Enforcing(stage) => stage, _ => Off };
                prop_assert!(!wanted.meshed() || wanted <= was || done.contains(&Action::Learn));
                phase = after;
            }
        }
    }
}
