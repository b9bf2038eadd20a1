//! An admin server with sample data, and the command against it.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;

use kumiko_abi::{Reason, Stage, Verdict};
use kumiko_agent::admin::{AdminSocket, AdminState, serve};
use kumiko_agent::source::Source;
use kumiko_agent::telemetry::{Listing, MetricsInput};
use kumiko_core::api::{
    AttachmentState, CertState, CertView, EndpointCounts, FlowRecord, FlowTableStatus, IdentityStatus, KernelStatus,
    PolicyStatus, ReasonCount, SourceDiagnostic, SourceStatus, Status, TunnelCounts, TunnelView, WorkloadView,
};
use kumiko_core::flow_record::{
    FlowClose, FlowDirection, FlowFilter, FlowPath, FlowPhase, FlowSide, Party, PartyKind, ServiceName,
};
use tokio::sync::broadcast;

pub(crate) const SECOND: u64 = 1_000_000_000;
/// 2027-01-15 08:00:00 UTC.
const START: u64 = 1_800_000_000 * SECOND;

/// Sample data.
pub(crate) struct Sample {
    pub(crate) ready: bool,
    /// Where its policy is from; none: it takes none.
    pub(crate) source: Option<Source>,
    /// As it says that.
    pub(crate) url: String,
    pub(crate) flows: Vec<FlowRecord>,
    pub(crate) sender: broadcast::Sender<Arc<FlowRecord>>,
}

impl Sample {
    pub(crate) fn new() -> Self {
        Self {
            ready: true,
            source: None,
            url: "dir:/etc/kumiko".into(),
            flows: flows(),
            sender: broadcast::channel(64).0,
        }
    }
}

/// A server that runs until it is dropped.
pub(crate) struct Server {
    pub(crate) socket: PathBuf,
    pub(crate) sender: broadcast::Sender<Arc<FlowRecord>>,
    _directory: tempfile::TempDir,
    _runtime: tokio::runtime::Runtime,
}

impl Server {
    pub(crate) fn start(sample: Sample) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("admin.sock");
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let sender = sample.sender.clone();
        let listening = {
            let _entered = runtime.enter();
            AdminSocket::bind(&socket).unwrap()
        };
        runtime.spawn(serve(listening, Arc::new(sample), std::future::pending()));
        Self { socket, sender, _directory: directory, _runtime: runtime }
    }

    /// `kumiko` with these arguments and this width.
    pub(crate) fn kumiko(&self, columns: Option<u32>, args: &[&str]) -> Output {
        kumiko(&self.socket, columns, args).output().unwrap()
    }
}

/// The command, not started.
pub(crate) fn kumiko(socket: &Path, columns: Option<u32>, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_kumiko"));
    command.env_remove("KUMIKO_SOCKET").env_remove("COLUMNS").arg("--socket").arg(socket).args(args);
    if let Some(columns) = columns {
        command.env("COLUMNS", columns.to_string());
    }
    command
}

