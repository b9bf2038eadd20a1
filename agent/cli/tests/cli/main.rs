//! The command against a real admin server on a Unix socket.
#![expect(clippy::unwrap_used, reason = "a test may fail")]

mod apply;
mod in_force;
mod policy;
mod sample;

use std::io::{BufRead as _, BufReader};
use std::process::Stdio;
use std::sync::Arc;

use kumiko_core::flow_record::{FlowClose, FlowLine};
use serde_json::Value;

use sample::{Sample, Server, closed, flow, kumiko, text};

#[track_caller]
fn same(shown: &str, expected: &str) {
    assert_eq!(shown, expected.strip_prefix('\n').unwrap(), "shown:\n{shown}");
}

#[test]
fn status_page() {
    let server = Server::start(Sample::new());
    same(
        &text(server.kumiko(Some(80), &["status"])),
        "
n1  ready  kumiko-agent 0.1.0, pid 4242, up 3 h 12 m, generation 7

Kernel        6.18.0 · tcx · 2 shards
Workloads     2 strict, 1 permissive, 1 off · 3 attached
              1 waiting (see `kumiko workloads`)
Source        dir:/etc/kumiko · 14 objects in 3 files · 1 problem
Certificates  3 of 3 valid · 1 root trusted · first expires in 2 h
Tunnels       2 busy, 3 idle · 1,217 handshakes · 4 failed
Flows         12 open, 1 dialling, 1 legacy · table 24 of 262,144
              16,384 records kept
Leaked        0 bytes of strict workloads outside tunnels

Refused manifests (the last good state of these files stays in force)
web.yaml:12:5
  spec.replicas: no such field; a Workload has serviceAccount, node, ips, ports

Refused connections
  COUNT  REASON             WHAT IT MEANS
  1,204  plaintext_refused  a strict workload refuses plaintext
                            enrol the client's namespace, or lower this one to
                            permissive
      3  peer_expired       the peer's certificate is expired or not yet valid
                            check clocks and the issuer
",
    );
}

#[test]
fn an_agent_that_is_not_ready_says_what_it_waits_for() {
    let server = Server::start(Sample { ready: false, ..Sample::new() });
    for output in ["table", "json"] {
        assert_eq!(server.kumiko(None, &["status", "-o", output]).status.code(), Some(1));
    }
    let page = String::from_utf8(server.kumiko(None, &["status"]).stdout).unwrap();
    assert!(page.starts_with("n1  not ready  "), "{page}");
    assert!(page.contains("\n  waits for 2 certificates from the issuer (see `kumiko certs`)\n"), "{page}");
}

#[test]
fn flows_without_a_terminal_are_whole() {
    let server = Server::start(Sample::new());
    same(
        &text(server.kumiko(None, &["flows"])),
        "
START (UTC)   SOURCE         DESTINATION             PATH    RESULT    SENT  RECEIVED    LASTED  NOTE
08:00:01.500  demo/client-1  demo/server-2:8080      clear   open      79 B   1.2 MiB            legacy
08:00:03.000  demo/client-1  demo/server-2:8080      tunnel  closed    79 B   1.2 MiB     12 ms
08:00:04.500  demo/client-1  demo/web:80             tunnel  closed    79 B   1.2 MiB     3.4 s  to demo/server-2:8080
08:00:06.000  192.0.2.77     demo/server-1:6379      -       denied     0 B       0 B            a strict workload refuses plaintext, audit would allow it
08:00:07.500  demo/client-1  demo/server-2:8080      tunnel  refused    0 B       0 B    2.3 ms  ECONNREFUSED, the destination pod refused: nothing listens on the port
08:00:09.000  demo/client-1  demo/server-2:8080      tunnel  reset     79 B   1.2 MiB  2 m 10 s  by the destination
08:00:10.500  demo/client-1  [2001:db8::17]:443/udp  clear   open      79 B   1.2 MiB            the peer is not in the mesh: in the clear
08:00:12.000  node n1        demo/server-1:8080      clear   closed    79 B   1.2 MiB    850 µs  probe
08:00:13.500  demo/client-1  demo/server-2:8080      tunnel  dialling   0 B       0 B
",
    );
}

