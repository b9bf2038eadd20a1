//! Queries of the admin API.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| kumiko_agent::fuzzing::admin(bytes));
