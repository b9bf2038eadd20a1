//! Tables that fit the terminal.

use crate::terminal::{Paint, Terminal};

/// Between two columns.
const GAP: &str = "  ";

/// A column.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Column {
    /// Head.
    pub(crate) head: &'static str,
    /// Numbers stand right.
    pub(crate) right: bool,
    /// Narrowest useful width when the terminal is too narrow; `usize::MAX`: never cut.
    pub(crate) min: usize,
    /// Comfortable width: not cut further while there is something to leave out. Counted on when rows come one by one.
    pub(crate) usual: usize,
    /// Cut to `min` before anything else.
    pub(crate) yields: bool,
    /// Left out when that is not enough, the highest first; 0: never.
    pub(crate) spare: u8,
}

impl Column {
    /// A column of text that may be cut.
    pub(crate) const fn text(head: &'static str, min: usize, usual: usize) -> Self {
        Self { head, right: false, min, usual, yields: false, spare: 0 }
    }

    /// A column that is never cut.
    pub(crate) const fn whole(head: &'static str, usual: usize) -> Self {
        Self { head, right: false, min: usize::MAX, usual, yields: false, spare: 0 }
    }

    /// A column of numbers, never cut.
    pub(crate) const fn number(head: &'static str, usual: usize) -> Self {
        Self { head, right: true, min: usize::MAX, usual, yields: false, spare: 0 }
    }

    /// Is cut first.
    pub(crate) const fn yields(mut self) -> Self {
        self.yields = true;
        self
    }

    /// May be left out.
    pub(crate) const fn spare(mut self, order: u8) -> Self {
        self.spare = order;
        self
    }
}

/// A cell.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct Cell {
    text: String,
    paint: Paint,
    /// Bytes at the end of `text` that stay when it is cut (a port).
    tail: usize,
}

impl Cell {
    /// Plain text. What could steer a terminal is shown as U+FFFD: some of it comes from other machines.
    pub(crate) fn new(text: impl Into<String>) -> Self {
        Self { text: clean(text.into()), paint: Paint::Plain, tail: 0 }
    }

    /// Text whose last part is never cut away.
    pub(crate) fn with_tail(text: &str, tail: &str) -> Self {
        let tail = clean(tail.to_owned());
        Self { text: clean(text.to_owned()) + &tail, paint: Paint::Plain, tail: tail.len() }
    }

    /// In a colour.
    pub(crate) fn paint(mut self, paint: Paint) -> Self {
        self.paint = paint;
        self
    }

    fn width(&self) -> usize {
        self.text.chars().count()
    }

    /// The text in at most `width` columns.
    fn fit(&self, width: usize) -> String {
        let count = self.width();
        if count <= width {
            return self.text.clone();
        }
        let (head, tail) = self.text.split_at_checked(self.text.len() - self.tail).unwrap_or((&self.text, ""));
        let tail_width = tail.chars().count();
        let (head, tail) = if tail_width + 2 <= width { (head, tail) } else { (self.text.as_str(), "") };
        let room = width.saturating_sub(tail.chars().count() + 1);
        let kept: String = head.chars().take(room).collect();
        format!("{}…{tail}", kept.trim_end())
    }
}

/// The same of several lines.
pub(crate) fn clean_lines(text: &str) -> String {
    text.split('\n').map(|line| clean(line.to_owned())).collect::<Vec<_>>().join("\n")
}

/// Text that cannot steer a terminal.
pub(crate) fn clean(text: String) -> String {
    if text.chars().any(char::is_control) {
        text.chars().map(|c| if c.is_control() { char::REPLACEMENT_CHARACTER } else { c }).collect()
    } else {
        text
    }
}

/// Columns with the widths they got.
#[derive(Clone, Debug)]
pub(crate) struct Layout {
    columns: Vec<(usize, Column, usize)>,
    terminal: Terminal,
    indent: usize,
}

impl Layout {
    /// Fits columns to rows that are all there.
    pub(crate) fn of_rows(columns: &[Column], rows: &[Vec<Cell>], terminal: Terminal, indent: usize) -> Self {
        let natural = |index: usize, column: &Column| {
            let cells = rows.iter().filter_map(|row| row.get(index)).map(Cell::width);
            cells.max().unwrap_or(0).max(column.head.chars().count())
        };
        Self::fit(columns, natural, terminal, indent)
    }

