//! The load: a server and clients with blocking sockets, one thread a connection.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

/// Bytes of a request and of its answer.
pub const MESSAGE: usize = 64;
const CHUNK: usize = 128 * 1024;

/// What a connection is for: its first byte.
#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
pub enum Mode {
    /// The client sends all the time; the server counts.
    Stream,
    /// A connection for each request; the server closes first, so that its side keeps the TIME_WAIT.
    Connect,
    /// Requests one after another on each connection.
    Request,
}

impl Mode {
    fn byte(self) -> u8 {
        match self {
            Self::Stream => b's',
            Self::Connect => b'c',
            Self::Request => b'r',
        }
    }
}

/// What a client measured.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Sample {
    /// Seconds.
    pub seconds: f64,
    /// Bytes that arrived (stream).
    pub bytes: u64,
    /// Connections or requests that were answered.
    pub done: u64,
    /// Those that failed.
    pub failed: u64,
    /// Median time of one, in microseconds.
    pub p50_us: f64,
    /// 99th percentile, in microseconds.
    pub p99_us: f64,
}

/// Serves for ever.
pub fn serve(listen: SocketAddr) -> Result<()> {
    let listener = TcpListener::bind(listen).with_context(|| format!("listening on {listen}"))?;
    for stream in listener.incoming() {
        let stream = stream.context("accepting")?;
        std::thread::Builder::new()
            .stack_size(256 * 1024)
            .spawn(move || {
                // A client that goes is no news.
                let _ = answer(stream);
            })
            .context("starting a thread")?;
    }
    Ok(())
}

fn answer(mut stream: TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut mode = [0];
    stream.read_exact(&mut mode)?;
    let mut message = [0; MESSAGE];
    match mode {
        [b's'] => {
            let (mut chunk, mut total) = (vec![0; CHUNK], 0u64);
            loop {
                match stream.read(&mut chunk)? {
                    0 => return stream.write_all(&total.to_le_bytes()),
                    read => total += read as u64,
                }
            }
        }
        [b'c'] => {
            stream.read_exact(&mut message)?;
            stream.write_all(&message)
        }
        _ => loop {
            stream.read_exact(&mut message)?;
            stream.write_all(&message)?;
        },
    }
}

/// Loads `to` for so long with so many connections at once.
pub fn client(to: SocketAddr, mode: Mode, at_once: usize, time: Duration) -> Result<Sample> {
    if mode == Mode::Stream {
        return stream(to, time);
    }
    let began = Instant::now();
    let until = began + time;
    let threads: Vec<_> = (0..at_once).map(|_| std::thread::spawn(move || ask(to, mode, until))).collect();
    let (mut times, mut failed) = (Vec::new(), 0);
    for thread in threads {
        let Ok((part, errors)) = thread.join() else { bail!("a client's thread panicked") };
        times.extend(part);
        failed += errors;
    }
    let seconds = began.elapsed().as_secs_f64();
    times.sort_unstable();
    let at = |percent: usize| {
        let place = times.len() * percent / 100;
        times.get(place.min(times.len().saturating_sub(1))).map_or(0.0, |nanos| *nanos as f64 / 1e3)
    };
    Ok(Sample { seconds, bytes: 0, done: times.len() as u64, failed, p50_us: at(50), p99_us: at(99) })
}

fn stream(to: SocketAddr, time: Duration) -> Result<Sample> {
    let mut stream = TcpStream::connect(to).with_context(|| format!("connecting to {to}"))?;
    stream.write_all(&[Mode::Stream.byte()])?;
    let chunk = vec![7; CHUNK];
    let began = Instant::now();
    while began.elapsed() < time {
        stream.write_all(&chunk).context("sending")?;
    }
    stream.shutdown(std::net::Shutdown::Write)?;
    let mut total = [0; 8];
    stream.read_exact(&mut total).context("the server's count")?;
    Ok(Sample { seconds: began.elapsed().as_secs_f64(), bytes: u64::from_le_bytes(total), ..Sample::default() })
}

/// Nanoseconds of each answered request, and how many failed.
fn ask(to: SocketAddr, mode: Mode, until: Instant) -> (Vec<u64>, u64) {
    let (mut times, mut failed) = (Vec::new(), 0);
    let mut kept = None;
    while Instant::now() < until {
        let began = Instant::now();
        let result = match mode {
            Mode::Connect => connection(to),
            _ => request(to, &mut kept),
        };
        match result {
            Ok(()) => times.push(u64::try_from(began.elapsed().as_nanos()).unwrap_or(u64::MAX)),
            Err(_) => {
                failed += 1;
                kept = None;
            }
        }
    }
    (times, failed)
}

fn connection(to: SocketAddr) -> io::Result<()> {
    let mut stream = TcpStream::connect(to)?;
    stream.set_nodelay(true)?;
    let mut first = [7; MESSAGE + 1];
    first[0] = Mode::Connect.byte();
    stream.write_all(&first)?;
    let mut answer = Vec::with_capacity(MESSAGE);
    stream.read_to_end(&mut answer)?;
    if answer.len() == MESSAGE { Ok(()) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
}

fn request(to: SocketAddr, kept: &mut Option<TcpStream>) -> io::Result<()> {
    let stream = match kept {
        Some(stream) => stream,
        None => {
            let mut stream = TcpStream::connect(to)?;
            stream.set_nodelay(true)?;
            stream.write_all(&[Mode::Request.byte()])?;
            kept.insert(stream)
        }
    };
    let mut message = [7; MESSAGE];
    stream.write_all(&message)?;
    stream.read_exact(&mut message)
}
