//! `kumiko flows`.

use std::net::IpAddr;

use kumiko_abi::Verdict;
use kumiko_core::flow_record::{FlowClose, FlowPath, FlowPhase, FlowRecord, FlowSide, Party, PartyKind};

use super::nothing;
use crate::format::{bytes, clock, duration};
use crate::table::{Cell, Column, Layout, table};
use crate::terminal::{Paint, Terminal};

const COLUMNS: [Column; 9] = [
    Column::whole("START (UTC)", 12),
    Column::text("SOURCE", 11, 14),
    Column::text("DESTINATION", 14, 18),
    Column::whole("PATH", 6),
    Column::whole("RESULT", 9),
    Column::number("SENT", 8).spare(2),
    Column::number("RECEIVED", 8).spare(2),
    Column::number("LASTED", 8).spare(3),
    Column::text("NOTE", 9, 20).yields().spare(1),
];

/// One line a flow, the youngest last.
pub(crate) fn flows(records: &[FlowRecord], terminal: Terminal) -> String {
    if records.is_empty() {
        return nothing("No flows.", terminal);
    }
    let rows: Vec<Vec<Cell>> = records.iter().map(row).collect();
    table(&COLUMNS, &rows, terminal, 0)
}

/// Flows as they come.
#[derive(Debug)]
pub(crate) struct FlowStream {
    layout: Layout,
}

impl FlowStream {
    pub(crate) fn new(terminal: Terminal) -> Self {
        Self { layout: Layout::usual(&COLUMNS, terminal) }
    }

    pub(crate) fn heads(&self) -> String {
        self.layout.heads()
    }

    /// The line of a report; `None` for "still going on", which only programs want to read.
    pub(crate) fn row(&self, record: &FlowRecord) -> Option<String> {
        let going_on = record.state != FlowPhase::Closed && record.report > 1;
        (!going_on).then(|| self.layout.row(&row(record)))
    }
}

fn row(record: &FlowRecord) -> Vec<Cell> {
    let lasted = record.end_unix_ns.saturating_sub(record.start_unix_ns);
    let known = record.state == FlowPhase::Closed && lasted > 0;
    vec![
        Cell::new(clock(record.start_unix_ns)).paint(Paint::Dim),
        // The client's port says little to people; JSON has it.
        Cell::new(name(&record.source)),
        Cell::with_tail(&asked(record), &asked_port(record)),
        path(record),
        result(record),
        Cell::new(bytes(record.bytes_sent)),
        Cell::new(bytes(record.bytes_received)),
        Cell::new(if known { duration(lasted) } else { String::new() }),
        note(record),
    ]
}

/// Namespace and name, or the address of somebody without one.
fn name(party: &Party) -> String {
    match party.kind {
        PartyKind::Workload | PartyKind::Service => format!("{}/{}", party.namespace, party.name),
        PartyKind::Node => format!("node {}", party.name),
        PartyKind::Outside => address(party.ip),
    }
}

fn address(ip: IpAddr) -> String {
    match ip {
        IpAddr::V4(v4) => v4.to_string(),
        IpAddr::V6(v6) => format!("[{v6}]"),
    }
}

fn asked(record: &FlowRecord) -> String {
    match &record.service {
        Some(service) => format!("{}/{}", service.namespace, service.name),
        None => name(&record.destination),
    }
}

/// The port; of what is not TCP with its protocol.
fn asked_port(record: &FlowRecord) -> String {
    let port = record.service.as_ref().map_or(record.destination.port, |service| service.port);
    match record.protocol.as_ref() {
        "tcp" => format!(":{port}"),
        "udp" => format!(":{port}/udp"),
        other => format!(":{other}"),
    }
}

fn path(record: &FlowRecord) -> Cell {
    match record.path {
        FlowPath::Tunnel => Cell::new("tunnel").paint(Paint::Good),
        FlowPath::Agent => Cell::new("agent").paint(Paint::Good),
        FlowPath::Fast => Cell::new("fast").paint(Paint::Good),
        FlowPath::Local => Cell::new("local").paint(Paint::Good),
        FlowPath::Clear => Cell::new("clear").paint(Paint::Warn),
        FlowPath::Refused => Cell::new("-").paint(Paint::Dim),
    }
}

