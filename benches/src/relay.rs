//! The twin without TLS: copies bytes between two sockets, one thread, 64 KiB buffers.

use std::net::SocketAddr;

use anyhow::{Context, Result};
use tokio::io::copy_bidirectional_with_sizes;
use tokio::net::{TcpListener, TcpStream};

const BUFFER: usize = 64 * 1024;

/// Relays every connection to `listen` to `to`, for ever.
pub fn run(listen: SocketAddr, to: SocketAddr) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("a runtime")?;
    runtime.block_on(async {
        let local = tokio::task::LocalSet::new();
        local
            .run_until(async {
                let listener = TcpListener::bind(listen).await.with_context(|| format!("listening on {listen}"))?;
                loop {
                    let (from, _) = listener.accept().await.context("accepting")?;
                    tokio::task::spawn_local(async move {
                        // Whoever of the two fails, the other sees its socket closed.
                        let _ = relay(from, to).await;
                    });
                }
            })
            .await
    })
}

async fn relay(mut from: TcpStream, to: SocketAddr) -> std::io::Result<()> {
    let mut onward = TcpStream::connect(to).await?;
    from.set_nodelay(true)?;
    onward.set_nodelay(true)?;
    copy_bidirectional_with_sizes(&mut from, &mut onward, BUFFER, BUFFER).await.map(drop)
}
