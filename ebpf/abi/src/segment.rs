//! TCP segments: what the flow table learns from one, as plain arithmetic.

use crate::flow::{Direction, dir_flags};

/// Header bits of TCP (RFC 9293, 3.1).
pub mod bits {
    /// No more data from the sender.
    pub const FIN: u8 = 1;
    /// Synchronise.
    pub const SYN: u8 = 2;
    /// Reset.
    pub const RST: u8 = 4;
    /// The acknowledgement field counts.
    pub const ACK: u8 = 16;
}

/// Option kind: MD5 signature (RFC 2385).
pub const OPTION_MD5: u8 = 19;
/// Option kind: authentication option (RFC 5925).
pub const OPTION_AO: u8 = 29;

/// How far the sequence number of an RST or FIN may be outside of what is on its way. Wider than what a receiver takes
/// (RFC 5961, 3.2), since segments may have passed in another order, or not by here.
pub const END_WINDOW: u32 = 1 << 20;

/// Whether `at` is at or behind `from` in sequence space (RFC 9293, 3.4).
#[inline(always)]
pub const fn reaches(at: u32, from: u32) -> bool {
    at.wrapping_sub(from) < 1 << 31
}

/// Sequence number after the segment.
#[inline(always)]
pub const fn next_seq(seq: u32, payload: u32, flags: u8) -> u32 {
    let syn = if flags & bits::SYN != 0 { 1 } else { 0 };
    let fin = if flags & bits::FIN != 0 { 1 } else { 0 };
    seq.wrapping_add(payload).wrapping_add(syn).wrapping_add(fin)
}

/// Whether an RST can be meant: about what is on its way, or the answer to a SYN. A blind one must not end the record of a
/// flow that goes on.
#[inline(always)]
pub const fn rst_fits(seq: u32, ack: u32, own: &Direction, other: &Direction) -> bool {
    if other.packets == 0 {
        // The other end said nothing yet: what comes is its peer giving up.
        return true;
    }
    if own.flags & dir_flags::SYN == 0 && own.packets == 0 {
        // The first word of this end is a refusal: it must name the SYN (RFC 9293, 3.10.7.3).
        return ack == other.seq;
    }
    end_fits(seq, own, other)
}

/// Whether a segment that ends a direction can be meant: from a little behind what the other end acknowledged to a little
/// ahead of what this one sent, which may be many megabytes apart.
#[inline(always)]
pub const fn end_fits(seq: u32, own: &Direction, other: &Direction) -> bool {
    if other.packets == 0 {
        return true;
    }
    let sent = if own.packets == 0 { other.ack } else { own.seq };
    reaches(seq, other.ack.wrapping_sub(END_WINDOW)) && reaches(sent.wrapping_add(END_WINDOW), seq)
}

/// One step through TCP options.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum OptionStep {
    /// No further option.
    End,
    /// The next one is this many bytes on.
    Skip(u8),
    /// The segment is signed: two connections cannot carry it.
    Signed,
}

/// Looks at the option with this kind and length byte.
#[inline(always)]
pub const fn option_step(kind: u8, len: u8) -> OptionStep {
    match kind {
        0 => OptionStep::End,
        1 => OptionStep::Skip(1),
        OPTION_MD5 | OPTION_AO => OptionStep::Signed,
        _ if len < 2 => OptionStep::End,
        _ => OptionStep::Skip(len),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sequence_space_wraps() {
        assert!(reaches(5, 5));
        assert!(reaches(3, u32::MAX - 2));
        assert!(!reaches(u32::MAX - 2, 3));
        assert_eq!(next_seq(u32::MAX, 1, 0), 0);
        assert_eq!(next_seq(10, 5, bits::SYN | bits::FIN), 17);
    }

    #[test]
    fn resets() {
        let silent = Direction::default();
        let asked = Direction { packets: 1, seq: 101, flags: dir_flags::SYN, ..silent };
        assert!(rst_fits(0, 101, &silent, &asked), "refusal names the SYN");
        assert!(!rst_fits(0, 77, &silent, &asked), "blind refusal");
        assert!(rst_fits(1, 0, &asked, &silent), "the client itself gives up");
        let talking = Direction { packets: 9, seq: 5000, ack: 9000, ..silent };
        let other = Direction { packets: 9, seq: 9000, ack: 5000, ..silent };
        assert!(rst_fits(5000, 0, &talking, &other));
        assert!(rst_fits(5000 + 60_000, 0, &talking, &other), "beyond unacknowledged data");
        assert!(rst_fits(4000, 0, &talking, &other), "behind: sent before the acknowledgement passed");
        assert!(!rst_fits(5000 + (1 << 28), 0, &talking, &other), "blind");
        let much = Direction { seq: 5000 + (64 << 20), ..talking };
        assert!(end_fits(5000 + (64 << 20), &much, &other), "behind all that is on its way");
        assert!(
            !end_fits(5000 + (64 << 20), &talking, &other) && !end_fits(5000u32.wrapping_sub(2 << 20), &much, &other)
        );
        assert!(end_fits(77, &talking, &silent), "nothing is known of the other end");
    }

    #[test]
    fn options() {
        assert_eq!(option_step(0, 9), OptionStep::End);
        assert_eq!(option_step(1, 0), OptionStep::Skip(1));
        assert_eq!(option_step(2, 4), OptionStep::Skip(4));
        assert_eq!(option_step(2, 1), OptionStep::End, "a length that would never move on");
        assert_eq!(option_step(OPTION_MD5, 18), OptionStep::Signed);
        assert_eq!(option_step(OPTION_AO, 4), OptionStep::Signed);
    }
}
