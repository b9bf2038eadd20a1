//! Which interfaces shape what passes them.
//!
//! `bpf_redirect_peer` goes past the queueing discipline of the veth that it enters, and past an ifb that its ingress is
//! mirrored to: a pod with a bandwidth limit would have none between pods of one node.

use std::collections::HashSet;
use std::io;

use netlink_packet_core::NlasIterator;
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::tc::TcMessage;

use crate::netlink::Connection;
use crate::netns::Netns;

/// `linux/rtnetlink.h`.
const RTM_NEWQDISC: u16 = 36;
const TCA_KIND: u16 = 1;
/// `struct tcmsg`; the interface's index stands behind the family and its padding.
const TCMSG_LEN: usize = 20;

/// Disciplines that limit or delay, and `ingress`, which the bandwidth plugin's limit for the other direction hangs on.
/// `clsact` is not among them: it holds filters only.
const SHAPING: &[&str] = &["tbf", "htb", "hfsc", "cake", "netem", "ingress"];

/// Indexes of the interfaces of `host` with a discipline that shapes.
///
/// # Errors
/// Netlink does not answer.
pub fn shaped(host: &Netns) -> io::Result<HashSet<u32>> {
    let mut connection = Connection::route(host)?;
    let answers = connection.dump(RouteNetlinkMessage::GetQueueDiscipline(TcMessage::default()))?;
    let qdiscs = answers.iter().filter(|answer| answer.kind == RTM_NEWQDISC);
    Ok(qdiscs.filter_map(|answer| shaping(&answer.payload)).collect())
}

/// Index of the interface of RTM_NEWQDISC's payload, if its discipline shapes.
pub(crate) fn shaping(payload: &[u8]) -> Option<u32> {
    let (header, attributes) = payload.split_first_chunk::<TCMSG_LEN>()?;
    let [_, _, _, _, i0, i1, i2, i3, ..] = *header;
    let kind = NlasIterator::new(attributes).flatten().find(|attribute| attribute.kind() == TCA_KIND)?;
    let kind = kind.value().split(|byte| *byte == 0).next()?;
    SHAPING.iter().any(|name| name.as_bytes() == kind).then_some(u32::from_ne_bytes([i0, i1, i2, i3]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(bytes: Vec<u8>) {
            let _ = shaping(&bytes);
        }
    }
}
