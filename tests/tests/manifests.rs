//! The folder that a lab writes is one that agents take whole.

use std::collections::BTreeMap;
use std::fs;

use kumiko_core::manifest::{FileContent, FolderState};
use kumiko_lab::{LabSpec, Net, Stage, manifests};

#[test]
fn agents_take_the_labs_folder() {
    let dir = tempfile::tempdir().unwrap();
    let spec = LabSpec::standard("any", 3, Net::Routed, Stage::Strict).with_ports(20_000, 100);
    manifests::write(dir.path(), "ab12", &spec).unwrap();
    let mut read = BTreeMap::new();
    for entry in fs::read_dir(dir.path()).unwrap() {
        let entry = entry.unwrap();
        let text = fs::read_to_string(entry.path()).unwrap();
        read.insert(entry.file_name().into_string().unwrap(), FileContent::Text(text));
    }
    let mut folder = FolderState::default();
    assert!(folder.apply(read));
    let refused: Vec<_> = folder.diagnostics().map(ToString::to_string).collect();
    assert!(refused.is_empty(), "{refused:#?}");
    // Nodes, a namespace, workloads, Services, slices, accounts.
    assert_eq!(folder.objects().count(), 3 + 1 + 6 + 4 + 2 + 2);
}
