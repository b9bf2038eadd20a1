#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests")]

use super::*;

/// A repository with one crate that has tests, one with trials, and this page.
fn broken(table: &str) -> Vec<String> {
    let root = tempfile::tempdir().unwrap();
    let write = |path: &str, text: &str| {
        let path = root.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    };
    write(
        "agent/core/src/lib.rs",
        "pub mod one;\nmod two {\n    mod three;\n}\n#[path = \"elsewhere.rs\"]\nmod four;\n",
    );
    write("agent/core/src/one.rs", "fn helper() {}\n#[cfg(test)]\nmod tests {\n    #[test]\n    fn is_told() {}\n}\n");
    write("agent/core/src/two/three.rs", "#[tokio::test]\nasync fn waits() {}\nfn no_test() {}\n");
    write("agent/core/src/elsewhere.rs", "proptest! {\n    #[test]\n    fn any(x in 0..1) {}\n}\n");
    let trials = "fn main() {}\nconst N: &[&str] = &[\"kill\", \"in-time\"];\nfn f() { format!(\"{net}::wire\"); }\n";
    write("tests/tests/odd.rs", trials);
    write("tests/src/twins.rs", "fn name() { \"cross_node\" }\n");
    write("benches/src/measure.rs", "name: \"one stream\"\n");
    write(PAGE, &format!("# Page\n\n| | promise | proof |\n|---|---|---|\n{table}"));
    check(root.path()).unwrap()
}

#[test]
fn what_exists_is_found() {
    let proofs = [
        "core/lib::one::tests::is_told",
        "core/lib::one::*",
        "core/lib::two::three::waits",
        "core/lib::four::any",
        "tests/odd::cross_node::kill",
        "tests/odd::*::wire",
        "tests/odd::*::kill*in_time",
        "bench::one stream",
    ];
    for proof in proofs {
        assert_eq!(broken(&format!("| D1 | Works. | `{proof}` |\n")), [""; 0]);
    }
    assert_eq!(broken("| D1 | Will work. | **pending**: not built |\n"), [""; 0]);
}

#[test]
fn what_does_not_exist_is_told_with_its_line() {
    let proofs = [
        "core/lib::one::is_told",
        "core/lib::one::tests::helper",
        "core/lib::two::three::no_test",
        "core/lib::three::waits",
        "core/lib::zero::*",
        "core/odd::one",
        "nobody/lib::one",
        "tests/odd::cross_node::killed",
        "tests/odd::same_node::kill",
        "bench::two streams",
    ];
    for proof in proofs {
        let told = broken(&format!("| D1 | Works. | `core/lib::four::any` |\n| D2 | Too. | `{proof}` |\n"));
        assert_eq!(told.len(), 1, "{proof}: {told:?}");
        assert!(told[0].starts_with("SPECIFICATION.md:6: D2: no "), "{told:?}");
    }
}

#[test]
fn the_form_is_kept() {
    for (row, said) in [
        ("| D2 | Works. | `core/lib::four::any` |\n", "the next number of its area is D1"),
        ("| D1 | Works. | |\n", "has no proof"),
        ("| D1 | Works. | see the tests |\n", "has no proof"),
        ("| D1 | | `core/lib::four::any` |\n", "promises nothing"),
        ("| D1 | Works. | **pending** |\n", "without a reason"),
        ("", "no promise is found"),
    ] {
        let told = broken(row);
        assert!(told.len() == 1 && told[0].contains(said), "{row}: {told:?}");
    }
}

#[test]
fn the_page_of_this_repository() {
    let told = check(&crate::process::root()).unwrap();
    assert!(told.is_empty(), "{}", told.join("\n"));
}
