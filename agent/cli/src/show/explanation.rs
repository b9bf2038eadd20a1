//! `kumiko policy explain`.

use std::fmt::Write as _;

use kumiko_core::policy::explain::Explanation;

use crate::table::{clean, wrap};
use crate::terminal::{Paint, Terminal};

/// The longest word before a line's text, and the space behind it.
const LABEL: usize = 18;

/// A verdict, and why.
pub(crate) fn explanation(answer: &Explanation, terminal: Terminal) -> String {
    let mut text = String::new();
    let (word, paint) = if answer.verdict == "allow" { ("ALLOW", Paint::Good) } else { ("DENY", Paint::Bad) };
    terminal.paint(&mut text, paint, word);
    if !answer.because.is_empty() {
        let _ = write!(text, " ({})", answer.because);
    }
    let port = if answer.port == 0 { String::new() } else { format!(" {}", answer.port) };
    let line = format!("  {} -> {}  {}{port}", answer.from, answer.to, answer.protocol);
    let _ = writeln!(text, "{}", clean(line));
    let longest = answer.lines.iter().map(|line| line.label.len()).max().unwrap_or(0).min(LABEL);
    let width = terminal.width.map_or(usize::MAX, |width| width.saturating_sub(longest + 4));
    for line in &answer.lines {
        let mut label = line.label.as_str();
        for part in wrap(&clean(line.text.clone()), width) {
            let _ = writeln!(text, "  {label:longest$}  {part}");
            label = "";
        }
    }
    text
}
