//! Control frames of `kumiko/1`.
//!
//! A tunnel is a TLS 1.3 connection. Records of type application_data *are* the flow's bytes; each control frame is one
//! record of the inner content type [`RECORD_TYPE`]. A frame is
//!
//! | bytes | what |
//! |---|---|
//! | 1 | version, [`VERSION`] |
//! | 1 | kind; kinds with the top bit set may be ignored by who does not know them |
//! | 4 | number of the flow on this tunnel, network order: the dialler counts its OPENs from 1 |
//! | rest | fields, see [`crate::tlv`] |
//!
//! The number tells a RESET that comes late (it crossed the end of its flow) from one of the next flow. In DRAIN it is
//! the last flow that the acceptor has taken up: a later one is safe to open on another tunnel.

mod open;

use kumiko_abi::Reason;
use thiserror::Error;

use crate::tlv::{self, Reader, TlvError, Writer};

pub use open::{AskedService, Open};

/// Inner content type of a control record (RFC 8446 section 5.1 gives 20 to 24 a meaning; ALPN `kumiko/1` gives it to
/// this one).
pub const RECORD_TYPE: u8 = 0x6b;
/// Version of the frames.
pub const VERSION: u8 = 1;
/// Longest frame, header included.
pub const MAX_FRAME: usize = 2048;
/// Set in kinds that a reader may ignore.
pub const IGNORABLE: u8 = 0x80;
/// Version, kind, flow number.
const HEADER: usize = 6;

mod kind {
    pub(super) const OPEN: u8 = 1;
    pub(super) const OPENED: u8 = 2;
    pub(super) const REFUSED: u8 = 3;
    pub(super) const FIN: u8 = 4;
    pub(super) const RESET: u8 = 5;
    pub(super) const DRAIN: u8 = 6;
    /// Losing the urgent mark is no harm to the bytes.
    pub(super) const URGENT: u8 = 7 | super::IGNORABLE;
}

mod field {
    use crate::tlv::CRITICAL;
    pub(super) const REASON: u16 = 1 | CRITICAL;
    pub(super) const ERRNO: u16 = 2;
    pub(super) const SIDE: u16 = 3;
    pub(super) const EPOCH: u16 = 4;
}

/// One control frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Frame {
    /// The dialler asks for a flow.
    Open {
        /// Number of the flow.
        flow: u32,
        /// What is asked for.
        open: Box<Open>,
    },
    /// The destination has accepted: bytes may follow, both ways.
    Opened {
        /// Number of the flow.
        flow: u32,
        /// Epoch of the policy by which the acceptor's node let it; 0: not said. For people, nothing follows from it.
        epoch: u32,
    },
    /// No flow came of it.
    Refused {
        /// Number of the flow.
        flow: u32,
        /// Why.
        refused: Refused,
    },
    /// The sender's bytes end here, in order.
    Fin {
        /// Number of the flow.
        flow: u32,
    },
    /// The sender's bytes are cut off, and it wants no more.
    Reset {
        /// Number of the flow.
        flow: u32,
        /// Why, a [`Reason`] number.
        reason: u16,
    },
    /// The acceptor takes no more flows on this tunnel.
    Drain {
        /// Last flow that it has taken up.
        last: u32,
    },
    /// The next byte of the flow is urgent (RFC 6093).
    Urgent {
        /// Number of the flow.
        flow: u32,
    },
    /// A kind that this version does not know and may ignore.
    Ignored(u8),
}

/// Where a flow was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// Not said, or a side that this version does not know.
    Unknown,
    /// The acceptor's agent: its checks, its limits.
    Agent,
    /// The destination pod.
    Destination,
}

/// Why an OPEN came to nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refused {
    /// A [`Reason`] number; may be one that this version does not know.
    pub reason: u16,
    /// errno of the destination's connect (Linux numbers), or 0.
    pub errno: u16,
    /// Where.
    pub side: Side,
}

impl Refused {
    /// Refused by the acceptor's agent.
    pub fn by_agent(reason: Reason) -> Self {
        Self { reason: reason as u16, errno: 0, side: Side::Agent }
    }

