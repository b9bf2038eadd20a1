//! The definitions for Kubernetes.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use crate::policy::object::definitions;

#[test]
fn deploy_crds_is_what_the_types_say() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../deploy/crds");
    let there: BTreeSet<String> =
        fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    assert_eq!(there, definitions().iter().map(|(name, _)| (*name).to_owned()).collect());
    for (name, definition) in definitions() {
        let fresh = serde_saphyr::to_string(&definition).unwrap();
        assert_eq!(fs::read_to_string(dir.join(name)).unwrap(), fresh, "{name} is stale: run `cargo xtask crds`");
    }
}
