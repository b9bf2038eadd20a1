use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::pin::Pin;
use std::time::Duration;

use kumiko_core::api::{Applied, AppliedState, PolicyObjectView, SetsView};
use kumiko_core::api::{FlowLine, OMITTED_HEADER};
use kumiko_core::flow_record::{AgentFacts, Clock, Entry, Names};
use kumiko_core::policy::explain::Explanation;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::UnixStream;
use tokio::task::JoinHandle;

use super::*;

struct Sample {
    sender: broadcast::Sender<Arc<FlowRecord>>,
}

fn record(number: u8) -> FlowRecord {
    let (client, server) = ("10.0.0.1:4000".parse().unwrap(), "10.0.0.2:80".parse().unwrap());
    let (key, initiator) = kumiko_core::addr::flow_key(client, server, 6);
    let flow = kumiko_abi::Flow {
        id: kumiko_abi::FlowId([number; 16]),
        first_ns: u64::from(number),
        last_syn_ns: 0,
        last_ns: 0,
        over_ns: 0,
        src: 0,
        dst: 0,
        service: 0,
        src_ifindex: 0,
        dst_ifindex: 0,
        generation: 0,
        epoch: 0,
        isn: 0,
        flags: initiator,
        shard: 0,
        reason: 1,
        state: 3,
        verdict: 1,
        _pad: [0; 2],
        not_after: 0,
        dir: Default::default(),
    };
    FlowRecord::build("n1", Clock::default(), &Entry { key, flow }, &Names::default(), &AgentFacts::default())
}

impl AdminState for Sample {
    fn status(&self) -> Status {
        Status { node: "n1".into(), ready: true, ..Status::default() }
    }

    fn workloads(&self) -> Vec<WorkloadView> {
        Vec::new()
    }

    fn tunnels(&self) -> Vec<TunnelView> {
        Vec::new()
    }

    fn certs(&self) -> Vec<CertView> {
        Vec::new()
    }

    fn metrics(&self) -> MetricsInput {
        MetricsInput { status: self.status(), ..MetricsInput::default() }
    }

    fn flows(&self, filter: &FlowFilter, limit: usize) -> Listing {
        let records: Vec<_> = (1..=3).map(record).filter(|record| filter.matches(record)).collect();
        let omitted = records.len().saturating_sub(limit);
        Listing { records: records.into_iter().skip(omitted).collect(), omitted }
    }

    fn follow(&self) -> broadcast::Receiver<Arc<FlowRecord>> {
        self.sender.subscribe()
    }
}

impl PolicyState for Sample {
    fn explain(&self, asked: &ExplainQuery) -> Result<Explanation, String> {
        match asked {
            ExplainQuery::Asked(asked) => Err(format!("{} is nobody", asked.from)),
            ExplainQuery::Seen(id) => Err(format!("{} is gone", kumiko_core::flow_record::hex_id(*id))),
        }
    }

    fn policy(&self) -> Result<Vec<PolicyObjectView>, String> {
        Ok(vec![PolicyObjectView { kind: "MeshPolicy".into(), ..PolicyObjectView::default() }])
    }

    /// One version is in force, another one refused, and any other is never read.
    fn applied(&self, asked: &AppliedQuery) -> Result<Applied, String> {
        let state = match asked.digest {
            [1, ..] => AppliedState::InForce,
            [2, ..] => AppliedState::Refused,
            _ => AppliedState::Unread,
        };
        Ok(Applied { state, epoch: 3, ..Applied::default() })
    }

    fn change(&self) -> Pin<Box<dyn Future<Output = ()> + Send>> {
        Box::pin(std::future::pending())
    }

    fn sets(&self) -> Result<SetsView, String> {
        Ok(SetsView { epoch: 7, ..SetsView::default() })
    }
}

fn start(path: &Path, queue: usize) -> (broadcast::Sender<Arc<FlowRecord>>, JoinHandle<()>) {
    let (sender, _) = broadcast::channel(queue);
    let state = Arc::new(Sample { sender: sender.clone() });
    let socket = AdminSocket::bind(path).unwrap();
    (sender, tokio::spawn(serve(socket, state, std::future::pending())))
}