    /// The connection towards the destination failed with `errno`; 0 when there was none.
    pub fn by_destination(reason: Reason, errno: i32) -> Self {
        Self { reason: reason as u16, errno: u16::try_from(errno).unwrap_or(0), side: Side::Destination }
    }

    /// The reason; [`Reason::None`] for a number that this version does not know.
    pub fn reason(&self) -> Reason {
        Reason::from_u16(self.reason).unwrap_or(Reason::None)
    }
}

/// Why bytes are no frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum FrameError {
    /// Shorter than a frame's header.
    #[error("control frame of {0} bytes is shorter than its header")]
    Short(usize),
    /// Longer than [`MAX_FRAME`].
    #[error("control frame of {0} bytes is longer than {MAX_FRAME}")]
    Long(usize),
    /// Another version.
    #[error("control frame of version {0}, this agent speaks {VERSION}: upgrade the older of both agents")]
    Version(u8),
    /// A kind that is not known and not ignorable.
    #[error("control frame of unknown kind {0}: upgrade the older of both agents")]
    Kind(u8),
    /// A critical field that is not known.
    #[error("unknown critical field {0:#06x}: upgrade the older of both agents")]
    UnknownField(u16),
    /// A field twice.
    #[error("field {0:#06x} stands twice")]
    Twice(u16),
    /// A field that has to be there.
    #[error("{0} is missing")]
    Missing(&'static str),
    /// A field with a value that it cannot have.
    #[error("{0} has a value that it cannot have")]
    Value(&'static str),
    /// Flow number 0 where a flow is meant.
    #[error("flow number 0")]
    NoFlow,
    /// Fields that go beyond the end, or do not fit the buffer.
    #[error(transparent)]
    Fields(#[from] TlvError),
}

impl Frame {
    /// Writes the frame into `out` and returns its length; [`MAX_FRAME`] bytes are always enough.
    pub fn encode(&self, out: &mut [u8]) -> Result<usize, FrameError> {
        let limit = out.len().min(MAX_FRAME);
        let mut w = Writer::new(out.get_mut(..limit).unwrap_or_default());
        let (kind, flow) = match self {
            Self::Open { flow, .. } => (kind::OPEN, *flow),
            Self::Opened { flow, .. } => (kind::OPENED, *flow),
            Self::Refused { flow, .. } => (kind::REFUSED, *flow),
            Self::Fin { flow } => (kind::FIN, *flow),
            Self::Reset { flow, .. } => (kind::RESET, *flow),
            Self::Drain { last } => (kind::DRAIN, *last),
            Self::Urgent { flow } => (kind::URGENT, *flow),
            Self::Ignored(kind) => (*kind | IGNORABLE, 0),
        };
        w.raw(&[VERSION, kind])?;
        w.raw(&flow.to_be_bytes())?;
        match self {
            Self::Open { open, .. } => open.encode(&mut w)?,
            Self::Opened { epoch, .. } if *epoch != 0 => w.field(field::EPOCH, &epoch.to_be_bytes())?,
            Self::Refused { refused, .. } => {
                w.field(field::REASON, &refused.reason.to_be_bytes())?;
                if refused.errno != 0 {
                    w.field(field::ERRNO, &refused.errno.to_be_bytes())?;
                }
                match refused.side {
                    Side::Unknown => {}
                    Side::Agent => w.field(field::SIDE, &[1])?,
                    Side::Destination => w.field(field::SIDE, &[2])?,
                }
            }
            Self::Reset { reason, .. } if *reason != 0 => w.field(field::REASON, &reason.to_be_bytes())?,
            _ => {}
        }
        Ok(w.written())
    }

    /// Reads the frame that a control record holds.
    pub fn decode(bytes: &[u8]) -> Result<Self, FrameError> {
        if bytes.len() > MAX_FRAME {
            return Err(FrameError::Long(bytes.len()));
        }
        let Some((&[version, kind, f0, f1, f2, f3], rest)) = bytes.split_first_chunk::<HEADER>() else {
            return Err(FrameError::Short(bytes.len()));
        };
        if version != VERSION {
            return Err(FrameError::Version(version));
        }
        let flow = u32::from_be_bytes([f0, f1, f2, f3]);
        let fields = Reader::new(rest);
        let frame = match kind {
            kind::OPEN => Self::Open { flow, open: Box::new(Open::decode(fields)?) },
            kind::OPENED => Self::Opened { flow, epoch: decode_opened(fields)? },
            kind::REFUSED => Self::Refused { flow, refused: decode_refused(fields)? },
            kind::FIN => no_fields(fields, Self::Fin { flow })?,
            kind::RESET => Self::Reset { flow, reason: decode_reset(fields)? },
            kind::DRAIN => return no_fields(fields, Self::Drain { last: flow }),
            kind::URGENT => no_fields(fields, Self::Urgent { flow })?,
            other if other & IGNORABLE != 0 => return Ok(Self::Ignored(other)),
            other => return Err(FrameError::Kind(other)),
        };
        if flow == 0 { Err(FrameError::NoFlow) } else { Ok(frame) }
    }
}

/// Reads fields of which each known one may stand once; `known` takes a field and says whether it knew it.
fn each_field<'a>(
    fields: Reader<'a>,
    mut known: impl FnMut(tlv::Field<'a>) -> Result<bool, FrameError>,
) -> Result<(), FrameError> {
    // Known fields are numbered below 64, so one word remembers which have been seen.
    let mut seen = 0_u64;
    for field in fields {
        let field = field?;
        if !known(field)? {
            if field.is_critical() {
                return Err(FrameError::UnknownField(field.kind));
            }
            continue;
        }
        let bit = 1_u64 << (field.kind & !tlv::CRITICAL & 63);
        if seen & bit != 0 {
            return Err(FrameError::Twice(field.kind));
        }
        seen |= bit;
    }
    Ok(())
}

fn no_fields(fields: Reader<'_>, frame: Frame) -> Result<Frame, FrameError> {
    each_field(fields, |_| Ok(false))?;
    Ok(frame)
}

fn u16_of(value: &[u8], what: &'static str) -> Result<u16, FrameError> {
    value.try_into().map(u16::from_be_bytes).map_err(|_| FrameError::Value(what))
}

fn epoch_of(value: &[u8]) -> Result<u32, FrameError> {
    value.try_into().map(u32::from_be_bytes).map_err(|_| FrameError::Value("the policy's epoch"))
}

fn decode_opened(fields: Reader<'_>) -> Result<u32, FrameError> {
    let mut epoch = 0;
    each_field(fields, |f| {
        if f.kind != field::EPOCH {
            return Ok(false);
        }
        epoch = epoch_of(f.value)?;
        Ok(true)
    })?;
    Ok(epoch)
}

fn decode_refused(fields: Reader<'_>) -> Result<Refused, FrameError> {
    let (mut reason, mut errno, mut side) = (None, 0, Side::Unknown);
    each_field(fields, |f| {
        match f.kind {
            field::REASON => reason = Some(u16_of(f.value, "the reason")?),
            field::ERRNO => errno = u16_of(f.value, "the errno")?,
            field::SIDE => {
                side = match f.value {
                    [1] => Side::Agent,
                    [2] => Side::Destination,
                    [_] => Side::Unknown,
                    _ => return Err(FrameError::Value("the side")),
                }
            }
            _ => return Ok(false),
        }
        Ok(true)
    })?;
    Ok(Refused { reason: reason.ok_or(FrameError::Missing("the reason"))?, errno, side })
}

fn decode_reset(fields: Reader<'_>) -> Result<u16, FrameError> {
    let mut reason = 0;
    each_field(fields, |f| {
        if f.kind != field::REASON {
            return Ok(false);
        }
        reason = u16_of(f.value, "the reason")?;
        Ok(true)
    })?;
    Ok(reason)
}

#[cfg(test)]
mod tests;
