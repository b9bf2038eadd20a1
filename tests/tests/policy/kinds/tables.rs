//! Documents, and whom they let.

use super::super::documents::{
    API_SERVER, CEILING_IN, CEILING_OUT, DENY_IN, DENY_OUT, EVERYBODY, EXCEPTION, NETWORKS, SHUT_OFF,
};
use super::super::world::{OPEN, PROBED, SHUT};
use super::Case;
use super::Over::{Both, Tcp, Udp};

pub(super) fn all() -> impl Iterator<Item = Case> {
    [baselines(), peers(), entities(), ports()].into_iter().flatten()
}

/// A rule for the servers about who may come in, by address too: UDP between nodes has no other proof.
fn from(peers: &str) -> String {
    inward(&format!("from: [{peers}], unauthenticated: true"))
}

fn inward(rule: &str) -> String {
    format!(
        "
apiVersion: kumiko.dev/v1alpha1
kind: MeshPolicy
metadata: {{name: server, namespace: demo}}
spec: {{subject: {{labels: {{app: server}}}}, ingress: [{{name: some, {rule}}}]}}
"
    )
}

/// A rule for the clients about where to go.
fn to(peers: &str) -> String {
    format!(
        "
apiVersion: kumiko.dev/v1alpha1
kind: MeshPolicy
metadata: {{name: client, namespace: demo}}
spec: {{subject: {{serviceAccount: client}}, egress: [{{name: some, to: [{peers}], unauthenticated: true}}]}}
"
    )
}

/// An exception from a ceiling, for a while that no test lives to see the end of.
fn except(ceiling: &str) -> String {
    EXCEPTION
        .replace("ingress.deny.no-other", ceiling)
        .replace("{expires}", "2999-01-01T00:00:00Z")
        .replace("{on_expiry}", "cut")
}

/// All addresses of both families but one of the host outside.
const BLOCKS: &str = "{ipBlock: {cidr: 0.0.0.0/0, except: [192.0.2.128/25]}}, \
                      {ipBlock: {cidr: '::/0', except: ['2001:db8::200/120']}}";