async fn ask(path: &Path, request: &str) -> String {
    let mut stream = UnixStream::connect(path).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    // What the server did not read of a request that is too large comes back as a reset after the answer.
    let _ = stream.read_to_string(&mut answer).await;
    answer
}

async fn get(path: &Path, what: &str) -> String {
    ask(path, &format!("GET {what} HTTP/1.1\r\nHost: kumiko\r\n\r\n")).await
}

#[tokio::test]
async fn answers_and_refusals() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("run/admin.sock");
    let (_sender, task) = start(&path, 4);
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);

    let status = get(&path, "/v1/status").await;
    assert!(status.starts_with("HTTP/1.1 200") && status.contains("\"node\":\"n1\""), "{status}");
    let metrics = get(&path, "/metrics").await;
    assert!(metrics.contains("kumiko_leak_bytes_total 0") && metrics.contains("openmetrics-text"), "{metrics}");
    // The one that asks.
    assert!(metrics.contains("\nkumiko_admin_connections 1\n"), "{metrics}");
    let flows = get(&path, "/v1/flows?limit=2&from=10.0.0.1").await;
    assert!(flows.contains(&format!("{OMITTED_HEADER}: 1")), "{flows}");
    assert_eq!(flows.matches("\"id\":").count(), 2);
    assert_eq!(get(&path, "/v1/flows?verdict=deny").await.matches("\"id\":").count(), 0);

    for (asked, status, word) in [
        ("/v1/nothing", "404", "/v1/status"),
        ("/v1/flows?from=nobody", "400", "NAMESPACE/NAME"),
        ("/v1/flows?verdict=maybe", "400", "allow, deny or audit"),
        ("/v1/flows?colour=red", "400", "there are from, to"),
        ("/v1/flows?limit=999999", "400", "up to"),
        ("/v1/flows?follow=perhaps", "400", "true or false"),
        ("/v1/policy/explain?from=a/b&port=1", "400", "from, to and port"),
        ("/v1/policy/explain?from=a/b&to=c/d", "400", "say the port of TCP"),
        ("/v1/policy/explain?from=a&to=c/d&port=1", "400", "NAMESPACE/NAME"),
        ("/v1/policy/explain?from=a/b&to=c/d&port=0", "400", "1 to 65535"),
        ("/v1/policy/explain?from=a/b&to=c/d&port=1&protocol=icmp", "400", "without ports"),
        ("/v1/policy/explain?from=a/b&to=c/d&protocol=gre", "400", "tcp, udp, sctp, icmp or other"),
        ("/v1/policy/explain?from=a/b&to=c/d&protocol=icmp", "422", "a/b is nobody"),
        ("/v1/policy/explain?who=a/b", "400", "there are from, to"),
        ("/v1/policy/explain?from=a/b&to=c/d&port=1", "422", "a/b is nobody"),
        ("/v1/policy/explain?flow=07", "400", "32 hex digits"),
        ("/v1/policy/explain?flow=07070707070707070707070707070707&port=1", "400", "leave from"),
        ("/v1/policy/explain?flow=07070707070707070707070707070707", "422", "07070707070707070707070707070707 is gone"),
        ("/v1/policy/objects", "200", "MeshPolicy"),
        ("/v1/policy/applied?file=a", "400", "say file and digest"),
        ("/v1/policy/applied?file=a&digest=12", "400", "64 hex digits"),
        ("/v1/policy/applied?file=a&wait=100", "400", "seconds up to 20"),
        ("/v1/policy/applied?at=a", "400", "there are file, digest and wait"),
        ("/v1/policy/sets", "200", "\"epoch\":7"),
    ] {
        let answer = get(&path, asked).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}")) && answer.contains(word), "{answer}");
    }
    for (first, state) in [("01", "inForce"), ("02", "refused"), ("03", "unread")] {
        let version = format!("{first}{}", "0".repeat(62));
        let answer = get(&path, &format!("/v1/policy/applied?file=a.yaml&digest={version}")).await;
        assert!(answer.starts_with("HTTP/1.1 200") && answer.contains(&format!("\"state\":\"{state}\"")), "{answer}");
    }
    let post = ask(&path, "POST /v1/status HTTP/1.1\r\nHost: kumiko\r\nContent-Length: 0\r\n\r\n").await;
    assert!(post.starts_with("HTTP/1.1 405"), "{post}");
    let large = ask(&path, &format!("GET /{} HTTP/1.1\r\n\r\n", "x".repeat(30_000))).await;
    assert!(large.is_empty() || large.starts_with("HTTP/1.1 4"), "{large}");
    task.abort();
}

