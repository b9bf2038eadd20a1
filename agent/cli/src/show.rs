//! What people see.

mod certs;
mod explanation;
mod flows;
mod policy;
mod status;
mod tunnels;
mod workloads;

pub(crate) use certs::certs;
pub(crate) use explanation::explanation;
pub(crate) use flows::{FlowStream, flows};
pub(crate) use policy::{policies, sets};
pub(crate) use status::status;
pub(crate) use tunnels::tunnels;
pub(crate) use workloads::workloads;

use crate::table::{clean, wrap};
use crate::terminal::{Paint, Terminal};

/// Instead of a table without rows.
fn nothing(what: &str, terminal: Terminal) -> String {
    let mut text = String::new();
    terminal.paint(&mut text, Paint::Dim, what);
    text.push('\n');
    text
}

/// Words below a heading, wrapped to the terminal.
fn indented(to: &mut String, text: &str, terminal: Terminal) {
    let width = terminal.width.map_or(usize::MAX, |width| width.saturating_sub(2));
    for line in wrap(&clean(text.to_owned()), width) {
        to.push_str("  ");
        to.push_str(&line);
        to.push('\n');
    }
}
