//! The formula's terms.

use std::fmt;

/// Terms of the formula, in the order in which they speak.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Term {
    /// D: no baseline denies it.
    Deny,
    /// C: every ceiling has it.
    Ceiling,
    /// K: NetworkPolicies let it.
    NetworkPolicy,
    /// T or G: the team lets it, or the platform guarantees it.
    Team,
    /// K or T, where one of those that select never was valid, or is held back.
    Invalid,
    /// P: the peer is proved, or need not be.
    Proof,
}

impl Term {
    /// All of them, in their order.
    pub const ALL: [Self; 6] = [Self::Deny, Self::Ceiling, Self::NetworkPolicy, Self::Team, Self::Invalid, Self::Proof];
}

impl fmt::Display for Term {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Deny => "deny",
            Self::Ceiling => "ceiling",
            Self::NetworkPolicy => "network policy",
            Self::Team => "team",
            Self::Invalid => "invalid policy",
            Self::Proof => "proof",
        })
    }
}
