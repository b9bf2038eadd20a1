//! SPECIFICATION.md: every promise has a number and a proof, and every test that it names exists.

use std::collections::{BTreeSet, HashMap};
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

/// The names of crates in the page, and where they are.
const CRATES: &[(&str, &str)] = &[
    ("abi", "ebpf/abi"),
    ("agent", "agent/daemon"),
    ("cli", "agent/cli"),
    ("core", "agent/core"),
    ("fault", "agent/fault"),
    ("kernel", "agent/kernel"),
    ("lab", "tests/lab"),
    ("tests", "tests"),
    ("tunnel", "agent/tunnel"),
    ("xtask", "xtask"),
];
/// Where parts of the trials' names come from, beside their own file.
const TRIAL_WORDS: &[&str] = &["tests/src/cases.rs", "tests/src/twins.rs", "tests/lab/src/spec.rs"];
const PAGE: &str = "SPECIFICATION.md";
const PENDING: &str = "**pending**";

/// What is wrong with the page of the repository at `root`, with line numbers.
pub(super) fn check(root: &Path) -> Result<Vec<String>> {
    let text = fs::read_to_string(root.join(PAGE)).with_context(|| format!("reading {PAGE}"))?;
    let (rows, mut broken) = rows(&text);
    let mut known = HashMap::new();
    for row in &rows {
        for proof in &row.proofs {
            if let Err(error) = find(root, proof, &mut known) {
                broken.push(format!("{PAGE}:{}: {}: {error:#}", row.line, row.number));
            }
        }
    }
    Ok(broken)
}

/// One promise.
#[derive(Debug)]
struct Row {
    line: usize,
    number: String,
    proofs: Vec<String>,
}

/// The promises of the page, and what is wrong with its form.
fn rows(text: &str) -> (Vec<Row>, Vec<String>) {
    let (mut rows, mut broken) = (Vec::new(), Vec::new());
    let mut next: HashMap<char, u32> = HashMap::new();
    for (at, line) in text.lines().enumerate() {
        let cells: Vec<&str> = line.trim().trim_matches('|').split('|').map(str::trim).collect();
        let ([number, promise, proof], true) = (cells.as_slice(), line.starts_with("| ")) else { continue };
        if number.is_empty() {
            continue;
        }
        let mut wrong = |what: &str| broken.push(format!("{PAGE}:{}: {number}: {what}", at + 1));
        let area = number.chars().next().unwrap_or_default();
        let expected = next.entry(area).or_insert(1);
        if *number != format!("{area}{expected}") {
            wrong(&format!("the next number of its area is {area}{expected}"));
        }
        *expected += 1;
        if promise.is_empty() {
            wrong("promises nothing");
        }
        let proofs: Vec<String> =
            proof.split('`').skip(1).step_by(2).filter(|name| name.contains("::")).map(str::to_owned).collect();
        let reason = proof.split_once(PENDING).map(|(_, reason)| reason.trim_matches([':', ' ']));
        match reason {
            None if proofs.is_empty() => wrong("has no proof, and is not pending"),
            Some("") => wrong("is pending without a reason"),
            _ => {}
        }
        rows.push(Row { line: at + 1, number: (*number).to_owned(), proofs });
    }
    if rows.is_empty() {
        broken.push(format!("{PAGE}: no promise is found"));
    }
    (rows, broken)
}

/// Names that a target has.
enum Names {
    /// All of them, exactly.
    Tests(BTreeSet<String>),
    /// Pieces of which trials' names are made while they run.
    Words(BTreeSet<String>),
}

/// Whether a proof exists.
fn find(root: &Path, proof: &str, known: &mut HashMap<String, Names>) -> Result<()> {
    let (target, name) = proof.split_once("::").context("no proof: crate/target::name")?;
    if !known.contains_key(target) {
        known.insert(target.to_owned(), names(root, target)?);
    }
    let missing = match known.get(target) {
        Some(Names::Tests(tests)) => !tests.iter().any(|test| fits(name, test)),
        Some(Names::Words(words)) => !name.split("::").all(|segment| is_made_of(segment, words)),
        None => true,
    };
    if missing { bail!("no test `{proof}`") } else { Ok(()) }
}

