//! Elements of hash maps that were replaced or removed, and may still be read: whoever looked one up before has to be done
//! before it is replaced again, or he could not tell it from another key's (`kumiko_abi::element`).

use std::collections::HashSet;

use kumiko_abi::Addr;
use kumiko_core::compile::Op;

/// An element, which is replaced as a whole.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(super) enum Element {
    /// Of `ADDRS`.
    Addr(Addr),
    /// Of `ENDPOINTS`.
    Endpoint(u32),
    /// Of `ENDPOINT_USE`.
    Use(u32),
    /// Of `SERVICES`.
    Service(Addr, u16, u8),
    /// Of `BACKENDS`.
    Backend(u32, u32),
}

impl Element {
    /// What a write replaces or removes. The others are written where they stand (`WORKLOADS`), freed by the kernel after their
    /// readers (`NETS`), or only looked for (`PROBE_PORTS`).
    pub(super) fn of(op: &Op) -> Option<Self> {
        Some(match *op {
            Op::SetAddr(addr, _) | Op::RemoveAddr(addr) => Self::Addr(addr),
            Op::SetEndpoint(ifindex, _) | Op::RemoveEndpoint(ifindex) => Self::Endpoint(ifindex),
            Op::SetService((addr, port, proto), _) | Op::RemoveService((addr, port, proto)) => {
                Self::Service(addr, port, proto)
            }
            Op::SetBackend(key, _) | Op::RemoveBackend(key) => Self::Backend(key.service, key.index),
            Op::SetWorkload(..)
            | Op::ClearWorkload(_)
            | Op::SetNet(..)
            | Op::RemoveNet(_)
            | Op::SetProbePort(..)
            | Op::RemoveProbePort(..) => return None,
        })
    }
}

/// So many elements may be touched between two waits.
const MAX_TOUCHED: usize = 4_096;

/// What was touched since the last wait.
#[derive(Debug)]
pub(super) struct Touched {
    elements: HashSet<Element>,
    /// A wait is due whatever comes next.
    due: bool,
}

impl Touched {
    /// After an agent of which nothing is known.
    pub(super) fn new() -> Self {
        Self { elements: HashSet::new(), due: true }
    }

    /// Whether to wait for all running programs before an element is touched; `None`: before anything is written.
    pub(super) fn must_wait(&self, element: Option<Element>) -> bool {
        let again = element.is_some_and(|element| self.elements.contains(&element));
        self.due || again || self.elements.len() >= MAX_TOUCHED
    }

    /// An element is touched.
    pub(super) fn touch(&mut self, element: Element) {
        self.elements.insert(element);
    }

    /// Other verdicts are in force: programs that still run may have begun under those before.
    pub(super) fn flipped(&mut self) {
        self.due = true;
    }

    /// All programs have ended that ran at some time after the last touch.
    pub(super) fn waited(&mut self) {
        *self = Self { elements: HashSet::new(), due: false };
    }
}

#[cfg(test)]
mod tests {
    use kumiko_abi::AddrEntry;

    use super::*;

    #[test]
    fn no_element_is_touched_twice_without_a_wait() {
        let set = |last: u8| Element::of(&Op::SetAddr([last; 16], AddrEntry::default()));
        let mut touched = Touched::new();
        assert!(touched.must_wait(None), "an agent before may have written a moment ago");
        touched.waited();
        assert!(!touched.must_wait(set(1)) && !touched.must_wait(None));
        touched.touch(set(1).unwrap());
        touched.touch(set(2).unwrap());
        assert!(!touched.must_wait(set(3)) && touched.must_wait(set(1)) && touched.must_wait(set(2)));
        assert!(touched.must_wait(Element::of(&Op::RemoveAddr([1; 16]))), "removed is touched");
        assert!(!touched.must_wait(Some(Element::Use(1))) && !touched.must_wait(Some(Element::Endpoint(1))));
        touched.waited();
        assert!(!touched.must_wait(set(1)));
        touched.flipped();
        assert!(touched.must_wait(None) && touched.must_wait(set(9)));
        touched.waited();
        for index in 0..u32::try_from(MAX_TOUCHED).unwrap() {
            assert!(!touched.must_wait(Some(Element::Endpoint(index))));
            touched.touch(Element::Endpoint(index));
        }
        assert!(touched.must_wait(set(1)), "so many, and no more");
    }

    #[test]
    fn what_is_written_where_it_stands_is_not_touched() {
        assert_eq!(Element::of(&Op::ClearWorkload(7)), None);
    }
}
