//! Turns to shake hands on the tunnel port, and who may wait for one.
//!
//! Whoever connects, says half of a handshake and no more holds a turn for seconds. So nobody gets all of them: each
//! address has its share, and those that no Node object names have few between them.

use std::cell::RefCell;
use std::collections::HashMap;
use std::net::IpAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::{Semaphore, SemaphorePermit};

/// Handshakes that one shard does at once as acceptor: a slow peer holds one for five seconds at most.
pub(super) const MAX_HANDSHAKES: usize = 256;
/// Of these, handshakes with one address: with four that do not finish theirs the others still get on.
pub(super) const MAX_HANDSHAKES_FROM_ONE: usize = 64;
/// Connections on a shard's tunnel port that may wait for a handshake; more are closed and counted.
pub(super) const MAX_WAITING: usize = 2048;
/// Of these, connections from one address: twice what a node of 16 shards dials at once.
pub(super) const MAX_WAITING_FROM_ONE: usize = 1024;
/// Of these, connections from addresses that no Node object names (yet).
pub(super) const MAX_STRANGERS: usize = 16;
/// Of these, connections from one address.
pub(super) const MAX_STRANGERS_FROM_ONE: usize = 8;
/// How long a connection waits for its handshake to begin: less than the dialler gives the whole of it.
const TURN_WITHIN: Duration = Duration::from_secs(3);

/// Turns of one shard.
#[derive(Debug)]
pub(super) struct Turns {
    handshakes: Semaphore,
    waiting: Semaphore,
    strangers: Semaphore,
    callers: RefCell<HashMap<IpAddr, Caller>>,
    /// Connections without a tunnel yet, of all shards.
    gauge: Arc<AtomicU64>,
}

/// What one address has.
#[derive(Debug)]
struct Caller {
    turns: Rc<Semaphore>,
    connections: usize,
}

/// A connection that may wait.
#[derive(Debug)]
pub(super) struct Place<'a> {
    turns: &'a Turns,
    address: IpAddr,
    own: Rc<Semaphore>,
    _waiting: SemaphorePermit<'a>,
    _stranger: Option<SemaphorePermit<'a>>,
}

/// A turn.
#[derive(Debug)]
pub(super) struct Turn<'a> {
    _own: SemaphorePermit<'a>,
    _turn: SemaphorePermit<'a>,
}

impl Turns {
    pub(super) fn new(gauge: Arc<AtomicU64>) -> Self {
        Self {
            handshakes: Semaphore::new(MAX_HANDSHAKES),
            waiting: Semaphore::new(MAX_WAITING),
            strangers: Semaphore::new(MAX_STRANGERS),
            callers: RefCell::default(),
            gauge,
        }
    }

    /// A place for a connection of this address, a stranger's or a node's; none: too many wait already.
    pub(super) fn enter(&self, address: IpAddr, stranger: bool) -> Option<Place<'_>> {
        let most = if stranger { MAX_STRANGERS_FROM_ONE } else { MAX_WAITING_FROM_ONE };
        let has = self.callers.borrow().get(&address).map_or(0, |caller| caller.connections);
        if has >= most {
            return None;
        }
        let stranger = if stranger { Some(self.strangers.try_acquire().ok()?) } else { None };
        let waiting = self.waiting.try_acquire().ok()?;
        let mut callers = self.callers.borrow_mut();
        let caller = callers
            .entry(address)
            .or_insert_with(|| Caller { turns: Rc::new(Semaphore::new(MAX_HANDSHAKES_FROM_ONE)), connections: 0 });
        caller.connections += 1;
        self.gauge.fetch_add(1, Ordering::Relaxed);
        Some(Place { turns: self, address, own: caller.turns.clone(), _waiting: waiting, _stranger: stranger })
    }
}

impl Place<'_> {
    /// A turn, when it comes in time.
    pub(super) async fn turn(&self) -> Option<Turn<'_>> {
        let both = async {
            // Its own share first: who waits for that keeps no turn from the others.
            let own = self.own.acquire().await.ok()?;
            let turn = self.turns.handshakes.acquire().await.ok()?;
            Some(Turn { _own: own, _turn: turn })
        };
        tokio::time::timeout(TURN_WITHIN, both).await.ok().flatten()
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.turns.gauge.fetch_sub(1, Ordering::Relaxed);
        let mut callers = self.turns.callers.borrow_mut();
        if let Some(caller) = callers.get_mut(&self.address) {
            caller.connections -= 1;
            if caller.connections == 0 {
                callers.remove(&self.address);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn turns() -> Turns {
        Turns::new(Arc::default())
    }

    fn address(number: u32) -> IpAddr {
        IpAddr::from(std::net::Ipv4Addr::from(0x0a00_0000 + number))
    }

    /// Runs on paused time: what waits for a turn in vain takes none of ours.
    fn run(test: impl Future<Output = ()>) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        runtime.block_on(test);
    }

    #[test]
    fn one_address_cannot_take_all_turns() {
        run(async {
            let all = turns();
            let places: Vec<_> = (0..MAX_HANDSHAKES).map(|_| all.enter(address(1), false).unwrap()).collect();
            let mut held = Vec::new();
            for place in &places[..MAX_HANDSHAKES_FROM_ONE] {
                held.push(place.turn().await.unwrap());
            }
            // The rest of them wait in vain; another address does not.
            let none = async { places[MAX_HANDSHAKES_FROM_ONE].turn().await };
            assert!(tokio::time::timeout(Duration::from_millis(10), none).await.is_err());
            let other = all.enter(address(2), false).unwrap();
            assert!(other.turn().await.is_some());
            // A turn that ends goes to the next of the same address.
            held.pop();
            assert!(places[MAX_HANDSHAKES_FROM_ONE].turn().await.is_some());
        });
    }

    #[test]
    fn one_address_cannot_take_all_places() {
        let all = turns();
        let places: Vec<_> = (0..MAX_WAITING).map_while(|_| all.enter(address(1), false)).collect();
        assert_eq!(places.len(), MAX_WAITING_FROM_ONE);
        assert!(all.enter(address(2), false).is_some());
        assert_eq!(all.gauge.load(Ordering::Relaxed), MAX_WAITING_FROM_ONE as u64);
        drop(places);
        assert!(all.callers.borrow().is_empty());
        assert_eq!(all.gauge.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn strangers_have_few_between_them_and_each_a_share() {
        let all = turns();
        let first: Vec<_> = (0..MAX_STRANGERS).map_while(|_| all.enter(address(1), true)).collect();
        assert_eq!(first.len(), MAX_STRANGERS_FROM_ONE);
        let others: Vec<_> = (2..100).map_while(|number| all.enter(address(number), true)).collect();
        assert_eq!(first.len() + others.len(), MAX_STRANGERS);
        assert!(all.enter(address(200), false).is_some(), "nodes are not theirs to keep out");
    }
}
