//! Nodes learn of a new stage at slightly different times.
//!
//! A client that is still outside the mesh would be refused by a server that is strict already, and one that is outside
//! again by a server that is strict still. So a workload that crosses between strict and outside counts as permissive
//! on the way: it takes both, and its own connections are captured where the peer's node has come as far.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use kumiko_abi::Stage;

use crate::model::World;

/// How long a crossing takes: several times what nodes need to read a change.
pub const CROSSING: Duration = Duration::from_secs(2);

/// Workloads on their way, by UID, with the time when they set out.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Crossings {
    since: HashMap<String, Instant>,
}

impl Crossings {
    /// Takes note of who changes sides from one model to the next. A workload that is new has no past to be kind to.
    pub fn note(&mut self, old: &World, new: &World, now: Instant) {
        for workload in new.workloads() {
            let Some(before) = old.workload(&workload.uid).map(|before| before.stage) else { continue };
            let outside_and_strict = |a: Stage, b: Stage| !a.meshed() && b == Stage::Strict;
            if outside_and_strict(before, workload.stage) || outside_and_strict(workload.stage, before) {
                self.since.insert(workload.uid.clone(), now);
            } else if before != workload.stage {
                self.since.remove(&workload.uid);
            }
        }
        self.since.retain(|uid, _| new.workload(uid).is_some());
    }

    /// Drops those that have arrived; says whether there were any.
    pub fn arrive(&mut self, now: Instant) -> bool {
        let before = self.since.len();
        self.since.retain(|_, since| now.saturating_duration_since(*since) < CROSSING);
        self.since.len() != before
    }

    /// Nobody is on the way.
    pub fn is_empty(&self) -> bool {
        self.since.is_empty()
    }

    /// The model as it is in force.
    pub fn in_force(&self, world: &World) -> World {
        world.with_stages(|workload| self.since.contains_key(&workload.uid).then_some(Stage::Permissive))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manifest::parse;

    fn world(stage: &str) -> World {
        let text = format!(
            "apiVersion: v1\nkind: Namespace\nmetadata: {{name: a, labels: {{kumiko.dev/stage: {stage}}}}}\n---\n\
             apiVersion: kumiko.dev/v1alpha1\nkind: Workload\nmetadata: {{name: w, namespace: a, uid: u}}\n\
             spec: {{serviceAccount: c, node: n1, ips: [10.0.0.1]}}\n"
        );
        let objects = parse("f", &text).unwrap();
        World::build("td", 1, objects.iter().map(|object| ("f", object))).unwrap().0
    }

    fn in_force(way: &[&str]) -> Stage {
        let (mut crossings, now) = (Crossings::default(), Instant::now());
        let mut before = World::default();
        for stage in way {
            let next = world(stage);
            crossings.note(&before, &next, now);
            before = next;
        }
        crossings.in_force(&before).workload("u").unwrap().stage
    }

    #[test]
    fn between_outside_and_strict_it_is_permissive() {
        assert_eq!(in_force(&["off", "strict"]), Stage::Permissive);
        assert_eq!(in_force(&["observe", "strict"]), Stage::Permissive);
        assert_eq!(in_force(&["strict", "off"]), Stage::Permissive);
        assert_eq!(in_force(&["strict", "observe"]), Stage::Permissive);
        assert_eq!(in_force(&["off", "strict", "strict"]), Stage::Permissive);
    }

    #[test]
    fn steps_between_neighbours_and_new_pods_are_at_once() {
        assert_eq!(in_force(&["strict"]), Stage::Strict);
        assert_eq!(in_force(&["permissive", "strict"]), Stage::Strict);
        assert_eq!(in_force(&["strict", "permissive", "observe"]), Stage::Observe);
        assert_eq!(in_force(&["off", "observe", "permissive", "strict"]), Stage::Strict);
        assert_eq!(in_force(&["off", "strict", "observe", "off"]), Stage::Off);
    }

    #[test]
    fn it_arrives() {
        let (mut crossings, start) = (Crossings::default(), Instant::now());
        crossings.note(&world("off"), &world("strict"), start);
        assert!(!crossings.arrive(start + CROSSING / 2));
        assert!(crossings.arrive(start + CROSSING) && crossings.is_empty());
        assert_eq!(crossings.in_force(&world("strict")).workload("u").unwrap().stage, Stage::Strict);
    }
}
