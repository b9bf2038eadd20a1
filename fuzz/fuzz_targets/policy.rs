//! Policy, up to its verdicts.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| kumiko_core::fuzzing::policy(bytes));
