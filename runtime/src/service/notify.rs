//! Wakes those who follow a job when there is something new to read about it.
//!
//! Only the fact travels, never the data: a follower reads the store from where it was, so that a slow one neither holds
//! anybody up nor loses anything.

use phalanx_core::JobId;
use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use tokio::sync::watch;

/// Who waits for news of which job, and who waits for any job to enter another state.
#[derive(Debug)]
pub(super) struct Notifier {
    jobs: Mutex<HashMap<JobId, watch::Sender<()>>>,
    states: watch::Sender<()>,
}

impl Default for Notifier {
    fn default() -> Self {
        Notifier { jobs: Mutex::default(), states: watch::channel(()).0 }
    }
}

impl Notifier {
    fn lock(&self) -> MutexGuard<'_, HashMap<JobId, watch::Sender<()>>> {
        // No code panics while it holds the lock, and the map would be whole if it did.
        self.jobs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A receiver that changes with every later `notify`.
    pub(super) fn subscribe(&self, job: JobId) -> watch::Receiver<()> {
        self.lock().entry(job).or_insert_with(|| watch::channel(()).0).subscribe()
    }

    /// There is something new about the job.
    pub(super) fn notify(&self, job: JobId) {
        let mut jobs = self.lock();
        if let Some(sender) = jobs.get(&job)
            && sender.send(()).is_err()
        {
            jobs.remove(&job);
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
