//! The guards of an agent: those at work, and a few that wait for an attempt, so that most attempts need no new one.

use super::GUARD_MARGIN;
use super::link::GuardLink;
use crate::agent::guard::Plan;
use std::collections::BTreeSet;
use std::io;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::time::{Instant, timeout};

/// Guards that wait at most.
const IDLE_MOST: usize = 16;
/// How long one waits before it is let go.
const IDLE_FOR: Duration = Duration::from_secs(10);

#[derive(Debug, Default)]
pub(in crate::agent) struct Guards {
    /// All that live: the only children that the agent wants.
    pids: Mutex<BTreeSet<i32>>,
    /// Those without an attempt, by when they became so.
    idle: Mutex<Vec<(Instant, GuardLink)>>,
}

impl Guards {
    /// A guard that runs this plan: one that waits, or else a new one.
    pub(super) fn run(&self, program: &Path, plan: &Plan) -> io::Result<GuardLink> {
        while let Some((_, guard)) = self.idle().pop() {
            match guard.run(plan) {
                Ok(()) => return Ok(guard),
                Err(error) => {
                    tracing::warn!(%error, "a guard that waited is gone");
                    self.let_go(guard);
                }
            }
        }
        let guard = {
            // Known before anybody looks for children that are no guards.
            let mut pids = self.pids();
            let guard = GuardLink::start(program)?;
            pids.insert(guard.pid());
            guard
        };
        match guard.run(plan) {
            Ok(()) => Ok(guard),
            Err(error) => {
                self.let_go(guard);
                Err(error)
            }
        }
    }

    /// One whose attempt is gone waits for another.
    pub(super) fn take_back(&self, guard: GuardLink) {
        let mut idle = self.idle();
        if idle.len() < IDLE_MOST {
            idle.push((Instant::now(), guard));
        } else {
            self.let_go(guard);
        }
    }

    /// Ends one that has not told of the end of its attempt, or could not bring it about.
    pub(super) async fn end(&self, guard: &mut GuardLink) {
        if timeout(GUARD_MARGIN, guard.ended()).await.is_err() {
            guard.kill();
            // A killed process that is not reaped at once is reaped by the runtime later.
            let _ = timeout(GUARD_MARGIN, guard.ended()).await;
        }
        self.pids().remove(&guard.pid());
    }

    /// Lets those go that have waited for long.
    pub(in crate::agent) fn thin_out(&self) {
        let old = {
            let mut idle = self.idle();
            // The oldest come first.
            let old = idle.iter().take_while(|(since, _)| since.elapsed() >= IDLE_FOR).count();
            idle.drain(..old).collect::<Vec<_>>()
        };
        old.into_iter().for_each(|(_, guard)| self.let_go(guard));
    }

    /// Lets all go that wait, and sees them end.
    pub(in crate::agent) async fn close(&self) {
        let idle = std::mem::take(&mut *self.idle());
        for (_, guard) in idle {
            let mut guard = guard.dismiss();
            self.end(&mut guard).await;
        }
    }

    /// Every guard that lives.
    pub(super) fn pids(&self) -> MutexGuard<'_, BTreeSet<i32>> {
        self.pids.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn idle(&self) -> MutexGuard<'_, Vec<(Instant, GuardLink)>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Without its agent's end of the socket a guard ends by itself; the runtime reaps it.
    fn let_go(&self, guard: GuardLink) {
        self.pids().remove(&guard.pid());
    }
}
