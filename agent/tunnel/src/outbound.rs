//! What goes into a tunnel: bytes are read into the places where their records will stand, sealed there, and written.

use std::io::{self, IoSlice, IoSliceMut};

use kumiko_core::frame::{Frame, MAX_FRAME, RECORD_TYPE};
use kumiko_fault::Point;

use crate::aead::{HEADER, Key};
use crate::buffer::{Adaptive, Buffer, Size};
use crate::error::TunnelError;
use crate::messages::{alert, key_update};
use crate::record::{self, MAX_PLAIN, SLOT, content};
use crate::session::Rekey;

/// Most slots of one read.
const MAX_SLOTS: usize = Size::Huge.slots();

/// What became of reading and sealing.
#[derive(Debug)]
pub(crate) enum Filled {
    /// So many bytes of plaintext were sealed.
    Bytes(usize),
    /// The stream has ended.
    End,
    /// The read failed; `WouldBlock` when there is nothing.
    Failed(io::Error),
    /// A KeyUpdate has to be written first; nothing was read.
    Flush,
}

/// The sending direction.
///
/// Bytes of `buffer` go out before those of `control`: new data is sealed only when both are empty, so the order of
/// sealing is the order on the wire.
#[derive(Debug)]
pub(crate) struct Outbound {
    key: Key,
    buffer: Option<Buffer>,
    start: usize,
    end: usize,
    control: Vec<u8>,
    control_start: usize,
    adaptive: Adaptive,
    /// Records sealed with one key before it is changed.
    records_per_key: u64,
    key_updates: u64,
    /// A KeyUpdate stands in `control`, unsent.
    answered: bool,
}

impl Outbound {
    pub(crate) fn new(key: Key, records_per_key: u64) -> Self {
        Self {
            key,
            buffer: None,
            start: 0,
            end: 0,
            control: Vec::new(),
            control_start: 0,
            adaptive: Adaptive::default(),
            records_per_key: records_per_key.max(2),
            key_updates: 0,
            answered: false,
        }
    }

    pub(crate) fn key_updates(&self) -> u64 {
        self.key_updates
    }

    /// Whether everything that was sealed has been written.
    pub(crate) fn is_empty(&self) -> bool {
        self.start == self.end && self.control_start == self.control.len()
    }

    /// Reads plaintext by `read` and seals it; only while [`Self::is_empty`].
    pub(crate) fn fill(
        &mut self,
        rekey: &mut dyn Rekey,
        read: impl FnOnce(&mut [IoSliceMut<'_>]) -> io::Result<usize>,
    ) -> Result<Filled, TunnelError> {
        debug_assert!(self.is_empty(), "records are sealed in the order in which they are written");
        if self.key.sequence() >= self.records_per_key {
            self.update_key(rekey, false)?;
            return Ok(Filled::Flush);
        }
        let left = usize::try_from(self.records_per_key - self.key.sequence()).unwrap_or(usize::MAX);
        let mut buffer = self.buffer.take().unwrap_or_else(|| Buffer::take(self.adaptive.size()));
        let slots = buffer.size().slots().min(left);
        let read = {
            let mut places: [IoSliceMut<'_>; MAX_SLOTS] = std::array::from_fn(|_| IoSliceMut::new(&mut []));
            for (place, slot) in places.iter_mut().zip(buffer.chunks_mut(SLOT)).take(slots) {
                *place = IoSliceMut::new(slot.get_mut(HEADER..HEADER + MAX_PLAIN).unwrap_or_default());
            }
            read(places.get_mut(..slots).unwrap_or_default())
        };
        let n = match read {
            // In the other two the buffer goes back to the pool: an idle flow holds none.
            Ok(n) if n > 0 => n,
            Ok(_) => return Ok(Filled::End),
            Err(error) => return Ok(Filled::Failed(error)),
        };
        self.adaptive.read(n, slots * MAX_PLAIN);
        let (mut left, mut end) = (n, 0);
        for slot in buffer.chunks_mut(SLOT) {
            let len = left.min(MAX_PLAIN);
            if len == 0 {
                break;
            }
            end += record::seal(&mut self.key, content::DATA, slot, len)?;
            left -= len;
        }
        self.buffer = Some(buffer);
        (self.start, self.end) = (0, end);
        Ok(Filled::Bytes(n))
    }

    /// Seals a control frame.
    pub(crate) fn frame(&mut self, rekey: &mut dyn Rekey, frame: &Frame) -> Result<(), TunnelError> {
        if self.key.sequence() >= self.records_per_key {
            self.update_key(rekey, false)?;
        }
        let mut bytes = [0; MAX_FRAME];
        let len = frame.encode(&mut bytes)?;
        self.control(RECORD_TYPE, bytes.get(..len).unwrap_or_default())
    }

    /// Seals an alert.
    pub(crate) fn alert(&mut self, description: u8) -> Result<(), TunnelError> {
        self.control(content::ALERT, &alert::encode(description))
    }

    /// The peer asked for a new key. Several requests before the answer has left get one answer.
    pub(crate) fn answer_key_update(&mut self, rekey: &mut dyn Rekey) -> Result<(), TunnelError> {
        if self.answered { Ok(()) } else { self.update_key(rekey, false) }
    }

    /// Changes the key of this direction; `request` asks the peer for the same.
    pub(crate) fn update_key(&mut self, rekey: &mut dyn Rekey, request: bool) -> Result<(), TunnelError> {
        self.control(content::HANDSHAKE, &key_update(request))?;
        kumiko_fault::hit(Point::KeyUpdate).map_err(io::Error::other)?;
        let (sequence, secrets) = rekey.next_sender().map_err(TunnelError::Rekey)?;
        self.key = Key::new(sequence, secrets)?;
        self.key_updates += 1;
        self.answered = true;
        Ok(())
    }

    fn control(&mut self, content: u8, plain: &[u8]) -> Result<(), TunnelError> {
        if self.control_start == self.control.len() {
            self.control.clear();
            self.control_start = 0;
        }
        record::seal_into(&mut self.key, content, plain, &mut self.control)?;
        Ok(())
    }

    /// What is to be written next.
    pub(crate) fn pending(&self) -> [IoSlice<'_>; 2] {
        let data = self.buffer.as_ref().and_then(|b| b.get(self.start..self.end)).unwrap_or_default();
        let control = self.control.get(self.control_start..).unwrap_or_default();
        if data.is_empty() {
            return [IoSlice::new(control), IoSlice::new(&[])];
        }
        [IoSlice::new(data), IoSlice::new(control)]
    }

    /// `n` bytes of [`Self::pending`] were written.
    pub(crate) fn written(&mut self, n: usize) {
        let data = n.min(self.end - self.start);
        self.start += data;
        self.control_start = (self.control_start + n - data).min(self.control.len());
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        }
        if self.control_start == self.control.len() {
            self.control.clear();
            self.control_start = 0;
            self.answered = false;
        }
    }

    /// Gives the buffer back; only while [`Self::is_empty`].
    pub(crate) fn release(&mut self) {
        if self.is_empty() {
            self.buffer = None;
            self.control = Vec::new();
            self.control_start = 0;
        }
    }
}
