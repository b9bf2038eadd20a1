//! Peers that are not what they should be knock at a node's tunnel port: each is refused, counted under its own reason,
//! and other flows do not notice.

mod authority;
mod crowds;
mod opened;

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, bail, ensure};
use kumiko_abi::Reason;
use kumiko_core::Principal;
use kumiko_lab::agents::TRUST_DOMAIN;
use kumiko_lab::command::wait_for;
use kumiko_lab::pattern::{CAPTURED, Pattern};
use kumiko_lab::peer::{Pending, Step};
use kumiko_lab::spec::node_ips;
use kumiko_lab::wire::TUNNEL_PORT;
use kumiko_lab::{Family, Net, Stage, manifests};
use kumiko_tests::harness;
use kumiko_tests::twins::{Path, Side};
use kumiko_tunnel::identity::ALPN;
use libtest_mimic::Arguments;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, SupportedProtocolVersion, version};
use serde_json::Value;

use authority::{Authority, Believes, Shown};

const HOUR: Duration = Duration::from_secs(3600);
/// The node that is knocked at, from n1.
const NODE: u8 = 2;

/// What knocks, and the reason it is refused for.
type Check = (&'static str, Reason, fn(&World) -> Result<()>);

const CHECKS: &[Check] = &[
    ("no_certificate", Reason::PeerCertificateMissing, |w| w.knock(None, &version::TLS13, "server")),
    ("another_root", Reason::PeerCertificateUnknownIssuer, |w| w.show(&w.stranger, &client(), w.now, w.now + HOUR)),
    ("expired", Reason::PeerCertificateExpired, |w| w.show(&w.issuer, &client(), w.now - 2 * HOUR, w.now - HOUR)),
    ("not_yet_valid", Reason::PeerCertificateExpired, |w| w.show(&w.issuer, &client(), w.now + HOUR, w.now + 2 * HOUR)),
    ("another_trust_domain", Reason::PeerTrustDomain, |w| {
        w.show(&w.issuer, "spiffe://elsewhere.example/ns/demo/sa/client", w.now, w.now + HOUR)
    }),
    ("no_spiffe_identity", Reason::PeerCertificateInvalid, |w| {
        w.show(&w.issuer, "https://elsewhere.example/", w.now, w.now + HOUR)
    }),
    ("tls_1_2", Reason::TlsVersion, |w| {
        let shown = w.issuer.sign(&client(), w.now - HOUR, w.now + HOUR)?;
        w.knock(Some(shown), &version::TLS12, "server")
    }),
    ("a_name_that_nobody_has_here", Reason::UnrecognizedName, |w| {
        let shown = w.issuer.sign(&client(), w.now - HOUR, w.now + HOUR)?;
        w.knock(Some(shown), &version::TLS13, "nobody")
    }),
    ("not_tls", Reason::NotTls, |w| {
        let mut stream = w.connect()?;
        stream.write_all(b"GET / HTTP/1.1\r\nHost: n2\r\n\r\n").context("writing")?;
        ends(&mut stream)
    }),
    ("a_right_certificate_with_another_workloads_address", Reason::SourceMismatch, |w| w.open("server-1", "server-2")),
    ("a_right_certificate_with_an_address_of_another_node", Reason::UnknownSource, |w| w.open("client-2", "server-2")),
    ("an_address_that_belongs_to_another_workload", Reason::DestinationGone, |w| w.open("client-1", "client-2")),
    ("a_certificate_that_was_given_to_another_node", Reason::SourceMismatch, |w| {
        w.open_as_given_to(|origin| origin.node = "n2".to_owned())
    }),
    ("a_certificate_of_a_namespace_that_was_deleted", Reason::StaleIdentity, |w| {
        w.open_as_given_to(|origin| origin.namespace_uid = "ns-before".to_owned())
    }),
    ("a_certificate_of_an_account_that_was_deleted", Reason::StaleIdentity, |w| {
        w.open_as_given_to(|origin| origin.account_uid = "sa-before".to_owned())
    }),
    ("a_certificate_of_a_node_that_was_replaced", Reason::StaleIdentity, |w| {
        w.open_as_given_to(|origin| origin.node_uid = "node-before".to_owned())
    }),
    ("the_uid_of_a_pod_that_had_the_address", Reason::StaleIdentity, |w| {
        w.open_with(|open| open.source_uid = "before".to_owned())
    }),
    ("labels_that_the_pod_has_no_more", Reason::StaleIdentity, |w| {
        let digest = w.choose_by_labels()?;
        w.open_with(|open| open.label_digest = digest)
    }),
    ("a_flow_id_of_another_node", Reason::ProtocolError, |w| w.open("client-1", "server-2")),
    ("bytes_that_belong_to_no_flow", Reason::ProtocolError, |w| {
        let shown = w.issuer.sign(&client(), w.now - HOUR, w.now + HOUR)?;
        w.say(b"bytes", Some(shown), &version::TLS13, "server")
    }),
    ("a_tunnel_that_has_outlived_its_certificate", Reason::PeerCertificateExpired, |w| {
        w.open_at_the_end_of("client-1", "server-2", SHORT_LIFE)
    }),
    ("silence", Reason::HandshakeTimedOut, |w| ends(&mut w.connect()?)),
    ("a_byte_now_and_then", Reason::HandshakeTimedOut, World::drip),
    ("a_tuple_that_its_target_is_dialling", Reason::TupleBusy, World::simultaneous),
];

/// A certificate's, which a handshake fits in, on a busy machine too.
const SHORT_LIFE: Duration = Duration::from_secs(8);
/// The longest that a node takes to end a connection: several times the five seconds that a handshake has.
const LIMIT: Duration = Duration::from_secs(30);

fn main() -> ExitCode {
    let names: Vec<&str> = CHECKS.iter().map(|(name, _, _)| *name).collect();
    harness::main(&names, run)
}

fn run(args: &Arguments) -> Result<bool> {
    if harness::without_mesh() {
        return Ok(true);
    }
    let world = Arc::new(World::new()?);
    let unharmed = world.keep_alive()?;
    // One at a time: each looks at the counters of one node.
    let args = Arguments { test_threads: Some(1), ..args.clone() };
    let trials = CHECKS.iter().map(|(name, reason, knock)| {
        let world = Arc::clone(&world);
        harness::trial(*name, move || world.refused(*reason, *knock))
    });
    let mut well = harness::run_trials(&args, trials.collect());
    let crowded = Arc::clone(&world);
    well &= harness::run_afterwards(vec![harness::trial("a_silent_crowd_takes_no_turns", move || crowded.crowd())]);
    let crowded = Arc::clone(&world);
    well &= harness::run_afterwards(vec![harness::trial("a_crowd_of_one_address_leaves_turns_to_others", move || {
        crowded.half_spoken_crowd()
    })]);
    let last = Arc::clone(&world);
    well &=
        harness::run_afterwards(vec![harness::trial("other_flows_are_unharmed", move || last.check_alive(unharmed))]);
    if !well {
        eprintln!("{}", world.side.lab.evidence(40));
    }
    Ok(well)
}

fn client() -> String {
    format!("spiffe://{TRUST_DOMAIN}/ns/demo/sa/client")
}

struct World {
    side: Side,
    issuer: Authority,
    stranger: Authority,
    now: SystemTime,
    alive_port: u16,
}

impl World {
    fn new() -> Result<Self> {
        let side = Side::new("bad-peers", Net::Routed, Some(Stage::Strict))?;
        let (issuer, stranger) = (Authority::of_lab(&side)?, Authority::other()?);
        let alive_port = side.port();
        Ok(Self { side, issuer, stranger, now: SystemTime::now(), alive_port })
    }

    /// Connects from n1 to n2's tunnel port.
    fn connect(&self) -> Result<TcpStream> {
        let [v4, _] = node_ips(NODE);
        self.connect_to(v4)
    }

    fn connect_to(&self, address: IpAddr) -> Result<TcpStream> {
        let stream =
            self.side.lab.node(1)?.netns.within(|| TcpStream::connect((address, TUNNEL_PORT)).context("connecting"))?;
        stream.set_read_timeout(Some(LIMIT)).context("limiting reads")?;
        Ok(stream)
    }

    fn show(&self, by: &Authority, uri: &str, from: SystemTime, to: SystemTime) -> Result<()> {
        self.knock(Some(by.sign(uri, from, to)?), &version::TLS13, "server")
    }

    /// Shakes hands as a client that believes everything; must not come through.
    fn knock(&self, shown: Option<Shown>, version: &'static SupportedProtocolVersion, name: &str) -> Result<()> {
        self.say(b"", shown, version, name)
    }

    /// The same; once it has come through after all, it says `bytes`.
    fn say(
        &self,
        bytes: &[u8],
        shown: Option<Shown>,
        version: &'static SupportedProtocolVersion,
        name: &str,
    ) -> Result<()> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(&[version])?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Believes(provider)));
        let mut config = match shown {
            Some((chain, key)) => builder.with_client_auth_cert(chain, key)?,
            None => builder.with_no_client_auth(),
        };
        config.alpn_protocols = vec![ALPN.to_vec()];
        let name = Principal::new(TRUST_DOMAIN, "demo", name)?.server_name();
        let mut connection = ClientConnection::new(Arc::new(config), ServerName::try_from(name)?)?;
        let mut stream = self.connect()?;
        let mut stream = rustls::Stream::new(&mut connection, &mut stream);
        if !bytes.is_empty() {
            stream.write_all(bytes).context("after the handshake")?;
        }
        ends(&mut stream)
    }

    /// A record that never comes to its end.
    fn drip(&self) -> Result<()> {
        let mut stream = self.connect()?;
        stream.set_read_timeout(Some(Duration::from_millis(250)))?;
        let record = [22, 3, 1, 2, 0].into_iter().chain(std::iter::repeat(1));
        for byte in record.take(80) {
            let over = match stream.write(&[byte]).and_then(|_| stream.read(&mut [0; 64])) {
                Err(error) => error.kind() != std::io::ErrorKind::WouldBlock,
                Ok(read) => read == 0,
            };
            if over {
                return Ok(());
            }
        }
        bail!("the node waits for the end of a record that never ends")
    }

    fn uid(&self, pod: &str) -> Result<String> {
        let index = self.side.lab.pods.iter().position(|one| one.name == pod).context("no such pod")?;
        Ok(manifests::uid(&self.side.lab.state.id, index))
    }

    /// What the node says it has refused.
    fn refusals(&self) -> Result<Vec<Value>> {
        let status = self.side.lab.admin(NODE, "/v1/status")?;
        Ok(status.get("refused").and_then(Value::as_array).context("a status without refusals")?.clone())
    }

    /// How often for a reason.
    fn count(&self, reason: Reason) -> Result<u64> {
        let refusals = self.refusals()?;
        let found = refusals.iter().find(|one| one.get("reason").and_then(Value::as_str) == Some(reason.name()));
        Ok(found.and_then(|one| one.get("count")?.as_u64()).unwrap_or(0))
    }

    /// Knocks, and waits for the reason's counter.
    fn refused(&self, reason: Reason, knock: fn(&Self) -> Result<()>) -> Result<()> {
        let before = self.count(reason)?;
        knock(self)?;
        wait_for(&format!("a refusal is counted as {}", reason.name()), Duration::from_secs(5), || {
            let now = self.count(reason)?;
            ensure!(now == before + 1, "{before} before, {now} now: {:?}", self.refusals()?);
            Ok(())
        })
    }

    /// A connection that asks all the time.
    fn keep_alive(&self) -> Result<(Pending, Pending)> {
        let to = SocketAddr::new(self.side.address(Path::CrossNode, Family::V4)?, self.alive_port);
        let pattern = Pattern::new(CAPTURED, 1);
        self.side.far.listen(to)?;
        let serving = self.side.far.serve(self.alive_port, 1, vec![Step::Echo { bytes: 64 }, Step::Close])?;
        let asking = vec![
            Step::Ask { times: 1, bytes: 64, pattern: pattern.clone() },
            Step::Open { name: "alive".into() },
            Step::AskUntil { gate: "end".into(), bytes: 64, pattern },
            Step::Close,
        ];
        let client = self.side.client.connect(to, 1, asking)?;
        self.side.client.await_gate("alive")?;
        Ok((client, serving))
    }

    fn check_alive(&self, (client, server): (Pending, Pending)) -> Result<()> {
        self.side.client.open_gate("end")?;
        for report in [client.report()?, server.report()?] {
            let broken = report.steps.iter().any(|step| step.error.is_some() || !step.intact);
            ensure!(report.connect.is_none() && !broken, "{report:?}");
        }
        let to = SocketAddr::new(self.side.address(Path::CrossNode, Family::V4)?, self.alive_port);
        let serving = self.side.far.serve(self.alive_port, 1, vec![Step::Echo { bytes: 64 }, Step::Close])?;
        let ask = Step::Ask { times: 1, bytes: 64, pattern: Pattern::new(CAPTURED, 2) };
        let report = self.side.client.connect(to, 1, vec![ask, Step::Close])?.report()?;
        ensure!(report.connect.is_none() && report.steps.iter().all(|step| step.error.is_none()), "{report:?}");
        serving.report().map(drop)
    }
}

/// Reads until the other side ends it, which it must.
fn ends(stream: &mut (impl Read + Write)) -> Result<()> {
    let mut rest = [0; 4096];
    loop {
        match stream.read(&mut rest) {
            Ok(0) => return Ok(()),
            Ok(_) => {}
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                bail!("the node does not end the connection")
            }
            Err(_) => return Ok(()),
        }
    }
}
