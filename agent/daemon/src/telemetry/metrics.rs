//! Prometheus metrics, made from one snapshot at each scrape: no counter is kept twice.

use std::collections::BTreeMap;
use std::fmt;

use kumiko_abi::{PairCount, PairKey, Reason};
use kumiko_core::api::{CertView, Status};
use kumiko_core::flow_record::verdict_name;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::DescriptorEncoder;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Registry;

use super::WorldNames;

/// Most series of judged traffic by identity; the rest is added up under `source="other"`.
pub const MAX_PAIR_SERIES: usize = 2_000;
/// Most certificates with a series of their own; the status has the first expiry of all.
const MAX_CERT_SERIES: usize = 500;

/// What a scrape is made of.
#[derive(Clone, Debug, Default)]
pub struct MetricsInput {
    /// How the agent is.
    pub status: Status,
    /// Its certificates.
    pub certs: Vec<CertView>,
    /// Judged traffic by identity.
    pub pairs: Vec<Pair>,
    /// Finished flows by path, end and reason: [`super::Telemetry::closed`].
    pub closed: Vec<((&'static str, &'static str, &'static str), u64)>,
    /// Connections to the admin API, or to the metrics' own listener; the server knows.
    pub admin_connections: u64,
    /// Of these, those that follow flows.
    pub admin_followers: u64,
}

/// Judged traffic between two identities.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Pair {
    /// SPIFFE ID; `outside` when it has none, `other` in the overflow bucket.
    pub source: String,
    /// SPIFFE ID; `outside` when it has none, `other` in the overflow bucket.
    pub destination: String,
    /// Destination port.
    pub port: u16,
    /// IP protocol number.
    pub proto: u8,
    /// Verdict's name.
    pub verdict: &'static str,
    /// Reason's name.
    pub reason: &'static str,
    /// TCP: flows. Others: packets.
    pub events: u64,
    /// Payload bytes (TCP: of the judged packet only).
    pub bytes: u64,
}

impl Pair {
    /// Names the classes of a counter. The kernel's overflow bucket has the key of all zeros.
    pub fn new(key: &PairKey, count: PairCount, names: &WorldNames) -> Self {
        let overflow = *key == PairKey::default();
        let name = |class: u32| match class {
            _ if overflow => "other".to_owned(),
            0 => "outside".to_owned(),
            class => names.class(class).map_or_else(|| "gone".to_owned(), str::to_owned),
        };
        let verdict = match key.verdict {
            2 => kumiko_abi::Verdict::Deny,
            3 => kumiko_abi::Verdict::Audit,
            _ => kumiko_abi::Verdict::Allow,
        };
        Self {
            source: name(key.src_class),
            destination: name(key.dst_class),
            port: key.port,
            proto: key.proto,
            verdict: verdict_name(verdict),
            reason: Reason::from_u16(key.reason).unwrap_or(Reason::None).name(),
            events: count.events,
            bytes: count.bytes,
        }
    }
}

/// Metrics in Prometheus' text format (OpenMetrics 1.0).
pub fn render(input: MetricsInput) -> Result<String, fmt::Error> {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(Snapshot(families(input))));
    let mut text = String::new();
    encode(&mut text, &registry)?;
    Ok(text)
}

type Labels = Vec<(&'static str, String)>;

#[derive(Debug)]
struct Family {
    name: &'static str,
    help: &'static str,
    kind: MetricType,
    series: Vec<(Labels, u64)>,
}

#[derive(Debug)]
struct Snapshot(Vec<Family>);

impl Collector for Snapshot {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        for family in self.0.iter().filter(|family| !family.series.is_empty()) {
            let mut metric = encoder.encode_descriptor(family.name, family.help, None, family.kind)?;
            for (labels, value) in &family.series {
                if labels.is_empty() {
                    sample(family.kind, *value, &mut metric)?;
                } else {
                    let mut labelled = metric.encode_family(labels)?;
                    sample(family.kind, *value, &mut labelled)?;
                }
            }
        }
        Ok(())
    }
}

