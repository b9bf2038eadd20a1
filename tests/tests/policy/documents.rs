//! The documents that are applied.

pub(super) const TEAM: &str = "
apiVersion: kumiko.dev/v1alpha1
kind: MeshPolicy
metadata: {name: server, namespace: demo}
spec:
  subject: {labels: {app: server}}
  ingress:
    - {name: own, from: [{namespace: demo}], ports: [{port: 20000}]}
";

pub(super) const EGRESS: &str = "
apiVersion: kumiko.dev/v1alpha1
kind: MeshPolicy
metadata: {name: client, namespace: demo}
spec:
  subject: {serviceAccount: client}
  egress:
    - {name: open, to: [{namespace: demo, labels: {app: server}}], ports: [{port: 20000}]}
";

pub(super) const EGRESS_CLEAR: &str = "
apiVersion: kumiko.dev/v1alpha1
kind: MeshPolicy
metadata: {name: client, namespace: demo}
spec:
  subject: {serviceAccount: client}
  egress:
    - {name: outside, to: [{namespace: clear}], unauthenticated: true, ports: [{port: 20000}]}
";

pub(super) const KUBERNETES: &str = "
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: server, namespace: demo}
spec:
  podSelector: {matchLabels: {app: server}}
  policyTypes: [Ingress]
  ingress:
    - from: [{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: other}}}]
      ports: [{port: 20000, endPort: 20001}]
";

pub(super) const BASELINE: &str = "
apiVersion: kumiko.dev/v1alpha1
kind: MeshBaseline
metadata: {name: platform}
spec:
  subject: {namespace: demo}
  ingress:
    deny: [{name: no-other, from: [{namespace: other}]}]
---
apiVersion: kumiko.dev/v1alpha1
kind: MeshPolicy
metadata: {name: all, namespace: demo}
spec:
  subject: {}
  ingress: [{name: everybody, from: [{namespace: other}, {namespace: demo}]}]
";

/// What [`TEAM`] says, only tried; it would take the place of a rule for everybody.
pub(super) const AUDITED: &str = "
apiVersion: kumiko.dev/v1alpha1
kind: MeshPolicy
metadata: {name: everybody, namespace: demo}
spec:
  subject: {labels: {app: server}}
  ingress:
    - {name: everybody, from: [{namespace: demo}, {namespace: other}]}
---
apiVersion: kumiko.dev/v1alpha1
kind: MeshPolicy
metadata: {name: tried, namespace: demo}
spec:
  mode: audit
  replaces: [everybody]
  subject: {labels: {app: server}}
  ingress:
    - {name: own, from: [{namespace: demo}], ports: [{port: 20000}]}
";

/// Selects the servers, and lets nobody in.
pub(super) const NOBODY: &str = "
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: nobody, namespace: demo}
spec:
  podSelector: {matchLabels: {app: server}}
  policyTypes: [Ingress]
";

pub(super) const PROBES: &str = "
apiVersion: kumiko.dev/v1alpha1
kind: MeshPolicy
metadata: {name: probes, namespace: demo}
spec:
  subject: {labels: {app: server}}
  ingress: [{name: probes, from: [{entity: probe}]}]
";

/// Ends at `{expires}`, for what is open then as `{on_expiry}` says.
pub(super) const EXCEPTION: &str = "
---
apiVersion: kumiko.dev/v1alpha1
kind: MeshException
metadata: {name: for-a-while}
spec:
  suspends: [{baseline: platform, rules: [ingress.deny.no-other]}]
  subject: {namespace: demo}
  peers: [{namespace: other}]
  ports: [{port: 20000}]
  owner: somebody
  expires: \"{expires}\"
  onExpiry: {action: {on_expiry}}
";

pub(super) const CLEAR: &str = "
apiVersion: kumiko.dev/v1alpha1
kind: MeshPolicy
metadata: {name: clear, namespace: demo}
spec:
  subject: {labels: {app: server}}
  ingress:
    - {name: clear, from: [{namespace: clear}], ports: [{port: 20001}], unauthenticated: true}
";

pub(super) const OBSERVED: &str = "
apiVersion: kumiko.dev/v1alpha1
kind: MeshPolicy
metadata: {name: nothing, namespace: watched}
spec: {subject: {}, egress: []}
";

/// Lets everybody to the servers, by address too.
pub(super) const EVERYBODY: &str = "
---
apiVersion: kumiko.dev/v1alpha1
kind: MeshPolicy
metadata: {name: everybody, namespace: demo}
spec:
  subject: {labels: {app: server}}
  ingress: [{name: everybody, unauthenticated: true}]
";

pub(super) const DENY_IN: &str = "
apiVersion: kumiko.dev/v1alpha1
kind: MeshBaseline
metadata: {name: platform}
spec:
  subject: {namespace: demo}
  ingress: {deny: [{name: no-other, from: [{namespace: other}]}]}
";

pub(super) const DENY_OUT: &str = "
apiVersion: kumiko.dev/v1alpha1
kind: MeshBaseline
metadata: {name: platform}
spec:
  subject: {namespace: demo}
  egress: {deny: [{name: no-other, to: [{namespace: other}]}]}
";

/// One port over TCP, the other one over UDP.
pub(super) const CEILING_IN: &str = "
apiVersion: kumiko.dev/v1alpha1
kind: MeshBaseline
metadata: {name: platform}
spec:
  subject: {namespace: demo}
  ingress:
    allow:
      - name: own
        from: [{namespace: demo}]
        unauthenticated: true
        ports: [{port: 20000}, {protocol: UDP, port: 20001}]
";

pub(super) const CEILING_OUT: &str = "
apiVersion: kumiko.dev/v1alpha1
kind: MeshBaseline
metadata: {name: platform}
spec:
  subject: {namespace: demo}
  egress: {allow: [{name: own, to: [{namespace: demo}], unauthenticated: true}]}
";

/// A team lets nobody in, and the platform somebody.
pub(super) const SHUT_OFF: &str = "
apiVersion: kumiko.dev/v1alpha1
kind: MeshBaseline
metadata: {name: platform}
spec:
  subject: {namespace: demo}
  ingress:
    guarantee:
      - name: other
        from: [{namespace: other}]
        unauthenticated: true
        ports: [{port: 20000}, {protocol: UDP, port: 20000}]
---
apiVersion: kumiko.dev/v1alpha1
kind: MeshPolicy
metadata: {name: nobody, namespace: demo}
spec: {subject: {labels: {app: server}}, ingress: []}
";

/// The cluster's networks: what is in none of them is outside.
pub(super) const NETWORKS: &str = "
---
apiVersion: kumiko.dev/v1alpha1
kind: MeshSettings
metadata: {name: mesh}
spec:
  podCidrs: [10.244.0.0/16, 'fd00:244::/32']
  serviceCidrs: [10.96.0.0/16, 'fd00:96::/32']
  nodeCidrs: [172.31.0.0/24, 'fd00:31::/64']
";

/// On a host outside and on a node.
pub(super) const API_SERVER: &str = "
---
apiVersion: kumiko.dev/v1alpha1
kind: MeshSettings
metadata: {name: mesh}
spec: {apiServer: [192.0.2.7, '2001:db8::7', 172.31.0.2, 'fd00:31::2']}
";

pub(super) const LEAST: &str = "
apiVersion: kumiko.dev/v1alpha1
kind: MeshSettings
metadata: {name: mesh}
spec:
  platformLabelPrefixes: [platform.test/]
  minStage: [{namespaceLabels: {platform.test/tier: prod}, stage: strict}]
";