#[test]
fn flows_fit_the_terminal() {
    let server = Server::start(Sample::new());
    same(
        &text(server.kumiko(Some(80), &["flows", "--last", "5"])),
        "
START (UTC)   SOURCE         DESTINATION             PATH    RESULT    NOTE
08:00:07.500  demo/client-1  demo/server-2:8080      tunnel  refused   ECONNREF…
08:00:09.000  demo/client-1  demo/server-2:8080      tunnel  reset     by the d…
08:00:10.500  demo/client-1  [2001:db8::17]:443/udp  clear   open      the peer…
08:00:12.000  node n1        demo/server-1:8080      clear   closed    probe
08:00:13.500  demo/client-1  demo/server-2:8080      tunnel  dialling
",
    );
    for width in [40, 60, 79, 80, 81, 100, 119, 200] {
        for what in ["status", "workloads", "flows", "tunnels", "certs"] {
            let shown = text(server.kumiko(Some(width), &[what]));
            let widest = shown.lines().max_by_key(|line| line.chars().count()).unwrap();
            // Below 80 the words that stand for nothing else may be longer than the terminal.
            assert!(width < 80 || widest.chars().count() <= width as usize, "{what} at {width}: {widest}");
        }
    }
}

#[test]
fn what_was_left_out_is_said() {
    let server = Server::start(Sample::new());
    let output = server.kumiko(None, &["flows", "-n", "2"]);
    assert_eq!(String::from_utf8_lossy(&output.stdout).lines().count(), 3);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(said, "(7 older flows not shown: see --last, --from, --to and --verdict)\n");
}

#[test]
fn filters_choose() {
    let server = Server::start(Sample::new());
    let count = |args: &[&str]| {
        let mut all = vec!["flows", "-o", "json"];
        all.extend(args);
        serde_json::from_str::<Vec<Value>>(&text(server.kumiko(None, &all))).unwrap().len()
    };
    assert_eq!(count(&[]), 9);
    assert_eq!(count(&["--verdict", "deny"]), 1);
    assert_eq!(count(&["--from", "demo/client-1"]), 7);
    assert_eq!(count(&["--to", "demo/web"]), 1);
    assert_eq!(count(&["--to", "2001:db8::17", "--from", "demo/"]), 1);
    assert_eq!(count(&["--from", "demo/nobody"]), 0);
    assert_eq!(text(server.kumiko(None, &["flows", "--from", "demo/nobody"])), "No flows.\n");
}

#[test]
fn workloads_tunnels_and_certificates() {
    let server = Server::start(Sample::new());
    same(
        &text(server.kumiko(Some(100), &["workloads"])),
        "
NAMESPACE  NAME      STAGE       NODE  IP             ACCOUNT  HOOKS     FLOWS
demo       batch     off         n1    10.244.1.2 +1  batch    -         0
demo       client-1  permissive  n1    10.244.1.2 +1  client   attached  1,204, 1 legacy, 2 dialling
demo       server-1  strict      n1    10.244.1.2 +1  server   waiting   0
demo       server-2  strict      n2    10.244.1.2 +1  server   remote

demo/server-1:
  its veth is not there yet: no interface eth0 in /run/netns/server-1
",
    );
    same(
        &text(server.kumiko(Some(110), &["tunnels"])),
        "
SOURCE       DESTINATION  PEER NODE  PEER ADDRESS      STATE  FLOWS     SENT  RECEIVED      AGE  HANDSHAKE
demo/client  demo/server  n2         172.18.0.3:15008  busy   1,204  3.0 MiB   5.0 GiB  2 m 5 s     1.9 ms
demo/server  demo/client  n2         172.18.0.3:15008  idle   1,204  3.0 MiB   5.0 GiB  2 m 5 s     1.9 ms
",
    );
    same(
        &text(server.kumiko(Some(80), &["certs"])),
        "
PRINCIPAL                                 STATE    EXPIRES IN  NEXT REQUEST
spiffe://cluster.local/ns/demo/sa/client  valid    2 h         30 s
spiffe://cluster.local/ns/demo/sa/server  waiting  -           30 s

spiffe://cluster.local/ns/demo/sa/server, 3 failed requests:
  cannot reach the issuer at 10.0.0.1:15009: Connection refused; is it running?
",
    );
}

#[test]
fn json_is_what_the_agent_said() {
    let server = Server::start(Sample::new());
    let value =
        |what: &str| serde_json::from_str::<Value>(&text(server.kumiko(Some(40), &[what, "-o", "json"]))).unwrap();
    assert_eq!(value("status")["kernel"]["attach"], "tcx");
    assert_eq!(value("workloads")[2]["stage"], "permissive");
    assert_eq!(value("tunnels")[0]["peer"], "spiffe://cluster.local/ns/demo/sa/server");
    assert_eq!(value("certs")[1]["state"], "waiting");
    let flows = value("flows");
    assert_eq!(flows[3]["verdict"], "deny");
    assert_eq!(flows[3]["hint"], "enrol the client's namespace, or lower this one to permissive");
    assert_eq!(flows[0]["source"]["serviceAccount"], "client-1");
}

