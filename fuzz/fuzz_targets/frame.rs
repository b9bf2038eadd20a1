//! Control frames.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| kumiko_core::fuzzing::frame(bytes));
