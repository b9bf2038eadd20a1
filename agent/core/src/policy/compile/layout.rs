//! Where verdicts stand in the maps' arrays: what stays keeps its place from one epoch to the next, so that little is written.

mod places;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use kumiko_abi::policy::{
    CELLS_LEN, CHUNK_PORTS, CHUNKS_LEN, COLUMNS_LEN, Cell, Chunk, NO_SET, ROWS_LEN, Row, SETS_LEN, Set as KernelSet,
    TABLE_CHUNKS,
};

use super::columns::PORTED;
use super::image::{Image, begin, line_cells, table};
use super::{Compiled, Set, TooComplex, room};
use places::Places;

/// Places of an image's parts. They are counted from the beginning of an epoch's half, and so the same in both.
#[derive(Debug)]
pub struct Layout {
    /// Rows of a set have some to spare, for classes that are yet to come.
    spare: bool,
    round: u64,
    sets: Places<u32>,
    rows: Places<u32>,
    tables: Places<Vec<(u16, u8)>>,
    /// By table: which chunks it points at.
    pointed: HashMap<usize, Vec<usize>>,
    columns: Places<Chunk>,
    lines: Places<Vec<Cell>>,
    /// By number.
    placed: BTreeMap<u32, Placed>,
    contents: Contents,
    booted: i64,
    /// By epoch's parity: what was made last.
    made: [Option<Image>; 2],
    /// Contents changed since.
    stale: [bool; 2],
}

/// A set in its place.
#[derive(Clone, Debug)]
struct Placed {
    set: Arc<Set>,
    /// Some verdict has an end: its cell hangs on when the machine was booted.
    timed: bool,
    own: usize,
    rows: usize,
    tables: [usize; 6],
    lines: [Vec<usize>; 2],
}

/// What stands in the arrays; of what points into another one, counted from the half's beginning.
#[derive(Debug)]
struct Contents {
    sets: Vec<KernelSet>,
    rows: Vec<Row>,
    chunks: Vec<u32>,
    columns: Arc<Vec<Chunk>>,
    cells: Arc<Vec<Cell>>,
}

impl Default for Layout {
    fn default() -> Self {
        Self::new(true)
    }
}

impl Layout {
    fn new(spare: bool) -> Self {
        let mut sets = Places::default();
        // [`NO_SET`] is the first of the first half.
        sets.skip(NO_SET + 1);
        Self {
            spare,
            round: 0,
            sets,
            rows: Places::default(),
            tables: Places::default(),
            pointed: HashMap::new(),
            columns: Places::default(),
            lines: Places::default(),
            placed: BTreeMap::new(),
            contents: Contents {
                sets: vec![KernelSet::default()],
                rows: Vec::new(),
                chunks: Vec::new(),
                columns: Arc::default(),
                cells: Arc::default(),
            },
            booted: 0,
            made: [None, None],
            stale: [true, true],
        }
    }

    /// Of verdicts, for an epoch; `booted` is the second since 1970 at which the clock of [`Cell::not_after`] began.
    ///
    /// # Errors
    /// More than the arrays hold.
    pub fn image(&mut self, compiled: &Compiled, booted: i64, epoch: u32) -> Result<Image, TooComplex> {
        if self.place(compiled, booted).is_err() {
            // Gaps between what stays, and what is to spare, take room.
            *self = Self::new(false);
            if let Err(error) = self.place(compiled, booted) {
                *self = Self::default();
                return Err(error);
            }
        }
        Ok(self.finish(compiled, epoch))
    }

