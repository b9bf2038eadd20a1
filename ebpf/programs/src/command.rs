//! `flow_command`: the one way for user space to change a flow entry. Run by `BPF_PROG_TEST_RUN` with one
//! [`Command`] as the packet; attached nowhere.

use core::mem::offset_of;

use kumiko_abi::{
    Command, CommandOp, CommandResult, Config, FlowState,
    flow::flags::{CLAIMED, COUNTED_PENDING, INITIATOR_IS_LO, OVER},
};

use crate::{
    counters::now,
    maps::Scratch,
    service,
    skb::Skb,
    table::{self, Entry, Inserted, get, set},
    track::finish,
};

/// Flags that user space may not set itself.
const RESERVED: u32 = CLAIMED | COUNTED_PENDING;

pub(crate) fn run(skb: Skb, s: &mut Scratch, config: &Config) -> CommandResult {
    let mut op = [0u32; 2];
    // SAFETY: each destination has the size of what is copied.
    let read = unsafe {
        skb.load::<8>(0, (&raw mut op).cast())
            && skb.load::<40>(offset_of!(Command, key) as u32, (&raw mut s.key).cast())
            && skb.load::<16>(offset_of!(Command, id) as u32, (&raw mut s.id).cast())
            && skb.load::<160>(offset_of!(Command, flow) as u32, (&raw mut s.flow).cast())
    };
    if !read {
        return CommandResult::Malformed;
    }
    let [op, _] = op;
    if op == CommandOp::Create as u32 {
        return create(s, config);
    }
    let Some(entry) = table::find(&s.key) else { return CommandResult::Missing };
    if op == CommandOp::SetState as u32 {
        set_state(s, entry)
    } else if op == CommandOp::Reap as u32 {
        reap(s, config, entry)
    } else if op == CommandOp::Mark as u32 {
        mark(s, entry);
        CommandResult::Done
    } else {
        CommandResult::Malformed
    }
}

#[inline(always)]
fn create(s: &mut Scratch, config: &Config) -> CommandResult {
    if FlowState::from_u8(s.flow.state).is_none() {
        return CommandResult::Malformed;
    }
    let old = match table::find(&s.key) {
        Some(entry) if !entry.is_over() && !entry.is_orphan(config) => return CommandResult::Exists,
        Some(entry) => entry.0,
        None => core::ptr::null_mut(),
    };
    let now = now();
    s.flow.flags &= !RESERVED;
    if s.flow.id.0 == [0; 16] {
        s.flow.id = table::next_id(&mut s.sequence, config, now);
    }
    if s.flow.first_ns == 0 {
        s.flow.first_ns = now;
    }
    if s.flow.last_ns == 0 {
        s.flow.last_ns = now;
    }
    match table::insert(s, config, old) {
        Inserted::Done => CommandResult::Done,
        Inserted::Full | Inserted::Quota => CommandResult::Full,
        Inserted::Busy => CommandResult::Exists,
    }
}

#[inline(always)]
fn reap(s: &mut Scratch, config: &Config, entry: Entry) -> CommandResult {
    let (service, client_is_lo) = (get!(entry, service), entry.flags() & INITIATOR_IS_LO != 0);
    if !table::reap(&s.key, &s.id, config, entry) {
        return CommandResult::Differs;
    }
    if service != 0 {
        service::forget_choice(s, client_is_lo);
    }
    CommandResult::Done
}

#[inline(always)]
fn set_state(s: &Scratch, entry: Entry) -> CommandResult {
    if !table::same_id(entry, &s.id) {
        return CommandResult::Differs;
    }
    let state = s.flow.state;
    if state != 0 {
        if FlowState::from_u8(state).is_none() {
            return CommandResult::Malformed;
        }
        set!(entry, reason = s.flow.reason);
        set!(entry, verdict = s.flow.verdict);
        if s.flow.epoch != 0 {
            set!(entry, epoch = s.flow.epoch);
        }
        if state != FlowState::Pending as u8 {
            table::settle(entry);
        }
    }
    mark(s, entry);
    if state != 0 {
        // Last: a packet that sees the new state sees the rest of it too.
        set!(entry, state = state);
    }
    CommandResult::Done
}

#[inline(always)]
fn mark(s: &Scratch, entry: Entry) {
    let flags = s.flow.flags & !RESERVED;
    entry.raise(flags & !OVER);
    if flags & OVER != 0 {
        finish(s, entry, flags & OVER, now());
    }
}
