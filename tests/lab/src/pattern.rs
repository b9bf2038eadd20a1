//! The bytes that tests send: at every position known, and full of a canary that a capture can look for.

use serde::{Deserialize, Serialize};

/// Canary of connections that the mesh must carry: no byte of it may be seen between the nodes.
pub const CAPTURED: &str = "Xk7-CaPtUrEd-q9Z";
/// Canary of connections that run in the clear: a capture must see it.
pub const CLEAR: &str = "Xk7-iN-ClEaR-q9Z";

/// Bytes of one block: canary, block number, and a mix of number and tag.
const BLOCK: usize = 32;

/// One stream of bytes.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Pattern {
    /// 16 bytes of text that every block begins with.
    pub canary: String,
    /// Tells streams with one canary apart.
    pub tag: u64,
}

impl Pattern {
    /// A stream.
    pub fn new(canary: &str, tag: u64) -> Self {
        Self { canary: canary.to_owned(), tag }
    }

    /// Writes the stream's bytes from `offset` on into `buffer`.
    pub fn fill(&self, offset: u64, buffer: &mut [u8]) {
        let mut offset = offset;
        let mut rest = buffer;
        while !rest.is_empty() {
            let block = self.block(offset / BLOCK as u64);
            let skip = usize::try_from(offset % BLOCK as u64).unwrap_or(0);
            let tail = block.get(skip..).unwrap_or_default();
            let length = tail.len().min(rest.len());
            let (now, later) = rest.split_at_mut(length);
            now.copy_from_slice(tail.get(..length).unwrap_or_default());
            offset += length as u64;
            rest = later;
        }
    }

    fn block(&self, number: u64) -> [u8; BLOCK] {
        let mut block = [b'.'; BLOCK];
        let (canary, numbers) = block.split_at_mut(16);
        for (to, from) in canary.iter_mut().zip(self.canary.bytes()) {
            *to = from;
        }
        let mixed = (number ^ self.tag).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        for (to, from) in numbers.iter_mut().zip(number.to_le_bytes().into_iter().chain(mixed.to_le_bytes())) {
            *to = from;
        }
        block
    }

    /// Whether `bytes` are those of the stream at `offset`; `scratch` avoids an allocation a call.
    pub fn matches(&self, offset: u64, bytes: &[u8], scratch: &mut Vec<u8>) -> bool {
        scratch.resize(bytes.len(), 0);
        self.fill(offset, scratch);
        scratch.as_slice() == bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_cut_gives_the_same_stream() {
        let pattern = Pattern::new(CAPTURED, 7);
        let mut whole = vec![0; 1000];
        pattern.fill(0, &mut whole);
        for cut in [1, 16, 31, 32, 33, 500] {
            let mut part = vec![0; 1000 - cut];
            pattern.fill(cut as u64, &mut part);
            assert_eq!(part, whole[cut..]);
        }
        assert!(pattern.matches(3, &whole[3..77], &mut Vec::new()));
        assert!(!pattern.matches(3, &whole[4..77], &mut Vec::new()));
        assert!(!Pattern::new(CAPTURED, 8).matches(0, &whole, &mut Vec::new()));
    }
}
