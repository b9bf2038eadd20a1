//! The fields of OPEN, against a second reader.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| kumiko_core::fuzzing::open(bytes));
