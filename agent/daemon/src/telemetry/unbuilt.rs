//! A flow whose record is built when somebody wants to see it.

use kumiko_core::flow_record::{AgentFacts, Clock, Entry, FlowPhase, FlowRecord, Names};

/// What a record is made of. Names are shared between flows, so it takes a fraction of the record's memory, which matters
/// for the thousands that are kept.
#[derive(Debug)]
pub(super) struct Unbuilt {
    pub entry: Entry,
    pub names: Names,
    pub facts: AgentFacts,
    /// As it was when the flow ended, or was looked at.
    pub clock: Clock,
    /// Nothing of it changes any more.
    pub finished: bool,
}

impl Unbuilt {
    pub(super) fn build(&self, node: &str) -> FlowRecord {
        let mut record = FlowRecord::build(node, self.clock, &self.entry, &self.names, &self.facts);
        if self.finished {
            record.state = FlowPhase::Closed;
        }
        record
    }
}
