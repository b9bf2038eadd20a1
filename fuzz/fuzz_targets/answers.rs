//! The admin API's answers, as the CLI reads them.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| kumiko_core::fuzzing::answers(bytes));
