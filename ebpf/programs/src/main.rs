//! kumiko's kernel programs.
//!
//! | program | hook | does |
//! |---|---|---|
//! | `pod_ingress` | tc ingress of a pod's veth | judges what the pod sends; redirects, parks, passes or drops it |
//! | `pod_egress` | tc egress of a pod's veth | judges what reaches the pod in the clear; stops what is captured |
//! | `agent_ingress` | tc ingress of `kumiko0` | brings what the agent's sockets send to the pods |
//! | `agent_lookup` | `sk_lookup` of the agent's namespace | gives an injected SYN to its shard's listener |
//! | `flow_command` | none: `BPF_PROG_TEST_RUN` | creates, changes and reaps flow entries for the agent |
//!
//! What is decided stands in [`kumiko_abi::judge`], as plain functions that are tested on the host. Minimum kernel:
//! 6.1.
//!
//! # Building
//!
//! From `ebpf/`, with Debian's Rust (any nightly with `rust-src` does as well, without the two variables) and a
//! bpf-linker built for the same LLVM:
//!
//! ```text
//! RUSTC=/usr/bin/rustc RUSTC_BOOTSTRAP=1 \
//! RUSTFLAGS='--cfg bpf_target_arch="x86_64" -Cdebuginfo=2 -Clinker=bpf-linker -Clink-arg=--btf -Ctarget-cpu=v3' \
//! /usr/bin/cargo build --release --locked --target bpfel-unknown-none -Zbuild-std=core --target-dir ../target/ebpf
//! cp ../target/ebpf/bpfel-unknown-none/release/kumiko ../target/bpf/kumiko.o
//! ```
#![no_std]
#![no_main]
#![allow(
    clippy::needless_borrows_for_generic_args,
    reason = "a map's key or value given by value is copied to the stack"
)]
#![allow(missing_docs, reason = "the program macros make functions without documentation")]
#![cfg_attr(target_arch = "bpf", feature(asm_experimental_arch))]

mod agent;
mod atomic;
mod begin;
mod capture;
mod command;
mod counters;
mod datagram;
mod ends;
mod judge;
mod maps;
mod packet;
mod pod_egress;
mod pod_ingress;
mod policy;
mod redirect;
mod service;
mod skb;
mod table;
mod track;

use aya_ebpf::{
    macros::{classifier, sk_lookup},
    programs::{SkLookupContext, TcContext},
};
use aya_log_ebpf::debug;
use kumiko_abi::CommandResult;

use crate::{
    maps::{COMMAND_SCRATCH, SCRATCH, Scratch},
    skb::{DROP, PASS, Skb},
};

/// This CPU's scratch space.
#[inline(always)]
fn scratch() -> Option<&'static mut Scratch> {
    // SAFETY: per CPU, and packet programs do not nest: they run with bottom halves off, and none calls another.
    SCRATCH.get_ptr_mut(0).map(|s| unsafe { &mut *s })
}

/// See the table above.
#[classifier]
pub fn pod_ingress(ctx: TcContext) -> i32 {
    // Array lookups of index 0 do not fail; the verifier wants the question asked.
    let (Some(s), Some(config)) = (scratch(), ends::config()) else { return DROP };
    pod_ingress::run(Skb::new(&ctx), s, config)
}

/// See the table above.
#[classifier]
pub fn pod_egress(ctx: TcContext) -> i32 {
    let (Some(s), Some(config)) = (scratch(), ends::config()) else { return PASS };
    pod_egress::run(Skb::new(&ctx), s, config)
}

/// See the table above.
#[classifier]
pub fn agent_ingress(ctx: TcContext) -> i32 {
    let (Some(s), Some(config)) = (scratch(), ends::config()) else { return DROP };
    agent::ingress(Skb::new(&ctx), s, config)
}

/// See the table above.
#[sk_lookup]
pub fn agent_lookup(ctx: SkLookupContext) -> u32 {
    let Some(config) = ends::config() else { return agent::SK_DROP };
    agent::lookup(&ctx, config)
}

/// See the table above.
#[classifier]
pub fn flow_command(ctx: TcContext) -> i32 {
    // SAFETY: per CPU; test runs do not nest, and no packet program uses this map.
    let scratch = COMMAND_SCRATCH.get_ptr_mut(0).map(|s| unsafe { &mut *s });
    let (Some(s), Some(config)) = (scratch, ends::config()) else { return CommandResult::Malformed as i32 };
    let result = command::run(Skb::new(&ctx), s, config);
    if matches!(result, CommandResult::Malformed) {
        debug!(&ctx, "flow_command: malformed command of {} bytes", ctx.len());
    }
    result as i32
}

#[cfg(not(test))]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    // No program keeps a path to here: an endless loop is refused by every verifier, so a leftover shows at once.
    loop {}
}

/// Helpers are for programs under a GPL-compatible licence only; these are dual MIT and Apache-2.0.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
