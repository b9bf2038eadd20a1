//! Every message of the reader and loader, whole, as people see it: with file, line, cause and what to do. Each file of `said`
//! is a list of documents, each with all that is said of it. A message without a document fails [`none_is_left_out`].

use std::collections::{BTreeMap, BTreeSet};

use super::super::*;
use crate::model::World;
use crate::policy::foreign::Raised;
use crate::policy::load::{Unfit, load_after};
use crate::policy::nobody;
use crate::principal::PrincipalError;

/// `## title`, documents (`=== name` begins another file than `f`), `->`, and what is said.
const LISTS: [(&str, &str); 5] = [
    ("yaml", include_str!("said/yaml.txt")),
    ("cluster", include_str!("said/cluster.txt")),
    ("rules", include_str!("said/rules.txt")),
    ("objects", include_str!("said/objects.txt")),
    ("together", include_str!("said/together.txt")),
];

/// 2026-11-25.
const NOW: i64 = 1_795_564_800;

/// An enum's variants by name. The match is exhaustive: a new variant does not compile until it is listed, and then wants its
/// document.
macro_rules! variants {
    ($type:ident as $name:ident in $all:ident: $($variant:ident)*) => {
        const $all: &[&str] = &[$(concat!(stringify!($type), "::", stringify!($variant))),*];
        fn $name(of: &$type) -> &'static str {
            match of {
                $($type::$variant { .. } => concat!(stringify!($type), "::", stringify!($variant)),)*
            }
        }
    };
}

variants!(Problem as problem in PROBLEMS:
    Unreadable NotText Unfinished TooLarge TooManyFiles FolderTooDeep Syntax TooDeep TooManyValues BadAlias Tag BadKey
    DuplicateKey NotAnObject Missing UnknownKind UnknownField Shape NoPrincipal Value TooLong BadStage Attachment Claimed Lowers
    NeverValid Disputed Folder);
variants!(Mismatch as mismatch in MISMATCHES: Type Octal Unquoted Missing Word Other);
variants!(NotHad as not_had in NOT_HAD: Outside Claimed Shared);
variants!(PrincipalError as principal in PRINCIPALS: Form Part);
variants!(Unfit as unfit in UNFIT:
    TeamsLabel NothingToSuspend StageTooLow NotRaised NotEnforced TrustDomain OwnTrustDomain NothingToReplace AllowsNobody SelectsNobody
    HasEnded SaysNothing PortOfNobody ServicesNetwork DeniesNobody);

/// All there is to be said.
fn all() -> BTreeSet<String> {
    let named = [PROBLEMS, MISMATCHES, NOT_HAD, PRINCIPALS, UNFIT].into_iter().flatten().map(|name| (*name).to_owned());
    let broken = Broken::ALL.iter().map(|rule| format!("{rule:?}"));
    named.chain(broken).chain(Meanwhile::ALL.iter().map(|means| format!("{means:?}"))).collect()
}

/// What a problem is made of.
fn parts(of: &Problem) -> Vec<String> {
    let inner = match of {
        Problem::Value { rule, .. } => Some(format!("{rule:?}")),
        Problem::NeverValid { means, .. } => Some(format!("{means:?}")),
        Problem::Shape { why, .. } => Some(mismatch(why).to_owned()),
        Problem::Disputed { why, .. } => Some(not_had(why).to_owned()),
        Problem::NoPrincipal { why, .. } => Some(principal(why).to_owned()),
        _ => None,
    };
    inner.into_iter().chain([problem(of).to_owned()]).collect()
}

/// What an agent says of a folder, and what these messages are made of.
#[derive(Default)]
struct Said {
    lines: Vec<String>,
    parts: BTreeSet<String>,
}

impl Said {
    fn of(files: BTreeMap<String, FileContent>) -> Self {
        let mut folder = FolderState::of(Scope::Policy);
        folder.apply(files);
        let (world, of_world) = World::build("cluster.local", 1, folder.objects()).unwrap();
        let mut said = Self::default();
        for diagnostic in folder.diagnostics().chain(&of_world) {
            said.lines.push(diagnostic.to_string());
            said.parts.extend(parts(&diagnostic.problem));
        }
        let namespaces = BTreeMap::from([("was-strict".to_owned(), kumiko_abi::Stage::Strict)]);
        let before = Raised { namespaces, ..Raised::default() };
        let loaded = load_after(&before, Some("cluster.local"), folder.objects());
        for told in loaded.problems.iter().chain(&nobody::told(&world, &loaded, NOW)) {
            said.lines.push(told.to_string());
            said.parts.insert(unfit(&told.problem).to_owned());
        }
        said
    }
}

