//! A counter in shared memory that others wait for, on a futex.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use crate::backend::Deadline;

/// What one step of the counter is: bit 0 is the poison.
pub(crate) const STEP: u32 = 2;
const POISON: u32 = 1;

/// How to wait before sleeping.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Patience {
    /// Looks with a pause between them, while there is a CPU for every rank.
    spins: u32,
    /// Looks with a `sched_yield` between them: with fewer CPUs than ranks the awaited one may need this CPU.
    yields: u32,
}

impl Patience {
    pub(crate) fn new(ranks: usize, cpus: usize) -> Self {
        if ranks <= cpus {
            Patience { spins: SPINS, yields: 0 }
        } else {
            Patience { spins: 0, yields: YIELDS }
        }
    }

    /// For peers that are known to be at work on `bytes`: as long as that takes, if it is not long beside waking up. (Longer
    /// would keep the CPU from a peer that has to share it with us.)
    pub(crate) fn while_moving(self, bytes: usize) -> Self {
        let working = u32::try_from(bytes / BYTES_PER_SPIN).unwrap_or(u32::MAX).min(MAX_SPINS);
        Patience { spins: if self.spins == 0 { 0 } else { self.spins.max(working) }, ..self }
    }
}

/// About 200 rounds pay where each rank has a CPU.
const SPINS: u32 = 200;
const YIELDS: u32 = 50;
/// What a rank moves in the time of a round, at a cautious 10 GB/s and 40 ns.
const BYTES_PER_SPIN: usize = 400;
/// About 60 us: what it takes to be woken on a virtual machine.
const MAX_SPINS: u32 = 1500;

/// How a wait ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Waited {
    Ready,
    /// Its word is poisoned and never gets there.
    Poisoned,
    /// The deadline, or the shorter time given, passed.
    TimedOut,
}

/// A monotonic counter with a poison bit. A poisoned counter does not advance any more, so that everybody agrees on how
/// far it got.
#[repr(C)]
pub(crate) struct Word {
    value: AtomicU32,
    /// Threads asleep on it; too high after one was killed in its sleep, which costs a system call and no more.
    sleepers: AtomicU32,
}

impl Word {
    /// The count, without the poison.
    pub(crate) fn count(&self) -> u32 {
        self.value.load(Ordering::SeqCst) & !POISON
    }

    /// Whether the count has come to `target`. Counters wrap; two are never further apart than a few steps.
    #[inline]
    pub(crate) fn reached(&self, target: u32) -> bool {
        reached(self.value.load(Ordering::Acquire), target)
    }

    /// Whether `value`, as handed to a condition of [`Self::wait_for`], has come to `target`.
    pub(crate) fn is_at_least(value: u32, target: u32) -> bool {
        reached(value, target)
    }

    /// Whether `value` is further than `count`.
    pub(crate) fn is_beyond(value: u32, count: u32) -> bool {
        reached(value, count.wrapping_add(STEP))
    }

    /// One step on; false if it is poisoned.
    #[inline]
    pub(crate) fn advance(&self) -> bool {
        let mut value = self.value.load(Ordering::Relaxed);
        while value & POISON == 0 {
            let next = value.wrapping_add(STEP);
            match self.value.compare_exchange_weak(value, next, Ordering::SeqCst, Ordering::Relaxed) {
                Ok(_) => {
                    self.wake();
                    return true;
                }
                Err(now) => value = now,
            }
        }
        false
    }

    pub(crate) fn poison(&self) {
        self.value.fetch_or(POISON, Ordering::SeqCst);
        self.wake();
    }

    /// Both this and the sleeper's registration are sequentially consistent: either the sleeper sees the new value or
    /// we see the sleeper.
    #[inline]
    fn wake(&self) {
        if self.sleepers.load(Ordering::SeqCst) != 0 {
            futex_wake(&self.value);
        }
    }

    /// Waits until the count has come to `target`. Arrival goes before poison.
    #[inline]
    pub(crate) fn wait(&self, target: u32, patience: Patience, deadline: &Deadline) -> Waited {
        self.wait_for(|value| reached(value, target), patience, deadline, Duration::MAX)
    }

    /// Waits until `ready` says so of the value, at most `slice` at a time asleep.
    #[inline]
    pub(crate) fn wait_for(
        &self,
        ready: impl Fn(u32) -> bool,
        patience: Patience,
        deadline: &Deadline,
        slice: Duration,
    ) -> Waited {
        for _ in 0..patience.spins {
            let value = self.value.load(Ordering::Acquire);
            if ready(value) {
                return Waited::Ready;
            }
            if value & POISON != 0 {
                return Waited::Poisoned;
            }
            std::hint::spin_loop();
        }
        self.wait_slowly(ready, patience, deadline, slice)
    }

    #[cold]
    fn wait_slowly(
        &self,
        ready: impl Fn(u32) -> bool,
        patience: Patience,
        deadline: &Deadline,
        slice: Duration,
    ) -> Waited {
        let mut yields = patience.yields;
        let mut slept = false;
        loop {
            let value = self.value.load(Ordering::SeqCst);
            if ready(value) {
                return Waited::Ready;
            }
            if value & POISON != 0 {
                return Waited::Poisoned;
            }
            if yields > 0 {
                yields -= 1;
                std::thread::yield_now();
                continue;
            }
            let Some(left) = deadline.left() else { return Waited::TimedOut };
            if slept && slice < Duration::MAX {
                return Waited::TimedOut;
            }
            self.sleepers.fetch_add(1, Ordering::SeqCst);
            futex_wait(&self.value, value, left.min(slice));
            self.sleepers.fetch_sub(1, Ordering::SeqCst);
            slept = true;
        }
    }
}

