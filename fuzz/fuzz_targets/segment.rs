//! What the kernel programs conclude from TCP headers.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| kumiko_kernel::fuzzing::segment(bytes));
