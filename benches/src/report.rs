//! The table and the JSON of a run.

use std::fmt::Write;

use serde::Serialize;

use crate::measure::{Measured, Round};

/// A run.
#[derive(Debug, Serialize)]
pub struct Report {
    /// Day of the run (UTC).
    pub date: String,
    /// `uname -r`.
    pub kernel: String,
    /// Processors.
    pub processors: usize,
    /// What was typed.
    pub command: String,
    /// What was measured.
    pub results: Vec<Measured>,
}

/// The middle one of some figures.
fn median(mut figures: Vec<f64>) -> f64 {
    figures.sort_by(f64::total_cmp);
    figures.get(figures.len() / 2).copied().unwrap_or(0.0)
}

fn of(rounds: &[Round], figure: impl Fn(&Round) -> f64) -> f64 {
    median(rounds.iter().map(figure).collect())
}

/// Gbit/s of a stream, thousands a second of anything else.
fn rate(stream: bool, round: &Round) -> f64 {
    let seconds = round.sample.seconds.max(1e-9);
    if stream { round.sample.bytes as f64 * 8.0 / 1e9 / seconds } else { round.sample.done as f64 / 1e3 / seconds }
}

/// CPU seconds of all agents or relays together: for a gigabyte of a stream, for a thousand of anything else.
fn cost(stream: bool, round: &Round) -> f64 {
    let amount = if stream { round.sample.bytes as f64 / 1e9 } else { round.sample.done as f64 / 1e3 };
    round.relay_cpu_seconds / amount.max(1e-9)
}

impl Report {
    /// A table in Markdown: medians of the rounds, the rounds themselves behind the rates.
    pub fn table(&self) -> String {
        let mut text = format!(
            "{}, Linux {}, {} processors, `{}`. Medians of the rounds; the rounds' rates in brackets.\n\n\
             | what | form | rate | p50 µs | p99 µs | relays' CPU |\n|---|---|---|---|---|---|\n",
            self.date, self.kernel, self.processors, self.command
        );
        for result in &self.results {
            for (form, rounds) in &result.forms {
                let unit = if result.stream { "Gbit/s" } else { "k/s" };
                let single: Vec<String> =
                    rounds.iter().map(|round| format!("{:.1}", rate(result.stream, round))).collect();
                let failed: u64 = rounds.iter().map(|round| round.sample.failed).sum();
                let times = |figure: f64| if result.stream { "-".to_owned() } else { format!("{figure:.0}") };
                let per = if result.stream { "s/GB" } else { "ms each" };
                let _ = writeln!(
                    text,
                    "| {} | {} | {:.1} {unit} ({}){} | {} | {} | {:.2} {per} |",
                    result.name,
                    form.name(),
                    of(rounds, |round| rate(result.stream, round)),
                    single.join(" "),
                    if failed > 0 { format!(", {failed} failed") } else { String::new() },
                    times(of(rounds, |round| round.sample.p50_us)),
                    times(of(rounds, |round| round.sample.p99_us)),
                    of(rounds, |round| cost(result.stream, round)),
                );
            }
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn middle_of_figures() {
        assert!((median(vec![3.0, 1.0, 2.0]) - 2.0).abs() < 1e-9);
        assert!(median(Vec::new()).abs() < 1e-9);
    }
}