fn sample(kind: MetricType, value: u64, encoder: &mut prometheus_client::encoding::MetricEncoder<'_>) -> fmt::Result {
    match kind {
        MetricType::Counter => encoder.encode_counter::<prometheus_client::encoding::NoLabelSet, _, u64>(&value, None),
        _ => encoder.encode_gauge(&i64::try_from(value).unwrap_or(i64::MAX)),
    }
}

fn counter(name: &'static str, help: &'static str, series: Vec<(Labels, u64)>) -> Family {
    Family { name, help, kind: MetricType::Counter, series }
}

fn gauge(name: &'static str, help: &'static str, series: Vec<(Labels, u64)>) -> Family {
    Family { name, help, kind: MetricType::Gauge, series }
}

fn one(value: u64) -> Vec<(Labels, u64)> {
    vec![(Vec::new(), value)]
}

fn by<'a>(label: &'static str, values: impl IntoIterator<Item = (&'a str, u64)>) -> Vec<(Labels, u64)> {
    values.into_iter().map(|(value, count)| (vec![(label, value.to_owned())], count)).collect()
}

fn families(input: MetricsInput) -> Vec<Family> {
    let MetricsInput { status, certs, pairs, closed, admin_connections, admin_followers } = input;
    let (flows, identity, tunnels, source) = (&status.flows, &status.identity, &status.tunnels, &status.source);
    let endpoints = &status.endpoints;
    let stages = [
        ("off", endpoints.off),
        ("observe", endpoints.observe),
        ("permissive", endpoints.permissive),
        ("strict", endpoints.strict),
    ];
    let build = vec![("version", status.version.clone()), ("node", status.node.clone())];
    let states = [("open", flows.open), ("pending", flows.pending)];
    let mut all = vec![
        gauge("kumiko_agent", "The running agent", vec![(build, 1)]),
        gauge("kumiko_ready", "1 when the agent is ready", one(u64::from(status.ready))),
        gauge("kumiko_generation", "Number of this run of the agent", one(status.generation.into())),
        counter(
            "kumiko_leak_bytes",
            "TCP payload of strict endpoints to meshed peers outside a tunnel and not legacy; must be 0",
            one(status.leak_bytes),
        ),
        counter("kumiko_kernel", "Counters of the kernel programs", by("counter", refs(&status.stats))),
        counter(
            "kumiko_refused",
            "Flows or packets that were refused, by reason",
            by("reason", status.refused.iter().map(|r| (r.reason.as_str(), r.count))),
        ),
        gauge(
            "kumiko_endpoints",
            "Local workloads by stage",
            by("stage", stages.map(|(name, count)| (name, u64::from(count)))),
        ),
        gauge("kumiko_endpoints_attached", "Local workloads with both hooks", one(endpoints.attached.into())),
        gauge("kumiko_endpoints_waiting", "Enrolled workloads without hooks", one(endpoints.waiting.into())),
        gauge("kumiko_flow_table_entries", "Entries of the flow table", one(flows.entries)),
        gauge("kumiko_flow_table_capacity", "Most entries of the flow table", one(flows.capacity)),
        gauge("kumiko_flows", "Flows that live, by state", by("state", states)),
        gauge("kumiko_flows_legacy", "Live flows older than their pod's enrolment", one(flows.legacy)),
        counter(
            "kumiko_flow_records_dropped",
            "Finished records that made place for newer ones",
            one(flows.records_dropped),
        ),
        counter("kumiko_flow_events_lost", "Events that the kernel could not hand over", one(flows.events_lost)),
        counter("kumiko_flow_reports_lost", "Reports that shards could not hand over", one(flows.reports_lost)),
        counter("kumiko_flow_table_errors", "Readings and reapings of the flow table that failed", one(flows.errors)),
        gauge("kumiko_tunnels_busy", "Tunnels that carry a flow", one(tunnels.busy.into())),
        gauge("kumiko_tunnels_idle", "Tunnels that wait in a pool", one(tunnels.idle.into())),
        gauge(
            "kumiko_tunnels_arriving",
            "Connections on the tunnel port whose handshake is not done",
            one(tunnels.arriving.into()),
        ),
        gauge(
            "kumiko_relay_buffer_bytes",
            "Relay buffers lent to flows when the shards last looked",
            one(tunnels.buffer_bytes),
        ),
        counter("kumiko_tunnel_handshakes", "Handshakes that went well", one(tunnels.handshakes)),
        counter("kumiko_tunnel_handshake_failures", "Handshakes that failed", one(tunnels.handshake_failures)),
        gauge("kumiko_source_synced", "1 when the source was read", one(u64::from(source.synced))),
        gauge(
            "kumiko_source_errors",
            "Problems in the source; the last good state stays",
            one(source.diagnostics.len() as u64),
        ),
        gauge(
            "kumiko_source_disputed_addresses",
            "Addresses that workloads claim and nobody has: what uses them is denied",
            one(source.disputed.into()),
        ),
        gauge("kumiko_source_objects", "Objects in force", one(source.objects.into())),
        gauge(
            "kumiko_source_without_number",
            "Workloads and Service ports that the maps have no number for",
            one(source.without_number.into()),
        ),
        counter("kumiko_map_write_failures", "Map writes that failed", one(status.kernel.map_write_failures)),
        gauge("kumiko_admin_connections", "Connections to the listener that is scraped", one(admin_connections)),
        gauge("kumiko_admin_followers", "Readers that follow flows", one(admin_followers)),
        gauge("kumiko_certificates_wanted", "Principals of local workloads", one(identity.wanted.into())),
        gauge("kumiko_certificates_valid", "Certificates that are valid now", one(identity.valid.into())),
        gauge(
            "kumiko_certificates_failing",
            "Certificates that could not be had or renewed",
            one(identity.failing.into()),
        ),
        gauge("kumiko_trust_roots", "Roots in the trust bundle", one(identity.roots.into())),
        counter("kumiko_certificates_issued", "Certificates got from the issuer", one(identity.issued)),
        counter("kumiko_certificate_failures", "Requests to the issuer that failed", one(identity.failures)),
    ];
    all.push(certificates(&certs));
    all.push(counter(
        "kumiko_flows_closed",
        "Finished flows by path, end and reason",
        closed
            .into_iter()
            .map(|((path, close, reason), count)| {
                let labels = [("path", path), ("close", close), ("reason", reason)];
                (labels.map(|(name, value)| (name, value.to_owned())).to_vec(), count)
            })
            .collect(),
    ));
    all.extend(traffic(pairs));
    all
}

