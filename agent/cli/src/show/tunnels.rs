//! `kumiko tunnels`.

use kumiko_core::api::TunnelView;

use super::nothing;
use crate::format::{bytes, count, duration, principal};
use crate::table::{Cell, Column, table};
use crate::terminal::{Paint, Terminal};

const COLUMNS: [Column; 10] = [
    Column::text("SOURCE", 8, 18),
    Column::text("DESTINATION", 11, 18),
    Column::text("PEER NODE", 9, 9),
    Column::whole("PEER ADDRESS", 16).spare(3),
    Column::whole("STATE", 5),
    Column::number("FLOWS", 6),
    Column::number("SENT", 8).spare(1),
    Column::number("RECEIVED", 8).spare(1),
    Column::number("AGE", 8),
    Column::number("HANDSHAKE", 9).spare(2),
];

/// One line a tunnel, the youngest last.
pub(crate) fn tunnels(list: &[TunnelView], now: u64, terminal: Terminal) -> String {
    if list.is_empty() {
        return nothing("No tunnels: no flow to or from another node has been carried lately.", terminal);
    }
    let mut list: Vec<&TunnelView> = list.iter().collect();
    list.sort_by_key(|tunnel| tunnel.since_unix_ns);
    let rows: Vec<Vec<Cell>> = list.iter().map(|tunnel| row(tunnel, now)).collect();
    table(&COLUMNS, &rows, terminal, 0)
}

fn row(tunnel: &TunnelView, now: u64) -> Vec<Cell> {
    // A tunnel belongs to one (source, destination): who dialled it is the source.
    let (source, destination) =
        if tunnel.dialled { (&tunnel.local, &tunnel.peer) } else { (&tunnel.peer, &tunnel.local) };
    let state =
        if tunnel.flow.is_empty() { Cell::new("idle").paint(Paint::Dim) } else { Cell::new("busy").paint(Paint::Good) };
    let (address, port) = tunnel.peer_addr.rsplit_once(':').unwrap_or((&tunnel.peer_addr, ""));
    let port = if port.is_empty() { String::new() } else { format!(":{port}") };
    vec![
        Cell::new(principal(source)),
        Cell::new(principal(destination)),
        Cell::new(if tunnel.peer_node.is_empty() { "?" } else { &tunnel.peer_node }),
        Cell::with_tail(address, &port),
        state,
        Cell::new(count(tunnel.flows_carried)),
        Cell::new(bytes(tunnel.bytes_sent)),
        Cell::new(bytes(tunnel.bytes_received)),
        Cell::new(duration(now.saturating_sub(tunnel.since_unix_ns))),
        Cell::new(duration(tunnel.handshake_us.saturating_mul(1_000))),
    ]
}
