//! Whether the comparisons notice when one clause of formula or compiler is taken away.
//!
//! All mutants are one build: in a copy of the sources each clause stands beside what is left without it, and a variable of
//! the environment says which is taken.

mod list;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::{env, fs};

use list::{MUTATIONS, Mutation};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().unwrap()
}

fn source(root: &Path, file: &str) -> PathBuf {
    root.join("agent/core/src/policy").join(file)
}

#[test]
fn each_clause_of_the_list_stands_once() {
    let mut names = BTreeSet::new();
    for Mutation { what, file, clause, with, .. } in MUTATIONS {
        assert!(names.insert((file, clause)), "{what} is there twice");
        let text = fs::read_to_string(source(&root(), file)).unwrap();
        assert_eq!(text.matches(clause).count(), 1, "{what}: {file}: {clause}");
        assert!(with.contains("OFF"), "{what}");
    }
}

/// Copies a folder without what is built there.
fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let (path, to) = (entry.path(), to.join(entry.file_name()));
        if path.is_dir() {
            copy(&path, &to);
        } else {
            fs::copy(&path, &to).unwrap();
        }
    }
}

/// The sources with all mutants in them.
fn mutated(to: &Path) {
    let root = root();
    for part in ["agent/core", "ebpf/abi", "tests/worlds", "tests/corpus"] {
        copy(&root.join(part), &to.join(part));
    }
    fs::copy(root.join("Cargo.lock"), to.join("Cargo.lock")).unwrap();
    let manifest = fs::read_to_string(root.join("Cargo.toml")).unwrap();
    let (before, rest) = manifest.split_once("members = [").unwrap();
    let (_, after) = rest.split_once(']').unwrap();
    let members = r#"members = ["agent/core", "ebpf/abi", "tests/worlds", "tests/corpus"]"#;
    fs::write(to.join("Cargo.toml"), format!("{before}{members}{after}")).unwrap();
    for (number, Mutation { file, clause, with, .. }) in MUTATIONS.iter().enumerate() {
        let path = source(to, file);
        let with = with.replace("OFF", &format!("crate::is_off({number})"));
        fs::write(&path, fs::read_to_string(&path).unwrap().replacen(clause, &with, 1)).unwrap();
    }
    let lib = to.join("agent/core/src/lib.rs");
    let text = fs::read_to_string(&lib).unwrap();
    let switch = r#"
pub(crate) fn is_off(number: u32) -> bool {
    static OFF: std::sync::OnceLock<Option<u32>> = std::sync::OnceLock::new();
    *OFF.get_or_init(|| std::env::var("KUMIKO_MUTANT").ok()?.parse().ok()) == Some(number)
}
"#;
    fs::write(lib, text + switch).unwrap();
}

/// Builds the copy; the path of its test program.
fn build(at: &Path) -> PathBuf {
    // In the folder of the real ones, cargo would take these for them.
    let built = Path::new(env!("CARGO_TARGET_TMPDIR")).join("mutants-built");
    let cargo = env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned());
    let mut command = Command::new(cargo);
    command.args([
        "test",
        "--offline",
        "-p",
        "kumiko-core",
        "--test",
        "policy",
        "--no-run",
        "--message-format",
        "json",
    ]);
    command.env("CARGO_TARGET_DIR", built).current_dir(at);
    let output = command.stderr(Stdio::inherit()).output().unwrap();
    assert!(output.status.success(), "the mutants cannot be built");
    let text = String::from_utf8(output.stdout).unwrap();
    let executable = |line: &str| {
        let message: serde_json::Value = serde_json::from_str(line).ok()?;
        (message["target"]["name"] == "policy").then(|| message["executable"].as_str().map(PathBuf::from))?
    };
    text.lines().find_map(executable).unwrap()
}

fn passes(program: &Path, tests: &str, mutant: Option<usize>) -> bool {
    let mut command = Command::new(program);
    command.arg(tests).env("RUST_BACKTRACE", "0").stdout(Stdio::null()).stderr(Stdio::null());
    if let Some(number) = mutant {
        command.env("KUMIKO_MUTANT", number.to_string());
    }
    command.status().unwrap().success()
}

#[test]
#[ignore = "takes minutes: cargo test -p kumiko-core --test policy -- --ignored --nocapture mutations"]
fn each_clause_is_missed_when_it_is_taken_away() {
    let at = Path::new(env!("CARGO_TARGET_TMPDIR")).join("mutants");
    let _ = fs::remove_dir_all(&at);
    mutated(&at);
    let program = build(&at);
    let all: BTreeSet<&str> = MUTATIONS.iter().map(|mutation| mutation.by).collect();
    for tests in all {
        assert!(passes(&program, tests, None), "{tests} fails without any mutant");
    }
    let mut unnoticed = Vec::new();
    for (number, Mutation { what, by, file, clause, .. }) in MUTATIONS.iter().enumerate() {
        let passes = passes(&program, by, Some(number));
        println!("{number}: {what}: {}", if passes { "NOT NOTICED" } else { "noticed" });
        if passes {
            unnoticed.push(format!("{what} ({file}: {clause}) by {by}"));
        }
    }
    assert!(unnoticed.is_empty(), "{} of {}:\n{}", unnoticed.len(), MUTATIONS.len(), unnoticed.join("\n"));
}