fn refs(map: &BTreeMap<String, u64>) -> impl Iterator<Item = (&str, u64)> {
    map.iter().map(|(name, count)| (name.as_str(), *count))
}

fn certificates(certs: &[CertView]) -> Family {
    let mut soonest: Vec<&CertView> = certs.iter().filter(|cert| cert.not_after_unix_ns != 0).collect();
    soonest.sort_by_key(|cert| cert.not_after_unix_ns);
    let series = soonest.into_iter().take(MAX_CERT_SERIES);
    gauge(
        "kumiko_certificate_expiry_seconds",
        "End of a certificate, Unix time",
        by("principal", series.map(|cert| (cert.principal.as_str(), cert.not_after_unix_ns / 1_000_000_000))),
    )
}

fn traffic(mut pairs: Vec<Pair>) -> [Family; 2] {
    // The busiest keep their names; what overflows stays visible.
    pairs.sort_by(|a, b| b.events.cmp(&a.events).then_with(|| a.cmp(b)));
    let mut rest = (0_u64, 0_u64);
    for pair in pairs.drain(pairs.len().min(MAX_PAIR_SERIES)..) {
        rest = (rest.0.saturating_add(pair.events), rest.1.saturating_add(pair.bytes));
    }
    let mut counts: BTreeMap<Labels, (u64, u64)> = BTreeMap::new();
    for pair in pairs {
        let labels = vec![
            ("source", pair.source),
            ("destination", pair.destination),
            ("port", pair.port.to_string()),
            ("proto", pair.proto.to_string()),
            ("verdict", pair.verdict.to_owned()),
            ("reason", pair.reason.to_owned()),
        ];
        let count = counts.entry(labels).or_default();
        *count = (count.0.saturating_add(pair.events), count.1.saturating_add(pair.bytes));
    }
    if rest != (0, 0) {
        let labels = ["source", "destination", "port", "proto", "verdict", "reason"];
        let count = counts.entry(labels.map(|label| (label, "other".to_owned())).to_vec()).or_default();
        *count = (count.0.saturating_add(rest.0), count.1.saturating_add(rest.1));
    }
    let events = counts.iter().map(|(labels, count)| (labels.clone(), count.0)).collect();
    let bytes = counts.into_iter().map(|(labels, count)| (labels, count.1)).collect();
    [
        counter("kumiko_judged", "Judged TCP flows and other packets by identity", events),
        counter("kumiko_judged_bytes", "Payload bytes of what was judged, by identity", bytes),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use kumiko_core::api::ReasonCount;

    fn pair(n: u64) -> Pair {
        Pair {
            source: format!("spiffe://td/ns/a/sa/{n}"),
            destination: "outside".into(),
            port: 80,
            proto: 6,
            verdict: "allow",
            reason: "allowed",
            events: n,
            bytes: 2 * n,
        }
    }

    #[test]
    fn a_scrape_reads_well() {
        let mut status = Status { node: "n1".into(), ready: true, ..Status::default() };
        status.refused = vec![ReasonCount { reason: "plaintext_refused".into(), count: 3, ..ReasonCount::default() }];
        status.stats.insert("stray".into(), 7);
        let input = MetricsInput {
            status,
            pairs: vec![pair(1)],
            closed: vec![(("tunnel", "fin", "allowed"), 4)],
            ..Default::default()
        };
        let text = render(input).unwrap();
        for line in [
            "kumiko_leak_bytes_total 0",
            "kumiko_ready 1",
            "kumiko_refused_total{reason=\"plaintext_refused\"} 3",
            "kumiko_kernel_total{counter=\"stray\"} 7",
            "kumiko_flows_closed_total{path=\"tunnel\",close=\"fin\",reason=\"allowed\"} 4",
            "kumiko_judged_total{source=\"spiffe://td/ns/a/sa/1\",destination=\"outside\",port=\"80\",proto=\"6\",verdict=\"allow\",reason=\"allowed\"} 1",
            "# TYPE kumiko_leak_bytes counter",
        ] {
            assert!(text.lines().any(|l| l == line), "{line} is not in\n{text}");
        }
        assert!(text.ends_with("# EOF\n"));
    }

    #[test]
    fn every_metric_is_in_the_docs_and_no_other() {
        let page = include_str!("../../../../docs/metrics.md");
        let described: Vec<&str> = page.lines().filter(|line| line.starts_with("| `kumiko_")).collect();
        let all = families(MetricsInput::default());
        for Family { name, help, kind, .. } in &all {
            let (end, kind) = match kind {
                MetricType::Counter => ("_total", "counter"),
                _ => ("", "gauge"),
            };
            let (begin, end) = (format!("| `{name}{end}` | {kind} | "), format!(" | {help} |"));
            let found = described.iter().any(|line| line.starts_with(&begin) && line.ends_with(&end));
            assert!(found, "docs/metrics.md has no line {begin}…{end}");
        }
        assert_eq!(described.len(), all.len());
    }

    #[test]
    fn identities_are_bounded_and_the_rest_stays_visible() {
        let pairs = (1..=MAX_PAIR_SERIES as u64 + 10).map(pair).collect();
        let text = render(MetricsInput { pairs, ..Default::default() }).unwrap();
        let judged: Vec<&str> = text.lines().filter(|line| line.starts_with("kumiko_judged_total{")).collect();
        assert_eq!(judged.len(), MAX_PAIR_SERIES + 1);
        // The ten smallest: 1 + 2 + … + 10.
        assert!(judged.iter().any(|line| line.contains("source=\"other\"") && line.ends_with(" 55")));
    }
}
