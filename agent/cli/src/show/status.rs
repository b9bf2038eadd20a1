//! `kumiko status`.

use kumiko_core::api::{ReasonCount, SourceDiagnostic, Status};

use crate::format::{count, duration, some};
use crate::table::{Cell, Column, clean, table, wrap};

use super::indented;
use crate::terminal::{Paint, Terminal};

/// Widest label.
const LABEL: usize = 12;
/// Between parts of a line.
const DOT: &str = " · ";
/// Narrowest text of a reason.
const REASON_MIN: usize = 24;
const REFUSED: [Column; 3] =
    [Column::number("COUNT", 7), Column::whole("REASON", 20), Column::text("WHAT IT MEANS", REASON_MIN, 60)];

/// One page.
pub(crate) fn status(status: &Status, now: u64, terminal: Terminal) -> String {
    let mut page = Page { text: String::new(), terminal };
    page.head(status, now);
    page.line("Kernel", |line| kernel(line, status));
    page.line("Workloads", |line| workloads(line, status));
    page.line("Source", |line| source(line, status));
    if status.policy.enforced {
        page.line("Policy", |line| policy(line, status));
    }
    page.line("Certificates", |line| certificates(line, status, now));
    page.line("Tunnels", |line| tunnels(line, status));
    page.line("Flows", |line| flows(line, status));
    page.line("Leaked", |line| match status.leak_bytes {
        0 => line.good("0 bytes of strict workloads outside tunnels"),
        leaked => line.bad(&format!("{} bytes of strict workloads outside tunnels", count(leaked))),
    });
    lost(&mut page, status);
    page.diagnostics(&status.source.diagnostics);
    page.refused(&status.refused);
    page.text
}

/// A page that is being written.
struct Page {
    text: String,
    terminal: Terminal,
}

/// A line of a page: parts between dots.
struct Line<'a> {
    page: &'a mut Page,
    parts: usize,
    /// Columns that are taken.
    column: usize,
}

impl Line<'_> {
    fn part(&mut self, paint: Paint, text: &str) {
        let (text, terminal) = (clean(text.to_owned()), self.page.terminal);
        let length = text.chars().count();
        if length == 0 {
            return;
        }
        if self.parts > 0 && terminal.width.is_some_and(|width| self.column + DOT.chars().count() + length > width) {
            self.page.text.push('\n');
            self.page.text.push_str(&" ".repeat(LABEL + 2));
            self.column = LABEL + 2;
        } else if self.parts > 0 {
            terminal.paint(&mut self.page.text, Paint::Dim, DOT);
            self.column += DOT.chars().count();
        }
        self.parts += 1;
        self.column += length;
        terminal.paint(&mut self.page.text, paint, &text);
    }

    fn plain(&mut self, text: &str) {
        self.part(Paint::Plain, text);
    }

    fn good(&mut self, text: &str) {
        self.part(Paint::Good, text);
    }

    fn warn(&mut self, text: &str) {
        self.part(Paint::Warn, text);
    }

    fn bad(&mut self, text: &str) {
        self.part(Paint::Bad, text);
    }
}

impl Page {
    fn head(&mut self, status: &Status, now: u64) {
        let up = duration(now.saturating_sub(status.started_unix_ns));
        self.terminal.paint(&mut self.text, Paint::Bold, &clean(status.node.clone()));
        self.text.push_str("  ");
        let (paint, word) = match (status.draining, status.ready) {
            (true, _) => (Paint::Warn, "draining"),
            (false, true) => (Paint::Good, "ready"),
            (false, false) => (Paint::Bad, "not ready"),
        };
        self.terminal.paint(&mut self.text, paint, word);
        let about = format!(
            "  kumiko-agent {}, pid {}, up {up}, generation {}",
            clean(status.version.clone()),
            status.pid,
            status.generation
        );
        self.terminal.paint(&mut self.text, Paint::Dim, &about);
        self.text.push('\n');
        for missing in &status.waiting_for {
            self.terminal.paint(&mut self.text, Paint::Warn, "  waits for ");
            self.text.push_str(&clean(missing.clone()));
            self.text.push('\n');
        }
        self.text.push('\n');
    }

