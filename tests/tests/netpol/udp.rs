//! Upstream's cases of UDP.

use super::table::Step::{Policy, Udp};
use super::table::{Case, no, yes};

pub(super) const CASES: &[Case] = &[
    Case {
        name: "should support a 'default-deny-ingress' policy",
        steps: &[
            Policy("x", "deny-all", "podSelector: {}, policyTypes: [Ingress], ingress: []"),
            Udp(80, &[no("*", "x/*")]),
        ],
    },
    Case {
        name: "should enforce policy based on Ports",
        steps: &[
            Policy(
                "x",
                "allow-ingress-on-port-81-ns-x",
                "podSelector: {matchLabels: {pod: a}}, policyTypes: [Ingress],
                 ingress: [{from: [{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: y}}}],
                   ports: [{port: 81, protocol: UDP}]}]",
            ),
            Udp(81, &[no("x/*", "x/a"), no("z/*", "x/a")]),
        ],
    },
    Case {
        name: "should enforce policy to allow traffic only from a pod in a different namespace based on PodSelector and \
               NamespaceSelector",
        steps: &[
            Policy(
                "x",
                "allow-ns-y-pod-a-via-namespace-pod-selector",
                "podSelector: {matchLabels: {pod: a}}, policyTypes: [Ingress],
                 ingress: [{from: [{
                   namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: y}},
                   podSelector: {matchLabels: {pod: a}}}]}]",
            ),
            Udp(80, &[no("*", "x/a"), yes("y/a", "x/a")]),
        ],
    },
];
