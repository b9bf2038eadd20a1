//! A tunnel: one TLS connection between two agents for one pair of principals, one flow at a time.

mod control;

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use kumiko_abi::Reason;
use kumiko_core::Principal;
use kumiko_core::frame::{Frame, Open, Refused};
use thiserror::Error;
use tokio::net::TcpStream;

pub use crate::info::{Facts, TunnelCounters, TunnelInfo};

use crate::error::TunnelError;
use crate::role::{Event, Role};
use crate::session::Session;

/// How long the other end has to answer a RESET, or to close after a DRAIN, before the tunnel is given up.
pub const SETTLE_WITHIN: Duration = Duration::from_millis(500);

/// One end of a tunnel. Dropped, it closes the connection: the peer takes an unfinished flow for aborted.
#[derive(Debug)]
pub struct Tunnel {
    pub(crate) stream: Arc<TcpStream>,
    pub(crate) session: Session,
    pub(crate) role: Role,
    info: Arc<TunnelInfo>,
}

/// Why an OPEN did not become a flow.
#[derive(Debug, Error)]
pub enum OpenError {
    /// The acceptor refused; the tunnel is idle again.
    #[error("refused by the other node: {}", .0.reason().text())]
    Refused(Refused),
    /// The acceptor did not begin with it: open on another tunnel.
    #[error("the acceptor did not begin with it")]
    NotProcessed,
    /// The tunnel ended.
    #[error(transparent)]
    Tunnel(#[from] TunnelError),
}

impl OpenError {
    /// For counters and flow records.
    pub fn reason(&self) -> Reason {
        match self {
            Self::Refused(refused) => refused.reason(),
            Self::NotProcessed => Reason::NotProcessed,
            Self::Tunnel(error) => error.reason(),
        }
    }

    /// errno of the destination's connect; 0 when it was not tried.
    pub fn errno(&self) -> i32 {
        match self {
            Self::Refused(refused) => i32::from(refused.errno),
            _ => 0,
        }
    }
}

impl Tunnel {
    pub(crate) fn new(stream: TcpStream, session: Session, role: Role, facts: Facts) -> Self {
        Self { stream: Arc::new(stream), session, role, info: Arc::new(TunnelInfo::new(facts)) }
    }

    /// Facts and counters, for whoever lists tunnels.
    pub fn info(&self) -> &Arc<TunnelInfo> {
        &self.info
    }

    /// What never changes about it.
    pub fn facts(&self) -> &Facts {
        &self.info.facts
    }

    /// Principal whose certificate this node showed.
    pub fn local(&self) -> &Principal {
        &self.info.facts.local
    }

    /// Principal that the peer proved.
    pub fn peer(&self) -> &Principal {
        &self.info.facts.peer
    }

    /// The connection, for looking at (addresses, `TCP_INFO`).
    pub fn stream(&self) -> &TcpStream {
        &self.stream
    }

    /// The same while a relay has the tunnel. To be dropped with it: the connection closes with the last handle.
    pub fn stream_handle(&self) -> Arc<TcpStream> {
        self.stream.clone()
    }

    /// Whether one of both certificates is past its end: no flow may be opened on it.
    pub fn is_expired(&self) -> bool {
        SystemTime::now() >= self.info.facts.usable_until
    }

    /// Whether no flow is on it, it lives and it does not drain.
    pub fn is_reusable(&self) -> bool {
        self.role.is_idle() && !self.role.is_draining()
    }

    /// Looks, without waiting, at what came while the tunnel was idle; says whether a flow can be opened on it.
    pub fn check(&mut self) -> bool {
        if !self.is_reusable() || self.is_expired() {
            return false;
        }
        loop {
            match self.step() {
                Ok(Some(Event::Nothing)) => {}
                Ok(None) => match self.try_read() {
                    Ok(true) => {}
                    Ok(false) => {
                        // An answered KeyUpdate goes out now, or with the next frame.
                        return self.try_flush().is_ok() && self.is_reusable();
                    }
                    Err(_) => return false,
                },
                Ok(Some(_)) | Err(_) => return false,
            }
        }
    }

    /// Opens a flow and waits for the answer: the epoch of the other node's policy, 0 when it does not say. Dropped while it waits, the tunnel is not idle: drop it too, or
    /// [`Self::cancel_open`].
    pub async fn open(&mut self, open: &Open) -> Result<u32, OpenError> {
        let Role::Dialler(dialler) = &mut self.role else {
            return Err(TunnelError::Misuse("only the dialler opens flows").into());
        };
        let Some(flow) = dialler.open() else { return Err(OpenError::NotProcessed) };
        self.info.begin(open.flow_id);
        let frame = Frame::Open { flow, open: Box::new(open.clone()) };
        let result = self.ask(&frame).await;
        if result.is_err() {
            self.info.end();
        }
        result
    }

    async fn ask(&mut self, frame: &Frame) -> Result<u32, OpenError> {
        if let Err(error) = self.send(frame).await {
            // The peer may have said why before it closed.
            return Err(self.last_words(error).await.into());
        }
        loop {
            match self.event().await? {
                Event::Opened(epoch) => return Ok(epoch),
                Event::Refused(refused) => return Err(OpenError::Refused(refused)),
                Event::NotProcessed => return Err(OpenError::NotProcessed),
                _ => {}
            }
        }
    }

