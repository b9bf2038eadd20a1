//! Raw bytes into the record opener.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| kumiko_tunnel::fuzzing::records(bytes));
