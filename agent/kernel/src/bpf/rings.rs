//! Ring buffers: parked SYNs of a shard, and events.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use aya::maps::{Map, MapData, MapError, RingBuf};
use kumiko_abi::{Event, SynRecord, names};

use super::{
    error::BpfError,
    layout::SYN_RING_BYTES,
    maps::Maps,
    raw_map::{Plain, Put, read},
    sys,
};

/// Records of one type out of a ring.
struct Ring(RingBuf<MapData>);

impl Ring {
    fn open(fd: OwnedFd, name: String) -> Result<Self, BpfError> {
        let failed = |source: MapError| BpfError::Ring { ring: name.clone(), source: Box::new(source) };
        let map = MapData::from_fd(fd).map_err(failed)?;
        Ok(Self(RingBuf::try_from(Map::RingBuf(map)).map_err(failed)?))
    }

    /// The next record; one that is too short for its type is skipped.
    fn next<T: Plain>(&mut self) -> Option<T> {
        loop {
            let item = self.0.next()?;
            if let Some(record) = read(&item) {
                return Some(record);
            }
        }
    }
}

/// A shard's parked SYNs. Readable when there is one; read until [`SynRing::next`] says `None` before waiting again.
pub struct SynRing(Ring);

impl SynRing {
    pub(super) fn open(maps: &Maps, shard: u16) -> Result<Self, BpfError> {
        let slot = u32::from(shard);
        let failed = |source| BpfError::Map { call: "make a ring for", map: names::SYNS, source };
        let fd = match maps.syns().get(&slot)? {
            Some(id) => sys::map_by_id(id).map_err(failed)?,
            None => {
                let fd = sys::create_ring(SYN_RING_BYTES).map_err(failed)?;
                maps.syns().put(&slot, &fd.as_raw_fd().cast_unsigned(), Put::Any)?;
                fd
            }
        };
        Ring::open(fd, format!("{}[{shard}]", names::SYNS)).map(Self)
    }

    /// The next parked SYN.
    #[expect(clippy::should_implement_trait, reason = "a ring does not end: None means `wait`")]
    pub fn next(&mut self) -> Option<SynRecord> {
        self.0.next()
    }
}

/// Flow events. Readable when there is one; read until [`EventRing::next`] says `None` before waiting again.
pub struct EventRing(Ring);

impl EventRing {
    pub(super) fn open(maps: &Maps) -> Result<Self, BpfError> {
        let fd = maps.events().try_clone_to_owned();
        let fd = fd.map_err(|source| BpfError::Map { call: "open", map: names::EVENTS, source })?;
        Ring::open(fd, names::EVENTS.to_owned()).map(Self)
    }

    /// The next event.
    #[expect(clippy::should_implement_trait, reason = "a ring does not end: None means `wait`")]
    pub fn next(&mut self) -> Option<Event> {
        self.0.next()
    }
}

macro_rules! as_fd {
    ($($type:ty),*) => {$(
        impl AsFd for $type {
            fn as_fd(&self) -> BorrowedFd<'_> {
                // SAFETY: the ring owns its descriptor for as long as it lives.
                unsafe { BorrowedFd::borrow_raw(self.0.0.as_raw_fd()) }
            }
        }

        impl AsRawFd for $type {
            fn as_raw_fd(&self) -> RawFd {
                self.0.0.as_raw_fd()
            }
        }
    )*};
}

as_fd!(SynRing, EventRing);
