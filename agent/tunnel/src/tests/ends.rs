//! How ends of a flow travel: FIN, RST, a lost tunnel, a stop; each seen from the applications' sockets.

use std::cell::RefCell;
use std::io::{self, Read, Write};
use std::time::Duration;

use kumiko_abi::Reason;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::relay::{Exclamations, Path, Side, local};
use crate::testing::tunnels;
use crate::{SideEnd, Urgent, Who};

/// Reads to the end; the bytes, and the error if it was no clean end.
async fn drain(stream: &mut tokio::net::TcpStream) -> (usize, Option<io::ErrorKind>) {
    let (mut total, mut buffer) = (0, vec![0; 1 << 16]);
    loop {
        match stream.read(&mut buffer).await {
            Ok(0) => return (total, None),
            Ok(n) => total += n,
            Err(error) => return (total, Some(error.kind())),
        }
    }
}

fn reset(stream: tokio::net::TcpStream) {
    socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO)).unwrap();
}

/// Writes until the path takes no more; how much it took.
async fn fill(stream: &mut tokio::net::TcpStream) -> usize {
    let (block, mut total) = (vec![7; 1 << 16], 0);
    while let Ok(n) = tokio::time::timeout(Duration::from_millis(300), stream.write(&block)).await {
        total += n.unwrap();
    }
    total
}

#[test]
fn half_close_by_either_side() {
    local(async {
        for (plain, first) in [(false, true), (false, false), (true, true), (true, false)] {
            let mut path = Path::new(plain).await;
            let (one, other) =
                if first { (&mut path.client, &mut path.server) } else { (&mut path.server, &mut path.client) };
            one.write_all(b"question").await.unwrap();
            one.shutdown().await.unwrap();
            let mut text = String::new();
            other.read_to_string(&mut text).await.unwrap();
            assert_eq!(text, "question");
            // The other direction still works, long after.
            other.write_all(&vec![1; 300_000]).await.unwrap();
            other.shutdown().await.unwrap();
            assert_eq!(drain(one).await, (300_000, None));
            for end in path.ends().await {
                assert!(end.orderly(), "{end:?}");
                assert_eq!(end.reason(), Reason::Finished);
                assert!(plain || end.reusable);
            }
        }
    });
}

#[test]
fn who_ended_first_is_known() {
    local(async {
        let mut path = Path::new(false).await;
        path.server.shutdown().await.unwrap();
        assert_eq!(drain(&mut path.client).await, (0, None));
        path.client.shutdown().await.unwrap();
        assert_eq!(drain(&mut path.server).await, (0, None));
        let [left, right] = path.ends().await;
        assert_eq!((left.first, right.first), (Some(Who::Far), Some(Who::Plain)));
    });
}

#[test]
fn a_reset_by_either_side() {
    local(async {
        for plain in [false, true] {
            for side in [Side::Client, Side::Server] {
                let mut path = Path::new(plain).await;
                path.client.write_all(b"abc").await.unwrap();
                let mut got = [0; 3];
                path.server.read_exact(&mut got).await.unwrap();
                let reason = match side {
                    Side::Client => Reason::ClientReset,
                    Side::Server => Reason::ServerReset,
                };
                let (gone, mut left_over) = path.split(side);
                reset(gone);
                assert_eq!(drain(&mut left_over).await, (0, Some(io::ErrorKind::ConnectionReset)));
                for end in path.ends().await {
                    assert!(!end.orderly());
                    assert_eq!(end.reason(), reason, "{end:?}");
                    assert!(plain || end.reusable, "{end:?}");
                }
            }
        }
    });
}

#[test]
fn a_reset_after_half_close() {
    local(async {
        for plain in [false, true] {
            for side in [Side::Client, Side::Server] {
                let mut path = Path::new(plain).await;
                let (mut gone, mut other) = path.split(side);
                gone.shutdown().await.unwrap();
                assert_eq!(drain(&mut other).await, (0, None));
                reset(gone);
                // The other application learns of it by writing, as it would without the mesh.
                let error = loop {
                    if let Err(error) = other.write_all(b"x").await {
                        break error;
                    }
                    tokio::time::sleep(Duration::from_millis(5)).await;
                };
                assert!(matches!(error.kind(), io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe), "{error}");
                for end in path.ends().await {
                    assert!(!end.orderly(), "{end:?}");
                    // It heard the RESET behind the FIN: no need to give the tunnel up.
                    assert!(plain || end.reusable, "{end:?}");
                }
            }
        }
    });
}

#[test]
fn an_answer_before_a_reset_arrives() {
    const ANSWER: &[u8] = b"413 Content Too Large";
    local(async {
        for plain in [false, true] {
            // The relay meets the reset now in a read, now in a write: whether it does is a matter of threads.
            for _ in 0..100 {
                let mut path = Path::new(plain).await;
                let (server, mut client) = path.split(Side::Server);
                let server = server.into_std().unwrap();
                let answering = std::thread::spawn(move || {
                    server.set_nonblocking(false).unwrap();
                    (&server).read_exact(&mut [0; 100_000]).unwrap();
                    (&server).write_all(ANSWER).unwrap();
                    // Closed with bytes unread: an RST.
                });
                while client.write_all(&[1; 10_000]).await.is_ok() {}
                let mut answer = Vec::new();
                let _ = client.read_to_end(&mut answer).await;
                assert_eq!(String::from_utf8_lossy(&answer), String::from_utf8_lossy(ANSWER));
                answering.join().unwrap();
            }
        }
    });
}

/// Resets a socket in the instant before its urgent byte is written.
#[derive(Default)]
struct Resetting(RefCell<Option<tokio::net::TcpStream>>);

impl Urgent for Resetting {
    fn at_mark(&self, stream: &tokio::net::TcpStream) -> bool {
        Exclamations.at_mark(stream)
    }

