//! What comes out of a tunnel: records are read in batches, opened where they stand, and delivered from there.

use std::collections::VecDeque;
use std::io::IoSlice;
use std::ops::Range;

use crate::aead::{HEADER, Key};
use crate::buffer::{Adaptive, Buffer};
use crate::error::TunnelError;
use crate::record::{self, MAX_RECORD, Opened};

/// Records that are opened before their bytes are delivered: as many as one write takes.
pub(crate) const BATCH: usize = 64;

/// The receiving direction.
#[derive(Debug)]
pub(crate) struct Inbound {
    key: Key,
    buffer: Option<Buffer>,
    /// First byte that is not yet opened.
    start: usize,
    /// End of what was read.
    end: usize,
    /// Opened bytes that wait for delivery, in order, all before `start`.
    ready: VecDeque<Range<usize>>,
    adaptive: Adaptive,
}

impl Inbound {
    /// `early` are bytes that came with the last of the handshake.
    pub(crate) fn new(key: Key, early: &[u8]) -> Self {
        let mut inbound =
            Self { key, buffer: None, start: 0, end: 0, ready: VecDeque::new(), adaptive: Adaptive::default() };
        if !early.is_empty() {
            let mut buffer = Buffer::at_least(early.len());
            if let Some(place) = buffer.get_mut(..early.len()) {
                place.copy_from_slice(early);
                inbound.end = early.len();
            }
            inbound.buffer = Some(buffer);
        }
        inbound
    }

    pub(crate) fn set_key(&mut self, key: Key) {
        self.key = key;
    }

    /// Opens the next record; its plaintext is at the range. `None`: more bytes are needed.
    pub(crate) fn open(&mut self) -> Result<Option<(u8, Range<usize>)>, TunnelError> {
        let Some(bytes) = self.buffer.as_mut().and_then(|b| b.get_mut(self.start..self.end)) else { return Ok(None) };
        let Some(Opened { content, len, record }) = record::open(&mut self.key, bytes)? else { return Ok(None) };
        let plain = self.start + HEADER..self.start + HEADER + len;
        self.start += record;
        Ok(Some((content, plain)))
    }

    /// Plaintext of a record that was just opened.
    pub(crate) fn plain(&self, range: Range<usize>) -> &[u8] {
        self.buffer.as_ref().and_then(|b| b.get(range)).unwrap_or_default()
    }

    /// Keeps an opened record for delivery.
    pub(crate) fn keep(&mut self, range: Range<usize>) {
        if !range.is_empty() {
            self.ready.push_back(range);
        }
    }

    /// Whether no more may be opened before some is delivered.
    pub(crate) fn is_full(&self) -> bool {
        self.ready.len() >= BATCH
    }

    /// Whether opened bytes wait for delivery.
    pub(crate) fn has_ready(&self) -> bool {
        !self.ready.is_empty()
    }

    /// Bytes that wait for delivery, as the pieces of one write; returns how many pieces.
    pub(crate) fn pieces<'a>(&'a self, pieces: &mut [IoSlice<'a>; BATCH]) -> usize {
        let Some(buffer) = &self.buffer else { return 0 };
        let mut n = 0;
        for (piece, range) in pieces.iter_mut().zip(&self.ready) {
            *piece = IoSlice::new(buffer.get(range.clone()).unwrap_or_default());
            n += 1;
        }
        n
    }

    /// First byte that waits for delivery.
    pub(crate) fn first_ready(&self) -> Option<u8> {
        self.ready.front().and_then(|r| self.buffer.as_ref()?.get(r.start).copied())
    }

    /// `n` bytes were delivered.
    pub(crate) fn delivered(&mut self, mut n: usize) {
        while let Some(front) = self.ready.front_mut() {
            if n < front.len() {
                front.start += n;
                return;
            }
            n -= front.len();
            self.ready.pop_front();
        }
    }

    /// Throws away what waits for delivery.
    pub(crate) fn discard_ready(&mut self) {
        self.ready.clear();
    }

    /// Room for the next read, never empty; only while nothing waits for delivery and no whole record is unopened.
    pub(crate) fn room(&mut self) -> &mut [u8] {
        debug_assert!(self.ready.is_empty(), "delivered bytes stand in the buffer");
        self.compact();
        let wanted = self.adaptive.size();
        if self.buffer.as_ref().is_none_or(|b| b.size() != wanted) {
            let mut other = Buffer::take(wanted);
            // What is left is a part of one record, which fits any buffer.
            let left = self.buffer.as_ref().and_then(|b| b.get(..self.end)).unwrap_or_default();
            if let Some(place) = other.get_mut(..left.len()) {
                place.copy_from_slice(left);
                self.buffer = Some(other);
            }
        }
        let end = self.end;
        self.buffer.as_mut().and_then(|b| b.get_mut(end..)).unwrap_or_default()
    }

    fn compact(&mut self) {
        if self.start == 0 {
            return;
        }
        if let Some(buffer) = &mut self.buffer {
            buffer.copy_within(self.start..self.end, 0);
        }
        self.end -= self.start;
        self.start = 0;
    }

    /// `n` bytes were read into `room` bytes of [`Self::room`].
    pub(crate) fn read(&mut self, n: usize, room: usize) {
        self.end += n;
        self.adaptive.read(n, room);
    }

    /// Whether nothing was read that has not been used.
    pub(crate) fn is_empty(&self) -> bool {
        self.start == self.end && self.ready.is_empty()
    }

    /// Gives the buffer back if nothing is in it.
    pub(crate) fn release(&mut self) {
        if self.is_empty() {
            self.buffer = None;
            (self.start, self.end) = (0, 0);
        }
    }
}

// Any buffer has room for one record of the largest kind, so a record that has begun can always be completed.
const _: () = assert!(crate::buffer::Size::Small.len() >= MAX_RECORD);
