//! Dialler against acceptor, in any schedule.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| kumiko_core::fuzzing::schedule(bytes));