    fn send(&self, stream: &tokio::net::TcpStream, byte: u8) -> io::Result<()> {
        if let Some(gone) = self.0.take() {
            reset(gone);
        }
        Exclamations.send(stream, byte)
    }
}

#[test]
fn a_reset_that_a_write_meets_gets_through_beside_a_full_tunnel() {
    local(async {
        let resetting: &Resetting = Box::leak(Box::default());
        let mut path = Path::over(tunnels().await, Some(resetting)).await;
        fill(&mut path.server).await;
        let (server, mut client) = path.split(Side::Server);
        resetting.0.replace(Some(server));
        client.write_all(b"!").await.unwrap();
        // It reads nothing, so what fills the tunnel is never taken.
        let block = vec![1; 1 << 16];
        let failed = async { while client.write_all(&block).await.is_ok() {} };
        tokio::time::timeout(Duration::from_secs(30), failed).await.expect("the reset came through");
    });
}

#[test]
fn a_reset_by_a_stalled_reader_is_no_end_of_stream() {
    local(async {
        for plain in [false, true] {
            let mut path = Path::new(plain).await;
            fill(&mut path.client).await;
            let (gone, mut other) = path.split(Side::Server);
            reset(gone);
            assert_eq!(drain(&mut other).await, (0, Some(io::ErrorKind::ConnectionReset)));
        }
    });
}

#[test]
fn a_stalled_reader_stalls_the_writer_and_a_reset_gets_through() {
    local(async {
        for plain in [false, true] {
            for side in [Side::Client, Side::Server] {
                let mut path = Path::new(plain).await;
                // Nobody reads: what the path takes is bounded by socket buffers and the relay's own.
                let client = fill(&mut path.client).await;
                let server = fill(&mut path.server).await;
                assert!(client < 64 << 20 && server < 64 << 20, "{client} {server}");
                assert!(crate::lent_bytes() < 4 * crate::buffer::Size::Huge.len() + (1 << 16));
                let (gone, mut other) = path.split(side);
                reset(gone);
                // Its write fails although both directions are blocked.
                let block = vec![1; 1 << 16];
                let failed = async {
                    loop {
                        if let Err(error) = other.write_all(&block).await {
                            return error;
                        }
                    }
                };
                let error =
                    tokio::time::timeout(Duration::from_secs(30), failed).await.expect("the reset came through");
                assert!(matches!(error.kind(), io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe), "{error}");
                let ends = path.ends().await;
                assert!(ends.iter().all(|end| !end.orderly()), "{ends:?}");
            }
        }
    });
}

#[test]
fn a_reset_frame_behind_undelivered_bytes_gets_through() {
    local(async {
        let mut path = Path::new(false).await;
        // Only one direction is full: the server's RESET can be sent, but nobody reads the tunnel.
        let written = fill(&mut path.server).await;
        let (gone, mut other) = path.split(Side::Server);
        reset(gone);
        let failed = async {
            loop {
                tokio::time::sleep(Duration::from_millis(10)).await;
                if let Err(error) = other.write_all(b"x").await {
                    return error;
                }
            }
        };
        tokio::time::timeout(Duration::from_secs(30), failed).await.expect("the reset came through");
        let (read, error) = drain(&mut other).await;
        assert!(read <= written);
        let _ = error;
        let [left, right] = path.ends().await;
        assert!(!left.orderly() && !right.orderly());
    });
}

#[test]
fn a_lost_tunnel_is_never_an_end_of_stream() {
    local(async {
        for abort in [false, true] {
            let mut path = Path::new(false).await;
            path.client.write_all(b"abc").await.unwrap();
            let mut got = [0; 3];
            path.server.read_exact(&mut got).await.unwrap();
            // As when an agent is killed: its plain socket is reset, its tunnel ends without FIN.
            path.kill_right(abort).await;
            assert_eq!(drain(&mut path.client).await, (0, Some(io::ErrorKind::ConnectionReset)));
            assert_eq!(drain(&mut path.server).await, (0, Some(io::ErrorKind::ConnectionReset)));
            let left = path.left_end().await;
            assert_eq!(left.far, SideEnd::Lost(Reason::TunnelLost), "{left:?}");
            assert!(!left.reusable);
        }
    });
}

#[test]
fn a_stop_resets_both_sides() {
    local(async {
        for plain in [false, true] {
            let mut path = Path::new(plain).await;
            path.stop(Reason::EndpointGone);
            assert_eq!(drain(&mut path.client).await, (0, Some(io::ErrorKind::ConnectionReset)));
            assert_eq!(drain(&mut path.server).await, (0, Some(io::ErrorKind::ConnectionReset)));
            let [left, right] = path.ends().await;
            assert_eq!(left.stopped, Some(Reason::EndpointGone));
            assert_eq!(right.reason(), Reason::EndpointGone, "{right:?}");
        }
    });
}

#[test]
fn the_last_bytes_before_a_close_arrive() {
    local(async {
        for plain in [false, true] {
            let mut path = Path::new(plain).await;
            // More than any buffer, then closed at once: the reader is slow, and gets all of it.
            let (mut server, mut client) = path.split(Side::Server);
            let writer = tokio::task::spawn_local(async move {
                server.write_all(&vec![9; 3 << 20]).await.unwrap();
                server.shutdown().await.unwrap();
                drain(&mut server).await
            });
            tokio::time::sleep(Duration::from_millis(100)).await;
            client.shutdown().await.unwrap();
            assert_eq!(drain(&mut client).await, (3 << 20, None));
            assert_eq!(writer.await.unwrap(), (0, None));
            for end in path.ends().await {
                assert!(end.orderly(), "{end:?}");
            }
        }
    });
}
