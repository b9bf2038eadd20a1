//! The issuer's answers, as the agent reads them.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| kumiko_agent::fuzzing::issuer_answer(bytes));