fn names(root: &Path, target: &str) -> Result<Names> {
    if target == "bench" {
        return Ok(Names::Words(literals(&root.join("benches/src/measure.rs"), BTreeSet::new())?));
    }
    let (name, target) = target.split_once('/').with_context(|| format!("no target `{target}`"))?;
    let (_, dir) = CRATES.iter().find(|(known, _)| *known == name).with_context(|| format!("no crate `{name}`"))?;
    let dir = root.join(dir);
    let places = match target {
        "lib" => [dir.join("src/lib.rs"), dir.join("src/main.rs")],
        _ => [dir.join(format!("tests/{target}.rs")), dir.join(format!("tests/{target}/main.rs"))],
    };
    let file = places.into_iter().find(|file| file.exists()).with_context(|| format!("no target `{name}/{target}`"))?;
    let text = fs::read_to_string(&file)?;
    if target == "lib" || !text.contains("fn main()") {
        let mut tests = BTreeSet::new();
        let dir = file.parent().context("a file in no folder")?;
        collect(&file, dir, "", &mut tests)?;
        return Ok(Names::Tests(tests));
    }
    let mut files: Vec<PathBuf> = TRIAL_WORDS.iter().map(|file| root.join(file)).filter(|file| file.exists()).collect();
    if file.ends_with("main.rs") {
        for entry in fs::read_dir(file.parent().context("a file in no folder")?)? {
            let path = entry?.path();
            // Names of trials stand in the files beside main.rs, not in those of their modules.
            if path.is_file() {
                files.push(path);
            }
        }
    } else {
        files.push(file);
    }
    let words = files.iter().try_fold(BTreeSet::new(), |words, file| literals(file, words))?;
    Ok(Names::Words(words))
}

/// Adds the tests of a file and of its modules, which are in `dir`, each with its modules' names in front.
fn collect(file: &Path, dir: &Path, module: &str, tests: &mut BTreeSet<String>) -> Result<()> {
    let text = fs::read_to_string(file).with_context(|| format!("reading {}", file.display()))?;
    // Modules in braces around the line: where their own brace stands, and their name. rustfmt keeps the columns.
    let mut inside: Vec<(usize, &str)> = Vec::new();
    let (mut is_test, mut elsewhere) = (false, None);
    for line in text.lines() {
        let code = line.trim_start();
        let column = line.len() - code.len();
        if code == "}" && inside.last().is_some_and(|(at, _)| *at == column) {
            inside.pop();
        }
        let braces: Vec<&str> = inside.iter().map(|(_, name)| *name).collect();
        let join = |last: &str| {
            let path = [[module].as_slice(), &braces, &[last]].concat();
            path.into_iter().filter(|name| !name.is_empty()).collect::<Vec<_>>().join("::")
        };
        if code.starts_with("#[test]") || code.starts_with("#[tokio::test") {
            is_test = true;
        } else if let Some(path) = code.strip_prefix("#[path = \"") {
            elsewhere = path.split('"').next();
        } else if let Some(name) = word_after(code, "mod ") {
            if code.ends_with('{') {
                inside.push((column, name));
            } else if code.ends_with(';') {
                let below = braces.iter().fold(dir.to_owned(), |dir, name| dir.join(name));
                let (file, dir) = match elsewhere.take() {
                    Some(path) => (file.with_file_name(path), below.join(name)),
                    None => (below.join(format!("{name}.rs")), below.join(name)),
                };
                if file.exists() {
                    collect(&file, &dir, &join(name), tests)?;
                }
            }
        } else if let Some(name) = word_after(code, "fn ").filter(|_| is_test) {
            tests.insert(join(name));
            is_test = false;
        }
    }
    Ok(())
}

/// The name behind a keyword with which the line begins, after `pub` and `async`.
fn word_after<'a>(code: &'a str, keyword: &str) -> Option<&'a str> {
    let visible =
        ["pub(crate) ", "pub(super) ", "pub "].iter().find_map(|word| code.strip_prefix(word)).unwrap_or(code);
    let rest = visible.strip_prefix("async ").unwrap_or(visible).strip_prefix(keyword)?;
    rest.split(|c: char| !(c.is_alphanumeric() || c == '_')).next().filter(|name| !name.is_empty())
}

/// Adds the words of a file's string literals: what stands between `::` and placeholders.
fn literals(file: &Path, mut words: BTreeSet<String>) -> Result<BTreeSet<String>> {
    let text = fs::read_to_string(file).with_context(|| format!("reading {}", file.display()))?;
    for line in text.lines().filter(|line| !line.trim_start().starts_with("//")) {
        for literal in line.split('"').skip(1).step_by(2) {
            for part in literal.split("::").flat_map(|part| part.split(['{', '}']).step_by(2)) {
                words.insert(part.replace('-', "_"));
            }
        }
    }
    words.remove("");
    Ok(words)
}

/// Whether a segment of a trial's name is one of the words, or what is not `*` in it is part of some.
fn is_made_of(segment: &str, words: &BTreeSet<String>) -> bool {
    let segment = segment.replace('-', "_");
    if !segment.contains('*') {
        return words.contains(&segment);
    }
    segment.split('*').all(|piece| words.iter().any(|word| word.contains(piece)))
}

/// Whether a name is as the pattern says; `*` is any text.
fn fits(pattern: &str, name: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == name,
        Some((head, rest)) => name.strip_prefix(head).is_some_and(|tail| {
            tail.char_indices().map(|(at, _)| at).chain([tail.len()]).any(|at| fits(rest, tail.get(at..).unwrap_or("")))
        }),
    }
}

#[cfg(test)]
mod tests;