fn result(record: &FlowRecord) -> Cell {
    if record.verdict == Verdict::Deny {
        return Cell::new("denied").paint(Paint::Bad);
    }
    match (record.state, record.close) {
        (FlowPhase::Pending, _) => Cell::new("dialling").paint(Paint::Warn),
        (FlowPhase::Open, _) => Cell::new("open"),
        (FlowPhase::Closed, close) => match close {
            Some(FlowClose::Fin) | None => Cell::new("closed").paint(Paint::Dim),
            Some(FlowClose::Rst) => Cell::new("reset").paint(Paint::Warn),
            Some(FlowClose::Refused) => Cell::new("refused").paint(Paint::Bad),
            Some(FlowClose::TimedOut) => Cell::new("timed out").paint(Paint::Bad),
            Some(FlowClose::GaveUp) => Cell::new("gave up").paint(Paint::Warn),
            Some(FlowClose::EndpointGone) => Cell::new("pod gone").paint(Paint::Warn),
            Some(FlowClose::Idle) => Cell::new("expired").paint(Paint::Dim),
            Some(FlowClose::Replaced) => Cell::new("replaced").paint(Paint::Dim),
            Some(FlowClose::TunnelLost) => Cell::new("lost").paint(Paint::Bad),
            Some(FlowClose::Agent) => Cell::new("ended").paint(Paint::Warn),
        },
    }
}

/// What is unusual about it, most important first.
fn note(record: &FlowRecord) -> Cell {
    let mut words = Vec::new();
    // What every flow of a working mesh says is not worth a column.
    let usual = matches!(record.reason.as_ref(), "none" | "allowed" | "finished" | "client_reset" | "server_reset");
    let flagged = (record.legacy && record.reason == "legacy")
        || (record.probe && record.reason == "probe")
        || (record.downgraded && record.reason == "downgraded")
        || (record.observed && record.reason == "observed");
    if record.errno != 0 {
        words.push(errno(record.errno));
    }
    if !usual && !flagged {
        words.push(record.reason_text.to_string());
    }
    match (record.close, record.closed_by) {
        (Some(FlowClose::Rst), Some(FlowSide::Source)) => words.push("by the source".to_owned()),
        (Some(FlowClose::Rst), Some(FlowSide::Destination)) => words.push("by the destination".to_owned()),
        (Some(FlowClose::Rst), Some(FlowSide::Mesh)) => words.push("by the mesh".to_owned()),
        _ => {}
    }
    if record.service.is_some() && record.destination.kind == PartyKind::Workload {
        words.push(format!("to {}:{}", name(&record.destination), record.destination.port));
    }
    let flags = [
        (record.legacy, "legacy"),
        (record.downgraded, "no tunnel to be had"),
        (record.probe, "probe"),
        (record.observed, "observed"),
        // Of one that is observed the rules would refuse what passes.
        (record.audit_differs && record.verdict != Verdict::Allow, "audit would allow it"),
        (record.audit_differs && record.verdict == Verdict::Allow, "audit would refuse it"),
        (record.strict_refuses && record.verdict == Verdict::Allow, "strict would refuse it"),
        (record.hairpin, "hairpin"),
        (record.other_port, "other source port"),
    ];
    words.extend(flags.into_iter().filter(|(set, _)| *set).map(|(_, word)| word.to_owned()));
    let paint = if record.verdict == Verdict::Deny { Paint::Plain } else { Paint::Dim };
    Cell::new(words.join(", ")).paint(paint)
}

fn errno(number: i32) -> String {
    use kumiko_core::connect::errno as e;
    let name = match number {
        e::EACCES => "EACCES",
        e::ENETUNREACH => "ENETUNREACH",
        e::ECONNRESET => "ECONNRESET",
        e::ETIMEDOUT => "ETIMEDOUT",
        e::ECONNREFUSED => "ECONNREFUSED",
        e::EHOSTDOWN => "EHOSTDOWN",
        e::EHOSTUNREACH => "EHOSTUNREACH",
        other => return format!("errno {other}"),
    };
    name.to_owned()
}
