//! Stages: their names, what a workload's own label can do.

mod crossing;
mod endpoint;
pub mod legacy;

pub use crossing::{CROSSING, Crossings};
pub use endpoint::{Action, Facts, Phase, next};

use kumiko_abi::Stage;

/// The stage of a name.
pub fn parse(name: &str) -> Option<Stage> {
    match name {
        "off" => Some(Stage::Off),
        "observe" => Some(Stage::Observe),
        "permissive" => Some(Stage::Permissive),
        "strict" => Some(Stage::Strict),
        _ => None,
    }
}

/// The name of a stage.
pub const fn name(stage: Stage) -> &'static str {
    match stage {
        Stage::Off => "off",
        Stage::Observe => "observe",
        Stage::Permissive => "permissive",
        Stage::Strict => "strict",
    }
}

/// The stage of a workload: its namespace's, or a higher one of its own. A label that would lower is refused: the
/// namespace's stage stays.
pub fn effective(namespace: Stage, own: Option<Stage>) -> Stage {
    own.map_or(namespace, |own| own.max(namespace))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_label_only_raises() {
        use Stage::{Observe, Off, Permissive, Strict};
        assert_eq!(effective(Off, None), Off);
        assert_eq!(effective(Off, Some(Strict)), Strict);
        assert_eq!(effective(Permissive, Some(Observe)), Permissive);
        assert_eq!(effective(Strict, Some(Off)), Strict);
    }

    #[test]
    fn names_read_back() {
        for stage in [Stage::Off, Stage::Observe, Stage::Permissive, Stage::Strict] {
            assert_eq!(parse(name(stage)), Some(stage));
        }
        assert_eq!(parse("Strict"), None);
    }
}
