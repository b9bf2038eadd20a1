//! Flows from application to application: plain socket, relay, tunnel, relay, plain socket.

use std::cell::RefCell;
use std::future::Future;
use std::io;
use std::rc::Rc;
use std::time::Duration;

use kumiko_abi::Reason;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::{oneshot, watch};
use tokio::task::{JoinHandle, LocalSet, spawn_local};

use crate::testing::{never, open_flow, sockets, tunnels, tunnels_with};
use crate::{RelayEnd, Tunnel, TunnelOptions, Urgent, plain_relay, relay};

/// Runs a test on one thread, as a shard does.
pub(super) fn local(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    LocalSet::new().block_on(&runtime, async {
        tokio::time::timeout(Duration::from_secs(60), test).await.expect("test hangs");
    });
}

#[derive(Clone, Copy, Debug)]
pub(super) enum Side {
    Client,
    Server,
}

/// Two applications with relays between them.
pub(super) struct Path {
    pub(super) client: TcpStream,
    pub(super) server: TcpStream,
    left: Option<JoinHandle<RelayEnd>>,
    right: Option<JoinHandle<RelayEnd>>,
    stop: watch::Sender<Option<Reason>>,
    kill: Option<oneshot::Sender<bool>>,
    tunnels: Rc<RefCell<Vec<Tunnel>>>,
}

fn plain_side(stream: &TcpStream) {
    let socket = socket2::SockRef::from(stream);
    socket.set_linger(Some(Duration::ZERO)).unwrap();
    socket.set_out_of_band_inline(true).unwrap();
    socket.set_tcp_nodelay(true).unwrap();
}

/// Closes as the shard does.
fn close(end: &RelayEnd, stream: TcpStream) {
    if end.orderly() {
        socket2::SockRef::from(&stream).set_linger(None).unwrap();
    }
}

async fn stopped(mut stop: watch::Receiver<Option<Reason>>) -> Reason {
    match stop.wait_for(Option::is_some).await {
        Ok(reason) => reason.unwrap(),
        Err(_) => never().await,
    }
}

impl Path {
    /// Over a tunnel, or (`plain`) through one relay between plain sockets.
    pub(super) async fn new(plain: bool) -> Self {
        if plain { Self::on_node(None).await } else { Self::over(tunnels().await, None).await }
    }

    async fn on_node(urgent: Option<&'static dyn Urgent>) -> Self {
        let ((client, a), (server, b)) = (sockets().await, sockets().await);
        plain_side(&a);
        plain_side(&b);
        let (stop, stopping) = watch::channel(None);
        let left = spawn_local(async move {
            let end = plain_relay(&a, &b, stopped(stopping), urgent).await;
            close(&end, a);
            close(&end, b);
            end
        });
        Self { client, server, left: Some(left), right: None, stop, kill: None, tunnels: Rc::default() }
    }

    pub(super) async fn over((mut a, mut b): (Tunnel, Tunnel), urgent: Option<&'static dyn Urgent>) -> Self {
        open_flow(&mut a, &mut b).await;
        let ((client, left_plain), (server, right_plain)) = (sockets().await, sockets().await);
        plain_side(&left_plain);
        plain_side(&right_plain);
        let (stop, stopping) = watch::channel(None);
        let (kill, killed) = oneshot::channel();
        let tunnels: Rc<RefCell<Vec<Tunnel>>> = Rc::default();
        let kept = tunnels.clone();
        let left = spawn_local(async move {
            let end = relay(&left_plain, &mut a, stopped(stopping), urgent).await;
            close(&end, left_plain);
            if end.reusable {
                kept.borrow_mut().insert(0, a);
            }
            end
        });
        let kept = tunnels.clone();
        let right = spawn_local(async move {
            let end = tokio::select! {
                end = relay(&right_plain, &mut b, never(), urgent) => end,
                Ok(abort) = killed => {
                    if abort {
                        b.abort();
                    }
                    return RelayEnd::new();
                }
            };
            close(&end, right_plain);
            if end.reusable {
                kept.borrow_mut().push(b);
            }
            end
        });
        Self { client, server, left: Some(left), right: Some(right), stop, kill: Some(kill), tunnels }
    }

    pub(super) fn stop(&self, reason: Reason) {
        self.stop.send(Some(reason)).unwrap();
    }

    /// The agent at the right is gone, with an RST of its tunnel or an end of stream.
    pub(super) async fn kill_right(&mut self, abort: bool) {
        self.kill.take().unwrap().send(abort).unwrap();
        self.right.take().unwrap().await.unwrap();
    }

