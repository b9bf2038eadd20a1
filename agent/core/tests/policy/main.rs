//! The evaluator and the compiled tables against a naive evaluator, over random worlds.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout,
    clippy::type_complexity,
    reason = "tests"
)]

mod changed;
mod compiled;
mod definitions;
mod evaluated;
mod mutations;
mod narrowed;
mod revoked;

/// Random worlds, by their seeds.
const WORLDS: u64 = 10_000;
/// Questions about each.
const QUESTIONS: usize = 10;

/// The seed of the first world; to be set to what a failure printed.
fn first_seed() -> u64 {
    std::env::var("KUMIKO_POLICY_SEED").map_or(0, |seed| seed.parse().expect("KUMIKO_POLICY_SEED is a number"))
}