#[tokio::test]
async fn a_follower_sees_what_is_there_and_what_comes() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("admin.sock");
    let (sender, task) = start(&path, 16);
    let mut lines = open_follow(&path, "/v1/flows?follow=true&limit=1").await;
    assert_eq!(next(&mut lines).await, FlowLine::Flow(Box::new(record(3))));
    for number in 4..7 {
        sender.send(Arc::new(record(number))).unwrap();
        assert_eq!(next(&mut lines).await, FlowLine::Flow(Box::new(record(number))));
    }
    assert_eq!(sender.receiver_count(), 1);
    // A reader that goes while nothing happens gives its place back.
    drop(lines);
    let deadline = tokio::time::Instant::now() + Duration::from_secs(60);
    while sender.receiver_count() > 0 {
        assert!(tokio::time::Instant::now() < deadline, "the follower is still there");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    task.abort();
}

#[tokio::test]
async fn a_slow_follower_loses_lines_and_is_told_how_many() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("admin.sock");
    let (sender, task) = start(&path, 8);
    let mut lines = open_follow(&path, "/v1/flows?follow").await;
    sender.send(Arc::new(record(0))).unwrap();
    assert!(matches!(next(&mut lines).await, FlowLine::Flow(_)));
    // Nobody reads; more than any buffer between can hold is sent.
    let sent = 5_000;
    for number in 0..sent {
        sender.send(Arc::new(record(u8::try_from(number % 256).unwrap()))).unwrap();
        if number % 4 == 0 {
            tokio::task::yield_now().await;
        }
    }
    let (mut seen, mut lost) = (0, 0);
    while seen + lost < sent {
        match next(&mut lines).await {
            FlowLine::Flow(_) => seen += 1,
            FlowLine::Lost { lost: n } => lost += n,
        }
    }
    assert!(seen > 0 && lost > 0 && seen + lost == sent, "{seen} + {lost} of {sent}");
    task.abort();
}

async fn open_follow(path: &Path, what: &str) -> BufReader<UnixStream> {
    let mut stream = UnixStream::connect(path).await.unwrap();
    stream.write_all(format!("GET {what} HTTP/1.1\r\nHost: kumiko\r\n\r\n").as_bytes()).await.unwrap();
    let mut lines = BufReader::new(stream);
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        assert!(lines.read_line(&mut head).await.unwrap() > 0, "{head}");
    }
    assert!(head.contains("application/x-ndjson"), "{head}");
    lines
}

async fn next(lines: &mut BufReader<UnixStream>) -> FlowLine {
    loop {
        let mut text = String::new();
        assert!(lines.read_line(&mut text).await.unwrap() > 0);
        if let Ok(line) = serde_json::from_str(text.trim()) {
            return line;
        }
    }
}

#[tokio::test]
async fn a_stale_socket_is_replaced_and_a_live_one_is_not() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("admin.sock");
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    assert!(path.exists(), "left by a dead agent");
    let live = AdminSocket::bind(&path).unwrap();
    let error = AdminSocket::bind(&path).unwrap_err().to_string();
    assert!(error.contains("serves") && error.contains("--run-dir"), "{error}");
    drop(live);
    assert!(!path.exists());
    std::fs::write(&path, "precious").unwrap();
    assert!(matches!(AdminSocket::bind(&path), Err(AdminError::NoSocket { .. })));
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "precious");
}

#[tokio::test]
async fn metrics_alone_over_tcp() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (sender, _) = broadcast::channel(1);
    let task = tokio::spawn(serve_metrics(listener, Arc::new(Sample { sender }), std::future::pending()));
    for (what, status) in [("/metrics", "200"), ("/v1/status", "404"), ("/v1/flows?follow", "404")] {
        let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
        stream.write_all(format!("GET {what} HTTP/1.1\r\nHost: x\r\n\r\n").as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{answer}");
    }
    task.abort();
}
