//! The definitions for Kubernetes.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use k8s_openapi::api::rbac::v1::ClusterRole;
use serde_json::{Value, json};

use crate::policy::object::definitions;

/// Every property of a schema, with its name.
fn properties<'s>(schema: &'s Value, found: &mut Vec<(&'s str, &'s Value)>) {
    for (name, property) in schema["properties"].as_object().into_iter().flatten() {
        found.push((name, property));
        properties(property, found);
        properties(&property["items"], found);
    }
}

#[test]
fn an_api_server_refuses_what_the_reader_refuses_of_lists() {
    let (mut lists, mut rules) = (0, 0);
    for (file, definition) in definitions() {
        let schema = serde_json::to_value(&definition.spec.versions[0].schema).unwrap();
        let mut found = Vec::new();
        properties(&schema["openAPIV3Schema"], &mut found);
        for (name, property) in found {
            if matches!(name, "from" | "to" | "ports") {
                lists += 1;
                assert_eq!(property["minItems"], json!(1), "{file}: {name}");
            }
            if property["items"]["properties"].get("unauthenticated").is_some() {
                rules += 1;
                assert_eq!(property["x-kubernetes-list-type"], "map", "{file}: {name}");
                assert_eq!(property["x-kubernetes-list-map-keys"], json!(["name"]), "{file}: {name}");
            }
        }
    }
    assert_eq!((lists, rules), (17, 8));
}

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

/// What is no team's to write is in no role that Kubernetes gives to a namespace's editors.
#[test]
fn teams_write_their_own_policies_and_nothing_else() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../deploy/rbac/policy.yaml");
    let text = fs::read_to_string(file).unwrap();
    let roles: Vec<ClusterRole> = serde_saphyr::from_multiple(&text).unwrap();
    let known: BTreeSet<String> = definitions().into_iter().map(|(_, of)| of.spec.names.plural).collect();
    let mut written = BTreeSet::new();
    for role in &roles {
        let aggregated = role.metadata.labels.iter().flatten().any(|(key, _)| key.contains("/aggregate-to-"));
        assert_eq!(role.aggregation_rule, None);
        for rule in role.rules.iter().flatten() {
            assert_eq!(rule.api_groups.as_deref(), Some(&["kumiko.dev".to_owned()][..]));
            let resources: BTreeSet<String> = rule.resources.iter().flatten().cloned().collect();
            assert!(resources.is_subset(&known), "{resources:?}");
            assert!(!aggregated || resources == BTreeSet::from(["meshpolicies".to_owned()]), "{resources:?}");
            written.extend(resources);
        }
    }
    assert_eq!(written, known);
}
