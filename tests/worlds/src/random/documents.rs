//! A world as documents.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::STAGES;
use crate::naive::Everything;

/// The same as documents, one a line.
pub fn documents(all: &Everything) -> String {
    let mut documents = vec![json!({
        "apiVersion": "kumiko.dev/v1alpha1", "kind": "MeshSettings", "metadata": { "name": "mesh" },
        "spec": { "platformLabelPrefixes": ["platform.example/"], "podCidrs": all.inside, "apiServer": all.api_server },
    })];
    let mut namespaces = BTreeMap::new();
    for pod in &all.pods {
        namespaces.insert(&pod.namespace, (&pod.namespace_labels, pod.stage));
    }
    for (name, (labels, stage)) in namespaces {
        let mut labels = labels.clone();
        labels.insert("kumiko.dev/stage".to_owned(), STAGES[usize::from(stage)].to_owned());
        documents.push(json!({
            "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": name, "labels": labels },
        }));
    }
    let mut nodes: BTreeMap<&String, Vec<Value>> = BTreeMap::new();
    for (name, ip) in &all.nodes {
        nodes.entry(name).or_default().push(json!({ "type": "InternalIP", "address": ip }));
    }
    for (name, addresses) in nodes {
        documents.push(json!({
            "apiVersion": "v1", "kind": "Node", "metadata": { "name": name }, "status": { "addresses": addresses },
        }));
    }
    for pod in &all.pods {
        let port = |(name, number, udp, probe): &(String, u16, bool, bool)| json!({ "name": name, "port": number, "protocol": if *udp { "UDP" } else { "TCP" }, "probe": probe });
        documents.push(json!({
            "apiVersion": "kumiko.dev/v1alpha1", "kind": "Workload",
            "metadata": { "name": pod.name, "namespace": pod.namespace, "uid": pod.name, "labels": pod.labels },
            "spec": {
                "serviceAccount": pod.account, "node": pod.node, "ips": pod.ips,
                "ports": pod.ports.iter().map(port).collect::<Vec<_>>(),
            },
        }));
    }
    for (name, spec) in &all.baselines {
        documents.push(own("MeshBaseline", None, name, json!(spec)));
    }
    for (name, spec) in &all.exceptions {
        documents.push(own("MeshException", None, name, json!(spec)));
    }
    let valid = policies(all).into_iter().filter(|(name, _)| !all.broken.contains(name));
    documents.extend(valid.map(|(_, document)| document));
    documents.iter().map(|document| format!("---\n{document}\n")).collect()
}

fn own(kind: &str, namespace: Option<&String>, name: &String, spec: Value) -> Value {
    let mut metadata = json!({ "name": name });
    if let Some(namespace) = namespace {
        metadata["namespace"] = json!(namespace);
    }
    json!({ "apiVersion": "kumiko.dev/v1alpha1", "kind": kind, "metadata": metadata, "spec": spec })
}

/// What teams write, by its name.
fn policies(all: &Everything) -> Vec<(String, Value)> {
    let ours = all
        .policies
        .iter()
        .map(|(namespace, name, spec)| (name.clone(), own("MeshPolicy", Some(namespace), name, json!(spec))));
    let others = all.network.iter().map(|(namespace, name, spec)| {
        let mut document = own("NetworkPolicy", Some(namespace), name, json!(spec));
        document["apiVersion"] = json!("networking.k8s.io/v1");
        (name.clone(), document)
    });
    ours.chain(others).collect()
}

/// Documents of which no version ever was valid: a label is a number.
pub fn broken(all: &Everything) -> Vec<String> {
    let of = policies(all).into_iter().filter(|(name, _)| all.broken.contains(name));
    of.map(|(_, mut document)| {
        document["metadata"]["labels"] = json!({ "broken": 1 });
        document.to_string()
    })
    .collect()
}