    /// Counts on usual widths, for rows that come one by one.
    pub(crate) fn usual(columns: &[Column], terminal: Terminal) -> Self {
        let mut layout = Self::fit(columns, |_, column| column.usual.max(column.head.chars().count()), terminal, 0);
        let room = terminal.width.unwrap_or(0).saturating_sub(layout.width());
        // What is left over goes to names, and most of it to the last column, which is the one for words.
        let share = room / 4;
        let mut left = room;
        for (_, column, width) in &mut layout.columns {
            if column.min != usize::MAX && !column.yields {
                *width += share.min(left);
                left -= share.min(left);
            }
        }
        if let Some((_, _, width)) = layout.columns.last_mut() {
            *width += left;
        }
        layout
    }

    fn fit(columns: &[Column], natural: impl Fn(usize, &Column) -> usize, terminal: Terminal, indent: usize) -> Self {
        let mut left: Vec<(usize, Column)> = columns.iter().copied().enumerate().collect();
        let room = terminal.width.unwrap_or(usize::MAX);
        loop {
            let wanted: Vec<_> =
                left.iter().map(|(index, column)| (*index, *column, natural(*index, column))).collect();
            let mut layout = Self { columns: wanted, terminal, indent };
            layout.squeeze(room, |column| if column.yields { column.min } else { usize::MAX });
            layout.squeeze(
                room,
                |column| if column.min == usize::MAX { column.min } else { column.usual.max(column.min) },
            );
            if layout.width() <= room {
                return layout;
            }
            let spare = left.iter().map(|(_, column)| column.spare).max().unwrap_or(0);
            if spare == 0 {
                // Nothing is left to leave out. If this is not enough either, the terminal wraps.
                layout.squeeze(room, |column| column.min);
                return layout;
            }
            left.retain(|(_, column)| column.spare != spare);
        }
    }

    /// Takes from the widest column that is wider than its floor, until all fit or none is.
    fn squeeze(&mut self, room: usize, floor: impl Fn(&Column) -> usize) {
        let mut over = self.width().saturating_sub(room);
        while over > 0 {
            let wider = self.columns.iter_mut().filter(|(_, column, width)| *width > floor(column));
            let Some((_, _, width)) = wider.max_by_key(|(_, _, width)| *width) else { return };
            *width -= 1;
            over -= 1;
        }
    }

    fn width(&self) -> usize {
        let gaps = GAP.len() * self.columns.len().saturating_sub(1);
        self.columns.iter().map(|(_, _, width)| *width).sum::<usize>() + gaps + self.indent
    }

    /// The line of heads.
    pub(crate) fn heads(&self) -> String {
        let cells: Vec<(usize, Cell)> =
            self.columns.iter().map(|(index, column, _)| (*index, Cell::new(column.head).paint(Paint::Dim))).collect();
        self.line(|index| cells.iter().find(|(at, _)| *at == index).map(|(_, cell)| cell))
    }

    /// The line of a row.
    pub(crate) fn row(&self, row: &[Cell]) -> String {
        self.line(|index| row.get(index))
    }

    fn line<'a>(&self, cell: impl Fn(usize) -> Option<&'a Cell>) -> String {
        let empty = Cell::default();
        let mut line = " ".repeat(self.indent);
        let mut pending = 0;
        for (place, (index, column, width)) in self.columns.iter().enumerate() {
            let cell = cell(*index).unwrap_or(&empty);
            // A row that comes late may be wider than was counted on: numbers are shifted then, never cut.
            let free = self.terminal.width.is_none() || column.min == usize::MAX;
            let text = if free { cell.text.clone() } else { cell.fit(*width) };
            let filling = width.saturating_sub(text.chars().count());
            if place > 0 {
                pending += GAP.len();
            }
            if column.right {
                pending += filling;
            }
            // Nothing is left hanging at the end of a line.
            if !text.is_empty() {
                line.push_str(&" ".repeat(pending));
                pending = 0;
                self.terminal.paint(&mut line, cell.paint, &text);
            }
            if !column.right {
                pending += filling;
            }
        }
        line
    }
}

/// Text in lines of at most `width` columns, broken between words; a longer word stands alone.
pub(crate) fn wrap(text: &str, width: usize) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    let mut used = 0;
    for word in text.split_whitespace() {
        let length = word.chars().count();
        match lines.last_mut() {
            Some(line) if used + 1 + length <= width => {
                line.push(' ');
                line.push_str(word);
                used += 1 + length;
            }
            _ => {
                lines.push(word.to_owned());
                used = length;
            }
        }
    }
    lines
}

/// A whole table with its heads.
pub(crate) fn table(columns: &[Column], rows: &[Vec<Cell>], terminal: Terminal, indent: usize) -> String {
    let layout = Layout::of_rows(columns, rows, terminal, indent);
    let mut text = layout.heads();
    text.push('\n');
    for row in rows {
        text.push_str(&layout.row(row));
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests;
