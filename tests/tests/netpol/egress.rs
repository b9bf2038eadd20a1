//! Upstream's cases about where pods may go.

use super::table::Step::{Policy, Tcp};
use super::table::{Case, no, yes};

/// Everything around the pods' addresses but x/b, of both families.
const ALL_BUT_B: &str = "podSelector: {matchLabels: {pod: a}}, policyTypes: [Egress],
     egress: [{to: [{ipBlock: {cidr: 0.0.0.0/4, except: ['<x/b v4>/32']}},
       {ipBlock: {cidr: 'f000::/4', except: ['<x/b v6>/128']}}]}]";

pub(super) const CASES: &[Case] = &[
    Case {
        name: "should allow egress access on one named port",
        steps: &[
            Policy(
                "x",
                "allow-egress",
                "podSelector: {}, policyTypes: [Egress], egress: [{ports: [{port: serve-80-tcp}]}]",
            ),
            Tcp(80, &[]),
            Tcp(81, &[no("x/*", "*")]),
        ],
    },
    Case {
        name: "should deny egress from pods based on PodSelector",
        steps: &[
            Policy("x", "deny-egress-pod-a", "podSelector: {matchLabels: {pod: a}}, policyTypes: [Egress], egress: []"),
            Tcp(80, &[no("x/a", "*")]),
        ],
    },
    Case {
        name: "should deny egress from all pods in a namespace",
        steps: &[
            Policy("x", "deny-egress-ns-x", "podSelector: {}, policyTypes: [Egress], egress: []"),
            Tcp(80, &[no("x/*", "*")]),
        ],
    },
    Case {
        name: "should work with Ingress, Egress specified together",
        steps: &[
            Policy(
                "x",
                "allow-client-a-via-pod-selector",
                "podSelector: {matchLabels: {pod: a}}, policyTypes: [Egress, Ingress],
                 ingress: [{from: [{podSelector: {matchLabels: {pod: b}}}]}], egress: [{ports: [{port: 80}]}]",
            ),
            Tcp(80, &[no("*", "x/a"), yes("x/b", "x/a")]),
            Tcp(81, &[no("*", "x/a"), no("x/a", "*"), yes("x/b", "x/a")]),
        ],
    },
    Case {
        name: "should support denying of egress traffic on the client side (even if the server explicitly allows this \
               traffic)",
        steps: &[
            Policy(
                "x",
                "allow-to-ns-y-pod-a",
                "podSelector: {matchLabels: {pod: a}}, policyTypes: [Egress],
                 egress: [{to: [{
                   namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: y}},
                   podSelector: {matchLabels: {pod: a}}}]}]",
            ),
            Policy(
                "y",
                "allow-from-xa-on-ya-match-selector",
                "podSelector: {matchLabels: {pod: a}}, policyTypes: [Ingress],
                 ingress: [{from: [{
                   namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: x}},
                   podSelector: {matchLabels: {pod: a}}}]}]",
            ),
            Policy(
                "y",
                "allow-from-xa-on-yb-match-selector",
                "podSelector: {matchLabels: {pod: b}}, policyTypes: [Ingress],
                 ingress: [{from: [{
                   namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: x}},
                   podSelector: {matchLabels: {pod: a}}}]}]",
            ),
            Tcp(80, &[no("x/a", "*"), no("*", "y/a"), yes("x/a", "y/a"), no("*", "y/b")]),
        ],
    },
    Case {
        name: "should enforce egress policy allowing traffic to a server in a different namespace based on PodSelector \
               and NamespaceSelector",
        steps: &[
            Policy(
                "x",
                "allow-to-ns-y-pod-a",
                "podSelector: {matchLabels: {pod: a}}, policyTypes: [Egress],
                 egress: [{to: [{
                   namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: y}},
                   podSelector: {matchLabels: {pod: a}}}]}]",
            ),
            Tcp(80, &[no("x/a", "*"), yes("x/a", "y/a")]),
        ],
    },
    Case {
        name: "should enforce multiple egress policies with egress allow-all policy taking precedence",
        steps: &[
            Policy(
                "x",
                "allow-egress-port-80",
                "podSelector: {}, policyTypes: [Egress], egress: [{ports: [{port: 80}]}]",
            ),
            Tcp(81, &[no("x/*", "*")]),
            Policy("x", "allow-egress", "podSelector: {}, policyTypes: [Egress], egress: [{}]"),
            Tcp(81, &[]),
        ],
    },
    Case {
        name: "should allow egress access to server in CIDR block",
        steps: &[
            Policy(
                "x",
                "allow-client-a-via-cidr-egress-rule",
                "podSelector: {matchLabels: {pod: a}}, policyTypes: [Egress],
                 egress: [{to: [{ipBlock: {cidr: '<y/b v4>/32'}}, {ipBlock: {cidr: '<y/b v6>/128'}}]}]",
            ),
            Tcp(80, &[no("x/a", "*"), yes("x/a", "y/b")]),
        ],
    },
    Case {
        name: "should enforce except clause while egress access to server in CIDR block",
        steps: &[Policy("x", "allow-client-a-via-cidr-egress-rule", ALL_BUT_B), Tcp(80, &[no("x/a", "x/b")])],
    },
    Case {
        name: "should ensure an IP overlapping both IPBlock.CIDR and IPBlock.Except is allowed",
        steps: &[
            Policy("x", "allow-client-a-via-cidr-egress-rule", ALL_BUT_B),
            Tcp(80, &[no("x/a", "x/b")]),
            // Upstream takes the first one's place. Beside it, it is what the name of the case says.
            Policy(
                "x",
                "allow-client-a-via-cidr-egress-rule",
                "podSelector: {matchLabels: {pod: a}}, policyTypes: [Egress],
                 egress: [{to: [{ipBlock: {cidr: '<x/b v4>/32'}}, {ipBlock: {cidr: '<x/b v6>/128'}}]}]",
            ),
            Tcp(80, &[no("x/a", "*"), yes("x/a", "x/b")]),
            Policy("x", "beside", ALL_BUT_B),
            Tcp(80, &[]),
        ],
    },
    Case {
        name: "should enforce policies to check ingress and egress policies can be controlled independently based on \
               PodSelector",
        steps: &[
            Policy(
                "x",
                "allow-egress-for-target",
                "podSelector: {matchLabels: {pod: a}}, policyTypes: [Egress], egress: [{}]",
            ),
            Tcp(80, &[]),
            Policy(
                "x",
                "deny-ingress-via-label-selector",
                "podSelector: {matchLabels: {pod: a}}, policyTypes: [Ingress], ingress: []",
            ),
            Tcp(80, &[no("*", "x/a")]),
        ],
    },
];
