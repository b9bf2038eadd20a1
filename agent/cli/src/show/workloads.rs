//! `kumiko workloads`.

use kumiko_abi::Stage;
use kumiko_core::api::{AttachmentState, WorkloadView};
use kumiko_core::flow_record::stage_name;

use super::{indented, nothing};
use crate::format::count;
use crate::table::{Cell, Column, table};
use crate::terminal::{Paint, Terminal};

const COLUMNS: [Column; 8] = [
    Column::text("NAMESPACE", 6, 12),
    Column::text("NAME", 8, 20),
    Column::whole("STAGE", 10),
    Column::text("NODE", 4, 16),
    Column::text("IP", 11, 18),
    Column::text("ACCOUNT", 8, 12).yields().spare(2),
    Column::whole("HOOKS", 8),
    Column::text("FLOWS", 12, 24).yields().spare(1),
];

/// All workloads, local ones first, then their problems.
pub(crate) fn workloads(list: &[WorkloadView], terminal: Terminal) -> String {
    if list.is_empty() {
        return nothing("No workloads: the source holds no Workload objects.", terminal);
    }
    let mut list: Vec<&WorkloadView> = list.iter().collect();
    list.sort_by_key(|w| (!w.local, w.namespace.clone(), w.name.clone()));
    let rows: Vec<Vec<Cell>> = list.iter().map(|workload| row(workload)).collect();
    let mut text = table(&COLUMNS, &rows, terminal, 0);
    for workload in list.iter().filter(|workload| !workload.problem.is_empty()) {
        text.push('\n');
        terminal.paint(&mut text, Paint::Warn, &format!("{}/{}", workload.namespace, workload.name));
        text.push_str(":\n");
        indented(&mut text, &workload.problem, terminal);
    }
    text
}

fn row(workload: &WorkloadView) -> Vec<Cell> {
    let stage = Cell::new(stage_name(workload.stage)).paint(match workload.stage {
        Stage::Off => Paint::Dim,
        Stage::Observe => Paint::Plain,
        Stage::Permissive => Paint::Warn,
        Stage::Strict => Paint::Good,
    });
    let hooks = Cell::new(workload.attachment.name()).paint(match workload.attachment {
        AttachmentState::Attached => Paint::Good,
        AttachmentState::Waiting | AttachmentState::Learning | AttachmentState::Moving => Paint::Warn,
        AttachmentState::Remote | AttachmentState::None => Paint::Dim,
    });
    let first = workload.ips.first().map(ToString::to_string).unwrap_or_default();
    let more = workload.ips.len().saturating_sub(1);
    let ips = if more == 0 { Cell::new(first) } else { Cell::with_tail(&first, &format!(" +{more}")) };
    vec![
        Cell::new(&*workload.namespace),
        Cell::new(&*workload.name),
        stage,
        Cell::new(&*workload.node),
        ips,
        Cell::new(&*workload.service_account),
        hooks,
        flows(workload),
    ]
}

fn flows(workload: &WorkloadView) -> Cell {
    if !workload.local {
        return Cell::default();
    }
    let mut text = count(workload.flows);
    if workload.legacy > 0 {
        text.push_str(&format!(", {} legacy", count(workload.legacy)));
    }
    if workload.pending > 0 {
        text.push_str(&format!(", {} dialling", count(workload.pending)));
    }
    Cell::new(text)
}