    /// Takes both applications' sockets out, `side`'s first.
    pub(super) fn split(&mut self, side: Side) -> (TcpStream, TcpStream) {
        let dead = || {
            let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
            socket.set_nonblocking(true).unwrap();
            TcpStream::from_std(socket.into()).unwrap()
        };
        let client = std::mem::replace(&mut self.client, dead());
        let server = std::mem::replace(&mut self.server, dead());
        match side {
            Side::Client => (client, server),
            Side::Server => (server, client),
        }
    }

    pub(super) async fn left_end(&mut self) -> RelayEnd {
        self.left.take().unwrap().await.unwrap()
    }

    /// How both relays ended; with one relay, its end twice.
    pub(super) async fn ends(&mut self) -> [RelayEnd; 2] {
        let left = self.left_end().await;
        match self.right.take() {
            Some(right) => [left, right.await.unwrap()],
            None => {
                let (plain, far, stopped) = (left.plain, left.far, left.stopped);
                let twin = RelayEnd { plain, far, stopped, ..RelayEnd::new() };
                [left, twin]
            }
        }
    }

    /// The tunnels, after flows that left them reusable.
    fn tunnels(&self) -> (Tunnel, Tunnel) {
        let mut tunnels = self.tunnels.borrow_mut();
        let right = tunnels.pop().unwrap();
        (tunnels.pop().unwrap(), right)
    }
}

fn pattern(n: usize, seed: usize) -> Vec<u8> {
    (0..n).map(|i| (i * 31 + i / 65_536 + seed) as u8).collect()
}

/// Both ways at once, checked byte by byte.
async fn exchange(path: &mut Path, up: usize, down: usize) {
    let (there, back) = (pattern(up, 1), pattern(down, 2));
    let (mut client, mut server) = path.split(Side::Client);
    {
        let (mut client_read, mut client_write) = client.split();
        let (mut server_read, mut server_write) = server.split();
        let write_up = async {
            for piece in there.chunks(99_991) {
                client_write.write_all(piece).await.unwrap();
            }
            client_write.shutdown().await.unwrap();
        };
        let write_down = async {
            for piece in back.chunks(7_919) {
                server_write.write_all(piece).await.unwrap();
            }
            server_write.shutdown().await.unwrap();
        };
        let (mut got_up, mut got_down) = (Vec::new(), Vec::new());
        let (_, _, a, b) = tokio::join!(
            write_up,
            write_down,
            server_read.read_to_end(&mut got_up),
            client_read.read_to_end(&mut got_down)
        );
        a.unwrap();
        b.unwrap();
        assert!(got_up == there, "{} of {up}", got_up.len());
        assert!(got_down == back, "{} of {down}", got_down.len());
    }
    let [left, right] = path.ends().await;
    assert!(left.orderly() && right.orderly(), "{left:?} {right:?}");
    assert_eq!((left.to_far, left.from_far), (up as u64, down as u64));
}

#[test]
fn sizes_both_ways_flow_after_flow_on_one_tunnel() {
    local(async {
        let (mut a, mut b) = tunnels().await;
        for (n, up) in [0, 1, 16_383, 16_384, 16_385, 65_536, 1_000_003, 20 << 20].into_iter().enumerate() {
            let mut path = Path::over((a, b), None).await;
            exchange(&mut path, up, (20 << 20) >> (2 * n)).await;
            (a, b) = path.tunnels();
            assert_eq!(a.info().counters().flows, n as u64 + 1);
        }
        let (sent, received) = (a.info().counters(), b.info().counters());
        assert_eq!(sent.bytes_sent, received.bytes_received);
        assert_eq!(sent.bytes_received, received.bytes_sent);
        assert_eq!(sent.flow, None);
    });
}

#[test]
fn plain_copies_are_exact() {
    local(async {
        for (up, down) in [(0, 0), (1, 300_000), (20 << 20, 10 << 20)] {
            exchange(&mut Path::new(true).await, up, down).await;
        }
    });
}

#[test]
fn keys_change_in_the_middle_of_flows() {
    local(async {
        let options = TunnelOptions { records_per_key: 7, ..TunnelOptions::default() };
        let (a, b) = tunnels_with(options).await;
        let info = [a.info().clone(), b.info().clone()];
        exchange(&mut Path::over((a, b), None).await, 10 << 20, 10 << 20).await;
        for info in info {
            let counters = info.counters();
            // 640 records each way.
            assert!(counters.key_updates_sent >= 90, "{counters:?}");
            assert!(counters.key_updates_received >= 90, "{counters:?}");
        }
    });
}

