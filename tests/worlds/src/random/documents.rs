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
    for (name, ip) in &all.nodes {
        documents.push(json!({
            "apiVersion": "v1", "kind": "Node", "metadata": { "name": name },
            "status": { "addresses": [{ "type": "InternalIP", "address": ip }] },
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
    let own = |kind: &str, namespace: Option<&String>, name: &String, spec: Value| {
        let mut metadata = json!({ "name": name });
        if let Some(namespace) = namespace {
            metadata["namespace"] = json!(namespace);
        }
        json!({ "apiVersion": "kumiko.dev/v1alpha1", "kind": kind, "metadata": metadata, "spec": spec })
    };
    for (name, spec) in &all.baselines {
        documents.push(own("MeshBaseline", None, name, json!(spec)));
    }
    for (namespace, name, spec) in &all.policies {
        documents.push(own("MeshPolicy", Some(namespace), name, json!(spec)));
    }
    for (name, spec) in &all.exceptions {
        documents.push(own("MeshException", None, name, json!(spec)));
    }
    for (namespace, name, spec) in &all.network {
        documents.push(json!({
            "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
            "metadata": { "name": name, "namespace": namespace }, "spec": spec,
        }));
    }
    documents.iter().map(|document| format!("---\n{document}\n")).collect()
}
