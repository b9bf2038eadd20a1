//! Embeds the kernel programs when they have been built (`cargo xtask build-ebpf`). Without them the crate builds all the
//! same, so that checks and unit tests need no BPF toolchain; the agent then wants `--bpf-object`.

use std::{env, path::PathBuf};

fn main() {
    println!("cargo::rustc-check-cfg=cfg(kumiko_bpf_object)");
    let Ok(root) = env::var("CARGO_MANIFEST_DIR") else { return };
    let object = PathBuf::from(root).join("../../target/bpf/kumiko.o");
    // Named even when absent: its coming must build this crate anew.
    println!("cargo::rerun-if-changed={}", object.display());
    if let Ok(object) = object.canonicalize() {
        println!("cargo::rustc-cfg=kumiko_bpf_object");
        println!("cargo::rustc-env=KUMIKO_BPF_OBJECT={}", object.display());
    }
}
