//! The rules that a value may break, in the words that people read behind it. All of them stand here, so that a test can ask
//! for each one's document.

use std::fmt;

/// An enum of sentences, and all of them in a list.
macro_rules! words {
    ($(#[$about:meta])* $name:ident { $($variant:ident = $text:expr,)* }) => {
        $(#[$about])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
        #[allow(missing_docs, reason = "each variant's sentence says what it is")]
        pub enum $name {
            $($variant,)*
        }

        impl $name {
            /// Each of them.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(match self {
                    $(Self::$variant => $text,)*
                })
            }
        }
    };
}

words! {
    /// A rule that a value breaks: what it must be, or what is wrong with it and what to do.
    Broken {
        // RFC 1123 label: a namespace, a workload's or Service's name.
        Label = "must be 1 to 63 lower-case letters, digits and '-', beginning and ending with a letter or digit",
        // RFC 1123 subdomain: most other names.
        Subdomain = "must be labels of lower-case letters, digits and '-' joined by '.', at most 253 characters (RFC 1123)",
        Uid = "must be 1 to 128 letters, digits, '-', '.' and '_'",
        Port = "must be a port number from 1 to 65535",
        PortName = "must be a port name: 1 to 63 lower-case letters, digits and '-', at least one letter",
        Protocol = "must be TCP, UDP or SCTP",
        OneOfTwo = "must be None or ClientIP (sessionAffinity), Cluster or Local (internalTrafficPolicy)",
        LabelKey = "is no key of a label: 1 to 63 letters, digits, '-', '_' and '.', beginning and ending with a letter or \
            digit, behind a prefix such as team.example/ if need be",
        LabelValue = "is no value of a label: at most 63 letters, digits, '-', '_' and '.', beginning and ending with a \
            letter or digit",
        Net = "must be a network, such as 192.0.2.0/24 or 2001:db8::/32",
        Ip = "must be an IPv4 or IPv6 address",
        Unicast = "must be the address of one interface: not unspecified, loopback, multicast, broadcast, link-local or \
            IPv4-mapped",
        Interface = "must be an interface name: 1 to 15 characters without spaces and '/'",
        Netns = "must be an absolute path without '..', such as /run/netns/NAME",
        OthersName = "is not the namespace's own name, which every API server makes it: remove the label",
        ServicePortTwice = "is another port of this Service already: remove one of the two",
        WorkloadPortTwice = "names another port of this workload too: a Service's target port would be ambiguous; rename one",
        AddressType = "must be IPv4, IPv6 or FQDN",
        NoValue = "is no value: write one ([] for an empty list), or remove the field",
        ClusterWide = "has no place here: objects of this kind are the whole cluster's; remove the field",
        NoDirection = "says nothing of ingress and nothing of egress, so it would enforce nothing: add one of them ([] lets \
            nothing pass), or remove the object",
        RuleName = "is the name of another rule of this list already: verdicts are told by it; rename one",
        ReplacesEnforced = "is for a policy in mode audit: one that is enforced takes nobody's place; remove the other one \
            instead",
        ReplacesItself = "is this policy itself: in audit it would say nothing at all; name another one, or remove it",
        Suspends = "must be ingress.deny.NAME, egress.deny.NAME, ingress.allow or egress.allow (a whole ceiling)",
        SuspendsNothing = "suspends nothing: name a baseline and rules of it, or remove the exception",
        NobodyExcepted = "is empty, so nobody would have the exception: name its peers, or remove it",
        Owner = "must be 253 characters or fewer",
        Seconds = "must be 1 to 86400",
        SecondsWithoutGrace = "belongs to action grace: remove it, or write action: grace",
        UnprovedDeny = "says nothing in a deny rule: a claim is enough to be denied; remove it",
        NoPeers = "is empty: leave the field out to mean anybody, or remove the rule",
        NoPorts = "is empty: leave the field out to mean any port, or remove the rule",
        Peer = "must be a workload (namespace, namespaceLabels, serviceAccount, spiffeId, labels), or an ipBlock, or an \
            entity: exactly one of the three",
        LabelsDenied = "cannot be denied by: a pod's author drops a label and escapes; deny by namespace, account or SPIFFE \
            ID",
        NameDenied = "cannot be denied by: a pod's author names its ports; deny numbers",
        LabelsAllowed = "cannot be allowed by here: a pod's author adds a label and has what the platform caps; allow by \
            namespace, account or SPIFFE ID",
        NameAllowed = "cannot be allowed by here: a pod's author names its ports, and so would choose what is allowed; allow \
            numbers",
        NotOfTheId = "is not what the SPIFFE ID beside it says: nobody is both; mend or remove one of the two",
        AccountOfAny = "is an account of any namespace, then: add namespace or namespaceLabels",
        PodsOfAny = "are pods of any namespace, then, whoever makes them: add namespace or namespaceLabels",
        EndBeforePort = "must not be lower than port",
        PortOfIcmp = "has no ports: leave the field out",
        EndOfName = "needs a number as port: write the port's number, or remove endPort",
        NotAPart = "must be a part of cidr, and not all of it",
        HostBits = "has bits set behind its prefix: write the network's own address",
        MappedNet = "is IPv4 written as IPv6, which no packet carries: write it as IPv4",
        PolicyType = "must be Ingress or Egress",
        BlockBeside = "may not stand beside podSelector or namespaceSelector: make it a peer of its own",
        EmptyPeer = "must have a podSelector, a namespaceSelector or an ipBlock",
        WithoutValues = "needs values: list them, or write Exists or DoesNotExist",
        WithValues = "takes no values: remove them, or write In or NotIn",
        Operator = "must be In, NotIn, Exists or DoesNotExist",
        Duration = "must be a number of s, m, h or d, such as 24h, and 365d at most",
        SettingsName = "must be mesh: there is one MeshSettings",
        Prefix = "must be a label's prefix with its slash, such as platform.example/",
        TeamsLabel = "does not begin with a prefix that MeshSettings lists in platformLabelPrefixes: a label that its \
            namespace's own team may set would let the team choose whether the rule is about it; list its prefix, or choose \
            by another label",
        TrustDomain = "must be a trust domain, such as cluster.local: the host of a SPIFFE ID",
    }
}

words! {
    /// What follows for a document of policy of which no version ever was in force.
    Meanwhile {
        Closed = "what it selects is refused whatever no other policy of its kind allows (policy_invalid), until it is mended",
        Baseline = "it denies, caps and guarantees nothing, and teams decide alone, until it is mended",
        Exception = "it suspends nothing until it is mended",
        Settings = "no label is the platform's, no stage is too low and no address is outside of the cluster, until it is \
            mended",
        Nobody = "it is in audit, or does not say of which namespace it is: nothing is refused for it, until it is mended",
    }
}
