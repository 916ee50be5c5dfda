//! Stops a trial whose value leaves an interval.

use super::{Report, Rule, is_due, stop_if};
use crate::trial::{Decision, Trial};
use phalanx_core::spec::Pace;

pub(super) struct Threshold {
    pub(super) lower: Option<f64>,
    pub(super) upper: Option<f64>,
    pub(super) pace: Pace,
}

impl Rule for Threshold {
    fn report(&mut self, trials: &[Trial], _: Option<u64>, report: &Report) -> Decision {
        if !is_due(self.pace, &trials[report.number as usize].reports) {
            return Decision::Continue;
        }
        let below = self.lower.is_some_and(|lower| report.value < lower);
        stop_if(below || self.upper.is_some_and(|upper| report.value > upper))
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{run, study};
    use crate::Decision;

    #[test]
    fn both_bounds_belong_to_the_interval() {
        let mut study = study("kind = \"threshold\"\nlower = 0\nupper = 1\nwarmup = 2\ninterval = 3", "max");
        assert_eq!(run(&mut study, &[9.0, 1.0, 9.0, 9.0, 0.0]), None);
        assert_eq!(run(&mut study, &[9.0, 1.0, 9.0, 9.0, 1.1]), Some((5, Decision::Stop)));
        assert_eq!(run(&mut study, &[0.5, -0.1]), Some((2, Decision::Stop)));
    }
}
