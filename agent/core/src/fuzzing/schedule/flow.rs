//! The model of a flow: what each application did and saw, and what must hold of it once it is over.

use super::act::DIALLER;

/// What one application did and saw of its flow.
#[derive(Default, Debug, Clone)]
pub(super) struct Side {
    pub(super) sent: u32,
    pub(super) got: u32,
    /// It ended its stream.
    pub(super) fin: bool,
    /// It saw the other's stream end.
    pub(super) end: bool,
    /// Its end of the tunnel said RESET.
    pub(super) reset: bool,
    /// It was reset by the other.
    pub(super) hit: bool,
    /// The tunnel ended under it.
    pub(super) lost: bool,
}

#[derive(Default, Debug, Clone)]
pub(super) struct Flow {
    /// How often an acceptor took it up.
    pub(super) taken: u32,
    /// The acceptor said OPENED, REFUSED.
    pub(super) said_opened: bool,
    pub(super) said_refused: bool,
    /// What the dialler heard.
    pub(super) opened: bool,
    pub(super) refused: bool,
    pub(super) cancelled: bool,
    pub(super) sides: [Side; 2],
}

impl Flow {
    /// What holds of every flow that is over. `whole`: nothing of its tunnel was lost.
    pub(super) fn check(&self, whole: bool) {
        assert!(self.taken <= 1);
        for (end, side) in self.sides.iter().enumerate() {
            let other = &self.sides[1 - end];
            let cut = |side: &Side| side.reset || side.hit || side.lost;
            assert!(side.got <= other.sent, "{self:?}");
            // Bytes and their end come, or both sides know that the flow was cut off.
            if other.fin && !side.end {
                assert!(cut(side) || !whole, "{self:?}");
            }
            assert!(!side.end || cut(side) || side.got == other.sent, "{self:?}");
            // Who resets is heard, unless the other was through with the flow, or never began.
            let through = side.end && side.fin || self.said_refused || self.taken == 0;
            assert!(!(whole && other.reset) || side.reset || side.hit || through, "{self:?}");
        }
        let answered = self.opened || self.refused || self.cancelled || self.sides[DIALLER].lost;
        assert!(answered || !whole, "{self:?}");
    }
}
