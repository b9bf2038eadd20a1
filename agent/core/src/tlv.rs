//! Type, length, value: the fields of a control frame.
//!
//! Type (16 bits) and length (16 bits), both in network order, then the value. The top bit of the type says "critical":
//! a reader that does not know a critical field refuses the frame; any other unknown field is skipped.

use thiserror::Error;

/// Set in the type of a field that a reader has to understand.
pub const CRITICAL: u16 = 0x8000;

/// Bytes before the value of each field.
pub const HEADER: usize = 4;

/// Why a run of fields could not be read or written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum TlvError {
    /// A field's header or value goes beyond the end.
    #[error("field at byte {0} goes beyond the end of the frame")]
    Truncated(usize),
    /// The caller's buffer is full, or a value is longer than 65,535 bytes.
    #[error("no room for a field of {0} bytes")]
    NoRoom(usize),
}

/// One field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Field<'a> {
    /// Number of the field, [`CRITICAL`] included.
    pub kind: u16,
    /// Its value.
    pub value: &'a [u8],
}

impl Field<'_> {
    /// Whether a reader that does not know this field has to refuse the frame.
    pub fn is_critical(&self) -> bool {
        self.kind & CRITICAL != 0
    }
}

/// Reads fields one after the other; after an error it is at its end.
#[derive(Clone, Debug)]
pub struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    /// Reads `bytes`, which hold nothing but fields.
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, at: 0 }
    }

    fn take(&mut self) -> Option<Field<'a>> {
        let rest = self.bytes.get(self.at..)?;
        let (header, rest) = rest.split_first_chunk::<HEADER>()?;
        let [k0, k1, l0, l1] = *header;
        let len = usize::from(u16::from_be_bytes([l0, l1]));
        let value = rest.get(..len)?;
        self.at += HEADER + len;
        Some(Field { kind: u16::from_be_bytes([k0, k1]), value })
    }
}

impl<'a> Iterator for Reader<'a> {
    type Item = Result<Field<'a>, TlvError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.at >= self.bytes.len() {
            return None;
        }
        let at = self.at;
        match self.take() {
            Some(field) => Some(Ok(field)),
            None => {
                self.at = self.bytes.len();
                Some(Err(TlvError::Truncated(at)))
            }
        }
    }
}

/// Writes fields into a caller's buffer.
#[derive(Debug)]
pub struct Writer<'a> {
    bytes: &'a mut [u8],
    at: usize,
}

impl<'a> Writer<'a> {
    /// Writes from the start of `bytes`.
    pub fn new(bytes: &'a mut [u8]) -> Self {
        Self { bytes, at: 0 }
    }

    /// Bytes written so far.
    pub fn written(&self) -> usize {
        self.at
    }

    /// Plain bytes, without a header.
    pub fn raw(&mut self, value: &[u8]) -> Result<(), TlvError> {
        let end = self.at.checked_add(value.len()).ok_or(TlvError::NoRoom(value.len()))?;
        let place = self.bytes.get_mut(self.at..end).ok_or(TlvError::NoRoom(value.len()))?;
        place.copy_from_slice(value);
        self.at = end;
        Ok(())
    }

    /// One field.
    pub fn field(&mut self, kind: u16, value: &[u8]) -> Result<(), TlvError> {
        let len = u16::try_from(value.len()).map_err(|_| TlvError::NoRoom(value.len()))?;
        self.raw(&kind.to_be_bytes())?;
        self.raw(&len.to_be_bytes())?;
        self.raw(value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn what_is_written_is_read(fields in proptest::collection::vec((any::<u16>(), proptest::collection::vec(any::<u8>(), 0..40)), 0..20)) {
            let mut bytes = [0; 2048];
            let mut writer = Writer::new(&mut bytes);
            for (kind, value) in &fields {
                writer.field(*kind, value).unwrap();
            }
            let len = writer.written();
            let read: Vec<_> = Reader::new(&bytes[..len]).map(|f| f.map(|f| (f.kind, f.value.to_vec()))).collect::<Result<_, _>>().unwrap();
            prop_assert_eq!(read, fields);
        }

        #[test]
        fn any_bytes_end(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let mut errors = 0;
            for field in Reader::new(&bytes) {
                errors += usize::from(field.is_err());
            }
            prop_assert!(errors <= 1);
        }
    }

    #[test]
    fn a_full_buffer_is_an_error() {
        let mut bytes = [0; 6];
        assert_eq!(Writer::new(&mut bytes).field(1, b"abc"), Err(TlvError::NoRoom(3)));
        assert_eq!(Reader::new(&[0, 1, 0, 2, 7]).next(), Some(Err(TlvError::Truncated(0))));
    }
}
