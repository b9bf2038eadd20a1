//! Tests that need more than one module.

mod ends;
mod handshake;
mod interop;
mod peers;
mod pool;
mod relay;
mod sessions;