/// What platforms write.
fn baselines() -> Vec<Case> {
    let ceiling = vec![
        (Tcp, "client-1", "server-1", OPEN, true),
        (Tcp, "client-1", "server-2", OPEN, true),
        (Tcp, "client-1", "server-1", SHUT, false),
        (Tcp, "client-1", "server-2", SHUT, false),
        // UDP has the other port.
        (Udp, "client-1", "server-1", OPEN, false),
        (Udp, "client-1", "server-2", OPEN, false),
        (Udp, "client-1", "server-1", SHUT, true),
        (Udp, "client-1", "server-2", SHUT, true),
        (Both, "other-1", "server-1", OPEN, false),
        (Both, "other-1", "server-2", OPEN, false),
    ];
    vec![
        Case(
            "ingress.deny",
            format!("{DENY_IN}{EVERYBODY}"),
            vec![
                (Both, "client-1", "server-1", OPEN, true),
                (Both, "client-1", "server-2", OPEN, true),
                (Both, "other-1", "server-1", OPEN, false),
                (Both, "other-1", "server-2", OPEN, false),
                (Both, "other-1", "other-2", OPEN, true),
            ],
        ),
        Case(
            "egress.deny",
            DENY_OUT.into(),
            vec![
                (Both, "client-1", "other-2", OPEN, false),
                (Both, "client-2", "other-2", OPEN, false),
                (Both, "other-1", "other-2", OPEN, true),
                (Both, "client-1", "clear-1", OPEN, true),
                (Both, "client-2", "clear-1", OPEN, true),
            ],
        ),
        Case("ingress.allow", CEILING_IN.into(), ceiling.clone()),
        Case("ingress.allow, and a team would let more", format!("{CEILING_IN}{EVERYBODY}"), ceiling),
        Case(
            "egress.allow",
            CEILING_OUT.into(),
            vec![
                (Both, "client-1", "server-1", OPEN, true),
                (Tcp, "client-1", "server-2", OPEN, true),
                (Both, "client-1", "other-2", OPEN, false),
                (Both, "client-2", "other-2", OPEN, false),
                (Both, "client-1", "clear-1", OPEN, false),
            ],
        ),
        Case(
            "ingress.guarantee, and a team lets nobody",
            SHUT_OFF.into(),
            vec![
                (Both, "other-1", "server-1", OPEN, true),
                (Both, "other-1", "server-2", OPEN, true),
                (Both, "other-1", "server-1", SHUT, false),
                (Both, "other-1", "server-2", SHUT, false),
                (Both, "client-1", "server-1", OPEN, false),
                (Both, "client-1", "server-2", OPEN, false),
            ],
        ),
        Case(
            "an exception from ingress.allow",
            format!("{CEILING_IN}{EVERYBODY}{}", except("ingress.allow")),
            vec![
                (Tcp, "other-1", "server-1", OPEN, true),
                (Tcp, "other-1", "server-2", OPEN, true),
                (Tcp, "other-1", "server-1", SHUT, false),
                (Tcp, "other-1", "server-2", SHUT, false),
                // It names a port of TCP.
                (Udp, "other-1", "server-1", OPEN, false),
                (Both, "clear-1", "server-2", OPEN, false),
                (Tcp, "client-1", "server-2", OPEN, true),
                (Tcp, "client-1", "server-2", SHUT, false),
            ],
        ),
        Case(
            "an exception from egress.allow",
            format!("{CEILING_OUT}{}", except("egress.allow")),
            vec![
                (Tcp, "client-1", "other-2", OPEN, true),
                (Tcp, "client-2", "other-2", OPEN, true),
                (Tcp, "client-1", "other-2", SHUT, false),
                (Tcp, "client-2", "other-2", SHUT, false),
                (Both, "client-1", "clear-1", OPEN, false),
            ],
        ),
        Case(
            "audited",
            DENY_IN.replace("spec:", "spec:\n  mode: audit"),
            vec![
                (Both, "other-1", "server-1", OPEN, true),
                (Tcp, "other-1", "server-2", OPEN, true),
                (Both, "client-1", "server-1", OPEN, true),
            ],
        ),
    ]
}

/// Whom a team's rule names.
fn peers() -> Vec<Case> {
    let clients = vec![
        (Both, "client-1", "server-1", OPEN, true),
        (Both, "client-1", "server-2", OPEN, true),
        (Both, "server-1", "server-2", OPEN, false),
        (Both, "other-1", "server-1", OPEN, false),
        (Both, "other-1", "server-2", OPEN, false),
    ];
    let others = vec![
        (Both, "other-1", "server-1", OPEN, true),
        (Both, "other-1", "server-2", OPEN, true),
        (Both, "client-1", "server-1", OPEN, false),
        (Both, "client-1", "server-2", OPEN, false),
        (Both, "watched-1", "server-1", OPEN, false),
        (Both, "clear-1", "server-2", OPEN, false),
    ];
    let addresses = vec![
        (Both, "outside", "server-1", OPEN, true),
        (Both, "outside", "server-2", OPEN, true),
        (Both, "barred", "server-1", OPEN, false),
        (Both, "barred", "server-2", OPEN, false),
        (Both, "n2", "server-1", OPEN, true),
        // A workload's address is that workload's.
        (Both, "client-1", "server-1", OPEN, false),
        (Both, "client-1", "server-2", OPEN, false),
        (Both, "clear-1", "server-2", OPEN, false),
    ];
    vec![
        Case("spiffeId", from("{spiffeId: 'spiffe://cluster.local/ns/demo/sa/client'}"), clients.clone()),
        Case("namespace and serviceAccount", from("{namespace: demo, serviceAccount: client}"), clients),
        Case("namespaceLabels", from("{namespaceLabels: {kumiko.dev/stage: permissive}}"), others.clone()),
        Case(
            "namespaceLabels and serviceAccount",
            from("{namespaceLabels: {kumiko.dev/stage: permissive}, serviceAccount: other}"),
            others,
        ),
        Case(
            "labels",
            from("{namespace: demo, labels: {pod: client-1}}"),
            vec![
                (Both, "client-1", "server-1", OPEN, true),
                (Both, "client-1", "server-2", OPEN, true),
                (Both, "client-2", "server-1", OPEN, false),
                (Both, "client-2", "server-2", OPEN, false),
            ],
        ),
        Case("ipBlock", inward(&format!("from: [{BLOCKS}]")), addresses),
        Case(
            "ipBlock, going out",
            to(BLOCKS),
            vec![
                (Both, "client-1", "outside", OPEN, true),
                (Both, "client-2", "outside", OPEN, true),
                (Both, "client-1", "barred", OPEN, false),
                (Both, "client-1", "n2", OPEN, true),
                (Both, "client-1", "server-1", OPEN, false),
                (Both, "client-1", "server-2", OPEN, false),
                (Both, "client-2", "clear-1", OPEN, false),
            ],
        ),
    ]
}

