//! The connections of the HTTP face. Whoever has shown a token keeps theirs; strangers have so many together, and the
//! oldest of them makes way for the next, so that slow and silent ones never keep others out.

use std::collections::VecDeque;
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;

/// Connections that have shown a token, at a time; the next waits to be taken.
const KNOWN: usize = 512;
/// Connections that have not, at a time.
const STRANGERS: usize = 128;

/// Every connection that is open.
#[derive(Clone, Debug)]
pub(super) struct Connections {
    places: Arc<Semaphore>,
    strangers: Arc<Mutex<VecDeque<Peer>>>,
}

/// One connection: a clone goes along with each of its requests.
#[derive(Clone, Debug)]
pub(super) struct Peer {
    /// The address of ours that it came to.
    pub(super) local: Option<IpAddr>,
    known: Arc<AtomicBool>,
    cut: CancellationToken,
}

impl Peer {
    /// It has shown a token.
    pub(super) fn is_known(&self) {
        self.known.store(true, Ordering::Relaxed);
    }

    /// Resolves when it has to make way.
    pub(super) async fn is_cut(&self) {
        self.cut.cancelled().await;
    }
}

/// Keeps a connection's place until it is dropped.
#[derive(Debug)]
pub(super) struct Place {
    connections: Connections,
    peer: Peer,
    _permit: OwnedSemaphorePermit,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.connections.lock().retain(|peer| !Arc::ptr_eq(&peer.known, &self.peer.known));
    }
}

impl Default for Connections {
    fn default() -> Self {
        let strangers = Arc::new(Mutex::new(VecDeque::with_capacity(STRANGERS)));
        Connections { places: Arc::new(Semaphore::new(KNOWN + STRANGERS)), strangers }
    }
}

impl Connections {
    /// A place for the next connection; `None` when the face has ended.
    pub(super) async fn next(&self) -> Option<OwnedSemaphorePermit> {
        self.places.clone().acquire_owned().await.ok()
    }

    /// Takes a connection in. Where strangers are too many, the oldest one is cut.
    pub(super) fn take(&self, permit: OwnedSemaphorePermit, local: Option<IpAddr>) -> (Peer, Place) {
        let peer = Peer { local, known: Arc::default(), cut: CancellationToken::new() };
        let mut strangers = self.lock();
        strangers.retain(|peer| !peer.known.load(Ordering::Relaxed));
        if strangers.len() >= STRANGERS
            && let Some(oldest) = strangers.pop_front()
        {
            oldest.cut.cancel();
        }
        strangers.push_back(peer.clone());
        drop(strangers);
        (peer.clone(), Place { connections: self.clone(), peer, _permit: permit })
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, VecDeque<Peer>> {
        // Whole after every statement.
        self.strangers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_oldest_stranger_makes_way_and_who_is_known_stays() {
        let connections = Connections::default();
        let mut open = Vec::new();
        for _ in 0..STRANGERS {
            let permit = connections.next().await.unwrap();
            open.push(connections.take(permit, None));
        }
        open[0].0.is_known();
        for _ in 0..2 {
            let permit = connections.next().await.unwrap();
            open.push(connections.take(permit, None));
        }
        let cut: Vec<usize> = (0..open.len()).filter(|&at| open[at].0.cut.is_cancelled()).collect();
        assert_eq!(cut, [1], "the first is known, and one stranger was one too many");
        open.clear();
        assert!(connections.lock().is_empty());
        assert_eq!(connections.places.available_permits(), KNOWN + STRANGERS);
    }
}
