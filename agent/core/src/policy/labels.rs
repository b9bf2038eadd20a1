//! The labels that rules choose by, and a digest of one workload's: two nodes that judge one flow compare it.

use std::collections::BTreeSet;

use sha2::{Digest as _, Sha256};

use super::rule::{Exception, Object};
use super::selector::{Member, Selector, Who};

/// Bytes of a digest that say which labels it is of; those of the labels themselves follow.
const KEYS: usize = 8;
/// Bytes of a digest.
const DIGEST: usize = 32;

/// Keys of the labels that anything chooses by.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct UsedLabels {
    pods: BTreeSet<String>,
    namespaces: BTreeSet<String>,
}

impl UsedLabels {
    /// Of everything that decides, or would in audit.
    pub fn of<'a>(
        objects: impl IntoIterator<Item = &'a Object>,
        exceptions: impl IntoIterator<Item = &'a Exception>,
    ) -> Self {
        let mut used = Self::default();
        for object in objects {
            used.add(&object.subject);
            let rules = [&object.ingress, &object.egress].into_iter().flatten().flat_map(|rules| &rules.rules);
            rules.for_each(|rule| used.add_peers(rule.peers.as_deref()));
        }
        for exception in exceptions {
            used.add(&exception.subject);
            used.add_peers(exception.rule.peers.as_deref());
        }
        used
    }

    fn add_peers(&mut self, peers: Option<&[Who]>) {
        for who in peers.into_iter().flatten() {
            if let Who::Workload(selector) = who {
                self.add(selector);
            }
        }
    }

    fn add(&mut self, selector: &Selector) {
        self.pods.extend(selector.labels.iter().map(|requirement| requirement.key().to_owned()));
        self.namespaces.extend(selector.namespace_labels.iter().map(|requirement| requirement.key().to_owned()));
    }

    /// Digest of a workload's labels, as far as they are used; empty if none are.
    pub fn digest(&self, member: Member<'_>) -> Vec<u8> {
        if self.pods.is_empty() && self.namespaces.is_empty() {
            return Vec::new();
        }
        let both = [(&self.pods, &member.workload.labels), (&self.namespaces, member.namespace_labels)];
        let (mut keys, mut values) = (Sha256::new(), Sha256::new());
        for (of, labels) in both {
            for key in of {
                part(&mut keys, Some(key));
                part(&mut values, labels.get(key).map(String::as_str));
            }
            part(&mut keys, None);
        }
        let mut digest: Vec<u8> = keys.finalize().into_iter().take(KEYS).collect();
        digest.extend(values.finalize());
        digest.truncate(DIGEST);
        digest
    }

    /// Whether what another node says of a workload's labels agrees with what is known of it here. A node that judges by
    /// labels that are not used here, or says nothing, cannot be compared with.
    pub fn agree(&self, member: Member<'_>, theirs: &[u8]) -> bool {
        let own = self.digest(member);
        theirs.len() != DIGEST || theirs.get(..KEYS) != own.get(..KEYS) || theirs == own
    }
}

/// Each part with its length, so that none can be taken for the end of another.
fn part(to: &mut Sha256, text: Option<&str>) {
    match text {
        Some(text) => {
            to.update((text.len() as u64 + 1).to_be_bytes());
            to.update(text);
        }
        None => to.update(0_u64.to_be_bytes()),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::manifest::{Scope, parse_in};
    use crate::model::World;

    /// A world in which a policy uses pods' labels `a` and `b` and the namespace's `n`.
    fn world(labels: &str, namespace: &str, rules: &str) -> World {
        let text = format!(
            "apiVersion: v1\nkind: Namespace\nmetadata: {{name: demo, labels: {{{namespace}}}}}\n---\napiVersion: \
             kumiko.dev/v1alpha1\nkind: Workload\nmetadata: {{name: w, namespace: demo, uid: u, labels: {{{labels}}}}}\nspec: \
             {{serviceAccount: s, node: n1, ips: [10.0.0.1]}}\n---\napiVersion: kumiko.dev/v1alpha1\nkind: MeshPolicy\n\
             metadata: {{name: p, namespace: demo}}\nspec: {{ingress: [{{name: r, from: [{rules}]}}]}}\n"
        );
        let objects = parse_in(Scope::Policy, "f", &text).unwrap();
        World::build("td", 1, objects.iter().map(|object| ("f", object))).unwrap().0
    }

    const RULES: &str = "{namespaceLabels: {n: x}, labels: {a: x, b: x}}";

    fn digest(world: &World) -> Vec<u8> {
        let workload = world.workload("u").unwrap();
        world.policy().policies.used_labels().digest(world.member(workload))
    }

    #[test]
    fn only_labels_that_are_used_count() {
        let one = digest(&world("a: '1', b: '2', c: '3'", "n: '1'", RULES));
        assert_eq!(one.len(), DIGEST);
        for (labels, namespace, same) in [
            ("a: '1', b: '2', c: '4'", "n: '1', m: '1'", true),
            ("a: '1', b: '3', c: '3'", "n: '1'", false),
            ("a: '2', b: '1', c: '3'", "n: '1'", false),
            ("a: '1', c: '3'", "n: '1'", false),
            ("a: '1', b: '', c: '3'", "n: '1'", false),
            ("a: '1', b: '2', c: '3'", "n: '2'", false),
            ("a: '1', b: '2', c: '3'", "", false),
        ] {
            assert_eq!(digest(&world(labels, namespace, RULES)) == one, same, "{labels}, {namespace}");
        }
        assert_ne!(digest(&world("a: '1'", "", RULES)), digest(&world("b: '1'", "", RULES)));
        assert!(digest(&world("a: '1'", "", "{namespace: demo}")).is_empty());
    }

    proptest! {
        #[test]
        fn nodes_agree_exactly_when_the_used_labels_do(
            here in proptest::collection::btree_map("[abc]", "[0-2]", 0..3),
            there in proptest::collection::btree_map("[abc]", "[0-2]", 0..3),
            noise in proptest::collection::vec(any::<u8>(), 0..65),
        ) {
            let text = |labels: &std::collections::BTreeMap<String, String>| {
                labels.iter().map(|(key, value)| format!("{key}: '{value}'")).collect::<Vec<_>>().join(", ")
            };
            let (here_world, there_world) = (world(&text(&here), "", RULES), world(&text(&there), "", RULES));
            let member = here_world.member(here_world.workload("u").unwrap());
            let used = here_world.policy().policies.used_labels();
            let same = ["a", "b"].iter().all(|key| here.get(*key) == there.get(*key));
            prop_assert_eq!(used.agree(member, &digest(&there_world)), same);
            // Who judges by other labels, or by none, is not compared with.
            prop_assert!(used.agree(member, &[]));
            let others = digest(&world(&text(&there), "", "{namespace: demo, labels: {a: x}}"));
            prop_assert!(used.agree(member, &others));
            let _ = used.agree(member, &noise);
        }
    }
}
