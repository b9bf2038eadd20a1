//! A peer's certificate.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| kumiko_tunnel::fuzzing::certificate(bytes));
