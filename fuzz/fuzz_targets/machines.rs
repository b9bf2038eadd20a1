//! Any frames at either machine, against what it may do.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| kumiko_core::fuzzing::machines(bytes));