#[test]
fn idle_flows_hold_no_buffers() {
    local(async {
        let mut paths = Vec::new();
        for n in 0..50 {
            let mut path = Path::new(n % 2 == 0).await;
            path.client.write_all(&vec![1; 100_000]).await.unwrap();
            let mut got = vec![0; 100_000];
            path.server.read_exact(&mut got).await.unwrap();
            path.server.write_all(b"ok").await.unwrap();
            path.client.read_exact(&mut got[..2]).await.unwrap();
            paths.push(path);
        }
        while crate::lent_bytes() != 0 {
            tokio::task::yield_now().await;
        }
    });
}

/// As if `!` were urgent: enough to see the mark travel.
pub(super) struct Exclamations;

impl Urgent for Exclamations {
    fn at_mark(&self, stream: &TcpStream) -> bool {
        use std::task::{Context, Poll, Waker};
        let mut byte = [0];
        let mut buffer = tokio::io::ReadBuf::new(&mut byte);
        let peeked = stream.poll_peek(&mut Context::from_waker(Waker::noop()), &mut buffer);
        matches!(peeked, Poll::Ready(Ok(1))) && byte == *b"!"
    }

    fn send(&self, stream: &TcpStream, byte: u8) -> io::Result<()> {
        socket2::SockRef::from(stream).send_out_of_band(&[byte]).map(|_| ())
    }
}

#[test]
fn urgent_bytes_stay_in_line() {
    local(async {
        for plain in [false, true] {
            let mut path = match plain {
                true => Path::on_node(Some(&Exclamations)).await,
                false => Path::over(tunnels().await, Some(&Exclamations)).await,
            };
            socket2::SockRef::from(&path.server).set_out_of_band_inline(true).unwrap();
            for piece in ["one", "!two", "!", "three"] {
                path.client.write_all(piece.as_bytes()).await.unwrap();
                let mut got = vec![0; piece.len()];
                path.server.read_exact(&mut got).await.unwrap();
                assert_eq!(got, piece.as_bytes());
            }
            path.client.shutdown().await.unwrap();
            path.server.shutdown().await.unwrap();
            for end in path.ends().await {
                assert!(end.orderly());
            }
        }
    });
}

/// Runs a test that fails, instead of hanging, when its thread never comes back to its timers.
fn watched(test: impl Future<Output = ()> + Send + 'static) {
    let (done, ended) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        local(test);
        done.send(())
    });
    ended.recv_timeout(Duration::from_secs(90)).expect("the thread spins, or the test failed");
}

/// From now on every send leaves a report in the socket's error queue: an error event without anything to read, as an
/// RST shows for an instant.
fn report_errors(stream: &TcpStream) {
    use nix::sys::socket::{TimestampingFlag, setsockopt, sockopt::Timestamping};
    let flags = TimestampingFlag::SOF_TIMESTAMPING_SOFTWARE | TimestampingFlag::SOF_TIMESTAMPING_TX_SOFTWARE;
    setsockopt(stream, Timestamping, &flags).unwrap();
}

/// Bytes to `client`, whose relay's socket then reports an error; then bytes both ways as if nothing had been.
async fn talk(mut client: TcpStream, mut server: TcpStream) {
    let mut byte = [0];
    for _ in 0..3 {
        server.write_all(b"s").await.unwrap();
        client.read_exact(&mut byte).await.unwrap();
        tokio::time::sleep(Duration::from_millis(20)).await;
        client.write_all(b"c").await.unwrap();
        server.read_exact(&mut byte).await.unwrap();
    }
}

#[test]
fn an_error_event_with_nothing_to_read_does_not_stop_the_thread() {
    watched(async {
        let ((client, a), (server, b)) = (sockets().await, sockets().await);
        report_errors(&a);
        let end = spawn_local(async move { plain_relay(&a, &b, never(), None).await });
        talk(client, server).await;
        assert!(end.await.unwrap().orderly());
    });
    watched(async {
        let (mut near, mut far) = tunnels().await;
        open_flow(&mut near, &mut far).await;
        let ((client, a), (server, b)) = (sockets().await, sockets().await);
        report_errors(&a);
        report_errors(near.stream());
        let end = spawn_local(async move { relay(&a, &mut near, never(), None).await });
        spawn_local(async move { relay(&b, &mut far, never(), None).await });
        talk(client, server).await;
        assert!(end.await.unwrap().orderly());
    });
}
