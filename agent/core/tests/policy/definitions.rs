//! The definitions of `deploy/crds` and the reader of manifests against each other, over documents with one thing changed: what
//! an API server refuses by schema or CEL, the reader refuses; what the reader refuses besides is listed here.

use std::collections::{BTreeMap, BTreeSet};

use jsonschema::Validator;
use kube_cel::{CompiledSchema, compile_schema};
use kumiko_core::manifest::{Scope, parse_in};
use kumiko_core::policy::object::definitions;
use kumiko_worlds::{Random, documents};
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use serde_json::{Map, Value, json};

use super::first_seed;

/// Changed documents.
const DOCUMENTS: u64 = 20_000;

/// What a schema does not say, by a part of the reader's message.
const BEYOND: [&str; 16] = [
    "is no value: write one",
    "must be a network",
    "must be an IPv4 or IPv6 address",
    "must be a trust domain",
    "must be a label's prefix with its slash",
    "is no value of a label",
    "must be 1 to 63 lower-case letters",
    "must be labels of lower-case letters",
    "must be a port name",
    ": a pod's author",
    "says nothing in a deny rule",
    "must be a workload (namespace",
    "says nothing of ingress and nothing of egress",
    "is missing: add it",
    "is an account of any namespace, then",
    "does not begin with a prefix that MeshSettings",
];

/// What an API server knows of a kind.
struct Definition {
    schema: Value,
    structure: Validator,
    rules: CompiledSchema,
}

impl Definition {
    fn new(schema: &Value) -> Self {
        let mut schema = schema.clone();
        schema["properties"]["apiVersion"] = json!({ "type": "string" });
        schema["properties"]["kind"] = json!({ "type": "string" });
        let names = json!({ "name": { "type": "string" }, "namespace": { "type": "string" } });
        schema["properties"]["metadata"] = json!({ "type": "object", "properties": names });
        let rules = compile_schema(&without_types(&schema));
        assert!(!rules.has_errors(), "{:?}", rules.compilation_errors());
        let structure = jsonschema::draft4::new(&strict(&schema)).unwrap();
        Self { schema, structure, rules }
    }

    /// Why it refuses a document.
    fn refusal(&self, document: &Value) -> Option<String> {
        if let Err(error) = self.structure.validate(document) {
            return Some(format!("{}: {error}", error.instance_path()));
        }
        if let Some(twice) = named_twice(&self.schema, document) {
            return Some(twice);
        }
        let asked = kube_cel::Validator::new().validate_compiled(&self.rules, document, None);
        asked.err().map(|errors| format!("{errors:?}"))
    }
}

/// CEL's `type` is not known to the crate, so what is asked by it is asked in another way.
fn without_types(schema: &Value) -> Value {
    let text = schema.to_string().replace("type(self.port) == int", "self.port != string(self.port)");
    let text = text.replace("type(self.port) != int", "self.port == string(self.port)");
    serde_json::from_str(&text).unwrap()
}

/// An OpenAPI schema of Kubernetes as JSON Schema: `nullable` and `x-kubernetes-int-or-string` as types, and no other fields
/// than those that are named (`kubectl apply` refuses them).
fn strict(schema: &Value) -> Value {
    let mut schema = match schema {
        Value::Object(fields) => fields.iter().map(|(key, value)| (key.clone(), strict(value))).collect(),
        Value::Array(all) => return all.iter().map(strict).collect(),
        other => return other.clone(),
    };
    let fields: &mut Map<String, Value> = &mut schema;
    if fields.get("x-kubernetes-int-or-string") == Some(&json!(true)) {
        fields.insert("type".to_owned(), json!(["integer", "string"]));
    }
    if fields.get("nullable") == Some(&json!(true))
        && let Some(types) = fields.get_mut("type")
    {
        *types = match types.take() {
            Value::Array(all) => all.into_iter().chain([json!("null")]).collect(),
            one => json!([one, "null"]),
        };
    }
    if fields.get("properties").is_some_and(|known| known.get("type").is_none_or(Value::is_object))
        && !fields.contains_key("additionalProperties")
    {
        fields.insert("additionalProperties".to_owned(), json!(false));
    }
    Value::Object(schema)
}

