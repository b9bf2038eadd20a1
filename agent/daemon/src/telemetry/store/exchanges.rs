//! Exchanges of datagrams, and of other packets than TCP's, which end by silence.

use kumiko_abi::flow::TCP;
use kumiko_abi::{Flow, FlowId, FlowState, exchange};
use kumiko_core::flow_record::FlowClose;

use super::{SECOND, Store, Todo};

/// Exchanges of one datagram and its answer go after so long while the table fills: a resolver begins thousands a second.
pub(super) const REAP_ONE_SHOT_NS: u64 = 10 * SECOND;

impl Store {
    /// Looks over an exchange of datagrams that is allowed; false: it is none, or lives. One that lives no more keeps its
    /// entry for as long again, by which a late answer is known.
    pub(super) fn exchange(&mut self, id: FlowId, now_ns: u64, fills: bool, todo: &mut Vec<Todo>) -> bool {
        let Some(live) = self.live.get_mut(&id) else { return false };
        let Flow { dir: [sent, received], last_ns, .. } = live.entry.flow;
        let passes = live.state() == Some(FlowState::Direct) && live.seen == self.readings && live.in_table;
        if live.entry.key.proto == TCP || !passes {
            return false;
        }
        let replied = received.packets > 0;
        let quiet_ns = now_ns.saturating_sub(last_ns);
        let one_shot = fills && replied && sent.packets == 1 && quiet_ns >= REAP_ONE_SHOT_NS;
        if !exchange::idle(replied, last_ns, now_ns) && !one_shot {
            return false;
        }
        if fills || quiet_ns >= 2 * exchange::life(replied) {
            todo.extend(live.keys().map(|(key, id)| Todo::Reap(key, id)));
        }
        live.force_end(last_ns, Some(FlowClose::Idle));
        self.finish(id);
        true
    }
}
