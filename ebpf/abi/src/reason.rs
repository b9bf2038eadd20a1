//! Why: one append-only list for kernel verdicts, `REFUSED` frames, metrics, flow records and the CLI.

/// A verdict.
#[repr(u8)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum Verdict {
    /// May go on.
    Allow = 1,
    /// May not.
    Deny = 2,
    /// May go on; an enforced policy would have refused it.
    Audit = 3,
}

macro_rules! reasons {
    ($($(#[doc = $range:literal])* $variant:ident = $number:literal, $name:literal, $text:literal, $hint:literal;)*) => {
        /// Why a flow was allowed, refused or ended. Numbers are for ever: they travel in `REFUSED` frames.
        #[repr(u16)]
        #[derive(Clone, Copy, PartialEq, Eq, Debug, Hash, PartialOrd, Ord)]
        pub enum Reason {
            $(#[doc = $text] $variant = $number,)*
        }

        impl Reason {
            /// Every reason there is.
            pub const ALL: &'static [Reason] = &[$(Reason::$variant),*];

            /// The reason of a number, if this version knows it.
            pub const fn from_u16(number: u16) -> Option<Self> {
                match number {
                    $($number => Some(Self::$variant),)*
                    _ => None,
                }
            }

            /// Stable name for metrics and JSON.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }

            /// Whether something was refused for it, rather than let in or ended in its own time.
            pub const fn refuses(self) -> bool {
                let number = self as u16;
                number >= 20
                    && !matches!(
                        self,
                        Self::ServiceNotMeshed
                            | Self::TunnelLost
                            | Self::ClientReset
                            | Self::ServerReset
                            | Self::Finished
                            | Self::EndpointGone
                            | Self::IdleExpired
                    )
            }

            /// Whether rules refused it.
            pub const fn is_verdict(self) -> bool {
                let number = self as u16;
                number >= Self::BaselineDenied as u16 && number <= Self::PolicyInvalid as u16
            }

            /// One line for people.
            pub const fn text(self) -> &'static str {
                match self { $(Self::$variant => $text,)* }
            }

            /// What to do about it; empty when there is nothing to do.
            pub const fn hint(self) -> &'static str {
                match self { $(Self::$variant => $hint,)* }
            }
        }
    };
}

/// Length of the `REASONS` array: every number is below it.
pub const REASONS_LEN: u32 = 1024;

reasons! {
    None = 0, "none", "no reason recorded", "";

    // 1 to 199: policy and stages.
    Allowed = 1, "allowed", "allowed: no policy speaks against it", "";
    Observed = 2, "observed", "recorded by observe, not enforced", "";
    PeerOutsideMesh = 3, "peer_outside_mesh", "the peer is not in the mesh: in the clear", "enrol the peer's namespace to encrypt this";
    PlaintextAccepted = 4, "plaintext_accepted", "plaintext was accepted: the workload is permissive, or a rule takes an address for enough", "enrol the client before its namespace is raised to strict";
    Probe = 5, "probe", "a probe of the node's kubelet to a declared port", "";
    LegacyFlow = 6, "legacy", "older than its pod's enrolment: runs outside the tunnel until it ends", "reconnect the client to move it into the tunnel";
    Downgraded = 7, "downgraded", "no tunnel to be had and both sides permissive: went in the clear", "see the agent's log, and the refused connections of `kumiko status` on both nodes";
    OuterAddress = 8, "outer_address", "a node port or load-balancer address is never captured: in the clear", "use the Service's cluster IP";
    DatagramClear = 9, "udp_clear", "UDP is not tunnelled: in the clear", "";
    PlaintextRefused = 20, "plaintext_refused", "a strict workload refuses plaintext", "enrol the client's namespace, or lower this one to permissive";
    HostRefused = 21, "host_refused", "a strict workload refuses processes of its node other than kubelet probes to declared ports", "declare the port for probes, allow the entity host by a rule, or lower the namespace to permissive";
    ServiceNotMeshed = 22, "service_not_meshed", "a ready endpoint of the Service is not meshed: left to kube-proxy, in the clear", "enrol every endpoint of the Service";
    TunnelPortRefused = 23, "tunnel_port_refused", "a pod may not speak to a node's tunnel port itself", "";
    OuterAddressRefused = 24, "outer_address_refused", "node ports and load-balancer addresses are never captured, so a strict workload may not use them", "use the Service's cluster IP";

    BaselineDenied = 30, "baseline_denied", "a baseline of the platform denies it", "see `kumiko policy explain`; the platform may make a MeshException";
    AboveCeiling = 31, "above_ceiling", "a baseline of the platform allows other peers or ports only", "see `kumiko policy explain`; the platform may make a MeshException";
    NetworkPolicyDefault = 32, "network_policy_default", "NetworkPolicies select the pod, and no rule of theirs allows it", "see `kumiko policy explain`, and add a rule to a NetworkPolicy";
    TeamDefault = 33, "team_default", "MeshPolicies select the workload, and no rule of theirs allows it", "see `kumiko policy explain`, and add a rule to a MeshPolicy";
    PeerUnproved = 34, "peer_unproved", "only an address speaks for the peer, which is not enough for a strict workload", "enrol the peer, or allow it by a rule with unauthenticated: true";
    PolicyMissing = 35, "policy_missing", "the tables hold no verdict about it", "see the agent's log: has it room for all policies?";
    PolicyInvalid = 36, "policy_invalid", "a policy that never was valid, or is held back, selects the workload, so what no other one allows is refused", "see the problems of `kumiko status`, and mend the policy";

    // 200 to 399: identity and TLS.
    Spoofed = 200, "spoofed_source", "the packet's source address is not the endpoint's", "check for address changes inside the pod, or two pods claiming one IP";
    WrongInterface = 201, "wrong_interface", "a packet of a known flow came from an interface that is not its own", "";
    UnknownSource = 202, "unknown_source", "the acceptor does not know the source address, or not on the dialling node", "compare the Workload objects of both nodes";
    SourceMismatch = 203, "source_mismatch", "the source address does not belong to the principal of the client certificate", "the dialling node is misconfigured or lies";
    DestinationGone = 204, "destination_gone", "the destination address does not belong to the asked workload here any more", "the caller's view is old; it will refresh";
    DestinationMismatch = 205, "destination_mismatch", "the destination workload is not of the principal whose certificate was shown", "the nodes disagree about the workload: compare their Workload objects";
    NoCertificate = 206, "no_certificate", "this node has no certificate for the workload's principal yet", "see `kumiko certs`";
    PeerCertificateMissing = 207, "peer_certificate_missing", "the peer showed no certificate", "only kumiko agents may connect here";
    PeerCertificateUnknownIssuer = 208, "peer_unknown_issuer", "the peer's certificate is of another root", "compare the trust bundles of both nodes";
    PeerCertificateExpired = 209, "peer_expired", "the peer's certificate is expired or not yet valid", "check clocks and the issuer";
    PeerTrustDomain = 210, "peer_trust_domain", "the peer's certificate is of another trust domain", "give both agents and the issuer one --trust-domain";
    PeerPrincipal = 211, "peer_principal", "the peer proved another principal than was expected", "a stale address, or a lying node";
    TlsVersion = 212, "tls_version", "the peer does not speak TLS 1.3", "only kumiko agents may connect here";
    TlsFailed = 213, "tls_failed", "the TLS handshake failed", "see the agent's log for the alert";
    UnrecognizedName = 214, "unrecognized_name", "no workload here answers to the asked server name", "no pod of that service account is enrolled on this node: compare the nodes' Workload objects";
    PeerCertificateInvalid = 215, "peer_certificate_invalid", "the peer's certificate is not a SPIFFE identity that can be used", "";
    StaleIdentity = 216, "stale_identity", "the source workload's UID or labels differ from this node's model", "compare the Workload objects of both nodes";
    DisputedAddress = 217, "disputed_address", "two workloads claim this address, or one outside of its node's podCIDRs: it is nobody's", "see the problems of `kumiko status`, and remove a claim";
    CertificateRefused = 218, "certificate_refused", "the peer refused this node's certificate", "see the other agent's log for the cause";
    HandshakeTimedOut = 219, "handshake_timed_out", "the TLS handshake was not finished in time", "is the other agent overloaded, or something else on its port?";
    NotTls = 220, "not_tls", "what the peer sent is not a TLS handshake", "only kumiko agents may connect here";

    // 400 to 599: connect.
    ConnectRefused = 400, "connect_refused", "the destination pod refused: nothing listens on the port", "check the server in the destination pod";
    ConnectTimedOut = 401, "connect_timed_out", "the destination pod did not answer", "check the server, and firewalls inside the pod";
    ConnectUnreachable = 402, "connect_unreachable", "the destination pod or its network answered unreachable", "";
    EndpointNotAttached = 403, "endpoint_not_attached", "the destination pod's veth is not attached (gone, down, or not there yet)", "see `kumiko workloads`";
    NoReadyEndpoint = 404, "no_ready_endpoint", "the Service has no ready endpoint", "check the Service's selector and its pods";
    NodeUnreachable = 405, "node_unreachable", "no tunnel to the destination's node: it did not answer", "check port 15008 between the nodes";
    NodeRefused = 406, "node_refused", "no tunnel to the destination's node: port 15008 refused", "is the agent there running?";
    ClientGone = 407, "client_gone", "the client gave up before the connection was made", "";
    TupleBusy = 408, "tuple_busy", "the same addresses and ports are in use by another flow", "the client used its source port again at once: see that it binds none";
    MethodRefused = 409, "option_refused", "the SYN carries an option that cannot be carried (MD5, AO)", "switch TCP-MD5 or TCP-AO off for peers in the mesh: the tunnel authenticates them";
    NoSuchNode = 410, "no_such_node", "the destination's node has no known address", "give the Node an InternalIP";
    ConnectFailed = 411, "connect_failed", "the connection to the destination pod failed", "see the errno in the flow record";

    // 600 to 799: capacity.
    TableFull = 600, "table_full", "the flow table is full", "find the pod that fills it: `kumiko workloads` counts their flows";
    PendingQuota = 601, "pending_quota", "too many connects of this pod are pending", "find the pod that opens connections which nobody answers: `kumiko flows --from`";
    FlowQuota = 602, "flow_quota", "this pod has too many flows", "find what the pod connects to: `kumiko flows --from`";
    RingFull = 603, "ring_full", "the agent does not keep up with new connections", "give the agent more processor time, or more shards";
    TunnelLimit = 604, "tunnel_limit", "too many tunnels or handshakes", "find who opens tunnels: `kumiko tunnels` on both nodes";
    NotProcessed = 605, "not_processed", "the acceptor did not begin with it: safe to open on another tunnel", "";

    // 800 to 999: life-cycle.
    AgentDown = 800, "agent_down", "the node's agent is not running", "start the agent";
    AgentClosing = 801, "agent_closing", "the agent is draining or cleaning up", "";
    PeerClosing = 802, "peer_closing", "the other node's agent is draining", "";
    TunnelLost = 803, "tunnel_lost", "the tunnel ended without an end of stream", "";
    ClientReset = 804, "client_reset", "the client reset the connection", "";
    ServerReset = 805, "server_reset", "the server reset the connection", "";
    Finished = 806, "finished", "both sides ended the stream", "";
    EndpointGone = 807, "endpoint_gone", "a pod of the flow is gone", "";
    ProtocolError = 808, "protocol_error", "the peer agent sent a frame that is not allowed there", "compare the agents' versions";
    Unparsable = 809, "unparsable", "a TCP fragment or header that cannot be parsed", "see that the pod does not send TCP in fragments (MTU)";
    TaggedFrame = 810, "vlan", "a VLAN-tagged frame", "tagged traffic is not looked into: use an untagged interface";
    Learning = 811, "learning", "the pod is being raised: its new connections wait a second", "";
    IdleExpired = 812, "idle_expired", "no socket had the flow any more", "";
    StrayPacket = 813, "stray", "a packet without a known flow was reset", "";
    BadRecord = 814, "bad_record", "a record could not be opened: it was changed on the way, or keys differ", "";
    UdpIdle = 815, "udp_idle", "a late answer: the exchange of datagrams that it belongs to had ended", "let the server answer sooner, or the client send something meanwhile";
}
