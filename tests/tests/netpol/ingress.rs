//! Upstream's cases about ports, about several policies, and about what changes.

use super::table::Step::{Delete, Namespace, Pod, Policy, Tcp, Udp};
use super::table::{Case, no, yes};

pub(super) const CASES: &[Case] = &[
    Case {
        name: "should enforce policy based on Ports",
        steps: &[
            Policy(
                "x",
                "allow-client-a-via-ns-selector",
                "podSelector: {matchLabels: {pod: a}}, policyTypes: [Ingress],
                 ingress: [{from: [{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: y}}}],
                   ports: [{port: 81, protocol: TCP}]}]",
            ),
            Tcp(81, &[no("*", "x/a"), yes("y/*", "x/a")]),
        ],
    },
    Case {
        name: "should enforce multiple, stacked policies with overlapping podSelectors",
        steps: &[
            Policy(
                "x",
                "allow-client-a-via-ns-selector",
                "podSelector: {matchLabels: {pod: a}}, policyTypes: [Ingress],
                 ingress: [{from: [{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: y}}}],
                   ports: [{port: 81, protocol: TCP}]}]",
            ),
            Tcp(81, &[no("*", "x/a"), yes("y/*", "x/a")]),
            Tcp(80, &[no("*", "x/a")]),
            Policy(
                "x",
                "allow-client-a-via-ns-selector-80",
                "podSelector: {matchLabels: {pod: a}}, policyTypes: [Ingress],
                 ingress: [{from: [{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: y}}}],
                   ports: [{port: 80, protocol: TCP}]}]",
            ),
            Tcp(80, &[no("*", "x/a"), yes("y/*", "x/a")]),
        ],
    },
    Case {
        name: "should support allow-all policy",
        steps: &[
            Policy("x", "allow-all", "podSelector: {}, policyTypes: [Ingress], ingress: [{}]"),
            Tcp(80, &[]),
            Tcp(81, &[]),
        ],
    },
    Case {
        name: "should allow ingress access on one named port",
        steps: &[
            Policy(
                "x",
                "allow-all",
                "podSelector: {}, policyTypes: [Ingress], ingress: [{ports: [{port: serve-81-tcp}]}]",
            ),
            Tcp(81, &[]),
            Tcp(80, &[no("*", "x/*")]),
        ],
    },
    Case {
        name: "should allow ingress access from namespace on one named port",
        steps: &[
            Policy(
                "x",
                "allow-client-a-via-ns-selector-80",
                "podSelector: {matchLabels: {pod: a}}, policyTypes: [Ingress],
                 ingress: [{from: [{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: y}}}],
                   ports: [{port: serve-80-tcp, protocol: TCP}]}]",
            ),
            Tcp(80, &[no("x/*", "x/a"), no("z/*", "x/a")]),
            Tcp(81, &[no("*", "x/a")]),
        ],
    },
    Case {
        name: "should enforce updated policy",
        steps: &[
            Policy("x", "allow-all-mutate-to-deny-all", "podSelector: {}, policyTypes: [Ingress], ingress: [{}]"),
            Tcp(81, &[]),
            Policy("x", "allow-all-mutate-to-deny-all", "podSelector: {}, policyTypes: [Ingress], ingress: []"),
            Tcp(81, &[no("*", "x/*")]),
        ],
    },
    Case {
        name: "should allow ingress access from updated namespace",
        steps: &[
            Policy(
                "x",
                "allow-client-a-via-ns-selector",
                "podSelector: {matchLabels: {pod: a}}, policyTypes: [Ingress],
                 ingress: [{from: [{namespaceSelector: {matchLabels: {ns2: updated}}}]}]",
            ),
            Tcp(80, &[no("*", "x/a")]),
            Namespace("y", "ns2: updated"),
            Tcp(80, &[no("*", "x/a"), yes("y/*", "x/a")]),
        ],
    },
    Case {
        name: "should allow ingress access from updated pod",
        steps: &[
            Policy(
                "x",
                "allow-client-a-via-pod-selector",
                "podSelector: {matchLabels: {pod: a}}, policyTypes: [Ingress],
                 ingress: [{from: [{podSelector: {matchLabels: {pod: b, pod2: updated}}}]}]",
            ),
            Tcp(80, &[no("*", "x/a")]),
            Pod("x/b", "pod2: updated"),
            Tcp(80, &[no("*", "x/a"), yes("x/b", "x/a")]),
        ],
    },
    Case {
        name: "should deny ingress access to updated pod",
        steps: &[
            Policy(
                "x",
                "deny-ingress-via-label-selector",
                "podSelector: {matchLabels: {target: isolated}}, policyTypes: [Ingress], ingress: []",
            ),
            Tcp(80, &[]),
            Pod("x/a", "target: isolated"),
            Tcp(80, &[no("*", "x/a")]),
        ],
    },
    Case {
        name: "should enforce ingress policy allowing any port traffic to a server on a specific protocol",
        steps: &[
            Policy(
                "x",
                "allow-ingress-by-proto",
                "podSelector: {matchLabels: {pod: a}}, policyTypes: [Ingress], ingress: [{ports: [{protocol: TCP}]}]",
            ),
            Tcp(80, &[]),
            Udp(80, &[no("*", "x/a")]),
        ],
    },
    Case {
        name: "should enforce multiple ingress policies with ingress allow-all policy taking precedence",
        steps: &[
            Policy(
                "x",
                "allow-ingress-port-80",
                "podSelector: {}, policyTypes: [Ingress], ingress: [{ports: [{port: 80}]}]",
            ),
            Tcp(81, &[no("*", "x/*")]),
            Policy("x", "allow-ingress", "podSelector: {}, policyTypes: [Ingress], ingress: [{}]"),
            Tcp(81, &[]),
        ],
    },
    Case {
        name: "should stop enforcing policies after they are deleted",
        steps: &[
            Policy("x", "deny-all", "podSelector: {}, policyTypes: [Ingress, Egress], ingress: [], egress: []"),
            Tcp(80, &[no("x/*", "*"), no("*", "x/*")]),
            Delete,
            Tcp(80, &[]),
        ],
    },
    Case {
        name: "should not mistakenly treat 'protocol: SCTP' as 'protocol: TCP', even if the plugin doesn't support SCTP",
        steps: &[
            Policy("x", "deny-ingress", "podSelector: {}, policyTypes: [Ingress], ingress: []"),
            Policy(
                "x",
                "allow-only-sctp-ingress-on-port-81",
                "podSelector: {matchLabels: {pod: a}}, policyTypes: [Ingress],
                 ingress: [{ports: [{port: 81, protocol: SCTP}]}]",
            ),
            Tcp(81, &[no("*", "x/*")]),
        ],
    },
    Case {
        name: "should properly isolate pods that are selected by a policy allowing SCTP, even if the plugin doesn't \
               support SCTP",
        steps: &[
            Policy(
                "x",
                "allow-only-sctp-ingress-on-port-80",
                "podSelector: {matchLabels: {pod: a}}, policyTypes: [Ingress],
                 ingress: [{ports: [{port: 80, protocol: SCTP}]}]",
            ),
            Tcp(81, &[no("*", "x/a")]),
        ],
    },
    Case {
        name: "should not allow access by TCP when a policy specifies only UDP",
        steps: &[
            Policy(
                "x",
                "allow-only-udp-ingress-on-port-81",
                "podSelector: {matchLabels: {pod: a}}, policyTypes: [Ingress],
                 ingress: [{ports: [{port: 81, protocol: UDP}]}]",
            ),
            Tcp(81, &[no("*", "x/a")]),
        ],
    },
];
