//! What was in force by epoch: records of flows tell the epoch of their verdict, and are explained by what it was made of.
//!
//! Only what changed is kept of an epoch that is over, and of that a bounded number.

use std::collections::{HashMap, VecDeque};
use std::net::IpAddr;
use std::sync::Arc;

use thiserror::Error;

use crate::model::{Ground, Workload, World};

/// Most versions of workloads that are kept though they are in force no more.
pub const MAX_WORKLOADS: usize = 16_384;
/// The same of policies with their namespaces and nodes.
pub const MAX_POLICIES: usize = 1_024;

/// Why nobody can say what was in force.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub enum Unknown {
    /// Nothing is in force yet.
    #[error("no verdicts are in force yet: see `kumiko status`")]
    Nothing,
    /// Before the first that is known.
    #[error("epoch {epoch} is of an agent before this one, which began with epoch {first}")]
    Before {
        /// What was asked for.
        epoch: u32,
        /// The first that is known.
        first: u32,
    },
    /// Dropped for others.
    #[error("what epoch {epoch} was made of is not kept any more, only from epoch {first} on")]
    Dropped {
        /// What was asked for.
        epoch: u32,
        /// The first that is known.
        first: u32,
    },
    /// Not in force yet.
    #[error("epoch {epoch} is not in force, but {now}")]
    Later {
        /// What was asked for.
        epoch: u32,
        /// The one in force.
        now: u32,
    },
}

/// Something that was in force in the epochs from one to before another.
#[derive(Clone, Debug)]
struct Retired<T> {
    from: u32,
    until: u32,
    was: T,
}

impl<T> Retired<T> {
    fn held(&self, epoch: u32) -> bool {
        (self.from..self.until).contains(&epoch)
    }
}

/// The snapshot in force, and what is kept of those before.
#[derive(Debug, Default)]
pub struct History {
    /// `None` before the first.
    now: Option<(u32, Arc<World>)>,
    ground: Ground,
    ground_since: u32,
    /// Workloads of the snapshot in force that are not as they were in the first one.
    since: HashMap<String, u32>,
    workloads: VecDeque<Retired<Arc<Workload>>>,
    grounds: VecDeque<Retired<Ground>>,
    /// The first epoch.
    began: u32,
    /// The first epoch of which everything is kept.
    first: u32,
}

impl History {
    /// Takes a snapshot whose verdicts came into force.
    pub fn record(&mut self, epoch: u32, world: Arc<World>) {
        let Some((_, before)) = self.now.take().filter(|(before, _)| *before < epoch) else {
            *self = Self {
                ground: Ground::of(&world, &Ground::default()),
                ground_since: epoch,
                began: epoch,
                first: epoch,
                now: Some((epoch, world)),
                ..Self::default()
            };
            return;
        };
        for old in before.workloads() {
            let new = world.workload(&old.uid);
            if new.is_some_and(|new| Arc::ptr_eq(new, old) || new == old) {
                continue;
            }
            let from = self.since.remove(&old.uid).unwrap_or(self.began);
            self.workloads.push_back(Retired { from, until: epoch, was: old.clone() });
            if new.is_some() {
                self.since.insert(old.uid.clone(), epoch);
            }
        }
        for new in world.workloads().filter(|new| before.workload(&new.uid).is_none()) {
            self.since.insert(new.uid.clone(), epoch);
        }
        let ground = Ground::of(&world, &self.ground);
        if ground != self.ground {
            let was = std::mem::replace(&mut self.ground, ground);
            self.grounds.push_back(Retired { from: self.ground_since, until: epoch, was });
            self.ground_since = epoch;
        }
        self.drop_old();
        self.now = Some((epoch, world));
    }

    fn drop_old(&mut self) {
        while self.workloads.len() > MAX_WORKLOADS {
            self.first = self.workloads.pop_front().map_or(self.first, |gone| self.first.max(gone.until));
        }
        while self.grounds.len() > MAX_POLICIES {
            self.first = self.grounds.pop_front().map_or(self.first, |gone| self.first.max(gone.until));
        }
    }

    /// The epoch in force, and its snapshot.
    ///
    /// # Errors
    /// There is none yet.
    pub fn now(&self) -> Result<(u32, &Arc<World>), Unknown> {
        self.now.as_ref().map(|(epoch, world)| (*epoch, world)).ok_or(Unknown::Nothing)
    }

