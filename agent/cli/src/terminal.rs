//! What the output can show: width and colours.

use std::fmt::Write as _;
use std::io::IsTerminal as _;

/// Colours that carry a meaning; never the only one that does.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) enum Paint {
    /// As it is.
    #[default]
    Plain,
    /// Heads.
    Bold,
    /// Of less weight.
    Dim,
    /// As it should be.
    Good,
    /// Worth a look.
    Warn,
    /// Wrong, or refused.
    Bad,
}

/// What the output is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Terminal {
    /// Columns; `None`: no terminal, nothing is cut.
    pub(crate) width: Option<usize>,
    pub(crate) colour: bool,
}

impl Terminal {
    /// Looks at standard output and the environment.
    pub(crate) fn of_stdout() -> Self {
        let stdout = std::io::stdout();
        let terminal = stdout.is_terminal();
        let asked = std::env::var("COLUMNS").ok().and_then(|text| text.parse().ok()).filter(|columns| *columns > 0);
        let width = asked.or_else(|| {
            let size = terminal.then(|| rustix::termios::tcgetwinsize(&stdout).ok()).flatten()?;
            Some(usize::from(size.ws_col)).filter(|columns| *columns > 0)
        });
        // https://no-color.org: any value but the empty one.
        let unwanted = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty())
            || std::env::var_os("TERM").is_some_and(|value| value == "dumb");
        Self { width, colour: terminal && !unwanted }
    }

    /// Adds `text` in a colour (SGR sequences of ECMA-48).
    pub(crate) fn paint(self, to: &mut String, paint: Paint, text: &str) {
        let code = match paint {
            _ if !self.colour => "",
            Paint::Plain => "",
            Paint::Bold => "1",
            Paint::Dim => "2",
            Paint::Good => "32",
            Paint::Warn => "33",
            Paint::Bad => "1;31",
        };
        if code.is_empty() || text.is_empty() {
            to.push_str(text);
        } else {
            // Writing to a String cannot fail.
            let _ = write!(to, "\u{1b}[{code}m{text}\u{1b}[0m");
        }
    }
}
