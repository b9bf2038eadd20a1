//! The flow table, read.

use std::io;

use kumiko_abi::{Flow, FlowKey};

use super::{maps::Maps, sys};

/// Elements a system call, at first. 100 KiB of buffers; a whole table is read in some 500 calls.
const BATCH: usize = 512;

/// Reads the flow table; usable from every thread.
#[derive(Clone)]
pub struct FlowTable(Maps);

impl FlowTable {
    pub(super) fn new(maps: Maps) -> Self {
        Self(maps)
    }

    /// One entry, or none.
    pub fn get(&self, key: &FlowKey) -> Option<Flow> {
        self.0.flows().get(key).ok().flatten()
    }

    /// Calls `each` for every entry. Entries that come or go meanwhile may be told or not; none is told twice unless
    /// it moved between two looks.
    ///
    /// # Errors
    /// What the kernel says; entries before it were told.
    pub fn scan(&self, each: &mut dyn FnMut(&FlowKey, &Flow)) -> io::Result<()> {
        let map = self.0.flows().fd();
        let mut size = BATCH;
        let mut keys: Vec<FlowKey> = Vec::with_capacity(size);
        let mut values: Vec<Flow> = Vec::with_capacity(size);
        let mut position = None;
        loop {
            keys.clear();
            values.clear();
            let room = u32::try_from(size).unwrap_or(u32::MAX);
            // SAFETY: both vectors have room for `size` elements; the layout of the map was checked when it was opened.
            let read = unsafe { sys::lookup_batch(map, &mut position, (keys.as_mut_ptr(), values.as_mut_ptr(), room)) };
            let read = match read {
                Err(e) if e.raw_os_error() == Some(libc::ENOSPC) && size < 1 << 20 => {
                    // One bucket holds more than asked for.
                    size *= 2;
                    keys.reserve(size);
                    values.reserve(size);
                    continue;
                }
                other => other?,
            };
            let count = (read.count as usize).min(size);
            // SAFETY: the kernel filled `count` elements of both.
            unsafe {
                keys.set_len(count);
                values.set_len(count);
            }
            for (key, flow) in keys.iter().zip(&values) {
                each(key, flow);
            }
            if read.last {
                return Ok(());
            }
        }
    }
}
