//! Exchanges: what a client and a server do, call by call.

use std::time::Duration;

use kumiko_lab::pattern::{CAPTURED, Pattern};
use kumiko_lab::peer::Step;

/// An exchange.
#[derive(Clone, Debug)]
pub struct Case {
    /// Its name.
    pub name: &'static str,
    /// Who is called.
    pub aim: Aim,
    /// What `connect` gives without the mesh, one of them; none: it works.
    pub connect: &'static [&'static str],
    /// After how long the client gives up.
    pub within: Option<Duration>,
    /// What the client does; after a refused connect, nothing.
    pub client: Vec<Step>,
    /// What the server does; none: nobody listens.
    pub server: Option<Vec<Step>>,
    /// Whether an RST overtakes bytes, so that how many arrive is chance (that they are a prefix is not).
    pub prefix: bool,
    /// Whether the first ICMP error that comes back to the client is lost on its way.
    pub first_error_lost: bool,
}

/// Who a client calls.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Aim {
    /// A port of the server pod.
    Server,
    /// A port whose SYNs the server pod drops.
    Hole,
    /// A port that the server pod rejects with an ICMP error, by nftables' name of it.
    Rejected(&'static str),
    /// A pod that is in the documents and nowhere else.
    Gone,
    /// An address in the pods' network that nobody has.
    Nobody,
}

/// The ICMP errors by which a pod may reject, as nftables names them for both families.
pub const REJECTIONS: [&str; 4] = ["port-unreachable", "host-unreachable", "admin-prohibited", "no-route"];

const UP: u64 = 70_001;
const DOWN: u64 = 50_003;

fn pattern(tag: u64) -> Pattern {
    Pattern::new(CAPTURED, tag)
}

fn send(bytes: u64, tag: u64) -> Step {
    Step::Send { bytes, pattern: pattern(tag) }
}

fn recv(bytes: u64, tag: u64) -> Step {
    Step::Recv { bytes, pattern: pattern(tag) }
}

fn to_end(tag: u64) -> Step {
    Step::RecvToEnd { pattern: pattern(tag) }
}

/// Every exchange of the matrix.
pub fn all() -> Vec<Case> {
    use Step::{Close, Reset, SendToError, ShutdownWrite};
    let case = |name, client, server| Case {
        name,
        aim: Aim::Server,
        connect: &[],
        within: None,
        client,
        server: Some(server),
        prefix: false,
        first_error_lost: false,
    };
    vec![
        case(
            "client_closes_first",
            vec![send(UP, 1), recv(DOWN, 2), Close],
            vec![recv(UP, 1), send(DOWN, 2), to_end(3), Close],
        ),
        case(
            "server_closes_first",
            vec![send(UP, 1), to_end(2), Close],
            vec![recv(UP, 1), send(DOWN, 2), ShutdownWrite, to_end(3), Close],
        ),
        case(
            "write_after_server_closed",
            vec![send(UP, 1), to_end(2), SendToError, to_end(3), Close],
            vec![recv(UP, 1), send(DOWN, 2), Close],
        ),
        case(
            "half_close_client",
            vec![send(UP, 1), ShutdownWrite, to_end(2), Close],
            vec![to_end(1), send(DOWN, 2), Close],
        ),
        case(
            "half_close_server",
            vec![send(10, 1), to_end(2), send(UP, 3), Close],
            vec![recv(10, 1), send(DOWN, 2), ShutdownWrite, to_end(3), Close],
        ),
        case(
            "server_speaks_first",
            vec![recv(DOWN, 1), send(UP, 2), to_end(3), Close],
            vec![send(DOWN, 1), recv(UP, 2), Close],
        ),
        case(
            "rst_client",
            vec![send(UP, 1), recv(DOWN, 2), Reset],
            vec![recv(UP, 1), send(DOWN, 2), to_end(3), send(1, 4), Close],
        ),
        case(
            "rst_server",
            vec![send(UP, 1), recv(DOWN, 2), send(1, 3), to_end(4), send(1, 5), Close],
            vec![recv(UP, 1), send(DOWN, 2), recv(1, 3), Reset],
        ),
        Case {
            prefix: true,
            ..case(
                "rst_client_over_bytes",
                vec![recv(1, 1), send(1_000_000, 2), Reset],
                vec![send(1, 1), to_end(2), send(1, 4), Close],
            )
        },
        Case {
            prefix: true,
            ..case(
                "rst_server_over_bytes",
                vec![send(1, 1), to_end(2), send(1, 4), Close],
                vec![recv(1, 1), send(1_000_000, 2), Reset],
            )
        },
        case("rst_after_half_close", vec![send(UP, 1), ShutdownWrite, to_end(2), Close], vec![to_end(1), Reset]),
        case(
            "rst_by_close_with_unread",
            vec![send(10_000, 1), to_end(2), Close],
            vec![recv(100, 1), send(500, 2), Close],
        ),
        case("connect_and_close", vec![Close], vec![to_end(1), Close]),
        case(
            "urgent_byte",
            vec![send(100, 1), Step::Urgent { byte: b'X' }, send(100, 3), to_end(4), Close],
            vec![recv(100, 1), recv(1, 2), recv(100, 3), Close],
        ),
    ]
}

/// Every `connect` that does not come to be.
pub fn failing() -> Vec<Case> {
    let case = |name, aim, connect| Case {
        name,
        aim,
        connect,
        within: None,
        client: vec![Step::Close],
        server: None,
        prefix: false,
        first_error_lost: false,
    };
    let unreachable: &[&str] = &["EHOSTUNREACH", "ENETUNREACH"];
    vec![
        case("refused", Aim::Server, &["ECONNREFUSED"]),
        case("black_hole", Aim::Hole, &["ETIMEDOUT"]),
        Case {
            within: Some(Duration::from_millis(300)),
            ..case("gives_up_before_the_first_retransmission", Aim::Hole, &["EINPROGRESS"])
        },
        Case {
            within: Some(Duration::from_millis(1_500)),
            ..case("gives_up_after_the_first_retransmission", Aim::Hole, &["EINPROGRESS"])
        },
        case("rejected_port_unreachable", Aim::Rejected(REJECTIONS[0]), &["ECONNREFUSED"]),
        case("rejected_host_unreachable", Aim::Rejected(REJECTIONS[1]), &["EHOSTUNREACH"]),
        case("rejected_admin_prohibited", Aim::Rejected(REJECTIONS[2]), &["EHOSTUNREACH", "EACCES"]),
        case("rejected_no_route", Aim::Rejected(REJECTIONS[3]), &["ENETUNREACH"]),
        case("pod_gone", Aim::Gone, unreachable),
        // As if it had come while the client was still in `connect`: its kernel keeps such an error for later, and goes on.
        Case { first_error_lost: true, ..case("pod_gone_first_error_lost", Aim::Gone, unreachable) },
        case("no_such_pod", Aim::Nobody, unreachable),
    ]
}
