//! What can happen in a schedule, and how a corpus spells it.

pub(super) const DIALLER: usize = 0;
pub(super) const ACCEPTOR: usize = 1;

/// What happens next; a number says at which end.
#[derive(Clone, Copy, Debug)]
pub(super) enum Act {
    Open,
    Cancel,
    Opened,
    Refuse,
    Drain,
    Bytes(usize),
    Urgent(usize),
    Fin(usize),
    Reset(usize),
    /// The oldest record on its way to this end comes.
    Deliver(usize),
    /// It is lost, and what is behind it goes on.
    Lose(usize),
    /// It comes after the one behind it.
    Swap(usize),
    /// All that is on its way to this end is lost, and the connection with it.
    Cut(usize),
    /// This end closes the tunnel.
    Close(usize),
}

impl Act {
    /// Letters, lower case for the dialler: a corpus can be read. Any other byte is one of them, too.
    pub(super) fn of(byte: u8) -> Self {
        const OFTEN: &[u8] = b"ooocbbbbuffrOOONBBBBUFFR>>>>>>>>>>>><<<<<<<<<<<<obOBfF>><<rRcND";
        match byte {
            b'o' => Self::Open,
            b'c' => Self::Cancel,
            b'O' => Self::Opened,
            b'N' => Self::Refuse,
            b'D' => Self::Drain,
            b'b' => Self::Bytes(DIALLER),
            b'B' => Self::Bytes(ACCEPTOR),
            b'u' => Self::Urgent(DIALLER),
            b'U' => Self::Urgent(ACCEPTOR),
            b'f' => Self::Fin(DIALLER),
            b'F' => Self::Fin(ACCEPTOR),
            b'r' => Self::Reset(DIALLER),
            b'R' => Self::Reset(ACCEPTOR),
            b'<' => Self::Deliver(DIALLER),
            b'>' => Self::Deliver(ACCEPTOR),
            b'l' => Self::Lose(DIALLER),
            b'L' => Self::Lose(ACCEPTOR),
            b's' => Self::Swap(DIALLER),
            b'S' => Self::Swap(ACCEPTOR),
            b'k' => Self::Cut(DIALLER),
            b'K' => Self::Cut(ACCEPTOR),
            b'x' => Self::Close(DIALLER),
            b'X' => Self::Close(ACCEPTOR),
            other => Self::of(OFTEN[usize::from(other) % OFTEN.len()]),
        }
    }
}
