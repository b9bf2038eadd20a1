//! Requests for a certificate.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| kumiko_agent::fuzzing::issuer_request(bytes));
