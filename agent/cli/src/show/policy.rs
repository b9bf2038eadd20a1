//! `kumiko policy list` and `kumiko policy sets`.

use kumiko_core::api::{PolicyObjectView, SetsView};

use super::{indented, nothing};
use crate::format::{bytes, count};
use crate::table::{Cell, Column, table};
use crate::terminal::{Paint, Terminal};

const OBJECTS: [Column; 6] = [
    Column::whole("KIND", 13),
    Column::text("NAMESPACE", 9, 12),
    Column::text("NAME", 10, 20),
    Column::text("ENFORCED", 12, 20),
    Column::number("HERE", 4),
    Column::text("FILE", 8, 16).yields(),
];

const SETS: [Column; 7] = [
    Column::number("SET", 4),
    Column::text("WORKLOADS", 12, 24),
    Column::text("OBJECTS", 12, 30).yields(),
    Column::number("CLASSES", 7),
    Column::number("COLUMNS", 7),
    Column::number("CELLS", 6),
    Column::number("BYTES", 8),
];

const TABLES: [Column; 5] = [
    Column::whole("TABLE", 21),
    Column::number("USED", 7),
    Column::number("OF", 7),
    Column::number("SHARE", 5),
    Column::number("BYTES", 8),
];

/// All objects, then what some of their rules name.
pub(crate) fn policies(list: &[PolicyObjectView], terminal: Terminal) -> String {
    if list.is_empty() {
        return nothing("No policy: nobody is refused anything by one.", terminal);
    }
    let rows: Vec<Vec<Cell>> = list.iter().map(object).collect();
    let mut text = table(&OBJECTS, &rows, terminal, 0);
    for object in list.iter().filter(|object| !object.nobody.is_empty()) {
        text.push('\n');
        terminal.paint(&mut text, Paint::Warn, &name(object));
        text.push_str(":\n");
        indented(&mut text, &format!("names nobody that is here: {}", object.nobody.join(", ")), terminal);
    }
    text
}

fn name(object: &PolicyObjectView) -> String {
    let parts = [&object.kind, &object.namespace, &object.name].into_iter().filter(|part| !part.is_empty());
    crate::table::clean(parts.map(String::as_str).collect::<Vec<_>>().join("/"))
}

fn object(object: &PolicyObjectView) -> Vec<Cell> {
    let enforced = if object.enforced && object.degraded {
        Cell::new("yes, degraded").paint(Paint::Warn)
    } else if object.enforced {
        Cell::new("yes").paint(Paint::Good)
    } else {
        Cell::new(format!("no: {}", object.why)).paint(Paint::Warn)
    };
    // The settings are about everybody.
    let selects = if object.kind == "MeshSettings" { String::new() } else { count(object.selects.into()) };
    vec![
        Cell::new(&*object.kind),
        Cell::new(&*object.namespace),
        Cell::new(&*object.name),
        enforced,
        Cell::new(selects),
        Cell::new(&*object.file),
    ]
}

/// All sets, then how full the kernel's tables are.
pub(crate) fn sets(view: &SetsView, terminal: Terminal) -> String {
    let rows: Vec<Vec<Cell>> = view
        .sets
        .iter()
        .map(|set| {
            let [ingress, egress] = set.columns;
            vec![
                Cell::new(set.id.to_string()),
                Cell::new(some_of(&set.workloads)),
                Cell::new(some_of(&set.objects)),
                Cell::new(count(set.classes.into())),
                Cell::new(format!("{ingress}+{egress}")),
                Cell::new(count(set.cells.into())),
                Cell::new(bytes(set.bytes)),
            ]
        })
        .collect();
    let mut text = if rows.is_empty() {
        nothing("No sets: no workload of this node is enrolled.", terminal)
    } else {
        table(&SETS, &rows, terminal, 0)
    };
    let total: u64 = view.tables.iter().map(|table| table.bytes).sum();
    text.push('\n');
    terminal.paint(&mut text, Paint::Bold, &format!("Epoch {} takes {}", view.epoch, bytes(total)));
    text.push('\n');
    let rows: Vec<Vec<Cell>> = view
        .tables
        .iter()
        .map(|table| {
            // Per mille, so that little is not nothing.
            let share = (table.used.saturating_mul(1000)).div_ceil(table.most.max(1));
            let share_text = format!("{}.{} %", share / 10, share % 10);
            vec![
                Cell::new(&*table.of),
                Cell::new(count(table.used)),
                Cell::new(count(table.most)),
                Cell::new(share_text).paint(if share >= 800 { Paint::Bad } else { Paint::Plain }),
                Cell::new(bytes(table.bytes)),
            ]
        })
        .collect();
    text.push_str(&self::table(&TABLES, &rows, terminal, 2));
    text
}

/// The first, and how many more there are.
fn some_of(names: &[String]) -> String {
    match names {
        [] => "-".to_owned(),
        [one] => one.clone(),
        [first, more @ ..] => format!("{first} +{}", more.len()),
    }
}
