//! Numbers that an agent kept for the next one.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| kumiko_core::fuzzing::handles(bytes));
