//! Which accepted socket belongs to which dialled flow.
//!
//! A pairing stands before the kept SYN is injected, so the accept that follows always finds it.

use std::cell::RefCell;
use std::collections::HashMap;
use std::net::SocketAddr;
use std::rc::Rc;

use kumiko_abi::FlowId;
use tokio::net::TcpStream;
use tokio::sync::oneshot;

/// Client's address and the address it asked for.
pub(super) type Tuple = (SocketAddr, SocketAddr);

/// Flows of one shard whose client has not been accepted yet.
#[derive(Debug, Default, Clone)]
pub(super) struct Pairings {
    waiting: Rc<RefCell<HashMap<Tuple, Waiting>>>,
}

#[derive(Debug)]
struct Waiting {
    id: FlowId,
    sender: oneshot::Sender<TcpStream>,
}

/// A pairing that waits; dropped, it is forgotten.
#[derive(Debug)]
pub(super) struct Pairing {
    pairings: Pairings,
    tuple: Tuple,
    id: FlowId,
    receiver: oneshot::Receiver<TcpStream>,
}

impl Pairings {
    /// Waits for the client of `tuple`. `id` tells pairings of one tuple apart.
    pub(super) fn expect(&self, tuple: Tuple, id: FlowId) -> Pairing {
        let (sender, receiver) = oneshot::channel();
        self.waiting.borrow_mut().insert(tuple, Waiting { id, sender });
        Pairing { pairings: self.clone(), tuple, id, receiver }
    }

    /// Hands over an accepted socket. It comes back when nobody waits for it: then it has to be reset.
    pub(super) fn accepted(&self, tuple: Tuple, stream: TcpStream) -> Result<(), TcpStream> {
        match self.waiting.borrow_mut().remove(&tuple) {
            Some(waiting) => waiting.sender.send(stream),
            None => Err(stream),
        }
    }
}

impl Pairing {
    /// The client's socket; `None` when another flow took the tuple.
    pub(super) async fn socket(&mut self) -> Option<TcpStream> {
        (&mut self.receiver).await.ok()
    }
}

impl Drop for Pairing {
    fn drop(&mut self) {
        let mut waiting = self.pairings.waiting.borrow_mut();
        if waiting.get(&self.tuple).is_some_and(|w| w.id == self.id) {
            waiting.remove(&self.tuple);
        }
    }
}
