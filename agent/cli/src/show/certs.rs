//! `kumiko certs`.

use kumiko_core::api::{CertState, CertView};

use super::{indented, nothing};
use crate::format::duration;
use crate::table::{Cell, Column, table};
use crate::terminal::{Paint, Terminal};

const COLUMNS: [Column; 5] = [
    Column::text("PRINCIPAL", 20, 44),
    Column::whole("STATE", 7),
    Column::whole("EXPIRES IN", 10),
    Column::whole("NEXT REQUEST", 12).spare(1),
    Column::text("SERIAL", 9, 32).yields().spare(2),
];

/// One line a principal, then what failed.
pub(crate) fn certs(list: &[CertView], now: u64, terminal: Terminal) -> String {
    if list.is_empty() {
        return nothing("No certificates: no workload of this node needs one.", terminal);
    }
    let rows: Vec<Vec<Cell>> = list.iter().map(|cert| row(cert, now)).collect();
    let mut text = table(&COLUMNS, &rows, terminal, 0);
    for cert in list.iter().filter(|cert| !cert.last_error.is_empty()) {
        text.push('\n');
        terminal.paint(&mut text, Paint::Warn, &cert.principal);
        let tries = crate::format::some(cert.failures.into(), "failed request", "failed requests");
        text.push_str(&format!(", {tries}:\n"));
        indented(&mut text, &cert.last_error, terminal);
    }
    text
}

fn row(cert: &CertView, now: u64) -> Vec<Cell> {
    let paint = match cert.state {
        CertState::Valid => Paint::Good,
        CertState::Failing => Paint::Warn,
        CertState::Waiting | CertState::Expired => Paint::Bad,
    };
    let expires = match cert.not_after_unix_ns {
        0 => "-".to_owned(),
        end if end <= now => format!("{} ago", duration(now - end)),
        end => duration(end - now),
    };
    let next = match cert.renew_at_unix_ns.checked_sub(now) {
        Some(left) if left > 0 => duration(left),
        _ => "now".to_owned(),
    };
    vec![
        Cell::new(&*cert.principal),
        Cell::new(cert.state.name()).paint(paint),
        Cell::new(expires),
        Cell::new(next),
        Cell::new(&*cert.serial).paint(Paint::Dim),
    ]
}
