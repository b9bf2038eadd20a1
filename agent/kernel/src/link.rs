//! Interfaces that come and go, as the kernel tells.

mod table;

use std::collections::VecDeque;
use std::io;

use netlink_packet_core::{NLM_F_DUMP, NLM_F_REQUEST};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::LinkMessage;
use netlink_sys::{Socket, SocketAddr};
use socket2::SockRef;

use crate::netlink::link::{Link, RTM_DELLINK, RTM_NEWLINK};
use crate::netlink::{BUFFER_LEN, Messages, NLMSG_DONE, NLMSG_ERROR, encode};
use crate::netns::Netns;
use crate::readable::Readable;
use table::Table;

/// RTNLGRP_LINK (`linux/rtnetlink.h`).
const RTNLGRP_LINK: u32 = 1;
/// Room for what a node start brings at once, about a thousand links.
const RECEIVE_BUFFER: usize = 2 * 1024 * 1024;

/// What happened to an interface.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum LinkEvent {
    /// It is there, or has another name now. A [`LinkEvent::Running`] follows if it is.
    Appeared {
        /// Its index.
        ifindex: u32,
        /// Its name.
        name: String,
    },
    /// It is up and has a carrier (for a veth: the other end is up too), or is so no longer: frames sent there are
    /// lost, `bpf_redirect_peer` drops them in silence.
    Running {
        /// Its index.
        ifindex: u32,
        /// Whether.
        running: bool,
    },
    /// It was deleted, or moved to another namespace.
    Gone {
        /// Its index.
        ifindex: u32,
    },
    /// Everything that is there has been told: at the start, and after the kernel had to drop messages. What was
    /// missed has been told as `Appeared`, `Running` and `Gone` before this.
    Resync {
        /// Whether messages were dropped.
        lost: bool,
    },
}

/// Follows the interfaces of one namespace.
#[derive(Debug)]
pub struct Watch {
    socket: Socket,
    readable: Readable,
    buffer: Vec<u8>,
    table: Table,
    events: VecDeque<LinkEvent>,
    sequence: u32,
    /// A dump runs; the kernel takes no second one on this socket.
    dumping: bool,
    /// Another dump has to follow: the running one saw a table that changed under it, or messages were lost.
    again: bool,
    lost: bool,
}

impl Watch {
    /// Begins to follow `netns`. The links that are there come first, then a [`LinkEvent::Resync`].
    ///
    /// Has to be called in a tokio runtime, which may be a current-thread one.
    pub fn new(netns: &Netns) -> io::Result<Self> {
        let socket = netns.within(|| {
            let mut socket = Socket::new(netlink_sys::protocols::NETLINK_ROUTE)?;
            socket.bind_auto()?;
            socket.add_membership(RTNLGRP_LINK)?;
            socket.connect(&SocketAddr::new(0, 0))?;
            socket.set_non_blocking(true)?;
            Ok(socket)
        })?;
        // As far as net.core.rmem_max allows; a smaller buffer only makes a resync likelier.
        SockRef::from(&socket).set_recv_buffer_size(RECEIVE_BUFFER)?;
        let mut watch = Self {
            readable: Readable::new(&socket)?,
            socket,
            buffer: Vec::with_capacity(BUFFER_LEN),
            table: Table::default(),
            events: VecDeque::new(),
            sequence: 0,
            dumping: false,
            again: false,
            lost: false,
        };
        watch.ask()?;
        Ok(watch)
    }

    /// The next event. Can be dropped and called again without loss.
    ///
    /// # Errors
    /// The kernel said something that cannot be read: make a new watch, and forget what this one told.
    pub async fn next(&mut self) -> io::Result<LinkEvent> {
        loop {
            if let Some(event) = self.events.pop_front() {
                return Ok(event);
            }
            let (socket, buffer) = (&self.socket, &mut self.buffer);
            let ask_when_empty = self.again && !self.dumping;
            let read = self
                .readable
                .wait(|| {
                    buffer.clear();
                    match socket.recv(buffer, libc::MSG_TRUNC) {
                        Err(error) if error.kind() == io::ErrorKind::WouldBlock => ask_when_empty.then_some(Ok(None)),
                        read => Some(read.map(Some)),
                    }
                })
                .await?;
            match read {
                // Once its buffer ran over, a socket is given nothing until it was read empty, and is not told of
                // what it misses meanwhile (netlink_overrun). Only a dump that is asked for now sees all of that.
                Ok(None) => self.ask()?,
                Ok(Some(length)) if length > self.buffer.len() => {
                    return Err(io::Error::other(format!("a netlink message of {length} bytes does not fit")));
                }
                Ok(Some(_)) => {
                    let datagram = std::mem::take(&mut self.buffer);
                    let result = self.read(&datagram);
                    self.buffer = datagram;
                    result?;
                }
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => {
                    self.lost = true;
                    self.again = true;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Asks for all links.
    fn ask(&mut self) -> io::Result<()> {
        self.sequence = self.sequence.wrapping_add(1);
        let request =
            encode(RouteNetlinkMessage::GetLink(LinkMessage::default()), NLM_F_REQUEST | NLM_F_DUMP, self.sequence);
        self.socket.send(&request, 0)?;
        self.dumping = true;
        self.again = false;
        self.table.begin();
        Ok(())
    }

    fn read(&mut self, datagram: &[u8]) -> io::Result<()> {
        for message in Messages::new(datagram) {
            let message = message?;
            let of_dump = self.dumping && message.sequence == self.sequence;
            self.again |= of_dump && message.interrupted();
            match message.kind {
                RTM_NEWLINK | RTM_DELLINK => {
                    let link = Link::parse(message.payload)?;
                    self.table.told(message.kind == RTM_NEWLINK, &link, &mut self.events);
                }
                NLMSG_DONE | NLMSG_ERROR if of_dump => {
                    message.error()?;
                    self.dumping = false;
                    if !self.again {
                        self.table.end(&mut self.events);
                        self.events.push_back(LinkEvent::Resync { lost: std::mem::take(&mut self.lost) });
                    }
                }
                _ => {}
            }
        }
        Ok(())
    }
}