/// Who is no workload, by what it is: who of them may come in to server-1, and whether client-1 may go there.
fn entities() -> Vec<Case> {
    let all = [
        ("host", "", ["n1"].as_slice()),
        ("node", "", &["n1", "n2"]),
        ("world", NETWORKS, &["outside", "barred"]),
        ("kube-apiserver", API_SERVER, &["outside", "n2"]),
    ];
    let mut cases = Vec::new();
    for (entity, settings, who) in all {
        let peer = format!("{{entity: {entity}}}");
        let ends = ["n1", "n2", "outside", "barred"].map(|end| (end, who.contains(&end)));
        let coming = ends.iter().map(|(end, allowed)| (Both, *end, "server-1", OPEN, *allowed));
        let pods = [(Both, "client-1", "server-1", OPEN, false), (Both, "client-2", "server-1", OPEN, false)];
        let rule = inward(&format!("from: [{peer}]"));
        cases.push(Case(entity, format!("{rule}{settings}"), coming.chain(pods).collect()));
        let going = ends.iter().map(|(end, allowed)| (Both, "client-1", *end, OPEN, *allowed));
        let pods = [(Both, "client-1", "server-1", OPEN, false), (Both, "client-1", "clear-1", OPEN, false)];
        cases.push(Case(entity, format!("{}{settings}", to(&peer)), going.chain(pods).collect()));
    }
    // Each pod has a host of its own.
    let others = vec![(Both, "n1", "server-2", OPEN, false), (Both, "n2", "server-2", OPEN, true)];
    cases.push(Case("host, elsewhere", inward("from: [{entity: host}]"), others));
    cases
}

/// At which ports.
fn ports() -> Vec<Case> {
    let rule = |ports: &str| inward(&format!("from: [{{namespace: demo}}], unauthenticated: true, ports: [{ports}]"));
    vec![
        Case(
            "a name, which each pod gives another port, and to TCP",
            rule("{port: named}"),
            vec![
                (Tcp, "client-1", "server-1", OPEN, true),
                (Tcp, "client-1", "server-1", SHUT, false),
                (Tcp, "client-1", "server-2", OPEN, false),
                (Tcp, "client-1", "server-2", SHUT, true),
                (Udp, "client-1", "server-1", OPEN, false),
                (Udp, "client-1", "server-2", SHUT, false),
                (Both, "other-1", "server-1", OPEN, false),
            ],
        ),
        Case(
            "a range",
            rule("{port: 8081, endPort: 20000}, {protocol: UDP, port: 8080, endPort: 20000}"),
            vec![
                (Tcp, "client-1", "server-1", PROBED, false),
                (Tcp, "client-1", "server-2", PROBED, false),
                (Udp, "client-1", "server-1", PROBED, true),
                (Udp, "client-1", "server-2", PROBED, true),
                (Both, "client-1", "server-1", OPEN, true),
                (Both, "client-1", "server-2", OPEN, true),
                (Both, "client-1", "server-1", SHUT, false),
                (Both, "client-1", "server-2", SHUT, false),
            ],
        ),
    ]
}
