//! Kept SYNs, up to the injected frame and ICMP errors.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| kumiko_kernel::fuzzing::syn(bytes));
