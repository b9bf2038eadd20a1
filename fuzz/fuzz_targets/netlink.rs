//! What the kernel says over netlink.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| kumiko_kernel::fuzzing::netlink(bytes));
