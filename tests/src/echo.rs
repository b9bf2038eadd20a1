//! Servers that answer whoever comes, for as long as it stands: for tests in which nobody knows how many will come.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result};
use kumiko_lab::Netns;
use socket2::SockRef;

/// The longest that one of its connections stays silent before it is given up.
const SILENCE: Duration = Duration::from_secs(60);
const STACK: usize = 128 * 1024;

/// Sends back what it reads, on every connection; ends when dropped.
#[derive(Debug)]
pub struct Echo {
    listener: Arc<TcpListener>,
    thread: Option<JoinHandle<()>>,
}

impl Echo {
    /// Listens in a namespace.
    pub fn start(ns: &Netns, at: SocketAddr) -> Result<Self> {
        let listener = Arc::new(ns.within(|| TcpListener::bind(at).with_context(|| format!("listening on {at}")))?);
        let accepting = Arc::clone(&listener);
        let thread = std::thread::spawn(move || {
            while let Ok((stream, _)) = accepting.accept() {
                let served = std::thread::Builder::new().stack_size(STACK).spawn(move || echo(stream));
                drop(served);
            }
        });
        Ok(Self { listener, thread: Some(thread) })
    }
}

fn echo(mut stream: TcpStream) {
    let _ = stream.set_nodelay(true);
    let _ = stream.set_read_timeout(Some(SILENCE));
    let _ = stream.set_write_timeout(Some(SILENCE));
    let mut buffer = vec![0; 32 * 1024];
    while let Ok(read @ 1..) = stream.read(&mut buffer) {
        if stream.write_all(buffer.get(..read).unwrap_or_default()).is_err() {
            return;
        }
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        // Ends the accept that waits.
        let _ = SockRef::from(&*self.listener).shutdown(Shutdown::Both);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Sends back every datagram; ends when dropped.
#[derive(Debug)]
pub struct Datagrams {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Datagrams {
    /// Listens in a namespace.
    pub fn start(ns: &Netns, at: SocketAddr) -> Result<Self> {
        let socket = ns.within(|| UdpSocket::bind(at).with_context(|| format!("listening on {at}")))?;
        socket.set_read_timeout(Some(Duration::from_millis(100)))?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let answer = move || {
            let mut buffer = vec![0; 64 * 1024];
            while !stopped.load(Ordering::Relaxed) {
                // Errors are the time that is over, and refusals of answers.
                if let Ok((read, from)) = socket.recv_from(&mut buffer) {
                    let _ = socket.send_to(buffer.get(..read).unwrap_or_default(), from);
                }
            }
        };
        let thread = std::thread::Builder::new().stack_size(STACK).spawn(answer)?;
        Ok(Self { stop, thread: Some(thread) })
    }
}

impl Drop for Datagrams {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
