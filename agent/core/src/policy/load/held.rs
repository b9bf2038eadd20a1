//! Teams' policies that do not fit into the tables are held back, namespace by namespace: no team may keep the platform's next
//! word, or another team's, from coming into force.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::Loaded;
use crate::policy::rule::{Object, ObjectId, ObjectKind, Rules};

/// Policy with less of the teams' in it.
#[derive(Clone, PartialEq, Debug)]
pub struct Held {
    /// What may come into force instead.
    pub policy: Arc<Loaded>,
    /// Namespaces whose teams' policies are not those that are wanted.
    pub namespaces: Vec<String>,
    /// Whether they are those of before; otherwise whom they select is refused what no other one allows.
    pub before: bool,
}

impl Loaded {
    /// What may come into force where it is too much as it is, the least change first. The policies of `among`, a node's
    /// namespaces, are held back: those of the heaviest one, of the two heaviest, of four and so on; each time as they were
    /// `before`, if it is known, and then without their rules.
    pub fn held_back(
        self: &Arc<Self>,
        among: &BTreeSet<&str>,
        before: Option<&Arc<Self>>,
    ) -> impl Iterator<Item = Held> {
        let mut weights = BTreeMap::<&str, usize>::new();
        for object in self.policies.objects().iter().filter(|object| is_teams(&object.id)) {
            let namespace = object.id.namespace.as_str();
            if among.contains(namespace) {
                let weight = weights.entry(namespace).or_default();
                *weight = weight.saturating_add(weight_of(object));
            }
        }
        let mut heaviest: Vec<(Reverse<usize>, String)> =
            weights.into_iter().map(|(name, weight)| (Reverse(weight), name.to_owned())).collect();
        heaviest.sort_unstable();
        let names: Vec<String> = heaviest.into_iter().map(|(_, name)| name).collect();
        let counts: Vec<usize> =
            std::iter::successors(Some(1), |count| (*count < names.len()).then(|| (count * 2).min(names.len())))
                .collect();
        let counts = if names.is_empty() { Vec::new() } else { counts };
        let (wanted, before) = (self.clone(), before.cloned());
        counts.into_iter().flat_map(move |count| {
            let namespaces: Vec<String> = names.iter().take(count).cloned().collect();
            let known = before.clone().map(|before| (Some(before), true));
            let (wanted, none) = (wanted.clone(), (None, false));
            known.into_iter().chain([none]).map(move |(known, before)| {
                let none = Loaded::default();
                let is_held = |id: &ObjectId| is_teams(id) && namespaces.contains(&id.namespace);
                let policy = wanted.with_before(known.as_deref().unwrap_or(&none), is_held);
                Held { policy: Arc::new(policy), namespaces: namespaces.clone(), before }
            })
        })
    }
}

/// Whether a namespace's own people write it.
fn is_teams(id: &ObjectId) -> bool {
    matches!(id.kind, ObjectKind::MeshPolicy | ObjectKind::NetworkPolicy)
}

/// How much it asks of the tables, roughly: pairs of a peer and a port.
fn weight_of(object: &Object) -> usize {
    let of = |rules: &Rules| -> usize {
        let all = rules.rules.iter().map(|rule| {
            let count = |some: Option<usize>| some.unwrap_or(1).max(1);
            count(rule.peers.as_ref().map(Vec::len)).saturating_mul(count(rule.ports.as_ref().map(Vec::len)))
        });
        all.fold(0, usize::saturating_add)
    };
    [&object.ingress, &object.egress].into_iter().flatten().map(of).fold(1, usize::saturating_add)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manifest::{Scope, parse_in};
    use crate::policy::load::load;

    fn loaded(namespaces: &[(&str, usize)], baseline: &str) -> Arc<Loaded> {
        let team = |(namespace, rules): &(&str, usize)| {
            let rules: Vec<String> = (0..*rules).map(|number| format!("{{name: r{number}}}")).collect();
            format!(
                "---\napiVersion: kumiko.dev/v1alpha1\nkind: MeshPolicy\nmetadata: {{name: p, namespace: {namespace}}}\nspec: \
                 {{ingress: [{}]}}\n",
                rules.join(", ")
            )
        };
        let teams: String = namespaces.iter().map(team).collect();
        let platform = format!(
            "---\napiVersion: kumiko.dev/v1alpha1\nkind: MeshBaseline\nmetadata: {{name: {baseline}}}\nspec: {{subject: {{}}, \
             ingress: {{deny: [{{name: a}}]}}}}\n"
        );
        let objects = parse_in(Scope::Policy, "f", &(teams + &platform)).unwrap();
        Arc::new(load(objects.iter().map(|object| ("f", object))))
    }

    /// Each object with how many rules it has that let somebody in, `!` for none that is known.
    fn said(policy: &Loaded) -> Vec<String> {
        let one = |object: &Arc<Object>| {
            let rules = object.ingress.as_ref().map_or(0, |rules| rules.rules.len());
            format!("{} {rules}{}", object.id, if object.invalid { "!" } else { "" })
        };
        policy.policies.objects().iter().map(one).collect()
    }

    #[test]
    fn the_heaviest_are_held_back_first_and_the_platform_never() {
        let before = loaded(&[("a", 1), ("b", 2)], "old");
        let wanted = loaded(&[("a", 3), ("b", 4), ("c", 5), ("far", 6)], "new");
        let among = BTreeSet::from(["a", "b", "c"]);
        let all: Vec<Held> = wanted.held_back(&among, Some(&before)).collect();
        let names: Vec<(Vec<&str>, bool)> =
            all.iter().map(|held| (held.namespaces.iter().map(String::as_str).collect(), held.before)).collect();
        let (one, two, three) = (vec!["c"], vec!["c", "b"], vec!["c", "b", "a"]);
        assert_eq!(
            names,
            [
                (one.clone(), true),
                (one, false),
                (two.clone(), true),
                (two, false),
                (three.clone(), true),
                (three, false)
            ]
        );
        let of = |a: &str, b: &str, c: &str| {
            [
                "MeshBaseline/new 1",
                &format!("MeshPolicy/a/p {a}"),
                &format!("MeshPolicy/b/p {b}"),
                &format!("MeshPolicy/c/p {c}"),
                "MeshPolicy/far/p 6",
            ]
            .map(str::to_owned)
        };
        let objects: Vec<Vec<String>> = all.iter().map(|held| said(&held.policy)).collect();
        assert_eq!(
            objects,
            [
                of("3", "4", "0!"),
                of("3", "4", "0!"),
                of("3", "2", "0!"),
                of("3", "0!", "0!"),
                of("1", "2", "0!"),
                of("0!", "0!", "0!"),
            ]
        );
        assert_eq!(wanted.held_back(&among, None).count(), 3);
        assert_eq!(wanted.held_back(&BTreeSet::from(["elsewhere"]), Some(&before)).count(), 0);
    }
}
