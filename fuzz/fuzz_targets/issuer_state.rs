//! Files of the issuer's directory.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| kumiko_agent::fuzzing::issuer_state(bytes));
