//! What this crate needs to know of a network interface.

use std::io;

use netlink_packet_core::NlasIterator;
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{LinkAttribute, LinkHeader, LinkMessage};
use netlink_packet_route::nsid::{NsidAttribute, NsidMessage};

use super::{Connection, errno};
use crate::netns::Netns;

/// `linux/rtnetlink.h`.
pub(crate) const RTM_NEWLINK: u16 = 16;
pub(crate) const RTM_DELLINK: u16 = 17;
const RTM_NEWNSID: u16 = 88;
/// Attributes (`linux/if_link.h`).
const IFLA_ADDRESS: u16 = 1;
const IFLA_IFNAME: u16 = 3;
const IFLA_MTU: u16 = 4;
const IFLA_LINK: u16 = 5;
const IFLA_MASTER: u16 = 10;
const IFLA_LINKINFO: u16 = 18;
const IFLA_LINK_NETNSID: u16 = 37;
const IFLA_INFO_KIND: u16 = 1;
const NETNSA_NSID: u16 = 1;
/// `struct ifinfomsg`.
const IFINFO_LEN: usize = 16;
const RTGENMSG_LEN: usize = 4;
/// Interface is up, and so is what carries it.
const IFF_UP: u32 = 1 << 0;
const IFF_LOWER_UP: u32 = 1 << 16;

/// A network interface.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Link {
    /// AF_UNSPEC, or AF_BRIDGE for what a bridge says about its port (its RTM_DELLINK only means that the port left).
    pub(crate) family: u8,
    pub(crate) index: u32,
    pub(crate) name: String,
    pub(crate) mac: Option<[u8; 6]>,
    pub(crate) mtu: u32,
    /// Administratively up and with a carrier: a frame sent now goes somewhere.
    pub(crate) running: bool,
    pub(crate) up: bool,
    /// `veth`, `bridge`, …; none for hardware and loopback.
    pub(crate) kind: Option<String>,
    /// IFLA_LINK: for a veth the index of its peer, in the peer's namespace.
    pub(crate) peer: Option<u32>,
    /// IFLA_LINK_NETNSID: this namespace's number for the peer's; none when the peer is in this one.
    pub(crate) peer_nsid: Option<i32>,
    /// The bridge (or the like) that it is a port of.
    pub(crate) master: Option<u32>,
}

impl Link {
    /// Reads the payload of RTM_NEWLINK and RTM_DELLINK.
    pub(crate) fn parse(payload: &[u8]) -> io::Result<Self> {
        let broken = || io::Error::new(io::ErrorKind::InvalidData, "a link message of the kernel cannot be read");
        let (header, attributes) = payload.split_first_chunk::<IFINFO_LEN>().ok_or_else(broken)?;
        let header = LinkHeader::parse(header).map_err(|_| broken())?;
        let flags = header.flags.bits();
        let mut link = Link {
            family: header.interface_family.into(),
            index: header.index,
            up: flags & IFF_UP != 0,
            running: flags & IFF_UP != 0 && flags & IFF_LOWER_UP != 0,
            ..Link::default()
        };
        for attribute in NlasIterator::new(attributes) {
            let attribute = attribute.map_err(|_| broken())?;
            let value = attribute.value();
            match attribute.kind() {
                IFLA_ADDRESS => link.mac = value.try_into().ok(),
                IFLA_IFNAME => link.name = text(value),
                IFLA_MTU => link.mtu = number(value).unwrap_or(0),
                IFLA_LINK => link.peer = number(value),
                IFLA_MASTER => link.master = number(value),
                IFLA_LINK_NETNSID => link.peer_nsid = number(value).map(u32::cast_signed),
                IFLA_LINKINFO => {
                    for info in NlasIterator::new(value) {
                        let info = info.map_err(|_| broken())?;
                        if info.kind() == IFLA_INFO_KIND {
                            link.kind = Some(text(info.value()));
                        }
                    }
                }
                _ => {}
            }
        }
        Ok(link)
    }