/// Two elements of a list that is a map by its keys (`x-kubernetes-list-map-keys`) with the same keys.
fn named_twice(schema: &Value, value: &Value) -> Option<String> {
    match value {
        Value::Object(fields) => fields.iter().find_map(|(name, value)| {
            let of = schema["properties"].get(name).unwrap_or(&schema["additionalProperties"]);
            named_twice(of, value)
        }),
        Value::Array(all) => {
            let keys: Vec<&str> = schema["x-kubernetes-list-map-keys"]
                .as_array()
                .into_iter()
                .flatten()
                .filter_map(Value::as_str)
                .collect();
            let mut seen = BTreeSet::new();
            let again = |one: &&Value| {
                let of: Vec<&Value> = keys.iter().map(|key| &one[*key]).collect();
                !keys.is_empty() && !seen.insert(json!(of).to_string())
            };
            let twice = all.iter().find(again).map(|one| format!("{one} is there twice"));
            twice.or_else(|| all.iter().find_map(|one| named_twice(&schema["items"], one)))
        }
        _ => None,
    }
}

/// Documents that say what random worlds do not.
fn further() -> Vec<Value> {
    let own = |kind: &str, metadata: Value, spec: Value| json!({ "apiVersion": "kumiko.dev/v1alpha1", "kind": kind, "metadata": metadata, "spec": spec });
    let grace = json!({ "action": "grace", "seconds": 60 });
    let rule = json!({ "name": "a", "ports": [{ "port": 80, "endPort": 90 }, { "protocol": "UDP", "port": 53 }, { "protocol": "ICMP" }] });
    let tier = json!({ "platform.example/tier": "prod" });
    vec![
        own(
            "MeshSettings",
            json!({ "name": "mesh" }),
            json!({
                "platformLabelPrefixes": ["platform.example/"], "minStage": [{ "namespaceLabels": tier, "stage": "strict" }],
                "podCidrs": ["10.0.0.0/8"], "serviceCidrs": ["10.96.0.0/16"], "nodeCidrs": ["172.16.0.0/16"],
                "apiServer": ["172.16.0.1"], "trustDomains": ["td"], "legacyMaxAge": "24h", "permissiveWithoutAgent": "refuse",
                "sameNodeFastPath": false, "acceptedPolicyKinds": [],
            }),
        ),
        own(
            "MeshBaseline",
            json!({ "name": "b" }),
            json!({
                "mode": "enforce", "cutLegacy": true, "onRevoke": grace, "subject": { "namespaceLabels": tier },
                "ingress": { "deny": [rule], "allow": [rule], "guarantee": [rule] }, "egress": { "deny": [rule] },
            }),
        ),
        own(
            "MeshPolicy",
            json!({ "name": "p", "namespace": "a" }),
            json!({
                "mode": "audit", "replaces": ["q"], "onRevoke": { "action": "keep" }, "subject": { "labels": { "app": "a" } },
                "ingress": [rule], "egress": [],
            }),
        ),
        own(
            "MeshException",
            json!({ "name": "e" }),
            json!({
                "suspends": [{ "baseline": "b", "rules": ["ingress.allow"] }], "subject": { "namespace": "a" },
                "peers": [{ "namespace": "b" }], "owner": "me", "expires": "2030-01-01T00:00:00Z", "onExpiry": grace,
            }),
        ),
    ]
}

/// Changes one thing of a document.
struct Change(StdRng);

impl Change {
    fn below(&mut self, end: usize) -> usize {
        self.0.random_range(0..end)
    }

    fn odd(&mut self) -> Value {
        let all = [
            json!(null),
            json!(true),
            json!(0),
            json!(1),
            json!(80),
            json!(100),
            json!(65_535),
            json!(65_536),
            json!(-1),
            json!(""),
            json!("a"),
            json!("A b"),
            json!("web"),
            json!("80"),
            json!("UDP"),
            json!("ICMP"),
            json!("grace"),
            json!("keep"),
            json!("cut"),
            json!("audit"),
            json!("world"),
            json!("mesh"),
            json!("24h"),
            json!("10.0.0.0/8"),
            json!("spiffe://td/ns/a/sa/x"),
            json!("x".repeat(300)),
            json!([]),
            json!(["a"]),
            json!({}),
            json!({ "platform.example/tier": "prod" }),
            json!({ "cidr": "10.0.0.0/8" }),
            json!({ "action": "grace" }),
            json!({ "action": "cut", "seconds": 1 }),
            json!([{ "port": 80 }]),
            json!([{ "namespace": "a" }]),
        ];
        let at = self.below(all.len());
        all.into_iter().nth(at).unwrap()
    }