/// Standard output, once the command has ended well.
pub(crate) fn text(output: Output) -> String {
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

impl AdminState for Sample {
    fn status(&self) -> Status {
        Status {
            node: "n1".into(),
            version: "0.1.0".into(),
            pid: 4242,
            generation: 7,
            trust_domain: "cluster.local".into(),
            started_unix_ns: now() - 11_525 * SECOND,
            ready: self.ready,
            waiting_for: if self.ready {
                Vec::new()
            } else {
                vec!["2 certificates from the issuer (see `kumiko certs`)".into()]
            },
            draining: false,
            shards: 2,
            kernel: KernelStatus { release: "6.18.0".into(), attach: "tcx".into(), layout: 1, ..Default::default() },
            endpoints: EndpointCounts { off: 1, observe: 0, permissive: 1, strict: 2, attached: 3, waiting: 1 },
            source: SourceStatus {
                url: self.url.clone(),
                synced: true,
                files: 3,
                objects: 14,
                diagnostics: vec![SourceDiagnostic {
                    file: "web.yaml".into(),
                    line: 12,
                    column: 5,
                    message: "spec.replicas: no such field; a Workload has serviceAccount, node, ips, ports".into(),
                }],
                ..Default::default()
            },
            identity: IdentityStatus {
                wanted: 3,
                valid: 3,
                roots: 1,
                first_expiry_unix_ns: now() + 7_260 * SECOND,
                ..Default::default()
            },
            tunnels: TunnelCounts {
                busy: 2,
                idle: 3,
                arriving: 0,
                buffer_bytes: 0,
                handshakes: 1_217,
                handshake_failures: 4,
            },
            flows: FlowTableStatus {
                entries: 24,
                capacity: 262_144,
                open: 12,
                pending: 1,
                legacy: 1,
                records: 16_384,
                ..Default::default()
            },
            policy: PolicyStatus { enforced: self.source.is_some(), ..Default::default() },
            leak_bytes: 0,
            refused: [(Reason::PlaintextRefused, 1_204), (Reason::PeerCertificateExpired, 3)]
                .map(|(r, n)| reason(r, n))
                .into(),
            ..Default::default()
        }
    }

    fn workloads(&self) -> Vec<WorkloadView> {
        let mut waiting = workload("server-1", Stage::Strict, "n1", AttachmentState::Waiting);
        waiting.problem = "its veth is not there yet: no interface eth0 in /run/netns/server-1".into();
        let mut client = workload("client-1", Stage::Permissive, "n1", AttachmentState::Attached);
        (client.flows, client.legacy, client.pending) = (1_204, 1, 2);
        vec![
            workload("server-2", Stage::Strict, "n2", AttachmentState::Remote),
            waiting,
            client,
            workload("batch", Stage::Off, "n1", AttachmentState::None),
        ]
    }

    fn tunnels(&self) -> Vec<TunnelView> {
        let tunnel = |number: u64, dialled: bool, flow: &str| TunnelView {
            number,
            dialled,
            local: spiffe("client"),
            peer: spiffe("server"),
            peer_node: "n2".into(),
            peer_addr: "172.18.0.3:15008".into(),
            peer_serial: "4a5b".into(),
            flow: flow.into(),
            shard: 0,
            since_unix_ns: now() - 125 * SECOND - number,
            handshake_us: 1_900,
            flows_carried: 1_204,
            bytes_sent: 3 << 20,
            bytes_received: 5 << 30,
            key_updates_sent: 0,
            key_updates_received: 0,
        };
        vec![tunnel(2, true, &"ab".repeat(16)), tunnel(1, false, "")]
    }

    fn certs(&self) -> Vec<CertView> {
        let cert = |name: &str, state, failures, last_error: &str| CertView {
            principal: spiffe(name),
            state,
            serial: if state == CertState::Waiting { String::new() } else { "4a5b6c7d8e9f00112233445566778899".into() },
            not_before_unix_ns: 1,
            not_after_unix_ns: if state == CertState::Waiting { 0 } else { now() + 7_230 * SECOND },
            renew_at_unix_ns: now() + 30 * SECOND + SECOND / 2,
            failures,
            last_error: last_error.into(),
        };
        vec![
            cert("client", CertState::Valid, 0, ""),
            cert(
                "server",
                CertState::Waiting,
                3,
                "cannot reach the issuer at 10.0.0.1:15009: Connection refused; is it running?",
            ),
        ]
    }

    fn metrics(&self) -> MetricsInput {
        MetricsInput { status: self.status(), ..Default::default() }
    }

    fn flows(&self, filter: &FlowFilter, limit: usize) -> Listing {
        let records: Vec<_> = self.flows.iter().filter(|record| filter.matches(record)).cloned().collect();
        let omitted = records.len().saturating_sub(limit);
        Listing { records: records.into_iter().skip(omitted).collect(), omitted }
    }

    fn follow(&self) -> broadcast::Receiver<Arc<FlowRecord>> {
        self.sender.subscribe()
    }
}

fn now() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    u64::try_from(since.as_nanos()).unwrap()
}

fn spiffe(account: &str) -> String {
    format!("spiffe://cluster.local/ns/demo/sa/{account}")
}

fn reason(reason: Reason, count: u64) -> ReasonCount {
    ReasonCount { reason: reason.name().into(), text: reason.text().into(), hint: reason.hint().into(), count }
}

fn workload(name: &str, stage: Stage, node: &str, attachment: AttachmentState) -> WorkloadView {
    WorkloadView {
        namespace: "demo".into(),
        name: name.into(),
        uid: format!("uid-{name}"),
        service_account: name.split('-').next().unwrap().into(),
        principal: spiffe(name),
        node: node.into(),
        ips: vec!["10.244.1.2".parse().unwrap(), "fd00:244:1::2".parse().unwrap()],
        stage,
        local: node == "n1",
        ready: true,
        attachment,
        interface: String::new(),
        problem: String::new(),
        flows: 0,
        pending: 0,
        legacy: 0,
    }
}

fn pod(name: &str, ip: &str, port: u16, node: &str) -> Party {
    Party {
        kind: PartyKind::Workload,
        namespace: "demo".into(),
        name: name.into(),
        service_account: name.into(),
        principal: spiffe(name),
        ip: ip.parse().unwrap(),
        port,
        node: node.into(),
    }
}

