//! Since when workloads are as the source says: labels are claimed by it, and a claim has an age.

use std::collections::HashMap;
use std::sync::Arc;

use kumiko_core::model::{Workload, World};

/// Workloads of the model, by UID, each with the second since 1970 at which it was read so for the first time.
#[derive(Debug, Default)]
pub struct Since(HashMap<String, (Arc<Workload>, i64)>);

impl Since {
    /// Takes a model, which shares with the one before what is the same ([`World::sharing`]).
    pub(super) fn take(&mut self, world: &World, now: i64) {
        let before = std::mem::take(&mut self.0);
        let since = |workload: &Arc<Workload>| {
            let known = before.get(&workload.uid).filter(|(known, _)| is_same(known, workload));
            (workload.uid.clone(), (workload.clone(), known.map_or(now, |(_, since)| *since)))
        };
        self.0 = world.workloads().map(since).collect();
    }

    /// Since when a workload is as it is; `None`: the source says something else meanwhile.
    pub fn of(&self, workload: &Arc<Workload>) -> Option<i64> {
        self.0.get(&workload.uid).filter(|(known, _)| is_same(known, workload)).map(|(_, since)| *since)
    }
}

/// Whether the same is claimed of it. Its stage follows the namespace's.
fn is_same(one: &Arc<Workload>, other: &Arc<Workload>) -> bool {
    let same = (&one.labels, &one.ips, &one.service_account, &one.node)
        == (&other.labels, &other.ips, &other.service_account, &other.node);
    Arc::ptr_eq(one, other) || same
}

#[cfg(test)]
mod tests {
    use kumiko_core::manifest::parse;

    use super::*;

    fn world(labels: [&str; 2]) -> World {
        let one = |number: usize| {
            let label = labels.get(number).unwrap();
            format!(
                "apiVersion: kumiko.dev/v1alpha1\nkind: Workload\nmetadata: {{name: w{number}, namespace: d, uid: u{number}, \
                 labels: {{v: {label}}}}}\nspec: {{serviceAccount: s, node: n1, ips: [10.0.0.{}]}}\n---\n",
                number + 1
            )
        };
        let objects = parse("f", &(one(0) + &one(1))).unwrap();
        World::build("td", 1, objects.iter().map(|object| ("f", object))).unwrap().0
    }

    #[test]
    fn a_claim_is_as_old_as_it_is_the_same() {
        let mut since = Since::default();
        let first = world(["a", "a"]);
        since.take(&first, 100);
        let second = world(["a", "b"]).sharing(&first);
        since.take(&second, 200);
        let of = |world: &World, uid: &str| since.of(world.workload(uid).unwrap());
        assert_eq!((of(&second, "u0"), of(&second, "u1")), (Some(100), Some(200)));
        // Verdicts may still be of the model before.
        assert_eq!((of(&first, "u0"), of(&first, "u1")), (Some(100), None));
    }
}
