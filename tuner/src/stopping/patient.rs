//! Stops a trial that has not improved for a while.

use super::{Report, Rule, stop_if};
use crate::study::loss;
use crate::trial::{Decision, Trial};

pub(super) struct Patient {
    pub(super) patience: u64,
    pub(super) min_delta: f64,
}

impl Rule for Patient {
    /// The best of the last `patience + 1` reports against the best before them.
    fn report(&mut self, trials: &[Trial], _: Option<u64>, report: &Report) -> Decision {
        let reports = &trials[report.number as usize].reports;
        let Some(earlier) =
            (reports.len() as u64).checked_sub(self.patience.saturating_add(1)).filter(|n| *n > 0)
        else {
            return Decision::Continue;
        };
        let best = |reports: &[(u64, f64)]| {
            reports.iter().map(|(_, value)| loss(report.mode, *value)).fold(f64::INFINITY, f64::min)
        };
        let (before, after) = reports.split_at(earlier as usize);
        stop_if(best(before) + self.min_delta < best(after))
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{run, study};
    use crate::Decision;

    #[test]
    fn patience_is_in_reports() {
        let mut min = study("kind = \"patient\"\npatience = 2", "min");
        assert_eq!(run(&mut min, &[3.0, 4.0, 4.0, 4.0]), Some((4, Decision::Stop)));
        assert_eq!(run(&mut min, &[3.0, 4.0, 4.0, 3.0, 4.0, 3.0, 4.0, 4.0, 4.0]), Some((9, Decision::Stop)));
        let mut max = study("kind = \"patient\"\npatience = 1\nmin_delta = 0.5", "max");
        // Worse by no more than the delta is borne.
        assert_eq!(run(&mut max, &[3.0, 2.6, 2.6, 2.6]), None);
        assert_eq!(run(&mut max, &[3.0, 2.4, 2.4]), Some((3, Decision::Stop)));
    }
}
