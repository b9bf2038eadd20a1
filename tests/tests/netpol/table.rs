//! What a case is made of: values only.

/// One case of the tables.
pub(super) struct Case {
    /// Its name, as upstream has it.
    pub(super) name: &'static str,
    /// What is done and looked at, in order. It begins without policies and further labels.
    pub(super) steps: &'static [Step],
}

/// A step of a case. What changes is in force before anything is looked at.
pub(super) enum Step {
    /// A NetworkPolicy beside the others, or in the place of the one of its name: namespace, name, spec.
    Policy(&'static str, &'static str, &'static str),
    /// All policies are deleted.
    Delete,
    /// A namespace gets one more label.
    Namespace(&'static str, &'static str),
    /// A pod gets one more label.
    Pod(&'static str, &'static str),
    /// Whom TCP reaches at a port: everybody everybody, but for what these say, the last one that is about a pair.
    Tcp(u16, &'static [Pairs]),
    /// The same of UDP.
    Udp(u16, &'static [Pairs]),
}

/// Pairs of pods, and whether the first reaches the second.
pub(super) struct Pairs {
    pub(super) reach: bool,
    from: &'static str,
    to: &'static str,
}

/// Nobody of the first reaches one of the second: `x/a` is a pod, `x/*` a namespace's, `*` are all.
pub(super) const fn no(from: &'static str, to: &'static str) -> Pairs {
    Pairs { reach: false, from, to }
}

/// Everybody of the first reaches everybody of the second.
pub(super) const fn yes(from: &'static str, to: &'static str) -> Pairs {
    Pairs { reach: true, from, to }
}

/// Whether pods, as `x/a`, are a pair that is to reach each other.
pub(super) fn expected(pairs: &[Pairs], from: &str, to: &str) -> bool {
    let about = |pairs: &&Pairs| is(pairs.from, from) && is(pairs.to, to);
    pairs.iter().rev().find(about).is_none_or(|pairs| pairs.reach)
}

fn is(pattern: &str, pod: &str) -> bool {
    match pattern.strip_suffix('*') {
        Some(namespace) => pod.starts_with(namespace),
        None => pattern == pod,
    }
}
