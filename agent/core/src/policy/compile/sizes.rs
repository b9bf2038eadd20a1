//! How much of the kernel's tables verdicts take.

use std::collections::{BTreeMap, BTreeSet};
use std::mem::size_of;

use kumiko_abi::policy::{
    CELLS_LEN, CHUNKS_LEN, COLUMNS_LEN, Cell, Chunk, Maps as _, NETS_LEN, NetKey, ROWS_LEN, Row, SETS_LEN, Set,
    TABLE_CHUNKS,
};

use super::Image;
use crate::api::TableUse;

/// What one set takes; what is shared with others is counted for each.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Size {
    /// Kinds of peers that it has rows for.
    pub classes: u32,
    /// Groups of ports, coming in and going out.
    pub columns: [u32; 2],
    /// Verdicts.
    pub cells: u32,
    /// Bytes.
    pub bytes: u64,
}

impl Image {
    /// Sizes of the sets by their numbers.
    pub fn sizes(&self) -> BTreeMap<u32, Size> {
        let mut tables = BTreeMap::new();
        let mut columns = |table: u32| *tables.entry(table).or_insert_with(|| self.columns_of(table));
        let ids: BTreeSet<u32> = self.ends.values().copied().collect();
        let size = |id: u32| {
            let set = self.set(id)?;
            let [tables_in @ .., _, _, _] = set.tables;
            let [_, _, _, tables_out @ ..] = set.tables;
            let [icmp_in, rest_in, icmp_out, rest_out] = set.portless;
            let mut most = |tables: [u32; 3], portless: [u8; 2]| {
                let of_ports = tables.map(&mut columns);
                let without = portless.map(|column| u32::from(column) + 1);
                of_ports.into_iter().chain(without).max().unwrap_or_default()
            };
            let columns = [most(tables_in, [icmp_in, rest_in]), most(tables_out, [icmp_out, rest_out])];
            Some((id, self.size(&set, columns)))
        };
        ids.into_iter().filter_map(size).collect()
    }

    fn size(&self, set: &Set, columns: [u32; 2]) -> Size {
        let rows: Vec<Row> = (0..set.classes).filter_map(|class| self.row(set.rows.saturating_add(class))).collect();
        let distinct = |of: fn(&Row) -> u32| rows.iter().map(of).collect::<BTreeSet<u32>>().len() as u64;
        let [ingress, egress] = columns.map(u64::from);
        // A column has a verdict about who is proved and one about who is not.
        let cells = 2 * (distinct(|row| row.ingress) * ingress + distinct(|row| row.egress) * egress);
        let tables: BTreeSet<u32> = set.tables.into_iter().collect();
        let chunks: BTreeSet<u32> = tables.iter().flat_map(|table| self.chunks_of(*table)).collect();
        let bytes = bytes::<Set>(1)
            + bytes::<Row>(set.classes.into())
            + bytes::<Cell>(cells)
            + bytes::<u32>(tables.len() as u64 * u64::from(TABLE_CHUNKS))
            + bytes::<Chunk>(chunks.len() as u64);
        Size { classes: set.classes, columns, cells: u32::try_from(cells).unwrap_or(u32::MAX), bytes }
    }

    fn chunks_of(&self, table: u32) -> impl Iterator<Item = u32> + '_ {
        (0..TABLE_CHUNKS).filter_map(move |chunk| self.chunk(table.saturating_add(chunk)))
    }

    /// How many columns a port table leads to.
    fn columns_of(&self, table: u32) -> u32 {
        let chunks: BTreeSet<u32> = self.chunks_of(table).collect();
        let ports = |chunk: u32| (0..64).filter_map(move |port| self.column(chunk, port));
        chunks.into_iter().flat_map(ports).max().map_or(0, |last| u32::from(last) + 1)
    }

    /// How full the tables are of it. Arrays hold two epochs: each may take half of one.
    pub fn uses(&self) -> Vec<TableUse> {
        let half = |len: u32| u64::from(len / 2);
        vec![
            of::<Set>("sets", self.sets.len(), half(SETS_LEN)),
            of::<Row>("rows", self.rows.len(), half(ROWS_LEN)),
            of::<u32>("chunks of port tables", self.chunks.len(), half(CHUNKS_LEN)),
            of::<Chunk>("distinct chunks", self.columns.len(), half(COLUMNS_LEN)),
            of::<Cell>("cells", self.cells.len(), half(CELLS_LEN)),
            of::<(NetKey, [u32; 2])>("networks", self.nets.len(), NETS_LEN.into()),
        ]
    }
}

fn of<T>(name: &str, used: usize, most: u64) -> TableUse {
    TableUse { of: name.to_owned(), used: used as u64, most, bytes: bytes::<T>(used as u64) }
}

const fn bytes<T>(count: u64) -> u64 {
    count.saturating_mul(size_of::<T>() as u64)
}