/// Documents, and what is to be said of them.
struct Case<'t> {
    title: &'t str,
    files: BTreeMap<String, FileContent>,
    wanted: Vec<&'t str>,
}

fn cases(list: &str) -> Vec<Case<'_>> {
    let case = |text| {
        let (title, rest): (&str, &str) = str::split_once(text, '\n').unwrap();
        let (documents, said) = rest.split_once("->\n").unwrap_or((rest, ""));
        let mut files = BTreeMap::from([("f".to_owned(), String::new())]);
        let mut file = "f".to_owned();
        for line in documents.lines() {
            match line.strip_prefix("=== ") {
                Some(name) => name.clone_into(&mut file),
                None => files.entry(file.clone()).or_default().push_str(&format!("{line}\n")),
            }
        }
        let files = files.into_iter().map(|(name, text)| (name, FileContent::Text(text))).collect();
        Case { title, files, wanted: said.lines().filter(|line| !line.is_empty()).collect() }
    };
    list.split("## ").skip(1).map(case).collect()
}

/// What no document alone can say, with its message.
fn made() -> Vec<(FileContent, String)> {
    let many =
        |bytes: usize| format!("f: is {bytes} bytes long, the limit is {MAX_BYTES}: split it into several files");
    let values = format!("[{}]", "0,".repeat(node::MAX_VALUES));
    vec![
        (
            FileContent::Unreadable("Permission denied".into()),
            "f: cannot be read: Permission denied: check its permissions, and of a link, where it leads".into(),
        ),
        (FileContent::NotText(Place { line: 2, column: 7 }), "f:2:7: is not UTF-8 text: save it as UTF-8".into()),
        (FileContent::Unfinished, "f: is still being written: it is read when its writer closes it".into()),
        (FileContent::TooLarge(MAX_BYTES + 1), many(MAX_BYTES + 1)),
        (FileContent::Text("#".repeat(MAX_BYTES + 2)), many(MAX_BYTES + 2)),
        (
            FileContent::TooMany(10),
            "f: the folder holds more than 10 manifests: this file is left out; put several documents into one file"
                .into(),
        ),
        (FileContent::TooDeep(8), "f: lies below 8 other folders: nothing in it is read; move it up".into()),
        (FileContent::Text(values), "f:1:1: holds more than 800000 values (aliases expanded): split the file".into()),
    ]
}

/// The folder itself cannot be read: the agent's source says it (agent/daemon/src/source.rs).
fn of_the_folder() -> Diagnostic {
    let why = "No such file or directory (os error 2)".to_owned();
    Diagnostic { file: String::new(), place: Place::FILE, problem: Problem::Folder { why } }
}

#[test]
fn each_message_whole() {
    let mut wrong = String::new();
    for (name, list) in LISTS {
        for Case { title, files, wanted } in cases(list) {
            let Said { lines, .. } = Said::of(files);
            if lines != wanted {
                wrong.push_str(&format!("{name}, {title}:\n{}\n", lines.join("\n")));
            }
        }
    }
    for (content, wanted) in made() {
        let Said { lines, .. } = Said::of(BTreeMap::from([("f".to_owned(), content)]));
        if lines != [wanted.clone()] {
            wrong.push_str(&format!("{lines:?}, not {wanted}\n"));
        }
    }
    assert!(wrong.is_empty(), "said otherwise:\n{wrong}");
    assert_eq!(
        of_the_folder().problem.to_string(),
        "the folder cannot be read: No such file or directory (os error 2): the last good state stays in force; see that \
         --source names a folder, and its permissions"
    );
}

#[test]
fn none_is_left_out() {
    let lists = LISTS.iter().flat_map(|(_, list)| cases(list)).map(|case| case.files);
    let made = made().into_iter().map(|(content, _)| BTreeMap::from([("f".to_owned(), content)]));
    let mut shown: BTreeSet<String> = lists.chain(made).flat_map(|files| Said::of(files).parts).collect();
    shown.extend(parts(&of_the_folder().problem));
    let left_out: Vec<_> = all().difference(&shown).cloned().collect();
    assert!(left_out.is_empty(), "no document in manifest/tests/said brings about: {left_out:?}");
}
