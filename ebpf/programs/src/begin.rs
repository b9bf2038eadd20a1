//! A SYN that a pod sends and that begins a flow: who it is for, what stages and rules say, and where it goes.

use kumiko_abi::{
    Config, Flow, Reason, Stat,
    config::config_flags,
    flow::flags::TURNED,
    judge::{self, Action, Outbound, Peer},
    map::endpoint_flags,
};

use crate::{
    capture::{self, Parked},
    counters::{self, count},
    ends::{self, Ends, Hook, learns, stage},
    judge::forged,
    maps::{Scratch, forget},
    pod_ingress::{settle, spoofed},
    policy,
    redirect::into_agent,
    service::{self, Choice},
    skb::{DROP, PASS},
    table,
};

/// A SYN of this pod that begins a flow.
#[inline(never)]
pub(crate) fn begin(hook: &Hook<'_>, s: &mut Scratch, old: *mut Flow) -> i32 {
    let Hook { skb, config, endpoint, ifindex } = *hook;
    if !ends::source_allowed(&s.packet, endpoint) {
        return spoofed(stage(endpoint));
    }
    ends::find_target(s, config);
    if s.service != 0 {
        // Another connection from the same port, to the endpoint that was chosen for the last one.
        chosen(s);
    } else if matches!(s.target.peer, Peer::OpenService) && stage(endpoint).meshed() && !learns(endpoint) {
        turn(s, config);
    }
    forget(&mut s.target);
    let target = s.target;
    s.decision = judge::outbound(Outbound {
        stage: stage(endpoint),
        learn: learns(endpoint),
        closing: config.flags & config_flags::CLOSING != 0,
        fast: target.fast && endpoint.flags & endpoint_flags::FAST != 0,
        peer: target.peer,
    });
    s.ends = Ends::new((endpoint.handle, ifindex), (target.handle, target.ifindex), false);
    s.ends.service = target.service;
    mark_turned(s);
    forget(&mut s.decision);
    policy::outbound(hook, s);
    if matches!(s.decision.action, Action::Capture) {
        match capture::park(hook, s, old) {
            Parked::Done => return DROP,
            Parked::Refused => return into_agent(skb, config),
            Parked::Instead => instead(hook, s),
        }
    }
    finish(hook, s, old)
}

/// A connection to a captured Service that no agent takes: in the clear, if it may, to an endpoint that rules are asked about.
#[inline(never)]
fn instead(hook: &Hook<'_>, s: &mut Scratch) {
    if !matches!(s.target.peer, Peer::Service) || !matches!(s.decision.action, Action::Direct) {
        return;
    }
    turn(s, hook.config);
    if s.service == 0 {
        return;
    }
    s.ends.dst = s.target.handle;
    s.ends.dst_ifindex = s.target.ifindex;
    mark_turned(s);
    forget(&mut s.decision);
    policy::outbound(hook, s);
}

/// Has an endpoint of the Service that a SYN goes to chosen, and makes it the target; `s.service` is 0 if there is none.
#[inline(never)]
fn turn(s: &mut Scratch, config: &Config) {
    if matches!(service::open(s), Choice::New) {
        ends::find_target(s, config);
        chosen(s);
    } else {
        s.service = 0;
    }
}

/// The target is an endpoint that was chosen here, to which a connection goes in the clear.
#[inline(always)]
fn chosen(s: &mut Scratch) {
    // Its answers come back by the host's stack, where they are turned: no fast path.
    s.target.fast = false;
    s.target.service = 0;
    if !matches!(s.target.peer, Peer::Local) {
        s.target.peer = Peer::OpenService;
    }
}

#[inline(always)]
fn mark_turned(s: &mut Scratch) {
    if s.service != 0 {
        s.ends.service = s.service;
        s.decision.flags |= TURNED;
    }
}

/// Carries out the decision. With `s.service`: about a connection to an endpoint that may have been chosen only now.
#[inline(never)]
fn finish(hook: &Hook<'_>, s: &mut Scratch, old: *mut Flow) -> i32 {
    let mut old = old;
    if s.service != 0
        && old.is_null()
        && let Some(entry) = table::find(&s.key)
    {
        if !entry.is_over() {
            // The client has the same connection to this very endpoint already: sent again, it may get another one.
            return forged(hook);
        }
        old = entry.0;
    }
    let action = settle(hook, s, old);
    if action == PASS && s.service != 0 && !service::remember(s) {
        count(Stat::TableFull);
        counters::reason(Reason::TableFull);
        return DROP;
    }
    action
}