    /// Gives a flow up that is being opened; says whether the tunnel is idle again.
    pub async fn cancel_open(&mut self, reason: Reason) -> bool {
        let frame = match &mut self.role {
            Role::Dialler(dialler) => dialler.cancel(reason),
            Role::Acceptor(_) => None,
        };
        self.end_with(frame).await
    }

    /// Waits for the next OPEN. `None`: the dialler closed the idle tunnel. May be dropped while it waits.
    pub async fn next_open(&mut self) -> Result<Option<Open>, TunnelError> {
        // A dialler that opens and gives up without reading the answers gets no more of them to pile up here.
        self.flush().await?;
        loop {
            let idle = self.role.is_idle();
            match self.event().await {
                Ok(Event::Asked(open)) => {
                    self.info.begin(open.flow_id);
                    return Ok(Some(*open));
                }
                Ok(_) => {}
                Err(TunnelError::Closed) if idle => return Ok(None),
                Err(error) => return Err(error),
            }
        }
    }

    /// The destination has accepted, and this node let it by an epoch of its policy; 0: none.
    pub async fn opened(&mut self, epoch: u32) -> Result<(), TunnelError> {
        let Role::Acceptor(acceptor) = &mut self.role else { return Err(TunnelError::Misuse("not the acceptor")) };
        let frame = acceptor.opened(epoch).ok_or(TunnelError::Misuse("no flow was asked for"))?;
        self.send(&frame).await
    }

    /// Nothing comes of the flow; the tunnel is idle again.
    pub async fn refuse(&mut self, refused: Refused) -> Result<(), TunnelError> {
        let Role::Acceptor(acceptor) = &mut self.role else { return Err(TunnelError::Misuse("not the acceptor")) };
        self.info.end();
        // The dialler may have given up meanwhile: then there is nobody to tell.
        match acceptor.refuse(refused) {
            Some(frame) => self.send(&frame).await,
            None => Ok(()),
        }
    }

    /// While a flow is asked for: returns when the dialler has given it up, or the tunnel has ended. May be dropped
    /// while it waits.
    pub async fn closed(&mut self) -> Result<(), TunnelError> {
        loop {
            match self.event().await? {
                Event::Cancelled => {
                    self.info.end();
                    return Ok(());
                }
                Event::Reset(_) => return Ok(()),
                _ => {}
            }
        }
    }

    /// Ends an open flow that has no plain side; says whether the tunnel is idle again.
    pub async fn reset(&mut self, reason: Reason) -> bool {
        let frame = self.role.reset(reason);
        self.end_with(frame).await
    }

    /// Acceptor: takes no more flows, and waits a moment for the dialler to close.
    pub async fn drain(&mut self) {
        if let Role::Acceptor(acceptor) = &mut self.role {
            let Some(frame) = acceptor.drain() else { return };
            let closing = async {
                self.send(&frame).await?;
                loop {
                    self.event().await?;
                }
            };
            let _: Result<Result<(), TunnelError>, _> = tokio::time::timeout(SETTLE_WITHIN, closing).await;
        }
    }

    /// Acceptor: tells the dialler while a flow runs that no other one may follow; it goes out with the next bytes.
    pub fn announce_drain(&mut self) -> Result<(), TunnelError> {
        if let Role::Acceptor(acceptor) = &mut self.role
            && let Some(frame) = acceptor.drain()
        {
            self.session.send(&frame)?;
            self.try_flush()?;
        }
        Ok(())
    }

    /// Closes an idle tunnel with close_notify.
    pub fn close(mut self) {
        if self.session.out.alert(crate::messages::alert::CLOSE_NOTIFY).is_ok() {
            let _ = self.try_flush();
        }
    }

    /// Closes with an RST: the peer ends the flow at once, whatever it is blocked on.
    pub fn abort(self) {
        self.set_abort();
    }

    pub(crate) fn set_abort(&self) {
        let _ = socket2::SockRef::from(&*self.stream).set_linger(Some(Duration::ZERO));
    }

    /// Changes the keys of what this side sends; with `request`, the peer changes its own too. Keys change by
    /// themselves; this is for tests and for who has lost trust in them.
    pub async fn update_keys(&mut self, request: bool) -> Result<(), TunnelError> {
        self.session.update_keys(request)?;
        self.flush().await
    }

    pub(crate) fn ended(&self) {
        self.info.end();
        self.info.key_updates(self.session.out.key_updates(), self.session.peer_key_updates());
    }

    /// Sends a frame that ends a flow, and waits for the other side's end of it.
    async fn end_with(&mut self, frame: Option<Frame>) -> bool {
        let settle = async {
            if let Some(frame) = frame {
                self.send(&frame).await?;
            }
            while !self.role.is_idle() {
                self.event().await?;
            }
            Ok::<(), TunnelError>(())
        };
        let settled = tokio::time::timeout(SETTLE_WITHIN, settle).await;
        self.ended();
        matches!(settled, Ok(Ok(()))) && self.is_reusable()
    }
}
