//! Upstream's cases about whom a rule means.

use super::table::Step::{Policy, Tcp};
use super::table::{Case, no, yes};

pub(super) const CASES: &[Case] = &[
    Case {
        name: "should support a 'default-deny-ingress' policy",
        steps: &[
            Policy("x", "deny-ingress", "podSelector: {}, policyTypes: [Ingress], ingress: []"),
            Tcp(80, &[no("*", "x/*")]),
        ],
    },
    Case {
        name: "should support a 'default-deny-all' policy",
        steps: &[
            Policy("x", "deny-all", "podSelector: {}, policyTypes: [Ingress, Egress], ingress: [], egress: []"),
            Tcp(80, &[no("*", "x/*"), no("x/*", "*")]),
        ],
    },
    Case {
        name: "should enforce policy to allow traffic from pods within server namespace based on PodSelector",
        steps: &[
            Policy(
                "x",
                "x-a-allows-x-b",
                "podSelector: {matchLabels: {pod: a}}, policyTypes: [Ingress],
                 ingress: [{from: [{podSelector: {matchLabels: {pod: b}}}]}]",
            ),
            Tcp(80, &[no("*", "x/a"), yes("x/b", "x/a")]),
        ],
    },
    Case {
        name: "should enforce policy to allow ingress traffic for a target",
        steps: &[
            Policy("x", "deny-all", "podSelector: {}, policyTypes: [Ingress], ingress: []"),
            Policy(
                "x",
                "allow-all-to-a",
                "podSelector: {matchLabels: {pod: a}}, policyTypes: [Ingress],
                 ingress: [{from: [{podSelector: {}, namespaceSelector: {}}]}]",
            ),
            Tcp(80, &[no("*", "x/*"), yes("*", "x/a")]),
        ],
    },
    Case {
        name: "should enforce policy to allow ingress traffic from pods in all namespaces",
        steps: &[
            Policy(
                "x",
                "allow-from-another-ns",
                "podSelector: {matchLabels: {pod: a}}, policyTypes: [Ingress],
                 ingress: [{from: [{namespaceSelector: {matchLabels: {}}}]}]",
            ),
            Tcp(80, &[]),
        ],
    },
    Case {
        name: "should enforce policy to allow traffic only from a different namespace, based on NamespaceSelector",
        steps: &[
            Policy(
                "x",
                "allow-client-a-via-ns-selector",
                "podSelector: {matchLabels: {pod: a}}, policyTypes: [Ingress],
                 ingress: [{from: [{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: y}}}]}]",
            ),
            Tcp(80, &[no("x/*", "x/a"), no("z/*", "x/a")]),
        ],
    },
    Case {
        name: "should enforce policy based on PodSelector with MatchExpressions",
        steps: &[
            Policy(
                "x",
                "x-a-allows-x-b",
                "podSelector: {matchLabels: {pod: a}}, policyTypes: [Ingress],
                 ingress: [{from: [{podSelector: {matchExpressions: [{key: pod, operator: In, values: [b]}]}}]}]",
            ),
            Tcp(80, &[no("*", "x/a"), yes("x/b", "x/a")]),
        ],
    },
    Case {
        name: "should enforce policy based on NamespaceSelector with MatchExpressions",
        steps: &[
            Policy(
                "x",
                "allow-ns-y-match-selector",
                "podSelector: {matchLabels: {pod: a}}, policyTypes: [Ingress],
                 ingress: [{from: [{namespaceSelector: {matchExpressions:
                   [{key: kubernetes.io/metadata.name, operator: In, values: [y]}]}}]}]",
            ),
            Tcp(80, &[no("x/*", "x/a"), no("z/*", "x/a")]),
        ],
    },
    Case {
        name: "should enforce policy based on PodSelector or NamespaceSelector",
        steps: &[
            Policy(
                "x",
                "allow-ns-y-match-selector",
                "podSelector: {matchLabels: {pod: a}}, policyTypes: [Ingress],
                 ingress: [{from: [
                   {namespaceSelector: {matchExpressions:
                     [{key: kubernetes.io/metadata.name, operator: NotIn, values: [x]}]}},
                   {podSelector: {matchLabels: {pod: b}}}]}]",
            ),
            Tcp(80, &[no("x/c", "x/a")]),
        ],
    },
    Case {
        name: "should enforce policy based on PodSelector and NamespaceSelector",
        steps: &[
            Policy(
                "x",
                "allow-ns-y-podselector-and-nsselector",
                "podSelector: {matchLabels: {pod: a}}, policyTypes: [Ingress],
                 ingress: [{from: [{
                   namespaceSelector: {matchExpressions:
                     [{key: kubernetes.io/metadata.name, operator: NotIn, values: [x]}]},
                   podSelector: {matchLabels: {pod: b}}}]}]",
            ),
            Tcp(80, &[no("*", "x/a"), yes("y/b", "x/a"), yes("z/b", "x/a")]),
        ],
    },
    Case {
        name: "should enforce policy based on Multiple PodSelectors and NamespaceSelectors",
        steps: &[
            Policy(
                "x",
                "allow-ns-y-z-pod-b-c",
                "podSelector: {matchLabels: {pod: a}}, policyTypes: [Ingress],
                 ingress: [{from: [{
                   namespaceSelector: {matchExpressions:
                     [{key: kubernetes.io/metadata.name, operator: NotIn, values: [x]}]},
                   podSelector: {matchExpressions: [{key: pod, operator: In, values: [b, c]}]}}]}]",
            ),
            Tcp(80, &[no("x/*", "x/a"), no("y/a", "x/a"), no("z/a", "x/a")]),
        ],
    },
    Case {
        name: "should enforce policy based on any PodSelectors",
        steps: &[
            Policy(
                "x",
                "allow-ns-x-pod-b-c",
                "podSelector: {matchLabels: {pod: a}}, policyTypes: [Ingress],
                 ingress: [{from: [
                   {podSelector: {matchLabels: {pod: b}}}, {podSelector: {matchLabels: {pod: c}}}]}]",
            ),
            Tcp(80, &[no("*", "x/a"), yes("x/b", "x/a"), yes("x/c", "x/a")]),
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
            Tcp(80, &[no("*", "x/a"), yes("y/a", "x/a")]),
        ],
    },
    Case {
        name: "should deny ingress from pods on other namespaces",
        steps: &[
            Policy(
                "x",
                "deny-empty-policy",
                "podSelector: {}, policyTypes: [Ingress], ingress: [{from: [{podSelector: {matchLabels: {}}}]}]",
            ),
            Tcp(80, &[no("y/*", "x/*"), no("z/*", "x/*")]),
        ],
    },
    Case {
        name: "should enforce policy to allow traffic based on NamespaceSelector with MatchLabels using default ns label",
        steps: &[
            Policy(
                "x",
                "allow-client-a-via-ns-selector-for-immutable-ns-label",
                "podSelector: {matchLabels: {pod: a}}, policyTypes: [Ingress],
                 ingress: [{from: [{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: y}}}]}]",
            ),
            Tcp(80, &[no("x/*", "x/a"), no("z/*", "x/a")]),
        ],
    },
    Case {
        name: "should enforce policy based on NamespaceSelector with MatchExpressions using default ns label",
        steps: &[
            Policy(
                "x",
                "allow-ns-y-match-selector-for-immutable-ns-label",
                "podSelector: {matchLabels: {pod: a}}, policyTypes: [Egress],
                 egress: [{to: [{namespaceSelector: {matchExpressions:
                   [{key: kubernetes.io/metadata.name, operator: NotIn, values: [y]}]}}]}]",
            ),
            Tcp(80, &[no("x/a", "y/*")]),
        ],
    },
];