    fn place(&mut self, compiled: &Compiled, booted: i64) -> Result<(), TooComplex> {
        self.round += 1;
        let before = std::mem::take(&mut self.placed);
        let mut new = Vec::new();
        for set in &compiled.sets {
            let known = before
                .get(&set.number)
                .filter(|placed| Arc::ptr_eq(&placed.set, set) && (!placed.timed || self.booted == booted));
            let placed = match known {
                Some(placed) => self.keep(placed),
                None => {
                    new.push(set.number);
                    self.place_set(set, booted)
                }
            };
            self.placed.insert(set.number, placed);
        }
        self.booted = booted;
        let (round, pointed) = (self.round, &mut self.pointed);
        self.sets.forget(round, |_| ());
        self.rows.forget(round, |_| ());
        self.tables.forget(round, |table| drop(pointed.remove(&table)));
        self.columns.forget(round, |_| ());
        self.lines.forget(round, |_| ());
        let half = |len: u32| (len / 2) as usize;
        room("sets", self.sets.end(), half(SETS_LEN))?;
        room("rows", self.rows.end(), half(ROWS_LEN))?;
        room("chunks of port tables", self.tables.end(), half(CHUNKS_LEN))?;
        room("distinct chunks of port tables", self.columns.end(), half(COLUMNS_LEN))?;
        room("cells", self.lines.end(), half(CELLS_LEN))?;
        self.fill(&new);
        Ok(())
    }

    fn keep(&mut self, placed: &Placed) -> Placed {
        let round = self.round;
        self.sets.keep(placed.own, round);
        self.rows.keep(placed.rows, round);
        for table in placed.tables {
            self.tables.keep(table, round);
            for chunk in self.pointed.get(&table).into_iter().flatten() {
                self.columns.keep(*chunk, round);
            }
        }
        placed.lines.iter().flatten().for_each(|line| self.lines.keep(*line, round));
        placed.clone()
    }

    fn place_set(&mut self, set: &Arc<Set>, booted: i64) -> Placed {
        let round = self.round;
        let own = self.sets.take(set.number, 1, 1, round);
        let classes = number(set.kinds.len());
        let spare = if self.spare { (classes + classes / 8 + 1).next_multiple_of(64) } else { classes };
        let rows = self.rows.take(set.number, classes, spare, round);
        let [ingress, egress] = &set.columns;
        let [tcp, udp, sctp] = PORTED;
        let tables = [(ingress, tcp), (ingress, udp), (ingress, sctp), (egress, tcp), (egress, udp), (egress, sctp)];
        let tables = tables.map(|(columns, protocol)| {
            let ranges = columns.ranges(protocol).to_vec();
            let chunks = || table(&ranges);
            let taken = self.tables.take(ranges.clone(), TABLE_CHUNKS, TABLE_CHUNKS, round);
            let pointed = self
                .pointed
                .entry(taken)
                .or_insert_with(|| chunks().into_iter().map(|chunk| self.columns.take(chunk, 1, 1, round)).collect());
            pointed.iter().for_each(|chunk| self.columns.keep(*chunk, round));
            taken
        });
        let mut line = |line: &super::Line| {
            let cells = line_cells(line, booted);
            let len = number(cells.len());
            self.lines.take(cells, len, len, round)
        };
        let lines = [0, 1].map(|direction| set.lines.get(direction).into_iter().flatten().map(&mut line).collect());
        let timed = set.lines.iter().flatten().flat_map(|line| line.iter().flatten());
        let timed = timed.into_iter().any(|verdict| verdict.until.is_some());
        Placed { set: set.clone(), timed, own, rows, tables, lines }
    }