    /// Goes down from a value to one of its parts, and changes something there.
    fn change(&mut self, value: &mut Value, schema: &Value) {
        match value {
            Value::Object(fields) if !fields.is_empty() && self.below(4) > 0 => {
                let at = self.below(fields.len());
                let (name, part) = fields.iter_mut().nth(at).unwrap();
                let of = schema["properties"].get(name).unwrap_or(&schema["additionalProperties"]);
                self.change(part, of);
            }
            Value::Array(all) if !all.is_empty() && self.below(4) > 0 => {
                let at = self.below(all.len());
                self.change(&mut all[at], &schema["items"]);
            }
            Value::Object(fields) => match self.below(4) {
                0 => *value = self.odd(),
                1 if !fields.is_empty() => {
                    let at = self.below(fields.len());
                    let name = fields.keys().nth(at).unwrap().clone();
                    fields.remove(&name);
                }
                _ => {
                    let known: Vec<&String> =
                        schema["properties"].as_object().into_iter().flat_map(Map::keys).collect();
                    let name =
                        if known.is_empty() || self.below(20) == 0 { "odd" } else { known[self.below(known.len())] };
                    fields.insert(name.to_owned(), self.odd());
                }
            },
            Value::Array(all) => match self.below(5) {
                0 => *value = self.odd(),
                1 => all.clear(),
                2 => all.push(self.odd()),
                3 => all.extend(all.first().cloned()),
                _ => *all = all.iter().cycle().take(all.len().min(1) * 300).cloned().collect(),
            },
            other => *other = self.odd(),
        }
    }
}

/// What is changed: `spec`, or the name.
fn changed(document: &Value, schema: &Value, seed: u64) -> Value {
    let (mut document, mut change) = (document.clone(), Change(StdRng::seed_from_u64(seed)));
    if change.below(40) == 0 {
        document["metadata"]["name"] = change.odd();
    } else {
        for _ in 0..=change.below(2) {
            change.change(&mut document["spec"], &schema["properties"]["spec"]);
        }
    }
    document
}

#[test]
fn the_reader_refuses_what_an_api_server_would() {
    let definitions: BTreeMap<String, Definition> = definitions()
        .into_iter()
        .map(|(_, definition)| {
            let schema = serde_json::to_value(&definition.spec.versions[0].schema).unwrap();
            (definition.spec.names.kind, Definition::new(&schema["openAPIV3Schema"]))
        })
        .collect();
    let mut counts = BTreeMap::<String, [usize; 2]>::new();
    let mut met = BTreeSet::new();
    let mut seed = first_seed();
    let end = seed + DOCUMENTS;
    while seed < end {
        let world = Random::new(seed).everything();
        let text = documents(&world);
        let of_world = text.lines().filter(|line| *line != "---").map(|line| serde_json::from_str(line).unwrap());
        for document in further().into_iter().chain(of_world) {
            let kind = document["kind"].as_str().unwrap();
            let Some(definition) = definitions.get(kind) else { continue };
            assert_eq!(definition.refusal(&document), None, "{document}");
            let document = changed(&document, &definition.schema, seed);
            seed += 1;
            let server = definition.refusal(&document);
            let reader = parse_in(Scope::Policy, "f", &document.to_string()).err();
            let reader = reader.map(|told| told.iter().map(ToString::to_string).collect::<Vec<_>>());
            counts.entry(kind.to_owned()).or_default()[usize::from(server.is_some())] += 1;
            match (&server, &reader) {
                (Some(server), None) => panic!("seed {seed}: only the API server refuses: {server}\n{document}"),
                (None, Some(reader)) => reader.iter().for_each(|told| {
                    let known = BEYOND.iter().find(|one| told.contains(**one));
                    met.insert(
                        *known.unwrap_or_else(|| panic!("seed {seed}: only the reader refuses: {told}\n{document}")),
                    );
                }),
                _ => {}
            }
        }
    }
    println!("taken and refused by the API server: {counts:?}");
    // What takes two changes at one place is not met from each seed.
    let unmet: Vec<_> = BEYOND.iter().filter(|one| !met.contains(**one)).collect();
    assert!(unmet.len() <= 2, "listed, and not met: {unmet:?}");
    assert!(counts.values().flatten().all(|count| *count > 100), "{counts:?}");
}
