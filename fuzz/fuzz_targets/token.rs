//! Join tokens.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| kumiko_agent::fuzzing::token(bytes));
