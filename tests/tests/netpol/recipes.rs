//! The recipes of the Kubernetes documentation ("Network Policies" and "Declare Network Policy"), under its headings, with
//! the lab's ports, addresses and labels.

use super::table::Step::{Pod, Policy, Tcp, Udp};
use super::table::{Case, no, yes};

pub(super) const CASES: &[Case] = &[
    Case {
        name: "The NetworkPolicy resource",
        steps: &[
            // The first node's pods are what is excepted.
            Policy(
                "x",
                "test-network-policy",
                "podSelector: {matchLabels: {role: db}}, policyTypes: [Ingress, Egress],
                 ingress: [{
                   from: [
                     {ipBlock: {cidr: 10.244.0.0/16, except: [10.244.1.0/24]}},
                     {ipBlock: {cidr: 'fd00:244::/32', except: ['fd00:244:1::/48']}},
                     {namespaceSelector: {matchLabels: {project: myproject}}},
                     {podSelector: {matchLabels: {role: frontend}}}],
                   ports: [{protocol: TCP, port: 80}]}],
                 egress: [{
                   to: [{ipBlock: {cidr: 10.244.1.0/24}}, {ipBlock: {cidr: 'fd00:244:1::/48'}}],
                   ports: [{protocol: TCP, port: 81}]}]",
            ),
            // x/b and all of y are named; of the others, those of the second node are.
            Tcp(80, &[no("x/c", "x/a"), no("z/a", "x/a"), no("z/c", "x/a"), no("x/a", "*")]),
            Tcp(81, &[no("*", "x/a"), no("x/a", "x/b"), no("x/a", "y/a"), no("x/a", "y/c"), no("x/a", "z/b")]),
            Udp(80, &[no("*", "x/a"), no("x/a", "*")]),
        ],
    },
    Case {
        name: "Behavior of to and from selectors: namespaceSelector and podSelector in one element",
        steps: &[
            Policy(
                "x",
                "both",
                "podSelector: {}, policyTypes: [Ingress],
                 ingress: [{from: [{
                   namespaceSelector: {matchLabels: {user: alice}}, podSelector: {matchLabels: {role: client}}}]}]",
            ),
            Tcp(80, &[no("*", "x/*"), yes("y/c", "x/*")]),
            Udp(80, &[no("*", "x/*"), yes("y/c", "x/*")]),
        ],
    },
    Case {
        name: "Behavior of to and from selectors: namespaceSelector and podSelector in two elements",
        steps: &[
            Policy(
                "x",
                "either",
                "podSelector: {}, policyTypes: [Ingress],
                 ingress: [{from: [
                   {namespaceSelector: {matchLabels: {user: alice}}}, {podSelector: {matchLabels: {role: client}}}]}]",
            ),
            Tcp(80, &[no("*", "x/*"), yes("y/*", "x/*"), yes("x/c", "x/*")]),
            Udp(80, &[no("*", "x/*"), yes("y/*", "x/*"), yes("x/c", "x/*")]),
        ],
    },
    Case {
        name: "Default deny all ingress traffic",
        steps: &[
            Policy("x", "default-deny-ingress", "podSelector: {}, policyTypes: [Ingress]"),
            Tcp(80, &[no("*", "x/*")]),
            Udp(80, &[no("*", "x/*")]),
        ],
    },
    Case {
        name: "Allow all ingress traffic",
        steps: &[
            Policy("x", "default-deny-ingress", "podSelector: {}, policyTypes: [Ingress]"),
            Policy("x", "allow-all-ingress", "podSelector: {}, ingress: [{}], policyTypes: [Ingress]"),
            Tcp(80, &[]),
            Udp(80, &[]),
        ],
    },
    Case {
        name: "Default deny all egress traffic",
        steps: &[
            Policy("x", "default-deny-egress", "podSelector: {}, policyTypes: [Egress]"),
            Tcp(80, &[no("x/*", "*")]),
            Udp(80, &[no("x/*", "*")]),
        ],
    },
    Case {
        name: "Allow all egress traffic",
        steps: &[
            Policy("x", "default-deny-egress", "podSelector: {}, policyTypes: [Egress]"),
            Policy("x", "allow-all-egress", "podSelector: {}, egress: [{}], policyTypes: [Egress]"),
            Tcp(80, &[]),
            Udp(80, &[]),
        ],
    },
    Case {
        name: "Default deny all ingress and all egress traffic",
        steps: &[
            Policy("x", "default-deny-all", "podSelector: {}, policyTypes: [Ingress, Egress]"),
            Tcp(80, &[no("*", "x/*"), no("x/*", "*")]),
            Udp(80, &[no("*", "x/*"), no("x/*", "*")]),
        ],
    },
    Case {
        name: "Targeting a range of ports",
        steps: &[
            Policy(
                "x",
                "multi-port-egress",
                "podSelector: {matchLabels: {role: db}}, policyTypes: [Egress],
                 egress: [{
                   to: [{ipBlock: {cidr: 10.244.2.0/24}}, {ipBlock: {cidr: 'fd00:244:2::/48'}}],
                   ports: [{protocol: TCP, port: 81, endPort: 32768}]}]",
            ),
            Tcp(81, &[no("x/a", "*"), yes("x/a", "x/b"), yes("x/a", "y/a"), yes("x/a", "y/c"), yes("x/a", "z/b")]),
            Tcp(80, &[no("x/a", "*")]),
            Udp(81, &[no("x/a", "*")]),
        ],
    },
    Case {
        name: "Targeting multiple namespaces by label",
        steps: &[
            Policy(
                "x",
                "egress-namespaces",
                "podSelector: {matchLabels: {role: db}}, policyTypes: [Egress],
                 egress: [{to: [{namespaceSelector: {matchExpressions:
                   [{key: namespace, operator: In, values: [frontend, backend]}]}}]}]",
            ),
            Tcp(80, &[no("x/a", "x/*")]),
            Udp(80, &[no("x/a", "x/*")]),
        ],
    },
    Case {
        name: "Targeting a Namespace by its name",
        steps: &[
            Policy(
                "x",
                "egress-namespace",
                "podSelector: {matchLabels: {role: db}}, policyTypes: [Egress],
                 egress: [{to: [{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: z}}}]}]",
            ),
            Tcp(80, &[no("x/a", "*"), yes("x/a", "z/*")]),
            Udp(80, &[no("x/a", "*"), yes("x/a", "z/*")]),
        ],
    },
    Case {
        name: "Limit access to the nginx service",
        steps: &[
            // Without policyTypes, as it stands there.
            Policy(
                "x",
                "access-nginx",
                "podSelector: {matchLabels: {pod: a}},
                 ingress: [{from: [{podSelector: {matchLabels: {access: 'true'}}}]}]",
            ),
            Tcp(80, &[no("*", "x/a")]),
            Pod("x/b", "access: 'true'"),
            Tcp(80, &[no("*", "x/a"), yes("x/b", "x/a")]),
            Udp(80, &[no("*", "x/a"), yes("x/b", "x/a")]),
        ],
    },
];
