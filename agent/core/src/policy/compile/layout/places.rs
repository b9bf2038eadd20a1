//! Runs of elements in an array.

use std::collections::{BTreeMap, HashMap};
use std::hash::Hash;

/// Runs by what they are, each in one place for as long as it is used.
#[derive(Debug)]
pub(super) struct Places<K> {
    numbers: HashMap<K, usize>,
    places: Vec<Place>,
    /// Numbers that are free again.
    idle: Vec<usize>,
    /// Free elements between others: where they begin, and how many.
    gaps: BTreeMap<u32, u32>,
    end: u32,
    /// Runs that are not filled yet.
    new: Vec<(u32, K)>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Place {
    begin: u32,
    room: u32,
    used: u64,
}

impl<K> Default for Places<K> {
    fn default() -> Self {
        Self {
            numbers: HashMap::new(),
            places: Vec::new(),
            idle: Vec::new(),
            gaps: BTreeMap::new(),
            end: 0,
            new: Vec::new(),
        }
    }
}

impl<K: Clone + Eq + Hash> Places<K> {
    /// Leaves elements at the beginning out.
    pub(super) fn skip(&mut self, elements: u32) {
        self.end = elements;
    }

    /// A run's number: of the one that is there, if it has room for `need` elements; or of a new one with `room`.
    pub(super) fn take(&mut self, key: K, need: u32, room: u32, round: u64) -> usize {
        if let Some(number) = self.numbers.get(&key).copied()
            && let Some(place) = self.places.get(number).copied()
        {
            if place.room >= need {
                self.keep(number, round);
                return number;
            }
            self.free(place);
            self.set(number, room, round);
            self.new.push((self.begin(number), key));
            return number;
        }
        let number = self.idle.pop().unwrap_or_else(|| {
            self.places.push(Place::default());
            self.places.len().saturating_sub(1)
        });
        self.set(number, room, round);
        self.numbers.insert(key.clone(), number);
        self.new.push((self.begin(number), key));
        number
    }

    fn set(&mut self, number: usize, room: u32, round: u64) {
        let begin = self.find(room);
        if let Some(place) = self.places.get_mut(number) {
            *place = Place { begin, room, used: round };
        }
    }

    /// The first gap that is wide enough, or the end.
    fn find(&mut self, room: u32) -> u32 {
        let gap = self.gaps.iter().find(|(_, len)| **len >= room).map(|(begin, len)| (*begin, *len));
        let Some((begin, len)) = gap.filter(|_| room > 0) else {
            let begin = self.end;
            self.end = self.end.saturating_add(room);
            return begin;
        };
        self.gaps.remove(&begin);
        if len > room {
            self.gaps.insert(begin + room, len - room);
        }
        begin
    }

    fn free(&mut self, place: Place) {
        let (mut begin, mut len) = (place.begin, place.room);
        if len == 0 {
            return;
        }
        if let Some((before, wide)) = self.gaps.range(..begin).next_back().map(|(at, len)| (*at, *len))
            && before + wide == begin
        {
            self.gaps.remove(&before);
            (begin, len) = (before, wide + len);
        }
        if let Some(wide) = self.gaps.remove(&(begin + len)) {
            len += wide;
        }
        if begin + len == self.end {
            self.end = begin;
        } else {
            self.gaps.insert(begin, len);
        }
    }

    /// A run is still used.
    pub(super) fn keep(&mut self, number: usize, round: u64) {
        if let Some(place) = self.places.get_mut(number) {
            place.used = round;
        }
    }

    /// Frees what is not used in this round; `tell` gets the numbers.
    pub(super) fn forget(&mut self, round: u64, mut tell: impl FnMut(usize)) {
        let mut free = Vec::new();
        let places = &self.places;
        self.numbers.retain(|_, number| {
            let stays = places.get(*number).is_some_and(|place| place.used == round);
            if !stays {
                free.push(*number);
            }
            stays
        });
        // A table of hashes has no order.
        free.sort_unstable();
        for number in free {
            if let Some(place) = self.places.get_mut(number).map(std::mem::take) {
                self.free(place);
            }
            self.idle.push(number);
            tell(number);
        }
    }

    /// The number of a run.
    pub(super) fn handle(&self, key: &K) -> Option<usize> {
        self.numbers.get(key).copied()
    }

    /// Where a run begins.
    pub(super) fn begin(&self, number: usize) -> u32 {
        self.places.get(number).map_or(0, |place| place.begin)
    }

    /// How many elements there are, gaps among them.
    pub(super) fn end(&self) -> usize {
        self.end as usize
    }

    /// Runs that came since the last call, with where they begin.
    pub(super) fn new_ones(&mut self) -> Vec<(u32, K)> {
        std::mem::take(&mut self.new)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_stays_keeps_its_place_and_gaps_are_used_again() {
        let mut places = Places::default();
        let [a, b, c] = ["a", "b", "c"].map(|key| places.take(key, 2, 4, 1));
        assert_eq!([a, b, c].map(|of| places.begin(of)), [0, 4, 8]);
        assert_eq!(places.new_ones(), [(0, "a"), (4, "b"), (8, "c")]);
        assert_eq!([places.take("a", 4, 4, 2), places.take("c", 1, 4, 2)], [a, c]);
        places.forget(2, |gone| assert_eq!(gone, b));
        assert!(places.new_ones().is_empty());
        assert_eq!(places.end(), 12);
        // Another one of the same room, and one that has to grow.
        let d = places.take("d", 4, 4, 3);
        assert_eq!(places.begin(d), 4);
        assert_eq!(places.take("c", 5, 8, 3), c);
        assert_eq!((places.begin(c), places.end()), (8, 16));
        places.forget(3, |gone| assert_eq!(gone, a));
        places.forget(4, |_| ());
        assert_eq!(places.end(), 0);
    }
}
