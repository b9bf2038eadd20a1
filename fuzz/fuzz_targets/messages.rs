//! Handshake messages after the handshake.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| kumiko_tunnel::fuzzing::messages(bytes));