    /// A snapshot of an epoch that has whoever had these addresses then, and maybe nobody else.
    ///
    /// # Errors
    /// It is not known.
    pub fn at(&self, epoch: u32, ips: &[IpAddr]) -> Result<Arc<World>, Unknown> {
        let (now, world) = self.now()?;
        let first = self.first;
        match epoch {
            _ if epoch == now => return Ok(world.clone()),
            _ if epoch > now => return Err(Unknown::Later { epoch, now }),
            _ if epoch < self.began => return Err(Unknown::Before { epoch, first: self.began }),
            _ if epoch < first => return Err(Unknown::Dropped { epoch, first }),
            _ => {}
        }
        let ground =
            self.grounds.iter().find(|retired| retired.held(epoch)).map_or(&self.ground, |retired| &retired.was);
        let retired = self.workloads.iter().filter(|retired| retired.held(epoch)).map(|retired| &retired.was);
        let had = |workload: &&Arc<Workload>| workload.ips.iter().any(|ip| ips.contains(ip));
        let was_there = |workload: &&Arc<Workload>| self.since.get(&workload.uid).is_none_or(|since| *since <= epoch);
        let staying = ips.iter().filter_map(|ip| world.workload_at(*ip)).filter(was_there);
        Ok(Arc::new(ground.with(retired.filter(had).chain(staying))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manifest::{Scope, parse_in};
    use crate::policy::rule::ObjectId;

    /// A world of pods, each with a label and the last number of its address, and of policies in its namespace.
    fn world(epoch: u64, pods: &[(&str, &str, u8)], policies: &[&str]) -> Arc<World> {
        let mut text = "apiVersion: v1\nkind: Namespace\nmetadata: {name: a}\n".to_owned();
        for (name, label, ip) in pods {
            text += &format!(
                "---\napiVersion: kumiko.dev/v1alpha1\nkind: Workload\n\
                 metadata: {{name: {name}, namespace: a, uid: u-{name}, labels: {{l: {label}}}}}\n\
                 spec: {{serviceAccount: s, node: n1, ips: [10.0.0.{ip}]}}\n"
            );
        }
        for name in policies {
            text += &format!(
                "---\napiVersion: kumiko.dev/v1alpha1\nkind: MeshPolicy\nmetadata: {{name: {name}, namespace: a}}\nspec: {{ingress: []}}\n"
            );
        }
        let objects = parse_in(Scope::Policy, "f", &text).unwrap();
        Arc::new(World::build("td", epoch, objects.iter().map(|object| ("f", object))).unwrap().0)
    }

    fn label(history: &History, epoch: u32, ip: u8) -> Option<String> {
        let ip = [10, 0, 0, ip].into();
        let world = history.at(epoch, &[ip]).unwrap();
        world.workload_at(ip).map(|workload| format!("{}:{}", workload.name, workload.labels["l"]))
    }

    fn policies(history: &History, epoch: u32) -> Vec<String> {
        let world = history.at(epoch, &[]).unwrap();
        world.policy().policies.objects().iter().map(|object| object.id.name.clone()).collect()
    }

    #[test]
    fn each_epoch_is_as_it_was() {
        let mut history = History::default();
        assert_eq!(history.at(1, &[]).unwrap_err(), Unknown::Nothing);
        let worlds = [
            (5, world(1, &[("x", "one", 1), ("y", "one", 2)], &["p"])),
            (6, world(2, &[("x", "two", 1), ("y", "one", 2)], &["p"])),
            // Another pod has the address, and the policy goes.
            (7, world(3, &[("z", "one", 1), ("y", "one", 2)], &[])),
            (8, world(4, &[("z", "one", 1)], &["p", "q"])),
        ];
        for (epoch, world) in &worlds {
            history.record(*epoch, world.clone());
        }
        let seen: Vec<_> = (5..=8).map(|epoch| label(&history, epoch, 1)).collect();
        assert_eq!(seen, ["x:one", "x:two", "z:one", "z:one"].map(|text| Some(text.to_owned())));
        let seen: Vec<_> = (5..=8).map(|epoch| label(&history, epoch, 2)).collect();
        assert_eq!(seen, [Some("y:one".to_owned()), Some("y:one".to_owned()), Some("y:one".to_owned()), None]);
        let seen: Vec<_> = (5..=8).map(|epoch| policies(&history, epoch)).collect();
        assert_eq!(seen, [vec!["p"], vec!["p"], vec![], vec!["p", "q"]]);
        assert_eq!(history.at(4, &[]).unwrap_err(), Unknown::Before { epoch: 4, first: 5 });
        assert_eq!(history.at(9, &[]).unwrap_err(), Unknown::Later { epoch: 9, now: 8 });
    }

    #[test]
    fn what_did_not_change_is_kept_once() {
        let mut history = History::default();
        history.record(1, world(1, &[("x", "one", 1)], &["p", "q"]));
        history.record(2, world(2, &[("x", "one", 1)], &["p"]));
        history.record(3, world(3, &[("x", "one", 1)], &["p"]));
        assert_eq!((history.workloads.len(), history.grounds.len()), (0, 1));
        let object = |epoch| {
            let world = history.at(epoch, &[]).unwrap();
            let objects = world.policy().policies.objects().to_vec();
            objects
                .into_iter()
                .find(|object: &Arc<_>| {
                    let id: &ObjectId = &object.id;
                    id.name == "p"
                })
                .unwrap()
        };
        // Of the one in force the snapshot has its own.
        assert!(Arc::ptr_eq(&object(1), &object(2)));
    }

    #[test]
    fn the_oldest_goes_and_that_is_said() {
        let mut history = History::default();
        history.record(1, world(1, &[], &["p"]));
        let pairs = [world(2, &[], &[]), world(3, &[], &["p"])];
        let many = u32::try_from(MAX_POLICIES).unwrap() + 2;
        for (epoch, world) in (2..=many).zip(pairs.iter().cycle()) {
            history.record(epoch, world.clone());
        }
        assert_eq!(history.at(1, &[]).unwrap_err(), Unknown::Dropped { epoch: 1, first: 2 });
        assert_eq!(policies(&history, 2), Vec::<String>::new());
        assert_eq!(policies(&history, 3), ["p"]);
    }
}
