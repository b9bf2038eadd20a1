//! Manifests, up to the model.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| kumiko_core::fuzzing::manifest(bytes));
