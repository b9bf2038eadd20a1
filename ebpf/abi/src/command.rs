//! The command program's input and answer.
//!
//! User space never updates or deletes a flow entry itself: a whole-element update loses counts that another CPU adds
//! meanwhile, and a delete can hit a tuple that was just reused. It runs `flow_command` with `BPF_PROG_TEST_RUN`; the
//! packet's data is one [`Command`], the program's return value one [`CommandResult`].

use core::mem::size_of;

use crate::{Flow, FlowId, FlowKey};

/// What is asked.
#[repr(u32)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum CommandOp {
    /// Insert `flow` under `key`, unless a live entry of this generation stands there (an entry that is over, or that
    /// is captured or pending of another generation, is replaced). `first_ns` and `last_ns` of zero are set to now.
    Create = 1,
    /// Set state, reason, verdict and the flags in `flow.flags` (or-ed) of the entry, if its id is `id`.
    SetState = 2,
    /// Delete the entry, if its id is `id`.
    Reap = 3,
    /// Or `flow.flags` into the entry, whatever its id (dump of sockets older than enrolment: `LEGACY`).
    Mark = 4,
}

/// What came of it.
#[repr(u32)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum CommandResult {
    /// Done.
    Done = 0,
    /// `Create`: a live entry stands there.
    Exists = 1,
    /// No entry under this key.
    Missing = 2,
    /// An entry, but with another id.
    Differs = 3,
    /// The table or the endpoint's quota is full.
    Full = 4,
    /// The command could not be read.
    Malformed = 5,
}

/// One command.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Command {
    /// See [`CommandOp`].
    pub op: u32,
    /// Zero.
    pub _pad: u32,
    /// The entry.
    pub key: FlowKey,
    /// The id that the entry must have (`SetState`, `Reap`).
    pub id: FlowId,
    /// `Create`: the whole entry. Else state, reason, verdict, flags of it.
    pub flow: Flow,
}

const _: () = assert!(size_of::<Command>() == 8 + 40 + 16 + size_of::<Flow>());
