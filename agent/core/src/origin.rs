//! What a certificate says beside its principal: the node that it was given to, and which node, namespace and account that were,
//! of all that ever had these names.
//!
//! A name may come back: a namespace is deleted and made again, a node is replaced. A certificate of before would still speak for
//! the name; the UIDs in it do not agree any more.

/// See the module's text. UIDs are the API server's; empty: not known.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Origin {
    /// Name of the node.
    pub node: String,
    /// UID of that node.
    pub node_uid: String,
    /// UID of the principal's namespace.
    pub namespace_uid: String,
    /// UID of its service account.
    pub account_uid: String,
}

impl Origin {
    /// Whether the UIDs are those that are `known` of the same names. What is not known here cannot be held against them;
    /// what is known has to be said.
    pub fn is_of(&self, known: &Self) -> bool {
        let pairs = [
            (&self.node_uid, &known.node_uid),
            (&self.namespace_uid, &known.namespace_uid),
            (&self.account_uid, &known.account_uid),
        ];
        pairs.into_iter().all(|(said, known)| known.is_empty() || said == known)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_known_has_to_be_said() {
        let of = |node: &str, namespace: &str, account: &str| Origin {
            node: "n1".into(),
            node_uid: node.into(),
            namespace_uid: namespace.into(),
            account_uid: account.into(),
        };
        assert!(of("a", "b", "c").is_of(&of("a", "b", "c")));
        assert!(of("a", "b", "c").is_of(&of("", "b", "")), "nothing is known of the others");
        for other in [of("x", "b", "c"), of("a", "x", "c"), of("a", "b", "x"), of("", "b", "c"), of("a", "", "c")] {
            assert!(!other.is_of(&of("a", "b", "c")), "{other:?}");
        }
    }
}
