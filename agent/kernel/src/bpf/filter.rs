//! Whether a filter that netlink attached is still there.

use std::io;

use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::tc::{TcHandle, TcMessage};
use netlink_sys::protocols::NETLINK_ROUTE;

use crate::netlink::Connection;

/// `linux/rtnetlink.h`.
const RTM_NEWTFILTER: u16 = 44;
/// `linux/pkt_sched.h`: the two sides of a clsact.
const INGRESS: u32 = 0xffff_fff2;
const EGRESS: u32 = 0xffff_fff3;
/// `struct tcmsg`.
const TCMSG_LEN: usize = 20;

/// Looks for a clsact filter of a handle on an interface of the calling thread's namespace. None on one that is gone.
pub(super) fn is_on(ifindex: u32, egress: bool, priority: u16, handle: u32) -> io::Result<bool> {
    let mut message = TcMessage::default();
    message.header.index = i32::try_from(ifindex).map_err(io::Error::other)?;
    message.header.parent = TcHandle::from(if egress { EGRESS } else { INGRESS });
    message.header.info = u32::from(priority) << 16;
    let answers = Connection::open(NETLINK_ROUTE)?.dump(RouteNetlinkMessage::GetTrafficFilter(message))?;
    let mut filters = answers.iter().filter(|answer| answer.kind == RTM_NEWTFILTER);
    Ok(filters.any(|answer| handle_of(&answer.payload) == Some(handle)))
}

fn handle_of(payload: &[u8]) -> Option<u32> {
    let [_, _, _, _, _, _, _, _, h0, h1, h2, h3, ..] = *payload.first_chunk::<TCMSG_LEN>()?;
    Some(u32::from_ne_bytes([h0, h1, h2, h3]))
}
