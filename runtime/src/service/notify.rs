//! Wakes those who follow a job or a sweep when there is something new to read about it.
//!
//! Only the fact travels, never the data: a follower reads the store from where it was, so that a slow one neither holds
//! anybody up nor loses anything.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Mutex, MutexGuard, PoisonError};
use tokio::sync::watch;

/// Who waits for news of which job or sweep, by its id, and who waits for any of them to enter another state.
#[derive(Debug)]
pub(super) struct Notifier<Id> {
    watched: Mutex<HashMap<Id, watch::Sender<()>>>,
    states: watch::Sender<()>,
}

impl<Id> Default for Notifier<Id> {
    fn default() -> Self {
        Notifier { watched: Mutex::default(), states: watch::channel(()).0 }
    }
}

impl<Id: Hash + Eq> Notifier<Id> {
    fn lock(&self) -> MutexGuard<'_, HashMap<Id, watch::Sender<()>>> {
        // No code panics while it holds the lock, and the map would be whole if it did.
        self.watched.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A receiver that changes with every later `notify`.
    pub(super) fn subscribe(&self, id: Id) -> watch::Receiver<()> {
        self.lock().entry(id).or_insert_with(|| watch::channel(()).0).subscribe()
    }

    /// There is something new about it.
    pub(super) fn notify(&self, id: Id) {
        let mut watched = self.lock();
        if let Some(sender) = watched.get(&id)
            && sender.send(()).is_err()
        {
            watched.remove(&id);
        }
    }

    /// A receiver that changes whenever any job has entered another state.
    pub(super) fn subscribe_states(&self) -> watch::Receiver<()> {
        self.states.subscribe()
    }

    /// Some job has entered another state.
    pub(super) fn notify_states(&self) {
        self.states.send_replace(());
    }
}