    /// Writes what is new.
    fn fill(&mut self, new: &[u32]) {
        let contents = &mut self.contents;
        let columns = self.columns.new_ones();
        if !columns.is_empty() {
            let to = Arc::make_mut(&mut contents.columns);
            columns.into_iter().for_each(|(begin, chunk)| put(to, begin, &[chunk], Chunk([0; CHUNK_PORTS as usize])));
        }
        let cells = self.lines.new_ones();
        if !cells.is_empty() {
            let to = Arc::make_mut(&mut contents.cells);
            cells.into_iter().for_each(|(begin, cells)| put(to, begin, &cells, Cell::default()));
        }
        for (begin, ranges) in self.tables.new_ones() {
            let table = self.tables.handle(&ranges).and_then(|table| self.pointed.get(&table));
            let chunks: Vec<u32> = table.into_iter().flatten().map(|chunk| self.columns.begin(*chunk)).collect();
            put(&mut contents.chunks, begin, &chunks, 0);
        }
        // Theirs are filled whenever the set is another one.
        drop((self.sets.new_ones(), self.rows.new_ones()));
        for placed in new.iter().filter_map(|number| self.placed.get(number)) {
            let [ingress, egress] = &placed.lines;
            let of = |lines: &[usize], kind: u32| {
                lines.get(kind as usize).map(|line| self.lines.begin(*line)).unwrap_or_default()
            };
            let [[icmp_in, rest_in], [icmp_out, rest_out]] =
                placed.set.columns.each_ref().map(|columns| columns.portless);
            let row = |kind: &u32| Row { ingress: of(ingress, *kind), egress: of(egress, *kind) };
            let rows: Vec<Row> = placed.set.kinds.iter().map(row).collect();
            let set = KernelSet {
                rows: self.rows.begin(placed.rows),
                classes: number(rows.len()),
                tables: placed.tables.map(|table| self.tables.begin(table)),
                portless: [icmp_in, rest_in, icmp_out, rest_out],
            };
            put(&mut contents.rows, set.rows, &rows, Row::default());
            put(&mut contents.sets, self.sets.begin(placed.own), &[set], KernelSet::default());
        }
        if !new.is_empty() {
            self.stale = [true, true];
        }
    }

    fn finish(&mut self, compiled: &Compiled, epoch: u32) -> Image {
        let parity = (epoch % 2) as usize;
        let end = |at: &usize| {
            let placed = self.placed.get(&compiled.sets.get(*at)?.number)?;
            Some(begin(SETS_LEN, epoch) + self.sets.begin(placed.own))
        };
        let end = |(uid, at): (&String, &usize)| (uid.clone(), end(at).unwrap_or(NO_SET));
        let mut image = Image {
            epoch,
            host: compiled.host,
            addrs: compiled.addrs.clone(),
            nets: compiled.nets.clone(),
            ends: compiled.ends.iter().map(end).collect(),
            ..Image::default()
        };
        match self.made.get(parity).and_then(Option::as_ref) {
            Some(made) if self.stale.get(parity) == Some(&false) => image.share(made),
            _ => self.contents.halve(&mut image),
        }
        if let (Some(made), Some(stale)) = (self.made.get_mut(parity), self.stale.get_mut(parity)) {
            (*made, *stale) = (Some(image.clone()), false);
        }
        image
    }
}

impl Contents {
    /// The arrays for an image's half.
    fn halve(&self, image: &mut Image) {
        let (rows, chunks) = (image.begin(ROWS_LEN), image.begin(CHUNKS_LEN));
        let (columns, cells) = (image.begin(COLUMNS_LEN), image.begin(CELLS_LEN));
        let set = |set: &KernelSet| match set.classes {
            0 => KernelSet::default(),
            _ => KernelSet { rows: set.rows + rows, tables: set.tables.map(|table| table + chunks), ..*set },
        };
        image.sets = Arc::new(self.sets.iter().map(set).collect());
        let row = |row: &Row| Row { ingress: row.ingress + cells, egress: row.egress + cells };
        image.rows = Arc::new(self.rows.iter().map(row).collect());
        image.chunks = Arc::new(self.chunks.iter().map(|chunk| chunk + columns).collect());
        image.columns = self.columns.clone();
        image.cells = self.cells.clone();
    }
}

fn number(index: usize) -> u32 {
    u32::try_from(index).unwrap_or(u32::MAX)
}

fn put<T: Clone>(to: &mut Vec<T>, begin: u32, values: &[T], between: T) {
    let begin = begin as usize;
    let end = begin.saturating_add(values.len());
    if to.len() < end {
        to.resize(end, between);
    }
    if let Some(place) = to.get_mut(begin..end) {
        place.clone_from_slice(values);
    }
}