#[inline]
fn reached(value: u32, target: u32) -> bool {
    (value & !POISON).wrapping_sub(target) as i32 >= 0
}

/// Longest single sleep: a bound for the clock arithmetic below, not a deadline.
const LONGEST_SLEEP: Duration = Duration::from_secs(3600);

/// Sleeps while the word holds `value`, at most `timeout`. May wake early.
fn futex_wait(word: &AtomicU32, value: u32, timeout: Duration) {
    let timeout = timeout.min(LONGEST_SLEEP);
    let time = libc::timespec {
        tv_sec: timeout.as_secs() as libc::time_t,
        tv_nsec: libc::c_long::from(timeout.subsec_nanos() as i32),
    };
    // SAFETY: the word and the time are valid for the call; the kernel compares and sleeps, it writes nothing. Not
    // FUTEX_PRIVATE_FLAG: the waker may be another process.
    unsafe { libc::syscall(libc::SYS_futex, word.as_ptr(), libc::FUTEX_WAIT, value, &raw const time) };
}

fn futex_wake(word: &AtomicU32) {
    // SAFETY: as above.
    unsafe { libc::syscall(libc::SYS_futex, word.as_ptr(), libc::FUTEX_WAKE, i32::MAX) };
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::recorder::now_ns;
    use std::sync::Arc;
    use std::time::Instant;

    fn word() -> Word {
        Word { value: AtomicU32::new(0), sleepers: AtomicU32::new(0) }
    }

    fn deadline(ms: u64) -> Deadline {
        Deadline::new(now_ns(), Duration::from_millis(ms))
    }

    #[test]
    fn arrival_goes_before_poison_and_poison_is_final() {
        let w = word();
        assert!(w.advance());
        w.poison();
        assert_eq!(w.wait(STEP, Patience::new(1, 1), &deadline(1000)), Waited::Ready);
        assert_eq!(w.wait(2 * STEP, Patience::new(1, 1), &deadline(1000)), Waited::Poisoned);
        assert!(!w.advance());
        assert_eq!(w.count(), STEP);
    }

    #[test]
    fn a_wait_ends_at_its_deadline() {
        let start = Instant::now();
        assert_eq!(word().wait(STEP, Patience::new(2, 1), &deadline(20)), Waited::TimedOut);
        assert!(start.elapsed() >= Duration::from_millis(20));
    }

    #[test]
    fn counts_wrap() {
        let w = Word { value: AtomicU32::new(u32::MAX - 1), sleepers: AtomicU32::new(0) };
        assert!(!w.reached(0));
        assert!(w.advance() && w.reached(0) && w.reached(u32::MAX - 1) && !w.reached(STEP));
    }

    #[test]
    fn sleepers_are_woken_by_arrival_and_by_poison() {
        for poison in [false, true] {
            let w = Arc::new(word());
            let sleeper = {
                let w = w.clone();
                std::thread::spawn(move || w.wait(STEP, Patience::new(2, 1), &deadline(10_000)))
            };
            while w.sleepers.load(Ordering::SeqCst) == 0 {
                std::thread::yield_now();
            }
            let start = Instant::now();
            if poison {
                w.poison()
            } else {
                assert!(w.advance())
            }
            let waited = sleeper.join().unwrap();
            assert_eq!(waited, if poison { Waited::Poisoned } else { Waited::Ready });
            assert!(start.elapsed() < Duration::from_secs(5));
        }
    }

    /// Every interleaving of a waiter (as in `wait_slowly`) and one that advances or poisons (as in `advance`, `poison`), at
    /// the grain of their atomic steps. The kernel compares and sleeps in one.
    #[test]
    fn no_interleaving_loses_a_wake_up() {
        #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
        struct State {
            value: bool,
            sleepers: u8,
            asleep: bool,
            /// Where each is, and what the waiter saw.
            waiter: u8,
            saw: bool,
            other: u8,
        }
        fn waiter(s: State) -> Option<State> {
            match s.waiter {
                0 if s.value => Some(State { waiter: 9, ..s }),
                0 => Some(State { waiter: 1, saw: s.value, ..s }),
                1 => Some(State { waiter: 2, sleepers: s.sleepers + 1, ..s }),
                2 if s.value != s.saw => Some(State { waiter: 4, ..s }), // the futex does not hold what was seen
                2 => Some(State { waiter: 3, asleep: true, ..s }),
                3 if s.asleep => None,
                3 => Some(State { waiter: 4, ..s }),
                4 => Some(State { waiter: 0, sleepers: s.sleepers - 1, ..s }),
                _ => None,
            }
        }
        fn other(s: State) -> Option<State> {
            match s.other {
                0 => Some(State { value: true, other: 1, ..s }),
                1 => Some(State { other: if s.sleepers > 0 { 2 } else { 9 }, ..s }),
                2 => Some(State { asleep: false, other: 9, ..s }),
                _ => None,
            }
        }
        let mut seen = std::collections::HashSet::new();
        let mut open =
            vec![State { value: false, sleepers: 0, asleep: false, waiter: 0, saw: false, other: 0 }];
        while let Some(state) = open.pop() {
            if seen.insert(state) {
                let next: Vec<State> = [waiter(state), other(state)].into_iter().flatten().collect();
                assert!(!next.is_empty() || state.waiter == 9, "asleep for ever: {state:?}");
                open.extend(next);
            }
        }
        assert!(seen.len() > 20);
    }
}