fn stranger(ip: &str, port: u16) -> Party {
    let nothing = String::new;
    let (namespace, name, service_account) = (nothing(), nothing(), nothing());
    let (principal, node) = (nothing(), nothing());
    Party { kind: PartyKind::Outside, namespace, name, service_account, principal, ip: ip.parse().unwrap(), port, node }
}

/// An open flow from client-1 to server-2 in a tunnel.
pub(crate) fn flow(number: u8) -> FlowRecord {
    let reason = Reason::Allowed;
    FlowRecord {
        id: format!("{number:02x}").repeat(16),
        node: "n1".into(),
        report: 0,
        start_unix_ns: START + u64::from(number) * 1_500_000_000,
        end_unix_ns: START + u64::from(number) * 1_500_000_000,
        source: pod("client-1", "10.244.1.2", 40_000 + u16::from(number), "n1"),
        destination: pod("server-2", "10.244.2.3", 8080, "n2"),
        service: None,
        protocol: "tcp".into(),
        direction: FlowDirection::Outbound,
        path: FlowPath::Tunnel,
        encrypted: true,
        legacy: false,
        downgraded: false,
        plaintext: false,
        probe: false,
        host: false,
        other_port: false,
        hairpin: false,
        audit_differs: false,
        strict_refuses: false,
        observed: false,
        stage: Stage::Strict,
        state: FlowPhase::Open,
        verdict: Verdict::Allow,
        reason: reason.name().into(),
        reason_text: reason.text().into(),
        hint: reason.hint().into(),
        errno: 0,
        bytes_sent: 79,
        bytes_received: 1_258_291,
        packets_sent: 6,
        packets_received: 40,
        rtt_us: None,
        retransmits: None,
        close: None,
        closed_by: None,
        peer_node: "n2".into(),
        tunnel: Some(1),
        handshake_us: None,
        connect_us: Some(640),
        peer_epoch: None,
        epoch: 1,
        proof: "tls".into(),
    }
}

/// The same, over.
pub(crate) fn closed(number: u8, close: FlowClose, lasted: u64) -> FlowRecord {
    let open = flow(number);
    FlowRecord { state: FlowPhase::Closed, close: Some(close), end_unix_ns: open.start_unix_ns + lasted, ..open }
}

fn because(mut record: FlowRecord, reason: Reason) -> FlowRecord {
    record.reason = reason.name().into();
    record.reason_text = reason.text().into();
    record.hint = reason.hint().into();
    record
}

/// One of each kind.
pub(crate) fn flows() -> Vec<FlowRecord> {
    let service =
        ServiceName { namespace: "demo".into(), name: "web".into(), ip: "10.96.0.10".parse().unwrap(), port: 80 };
    let mut denied = because(closed(4, FlowClose::Refused, 0), Reason::PlaintextRefused);
    denied.source = stranger("192.0.2.77", 51_000);
    denied.destination = pod("server-1", "10.244.1.3", 6379, "n1");
    (denied.path, denied.verdict, denied.encrypted) = (FlowPath::Refused, Verdict::Deny, false);
    (denied.bytes_sent, denied.bytes_received, denied.audit_differs) = (0, 0, true);
    let mut refused = because(closed(5, FlowClose::Refused, 2_300_000), Reason::ConnectRefused);
    (refused.errno, refused.bytes_sent, refused.bytes_received) = (111, 0, 0);
    let mut reset = closed(6, FlowClose::Rst, 130 * SECOND);
    reset.closed_by = Some(FlowSide::Destination);
    let mut outside = because(flow(7), Reason::PeerOutsideMesh);
    outside.destination = stranger("2001:db8::17", 443);
    outside.protocol = "udp".into();
    (outside.path, outside.plaintext, outside.encrypted) = (FlowPath::Clear, true, false);
    let mut legacy = because(flow(1), Reason::LegacyFlow);
    (legacy.path, legacy.legacy, legacy.encrypted) = (FlowPath::Clear, true, false);
    let mut probe = because(closed(8, FlowClose::Fin, 850_000), Reason::Probe);
    (probe.source, probe.probe) =
        (Party { kind: PartyKind::Node, name: "n1".into(), ..stranger("10.244.1.1", 33_000) }, true);
    (probe.path, probe.encrypted) = (FlowPath::Clear, false);
    probe.destination = pod("server-1", "10.244.1.3", 8080, "n1");
    let mut dialling = flow(9);
    (dialling.state, dialling.bytes_sent, dialling.bytes_received) = (FlowPhase::Pending, 0, 0);
    vec![
        legacy,
        closed(2, FlowClose::Fin, 12_400_000),
        FlowRecord { service: Some(service), ..closed(3, FlowClose::Fin, 3_400_000_000) },
        denied,
        refused,
        reset,
        outside,
        probe,
        dialling,
    ]
}