    fn line(&mut self, label: &str, write: impl FnOnce(&mut Line<'_>)) {
        self.terminal.paint(&mut self.text, Paint::Dim, &format!("{label:<LABEL$}"));
        self.text.push_str("  ");
        let mut line = Line { page: self, parts: 0, column: LABEL + 2 };
        write(&mut line);
        self.text.push('\n');
    }

    fn title(&mut self, paint: Paint, text: &str) {
        self.text.push('\n');
        self.terminal.paint(&mut self.text, paint, text);
        self.text.push('\n');
    }

    fn diagnostics(&mut self, diagnostics: &[SourceDiagnostic]) {
        if diagnostics.is_empty() {
            return;
        }
        self.title(Paint::Bad, "Refused manifests (the last good state of these files stays in force)");
        for diagnostic in diagnostics {
            self.terminal.paint(&mut self.text, Paint::Bold, &clean(diagnostic.place()));
            self.text.push('\n');
            indented(&mut self.text, &diagnostic.message, self.terminal);
        }
    }

    fn refused(&mut self, reasons: &[ReasonCount]) {
        if reasons.is_empty() {
            return;
        }
        self.title(Paint::Bold, "Refused connections");
        let widest = reasons.iter().map(|reason| reason.reason.chars().count()).max().unwrap_or(0);
        let room = self.terminal.width.map_or(usize::MAX, |width| width.saturating_sub(widest + 13).max(REASON_MIN));
        let mut rows = Vec::new();
        for reason in reasons {
            let mut first = vec![Cell::new(count(reason.count)), Cell::new(&*reason.reason)];
            let text = wrap(&clean(reason.text.clone()), room).into_iter().map(|line| (Paint::Plain, line));
            let hint = wrap(&clean(reason.hint.clone()), room).into_iter().map(|line| (Paint::Dim, line));
            for (paint, line) in text.chain(hint) {
                let mut row = std::mem::take(&mut first);
                row.resize(2, Cell::default());
                row.push(Cell::new(line).paint(paint));
                rows.push(row);
            }
        }
        self.text.push_str(&table(&REFUSED, &rows, self.terminal, 2));
    }
}

fn kernel(line: &mut Line<'_>, status: &Status) {
    line.plain(&status.kernel.release);
    line.plain(&status.kernel.attach);
    line.plain(&some(status.shards.into(), "shard", "shards"));
}

fn workloads(line: &mut Line<'_>, status: &Status) {
    let counts = &status.endpoints;
    let stages = [
        (counts.strict, "strict"),
        (counts.permissive, "permissive"),
        (counts.observe, "observe"),
        (counts.off, "off"),
    ];
    let here: Vec<String> =
        stages.iter().filter(|(number, _)| *number > 0).map(|(number, stage)| format!("{number} {stage}")).collect();
    if here.is_empty() {
        line.plain("none on this node");
        return;
    }
    line.plain(&here.join(", "));
    line.plain(&format!("{} attached", counts.attached));
    if counts.waiting > 0 {
        line.warn(&format!("{} waiting (see `kumiko workloads`)", counts.waiting));
    }
}

fn source(line: &mut Line<'_>, status: &Status) {
    let source = &status.source;
    line.plain(&source.url);
    if source.synced {
        let objects = some(source.objects.into(), "object", "objects");
        line.plain(&format!("{objects} in {}", some(source.files.into(), "file", "files")));
    } else {
        line.bad("not read yet");
    }
    if !source.diagnostics.is_empty() {
        line.bad(&some(source.diagnostics.len() as u64, "problem", "problems"));
    }
}

fn policy(line: &mut Line<'_>, status: &Status) {
    let policy = &status.policy;
    line.plain(&some(policy.objects.into(), "object", "objects"));
    line.plain(&format!("epoch {}", count(policy.epoch.into())));
    if !policy.problem.is_empty() {
        let before = if policy.held.is_empty() { "the policy before stays in force: " } else { "" };
        line.bad(&format!("{before}{}", policy.problem));
    }
}

fn certificates(line: &mut Line<'_>, status: &Status, now: u64) {
    let identity = &status.identity;
    let text = format!("{} of {} valid", identity.valid, identity.wanted);
    if identity.valid == identity.wanted {
        line.plain(&text)
    } else {
        line.bad(&text)
    }
    line.plain(&format!("{} trusted", some(identity.roots.into(), "root", "roots")));
    match identity.first_expiry_unix_ns {
        0 => {}
        end if end <= now => line.bad("one is expired"),
        end => line.plain(&format!("first expires in {}", duration(end - now))),
    }
    if identity.failing > 0 {
        line.warn(&format!("{} failing (see `kumiko certs`)", identity.failing));
    }
}

fn tunnels(line: &mut Line<'_>, status: &Status) {
    let tunnels = &status.tunnels;
    line.plain(&format!("{} busy, {} idle", tunnels.busy, tunnels.idle));
    line.plain(&some(tunnels.handshakes, "handshake", "handshakes"));
    if tunnels.handshake_failures > 0 {
        line.warn(&format!("{} failed", count(tunnels.handshake_failures)));
    }
}

fn flows(line: &mut Line<'_>, status: &Status) {
    let flows = &status.flows;
    let mut live = format!("{} open, {} dialling", count(flows.open), count(flows.pending));
    if flows.legacy > 0 {
        live.push_str(&format!(", {} legacy", count(flows.legacy)));
    }
    line.plain(&live);
    let table = format!("table {} of {}", count(flows.entries), count(flows.capacity));
    // From here on a busy minute could fill it, and then new flows are denied.
    let nearly_full = flows.capacity > 0 && flows.entries >= flows.capacity - flows.capacity / 5;
    if nearly_full {
        line.bad(&table)
    } else {
        line.plain(&table)
    }
    line.plain(&format!("{} kept", some(flows.records, "record", "records")));
}

fn lost(page: &mut Page, status: &Status) {
    let flows = &status.flows;
    let losses = [
        (flows.events_lost, "kernel event lost", "kernel events lost"),
        (flows.reports_lost, "shard report lost", "shard reports lost"),
        (flows.errors, "reading failed", "readings failed"),
    ];
    if losses.iter().any(|(number, ..)| *number > 0) {
        page.line("Telemetry", |line| {
            for (number, one, many) in losses.into_iter().filter(|(number, ..)| *number > 0) {
                line.warn(&some(number, one, many));
            }
        });
    }
}
