//! Records of a peer that has the keys.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| kumiko_tunnel::fuzzing::peer(bytes));