    /// Whether it is one end of a veth pair.
    pub(crate) fn is_veth(&self) -> bool {
        self.kind.as_deref() == Some("veth")
    }
}

fn number(value: &[u8]) -> Option<u32> {
    value.first_chunk::<4>().map(|bytes| u32::from_ne_bytes(*bytes))
}

fn text(value: &[u8]) -> String {
    let end = value.iter().position(|b| *b == 0).unwrap_or(value.len());
    String::from_utf8_lossy(value.get(..end).unwrap_or(value)).into_owned()
}

/// Which interface is asked for.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Which<'a> {
    Index(u32),
    Name(&'a str),
    /// An index in the namespace that the connection's own knows by this number.
    Elsewhere {
        index: u32,
        nsid: i32,
    },
}

impl Connection {
    /// One interface; none when there is no such interface.
    pub(crate) fn link(&mut self, which: Which<'_>) -> io::Result<Option<Link>> {
        let mut message = LinkMessage::default();
        match which {
            Which::Index(index) => message.header.index = index,
            Which::Name(name) => message.attributes.push(LinkAttribute::IfName(name.to_owned())),
            Which::Elsewhere { index, nsid } => {
                message.header.index = index;
                message.attributes.push(LinkAttribute::IfNetnsId(nsid));
            }
        }
        match self.request(RouteNetlinkMessage::GetLink(message), 0) {
            Ok(answers) => answers.iter().find(|a| a.kind == RTM_NEWLINK).map(|a| Link::parse(&a.payload)).transpose(),
            Err(error) if errno(&error) == Some(libc::ENODEV) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// This connection's namespace's number for another one; none when it has none.
    ///
    /// The kernel gives a number when it first has something to say about the other (a veth's peer), so ask after
    /// the link.
    pub(crate) fn nsid(&mut self, netns: &Netns) -> io::Result<Option<i32>> {
        use std::os::fd::{AsFd, AsRawFd};
        let mut message = NsidMessage::default();
        message.attributes.push(NsidAttribute::Fd(netns.as_fd().as_raw_fd().cast_unsigned()));
        let answers = self.request(RouteNetlinkMessage::GetNsId(message), 0)?;
        let payload = answers.iter().find(|a| a.kind == RTM_NEWNSID).map_or(&[][..], |a| &a.payload);
        for attribute in NlasIterator::new(payload.get(RTGENMSG_LEN..).unwrap_or(&[])) {
            let attribute = attribute
                .map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "a namespace number cannot be read"))?;
            if attribute.kind() == NETNSA_NSID {
                // NETNSA_NSID_NOT_ASSIGNED is -1.
                return Ok(number(attribute.value()).map(u32::cast_signed).filter(|nsid| *nsid >= 0));
            }
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use netlink_packet_core::Emitable;
    use netlink_packet_route::link::{InfoKind, LinkFlags, LinkInfo};
    use proptest::prelude::*;

    #[test]
    fn a_veth_is_read_back() {
        let mut message = LinkMessage::default();
        message.header.index = 7;
        message.header.flags = LinkFlags::Up;
        message.attributes = vec![
            LinkAttribute::IfName("veth7".into()),
            LinkAttribute::Address(vec![2, 0, 0, 0, 0, 1]),
            LinkAttribute::Link(3),
            LinkAttribute::LinkNetNsId(5),
            LinkAttribute::Controller(9),
            LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Veth)]),
        ];
        let mut bytes = vec![0; message.buffer_len()];
        message.emit(&mut bytes);
        let link = Link::parse(&bytes).unwrap();
        assert_eq!((link.index, link.name.as_str(), link.mac), (7, "veth7", Some([2, 0, 0, 0, 0, 1])));
        assert_eq!((link.peer, link.peer_nsid, link.master), (Some(3), Some(5), Some(9)));
        assert!(link.is_veth() && link.up && !link.running);
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(bytes: Vec<u8>) {
            let _ = Link::parse(&bytes);
        }
    }
}
