//! Stages and verdicts as words in JSON.

use kumiko_abi::{Stage, Verdict};

/// `off`, `observe`, `permissive`, `strict`.
pub fn stage_name(stage: Stage) -> &'static str {
    match stage {
        Stage::Off => "off",
        Stage::Observe => "observe",
        Stage::Permissive => "permissive",
        Stage::Strict => "strict",
    }
}

/// `allow`, `deny`, `audit`.
pub fn verdict_name(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Allow => "allow",
        Verdict::Deny => "deny",
        Verdict::Audit => "audit",
    }
}

/// For `#[serde(with = …)]`: a stage by its name.
pub mod stage {
    use kumiko_abi::Stage;
    use serde::{Deserialize, Deserializer, Serializer, de};

    /// Writes the name.
    pub fn serialize<S: Serializer>(stage: &Stage, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_str(super::stage_name(*stage))
    }

    /// Reads the name.
    pub fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<Stage, D::Error> {
        let name = String::deserialize(d)?;
        [Stage::Off, Stage::Observe, Stage::Permissive, Stage::Strict]
            .into_iter()
            .find(|stage| super::stage_name(*stage) == name)
            .ok_or_else(|| de::Error::unknown_variant(&name, &["off", "observe", "permissive", "strict"]))
    }
}

/// For `#[serde(with = …)]`: a verdict by its name.
pub mod verdict {
    use kumiko_abi::Verdict;
    use serde::{Deserialize, Deserializer, Serializer, de};

    /// Writes the name.
    pub fn serialize<S: Serializer>(verdict: &Verdict, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_str(super::verdict_name(*verdict))
    }

    /// Reads the name.
    pub fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<Verdict, D::Error> {
        let name = String::deserialize(d)?;
        super::super::filter::verdict_of(&name)
            .ok_or_else(|| de::Error::unknown_variant(&name, &["allow", "deny", "audit"]))
    }
}
