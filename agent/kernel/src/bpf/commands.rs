//! Changes of flow entries, which only the kernel makes.

use std::{os::fd::AsFd, sync::Arc};

use kumiko_abi::{Command, CommandOp, CommandResult, Flow, FlowId, FlowKey, FlowState, Reason, Verdict};

use super::{ProgramFds, error::BpfError, raw_map::bytes_of, sys};

/// The command program. Each call is one system call, without allocation; usable from every thread.
#[derive(Clone)]
pub struct Commands(Arc<ProgramFds>);

/// An entry of zeros, to be filled: its state is none, which `SetState` reads as "leave it".
const EMPTY: Flow = Flow {
    id: FlowId([0; 16]),
    first_ns: 0,
    last_syn_ns: 0,
    last_ns: 0,
    over_ns: 0,
    src: 0,
    dst: 0,
    service: 0,
    src_ifindex: 0,
    dst_ifindex: 0,
    generation: 0,
    epoch: 0,
    isn: 0,
    flags: 0,
    shard: 0,
    reason: 0,
    state: 0,
    verdict: 0,
    _pad: [0; 2],
    not_after: 0,
    dir: [kumiko_abi::Direction { packets: 0, bytes: 0, seq: 0, ack: 0, fin_seq: 0, flags: 0 }; 2],
};

impl Commands {
    pub(super) fn new(fds: Arc<ProgramFds>) -> Self {
        Self(fds)
    }

    /// Inserts an entry unless a live one stands there. An id of zeros is replaced by a fresh one, times of zero by now.
    ///
    /// # Errors
    /// [`BpfError::Command`], [`BpfError::Answer`], as all methods here.
    pub fn create(&self, key: &FlowKey, flow: &Flow) -> Result<CommandResult, BpfError> {
        self.run(CommandOp::Create, key, FlowId([0; 16]), *flow)
    }

    /// Moves an entry to a state; `flags` are or-ed into it. An `OVER` flag also ends the flow, with its event.
    ///
    /// # Errors
    /// As above.
    pub fn set_state(
        &self,
        key: &FlowKey,
        id: &FlowId,
        state: FlowState,
        reason: Reason,
        verdict: Verdict,
        flags: u32,
    ) -> Result<CommandResult, BpfError> {
        let flow = Flow { state: state as u8, reason: reason as u16, verdict: verdict as u8, flags, ..EMPTY };
        self.run(CommandOp::SetState, key, *id, flow)
    }

    /// Cuts a flow by a verdict of an epoch.
    ///
    /// # Errors
    /// As above.
    pub fn cut(&self, key: &FlowKey, id: &FlowId, reason: Reason, epoch: u32) -> Result<CommandResult, BpfError> {
        let (state, verdict) = (FlowState::Cut as u8, Verdict::Deny as u8);
        self.run(CommandOp::SetState, key, *id, Flow { state, reason: reason as u16, verdict, epoch, ..EMPTY })
    }

    /// Or-s flags into an entry of this id and leaves the rest of it as it is (`OVER_GONE` when an endpoint is gone).
    ///
    /// # Errors
    /// As above.
    pub fn flag(&self, key: &FlowKey, id: &FlowId, flags: u32) -> Result<CommandResult, BpfError> {
        self.run(CommandOp::SetState, key, *id, Flow { flags, ..EMPTY })
    }

    /// Deletes an entry.
    ///
    /// # Errors
    /// As above.
    pub fn reap(&self, key: &FlowKey, id: &FlowId) -> Result<CommandResult, BpfError> {
        self.run(CommandOp::Reap, key, *id, EMPTY)
    }

    /// Or-s flags into an entry, whatever its id.
    ///
    /// # Errors
    /// As above.
    pub fn mark(&self, key: &FlowKey, flags: u32) -> Result<CommandResult, BpfError> {
        self.run(CommandOp::Mark, key, FlowId([0; 16]), Flow { flags, ..EMPTY })
    }

    fn run(&self, op: CommandOp, key: &FlowKey, id: FlowId, flow: Flow) -> Result<CommandResult, BpfError> {
        let command = Command { op: op as u32, _pad: 0, key: *key, id, flow };
        let answer = sys::test_run(self.0.flow_command.as_fd(), bytes_of(&command)).map_err(BpfError::Command)?;
        Ok(match answer {
            0 => CommandResult::Done,
            1 => CommandResult::Exists,
            2 => CommandResult::Missing,
            3 => CommandResult::Differs,
            4 => CommandResult::Full,
            5 => CommandResult::Malformed,
            other => return Err(BpfError::Answer(other)),
        })
    }
}
