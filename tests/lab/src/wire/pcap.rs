//! The pcap stream that `tcpdump -w -` writes.

use std::io::{ErrorKind, Read};

use anyhow::{Context, Result, bail};

/// LINKTYPE_ETHERNET.
const ETHERNET: u32 = 1;

/// Calls `each` with every frame until the stream ends.
pub(super) fn each_frame(mut input: impl Read, mut each: impl FnMut(&[u8])) -> Result<()> {
    let mut head = [0; 24];
    input.read_exact(&mut head).context("the head of a capture")?;
    let [a, b, c, d, ..] = head;
    if u32::from_le_bytes([a, b, c, d]) != 0xa1b2_c3d4 {
        bail!("not a little-endian capture with microseconds");
    }
    let [.., e, f, g, h] = head;
    if u32::from_le_bytes([e, f, g, h]) != ETHERNET {
        bail!("not a capture of Ethernet frames");
    }
    let mut frame = Vec::new();
    loop {
        let mut record = [0; 16];
        match input.read_exact(&mut record) {
            Err(end) if end.kind() == ErrorKind::UnexpectedEof => return Ok(()),
            other => other.context("a record of a capture")?,
        }
        let [_, _, _, _, _, _, _, _, a, b, c, d, ..] = record;
        frame.resize(usize::try_from(u32::from_le_bytes([a, b, c, d]))?, 0);
        input.read_exact(&mut frame).context("a frame of a capture")?;
        each(&frame);
    }
}
