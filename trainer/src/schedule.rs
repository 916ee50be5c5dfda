//! The learning rate over a run, as a factor of the optimizer's `lr`.

use phalanx_core::spec::Schedule;
use std::f64::consts::PI;

/// Where the one-cycle schedule starts, and where it ends.
const ONE_CYCLE_START: f64 = 1.0 / 25.0;
const ONE_CYCLE_END: f64 = 1e-4;

/// The factor for the step after `done` steps of `total`.
pub(crate) fn factor(schedule: Schedule, done: u64, total: u64) -> f64 {
    match schedule {
        Schedule::Constant => 1.0,
        Schedule::Warmup { warmup } => warm(done, warmup).unwrap_or(1.0),
        Schedule::Step { every, gamma, warmup } => {
            warm(done, warmup).unwrap_or(1.0) * gamma.powf((done / every) as f64)
        }
        Schedule::Cosine { warmup, floor } => warm(done, warmup)
            .unwrap_or_else(|| floor + (1.0 - floor) * half_cosine(after(done, warmup, total))),
        Schedule::Linear { warmup, floor } => {
            warm(done, warmup).unwrap_or_else(|| 1.0 - (1.0 - floor) * after(done, warmup, total))
        }
        Schedule::OneCycle { rise } => {
            let top = rise * total as f64;
            let done = done as f64;
            if done < top {
                ONE_CYCLE_START + (1.0 - ONE_CYCLE_START) * (1.0 - half_cosine(done / top))
            } else {
                let left = (total as f64 - 1.0 - top).max(1.0);
                ONE_CYCLE_END + (1.0 - ONE_CYCLE_END) * half_cosine(((done - top) / left).min(1.0))
            }
        }
    }
}

/// The warm-up's factor: from `1 / warmup` at the first step to 1 at the last of them.
fn warm(done: u64, warmup: u64) -> Option<f64> {
    (done < warmup).then(|| (done + 1) as f64 / warmup as f64)
}

/// The share of the steps after the warm-up that is done: 1 at the last step.
fn after(done: u64, warmup: u64, total: u64) -> f64 {
    let span = total.saturating_sub(warmup + 1).max(1);
    ((done - warmup) as f64 / span as f64).min(1.0)
}

/// 1 at 0, 0 at 1.
fn half_cosine(share: f64) -> f64 {
    0.5 * (1.0 + (PI * share).cos())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn curve(schedule: Schedule, total: u64, expected: &[f64]) {
        for (done, &expected) in expected.iter().enumerate() {
            let found = factor(schedule, done as u64, total);
            assert!((found - expected).abs() < 1e-9, "step {done}: {found}, not {expected}");
        }
    }

    #[test]
    fn curves() {
        curve(Schedule::Constant, 3, &[1.0, 1.0, 1.0]);
        curve(Schedule::Warmup { warmup: 2 }, 3, &[0.5, 1.0, 1.0]);
        curve(Schedule::Step { every: 2, gamma: 0.1, warmup: 0 }, 5, &[1.0, 1.0, 0.1, 0.1, 0.01]);
        curve(Schedule::Step { every: 2, gamma: 0.1, warmup: 4 }, 5, &[0.25, 0.5, 0.075, 0.1, 0.01]);
        curve(Schedule::Linear { warmup: 2, floor: 0.0 }, 5, &[0.5, 1.0, 1.0, 0.5, 0.0]);
        curve(Schedule::Cosine { warmup: 0, floor: 0.2 }, 3, &[1.0, 0.6, 0.2]);
        curve(Schedule::OneCycle { rise: 0.4 }, 5, &[0.04, 0.52, 1.0, 0.50005, 0.0001]);
    }

    #[test]
    fn short_runs_and_steps_past_the_end_stay_finite() {
        for schedule in [
            Schedule::Cosine { warmup: 5, floor: 0.0 },
            Schedule::Linear { warmup: 5, floor: 0.1 },
            Schedule::OneCycle { rise: 0.3 },
        ] {
            for total in 1..8 {
                for done in 0..10 {
                    let found = factor(schedule, done, total);
                    assert!((0.0..=1.0).contains(&found), "{schedule:?} {done}/{total}: {found}");
                }
            }
        }
    }
}
