//! docs/limits.md against the code: every number is its constant's, every reason, counter and metric exists, and no bound
//! is left out.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "tests")]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use kumiko_abi::{Reason, Stat};

/// Constants named like a bound that is none of an operator's business, with the reason.
const NO_BOUNDS: &[(&str, &str)] = &[
    ("MAX_PLAIN", "RFC 8446, 5.1"),
    ("MAX_CIPHER", "RFC 8446, 5.2"),
    ("MAX_RECORD", "RFC 8446, 5.2"),
    ("MAX_SLOTS", "a buffer's"),
    ("MAX_RETRY", "a pause"),
    ("MAX_NODE", "the type's"),
    ("MAX_DIGEST", "SHA-512"),
    ("MAX_MESSAGE", "a record's"),
    ("MAX_OPTIONS", "RFC 9293, 3.1"),
    ("MAX_COLUMNS", "a byte's"),
    ("MAX_STRING", "RFC 1123, 2.1"),
    ("MAX_TOUCHED", "a pause"),
];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn text(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// One row of the page: bound, default, where it is set, the whole line.
struct Row {
    line: String,
    default: String,
    set: String,
}

fn rows() -> Vec<Row> {
    let page = text("docs/limits.md");
    let lines = page.lines().filter(|line| line.starts_with("| ") && !line.starts_with("| bound |"));
    lines
        .map(|line| {
            let cells: Vec<&str> = line.trim_matches('|').split(" | ").map(str::trim).collect();
            let [_, default, _, _, _, set] = cells[..] else { panic!("six cells, not {}: {line}", cells.len()) };
            Row { line: line.to_owned(), default: default.to_owned(), set: set.to_owned() }
        })
        .collect()
}

/// What stands in backquotes.
fn quoted(text: &str) -> Vec<&str> {
    text.split('`').skip(1).step_by(2).collect()
}

/// A number with its unit: `4,096`, `64 KiB`, `5 s`, `500 ms`, `4 h`.
fn number(text: &str) -> Option<u128> {
    let mut words = text.split_whitespace();
    let count: u128 = words.next()?.replace(',', "").parse().ok()?;
    let unit = match words.next() {
        None => 1,
        Some("KiB") => 1 << 10,
        Some("MiB") => 1 << 20,
        // Times in nanoseconds.
        Some("ms") => 1_000_000,
        Some("s") => 1_000_000_000,
        Some("h") => 3_600_000_000_000,
        Some(_) => return None,
    };
    Some(count * unit)
}

/// The value that `name` gets in a source file: after `=`, `:` or a `,` of its type, as the code has it.
fn in_code(source: &str, name: &str) -> Option<u128> {
    let is_word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    for (at, _) in source.match_indices(name) {
        let rest = &source[at + name.len()..];
        if source[..at].ends_with(is_word) || rest.starts_with(is_word) {
            continue;
        }
        let statement = rest.split(['\n', ';']).next().unwrap_or_default();
        // A map: its capacity is a number among its type's parameters.
        if statement.contains("Map<") || statement.contains("Array<") {
            return statement.split([',', '>', '<']).find_map(|part| value(part.trim()));
        }
        // A field of a literal has its value right behind the colon; a constant has its type there.
        let parts = [statement.split_once('=').map(|(_, value)| value), statement.split_once(':').map(|(_, v)| v)];
        let found = parts.into_iter().flatten().find_map(|part| {
            let part = part.split(" }").next().unwrap_or_default();
            value(part.split(',').next().unwrap_or_default().trim())
        });
        if found.is_some() {
            return found;
        }
    }
    // A flag: the default stands above the field.
    let (before, _) = source.split_once(&format!("pub {name}:"))?;
    let attribute = before.rsplit("#[arg(").next()?;
    let default = attribute.split_once("default_value").map(|(_, rest)| rest.trim_start_matches("_t"))?;
    let default = default.trim_start_matches([' ', '=']).split([',', ')']).next()?.trim();
    value(default).or_else(|| {
        let text = default.trim_matches('"');
        let (count, unit) = text.split_at(text.len() - 1);
        number(&format!("{count} {unit}"))
    })
}

/// A constant expression: products, shifts and durations of whole numbers.
fn value(expression: &str) -> Option<u128> {
    for (call, unit) in [("from_secs(", 1_000_000_000), ("from_millis(", 1_000_000)] {
        if let Some((_, rest)) = expression.split_once(call) {
            return Some(value(rest.split_once(')')?.0)? * unit);
        }
    }
    if let Some((count, "SECOND")) = expression.split_once(" * ") {
        return Some(value(count)? * 1_000_000_000);
    }
    if let Some((a, b)) = expression.split_once(" << ") {
        return Some(value(a)? << value(b)?);
    }
    if let Some((a, b)) = expression.split_once(" * ") {
        return Some(value(a)? * value(b)?);
    }
    expression.replace('_', "").parse().ok()
}

#[test]
fn every_number_is_its_constants() {
    let mut wrong = Vec::new();
    for Row { line, default, set } in rows() {
        let [file, name] = quoted(&set)[..] else { panic!("no file and name in {line}") };
        let (page, code) = (number(&default), in_code(&text(file), name));
        if page.is_none() || page != code {
            wrong.push(format!("{page:?} on the page, {code:?} in {file}: {line}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn every_name_exists() {
    let metrics = text("docs/metrics.md");
    let reasons: BTreeSet<&str> = Reason::ALL.iter().map(|reason| reason.name()).collect();
    let stats: BTreeSet<&str> = Stat::ALL.iter().map(|stat| stat.name()).collect();
    for Row { line, .. } in rows() {
        let cells: Vec<&str> = line.trim_matches('|').split(" | ").collect();
        for word in [cells[2], cells[4]].into_iter().flat_map(quoted) {
            let (metric, label) = word.split_once('{').unwrap_or((word, ""));
            let label = label.split('"').nth(1);
            let fine = match (metric, label) {
                ("kumiko_refused_total", Some(reason)) => reasons.contains(reason),
                ("kumiko_kernel_total", Some(stat)) => stats.contains(stat),
                (metric, _) if metric.starts_with("kumiko_") => metrics.contains(&format!("| `{metric}` |")),
                (reason, _) => reasons.contains(reason),
            };
            assert!(fine, "there is no {word}: {line}");
        }
    }
}

#[test]
fn no_bound_is_left_out() {
    let rows = rows();
    let on_the_page: BTreeSet<(&str, &str)> =
        rows.iter().filter_map(|row| Some((*quoted(&row.set).first()?, *quoted(&row.set).get(1)?))).collect();
    let mut missing = Vec::new();
    let mut folders = ["core", "tunnel", "kernel", "daemon", "cli"].map(|name| format!("agent/{name}/src")).to_vec();
    folders.push("ebpf/abi/src".to_owned());
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(root().join(&folder)).unwrap() {
            let entry = entry.unwrap();
            let path = format!("{folder}/{}", entry.file_name().to_string_lossy());
            if entry.path().is_dir() {
                folders.push(path);
                continue;
            }
            let source = fs::read_to_string(entry.path()).unwrap_or_default();
            for name in source.lines().filter_map(|line| line.split_once("const MAX_")?.1.split_once(':')) {
                let name = format!("MAX_{}", name.0);
                let told = on_the_page.contains(&(path.as_str(), name.as_str()));
                if !told && !NO_BOUNDS.iter().any(|(known, _)| *known == name) {
                    missing.push(format!("{name} of {path}"));
                }
            }
        }
    }
    assert!(missing.is_empty(), "not in docs/limits.md: {missing:#?}");
}
