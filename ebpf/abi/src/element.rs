//! Elements of hash maps, which somebody else may replace or remove while they are read.
//!
//! Since Linux 6.1 the memory of an element that was replaced or removed is at once that of the next one which its CPU makes,
//! whatever its key (`htab_elem_free`, kernel/bpf/hashtab.c); before, it waited for RCU without `BPF_F_NO_PREALLOC` only. A
//! reader who looked an element up may so read another key's.

/// Reads what `find` finds, and looks whether that is still the key's element: only then the value is its own. An element
/// that has come in its place is read as it is: agents replace no element twice without having waited, in between, until every
/// program has ended that ran at the first time. False: there is none. x86-64 keeps the order of the two look-ups and of what is
/// read in between.
#[inline(always)]
pub fn read<P: Copy + PartialEq, T: Default>(find: impl Fn() -> Option<P>, mut of: impl FnMut(P) -> T) -> (T, bool) {
    let (mut value, mut there) = (T::default(), false);
    if let Some(first) = find() {
        value = of(first);
        let still = find();
        there = still.is_some();
        if let Some(still) = still
            && still != first
        {
            value = of(still);
        }
    }
    (value, there)
}

#[cfg(test)]
mod tests {
    use core::cell::Cell;

    use super::read;

    /// A map with one key: its element's place, and what stands in each place.
    struct Map {
        at: Cell<Option<usize>>,
        places: [Cell<u8>; 2],
    }

    /// What a reader gets, between whose look-up and reading `meanwhile` happens.
    fn got(at: Option<usize>, meanwhile: impl Fn(&Map)) -> Option<u8> {
        let map = Map { at: Cell::new(at), places: [Cell::new(10), Cell::new(0)] };
        let happened = Cell::new(false);
        let (value, there) = read(
            || map.at.get(),
            |place| {
                if !happened.replace(true) {
                    meanwhile(&map);
                }
                map.places.get(place).map_or(0, Cell::get)
            },
        );
        there.then_some(value)
    }

    #[test]
    fn an_element_is_read_as_its_own_keys() {
        assert_eq!(got(Some(0), |_| ()), Some(10));
        assert_eq!(got(None, |_| ()), None);
        // Written where it stands.
        assert_eq!(got(Some(0), |map| map.places[0].set(11)), Some(11));
        // Replaced, and its memory is another key's.
        let replaced = |map: &Map| {
            map.places[1].set(12);
            map.at.set(Some(1));
            map.places[0].set(99);
        };
        assert_eq!(got(Some(0), replaced), Some(12));
        let removed = |map: &Map| {
            map.at.set(None);
            map.places[0].set(99);
        };
        assert_eq!(got(Some(0), removed), None);
    }
}
