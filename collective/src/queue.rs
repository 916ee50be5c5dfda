//! Operations in flight: a thread of the communicator's own runs them in the order they were started.

use std::marker::PhantomData;
use std::sync::mpsc::{self, Receiver, RecvError, Sender, TryRecvError};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;

use crate::arena::ArenaBuffer;
use crate::communicator::Engine;
use crate::element::Element;
use crate::error::{AbortReason, Error, Result};

/// What comes back of an operation.
type Answer<B> = (B, Result<()>);

type Job = Box<dyn FnOnce(&mut Engine) + Send>;

/// An operation that was started; its buffer comes back from [`Pending::wait`].
///
/// Dropping it does not cancel the operation, which other ranks count on.
#[must_use = "the buffer comes back from `wait`"]
pub struct Pending<T: Element, B = ArenaBuffer<T>> {
    answer: Receiver<Answer<B>>,
    /// What [`Self::is_done`] has found.
    early: Option<Result<Answer<B>, RecvError>>,
    elements: PhantomData<T>,
}

impl<T: Element, B> Pending<T, B> {
    pub(crate) fn new() -> (Sender<Answer<B>>, Self) {
        let (sender, answer) = mpsc::channel();
        (sender, Pending { answer, early: None, elements: PhantomData })
    }

    /// Whether the operation has ended, so that [`Self::wait`] returns at once.
    pub fn is_done(&mut self) -> bool {
        if self.early.is_none() {
            self.early = match self.answer.try_recv() {
                Ok(answer) => Some(Ok(answer)),
                Err(TryRecvError::Empty) => None,
                Err(TryRecvError::Disconnected) => Some(Err(RecvError)),
            };
        }
        self.early.is_some()
    }

    /// Waits until the operation has ended; its own deadline bounds this.
    ///
    /// # Errors
    /// Those of the operation.
    pub fn wait(self) -> Result<B> {
        // The thread hangs up only if it panicked, which poisons the group.
        let thread_died = |_| Error::Aborted { rank: usize::MAX, reason: AbortReason::Panicked };
        let answer = self.early.unwrap_or_else(|| self.answer.recv());
        let (buffer, result) = answer.map_err(thread_died)?;
        result.map(|()| buffer)
    }
}

/// The thread and what is on its way to it.
pub(crate) struct Queue {
    jobs: Option<Sender<Job>>,
    thread: Option<JoinHandle<()>>,
    waiting: Arc<(Mutex<usize>, Condvar)>,
}

impl Queue {
    pub(crate) fn start(engine: Arc<Mutex<Engine>>) -> Result<Self> {
        let (jobs, inbox) = mpsc::channel::<Job>();
        let waiting = Arc::new((Mutex::new(0), Condvar::new()));
        let done = waiting.clone();
        let body = move || {
            while let Ok(job) = inbox.recv() {
                // Counted down even if the job panics, or `drain` would wait for ever.
                let _count = CountDown(&done);
                job(&mut engine.lock().unwrap_or_else(PoisonError::into_inner));
            }
        };
        let builder = std::thread::Builder::new().name("collective".into());
        let thread =
            builder.spawn(body).map_err(|e| Error::system("starting the communication thread", e))?;
        Ok(Queue { jobs: Some(jobs), thread: Some(thread), waiting })
    }

    pub(crate) fn push(&self, job: Job) {
        *self.waiting.0.lock().unwrap_or_else(PoisonError::into_inner) += 1;
        if let Some(jobs) = &self.jobs
            && jobs.send(job).is_err()
        {
            CountDown(&self.waiting); // the thread is gone; `Pending::wait` says so
        }
    }

    /// Waits until everything started has ended; each operation is bounded by its deadline.
    pub(crate) fn drain(&self) {
        let mut waiting = self.waiting.0.lock().unwrap_or_else(PoisonError::into_inner);
        while *waiting > 0 {
            waiting = self.waiting.1.wait(waiting).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        self.jobs = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

struct CountDown<'a>(&'a (Mutex<usize>, Condvar));

impl Drop for CountDown<'_> {
    fn drop(&mut self) {
        *self.0.0.lock().unwrap_or_else(PoisonError::into_inner) -= 1;
        self.0.1.notify_all();
    }
}