#[test]
fn following_shows_flows_as_they_come() {
    let server = Server::start(Sample::new());
    for format in ["json", "table"] {
        let args = ["flows", "-f", "-n", "1", "-o", format];
        let mut command = kumiko(&server.socket, None, &args).stdout(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(command.stdout.take().unwrap()).lines().map(Result::unwrap);
        if format == "table" {
            assert!(lines.next().unwrap().starts_with("START (UTC)   SOURCE          DESTINATION"));
        }
        assert!(lines.next().unwrap().contains("server-2"));
        let mut begun = flow(20);
        begun.report = 1;
        let mut going_on = begun.clone();
        going_on.report = 2;
        let mut ended = closed(20, FlowClose::Fin, 5_000_000);
        ended.report = 3;
        for record in [&begun, &going_on, &ended] {
            server.sender.send(Arc::new(record.clone())).unwrap();
        }
        if format == "json" {
            for record in [begun, going_on, ended] {
                let line: FlowLine = serde_json::from_str(&lines.next().unwrap()).unwrap();
                assert_eq!(line, FlowLine::Flow(Box::new(record)));
            }
        } else {
            // That a flow goes on is not worth a line.
            assert!(lines.next().unwrap().contains("  open "));
            assert!(lines.next().unwrap().contains("  closed "));
        }
        command.kill().unwrap();
        command.wait().unwrap();
    }
}

#[test]
fn no_agent_says_where_why_and_what_to_do() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("admin.sock");
    let ask = || {
        let output = kumiko(&socket, None, &["status"]).output().unwrap();
        assert_eq!(output.status.code(), Some(3), "{output:?}");
        assert!(output.stdout.is_empty());
        String::from_utf8(output.stderr).unwrap()
    };
    let none = ask();
    assert!(
        none.contains(&*socket.to_string_lossy()) && none.contains("--run-dir") && none.contains("KUMIKO_SOCKET"),
        "{none}"
    );
    drop(std::os::unix::net::UnixListener::bind(&socket).unwrap());
    let dead = ask();
    assert!(dead.contains("the agent has ended"), "{dead}");
    // Linux refuses these as it refuses a socket that nobody listens on.
    std::fs::remove_file(&socket).unwrap();
    std::fs::write(&socket, "").unwrap();
    let file = ask();
    assert!(file.contains("That is no socket") && !file.contains("ended"), "{file}");
}

#[test]
fn something_else_behind_the_socket_is_not_taken_for_an_agent() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("admin.sock");
    let listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    let odd = std::thread::spawn(move || {
        use std::io::{Read as _, Write as _};
        let (mut stream, _) = listener.accept().unwrap();
        let _ = stream.read(&mut [0; 1024]).unwrap();
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhm").unwrap();
    });
    let output = kumiko(&socket, None, &["certs"]).output().unwrap();
    odd.join().unwrap();
    assert_eq!(output.status.code(), Some(3));
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("cannot be read") && said.contains("--version"), "{said}");
}

#[test]
fn somebody_who_speaks_no_http_is_called_a_stranger() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("admin.sock");
    let listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    let odd = std::thread::spawn(move || {
        use std::io::{Read as _, Write as _};
        let (mut stream, _) = listener.accept().unwrap();
        let _ = stream.read(&mut [0; 1024]).unwrap();
        stream.write_all(b"SSH-2.0-OpenSSH_9.2\r\n").unwrap();
    });
    let output = kumiko(&socket, None, &["status"]).output().unwrap();
    odd.join().unwrap();
    assert_eq!(output.status.code(), Some(3));
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("does not answer as an agent does") && !said.contains("root"), "{said}");
}

#[test]
fn the_socket_may_come_from_the_environment_and_colours_need_a_terminal() {
    let server = Server::start(Sample::new());
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_kumiko"))
        .arg("status")
        .env("KUMIKO_SOCKET", &server.socket)
        .output()
        .unwrap();
    assert!(!text(output).contains('\u{1b}'));
}

#[test]
fn wrong_usage_is_code_2() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("none");
    for args in [&["flows", "--from", "nobody"][..], &["flows", "--verdict", "maybe"], &["frobnicate"], &[]] {
        assert_eq!(kumiko(&socket, None, args).output().unwrap().status.code(), Some(2), "{args:?}");
    }
}
