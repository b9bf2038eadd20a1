use super::*;

const COLUMNS: [Column; 4] = [
    Column::text("NAME", 6, 10),
    Column::text("WHERE", 8, 10),
    Column::number("BYTES", 6),
    Column::text("NOTE", 4, 20).yields().spare(1),
];

fn rows() -> Vec<Vec<Cell>> {
    vec![
        vec![
            Cell::new("a-rather-long-name"),
            Cell::with_tail("demo/some-server", ":8080"),
            Cell::new("12"),
            Cell::new("a note that goes on"),
        ],
        vec![Cell::new("b"), Cell::new("x"), Cell::new("1,234"), Cell::new("")],
    ]
}

fn lines(width: Option<usize>) -> Vec<String> {
    let terminal = Terminal { width, colour: false };
    table(&COLUMNS, &rows(), terminal, 0).lines().map(str::to_owned).collect()
}

#[test]
fn whole_without_a_terminal() {
    assert_eq!(
        lines(None),
        [
            "NAME                WHERE                  BYTES  NOTE",
            "a-rather-long-name  demo/some-server:8080     12  a note that goes on",
            "b                   x                      1,234",
        ]
    );
}

#[test]
fn cut_to_the_width_and_the_port_stays() {
    assert_eq!(
        lines(Some(50)),
        [
            "NAME                WHERE              BYTES  NOTE",
            "a-rather-long-name  demo/some-s…:8080     12  a n…",
            "b                   x                  1,234",
        ]
    );
}

#[test]
fn what_can_be_spared_goes_when_it_is_too_narrow() {
    let narrow = lines(Some(24));
    assert_eq!(narrow[0], "NAME     WHERE     BYTES");
    assert!(narrow.iter().all(|line| line.chars().count() <= 24), "{narrow:#?}");
}

#[test]
fn nothing_that_steers_a_terminal_gets_through() {
    let cell = Cell::new("a\u{1b}[2Jb\nc");
    assert_eq!(cell.text, "a\u{fffd}[2Jb\u{fffd}c");
}

#[test]
fn colours_do_not_count() {
    let row = [Cell::new("x").paint(Paint::Good), Cell::new("y"), Cell::new("1")];
    let terminal = Terminal { width: Some(60), colour: true };
    let layout = Layout::usual(&COLUMNS, terminal);
    assert_eq!(layout.row(&row), "\u{1b}[32mx\u{1b}[0m             y                  1");
}
