//! What a followed sweep is shown on: two live lines on a terminal, a line for what matters elsewhere.

use super::shown_value;
use crate::output::Output;
use crate::progress::{TwoLines, duration};
use phalanx_api::v1 as pb;
use std::collections::BTreeSet;
use std::time::{Duration, Instant};

/// The heights of a sparkline.
const BARS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
/// How wide it is.
const SPARKLINE: usize = 20;
/// Before so many trials have ended a time left would only jump about.
const WARM_UP: u64 = 3;

/// Shows a sweep while it runs.
pub(crate) struct View {
    bar: Option<TwoLines>,
    started: Instant,
    /// The best value after each trial that improved it.
    best: Vec<f64>,
    best_number: Option<u64>,
    /// Trials whose failure has been told.
    told: BTreeSet<u64>,
    /// Why it waits, as it was told last.
    waits: String,
    /// The sweep as it was last.
    seen: Option<pb::Sweep>,
}

/// A sweep that still waits after this says why.
pub(super) const WAITING: Duration = Duration::from_secs(1);

impl View {
    pub(crate) fn new(sweep: &pb::Sweep, output: &Output) -> View {
        output.say(&format!("phalanx: {} {}", sweep.id, sweep.name));
        View {
            bar: TwoLines::new(output.live()),
            started: Instant::now(),
            best: Vec::new(),
            best_number: None,
            told: BTreeSet::new(),
            waits: String::new(),
            seen: None,
        }
    }

    /// Takes the live lines away.
    pub(crate) fn close(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish();
        }
    }

    /// The sweep and these of its trials have changed.
    pub(crate) fn show(&mut self, sweep: &pb::Sweep, trials: &[pb::Trial], output: &Output) {
        for trial in trials.iter().filter(|trial| trial.state() == pb::trial::State::Failed) {
            if self.told.insert(trial.number) {
                self.say(&format!("trial {} failed: {}", trial.number, trial.message), output);
            }
        }
        let best = sweep.best.as_ref().filter(|_| sweep.objectives.len() == 1);
        if let Some(best) = best.filter(|best| self.best_number != Some(best.number)) {
            self.best_number = Some(best.number);
            self.best.push(best.value);
            if self.bar.is_none() {
                let progress = progress(sweep);
                let metric = metric(sweep);
                let text = format!(
                    "trial {}: {metric} {}, the best so far ({progress})",
                    best.number,
                    shown_value(best.value)
                );
                self.say(&text, output);
            }
        }
        self.seen = Some(sweep.clone());
        if self.started.elapsed() >= WAITING {
            self.say_why_waiting(output);
        }
        if let Some(bar) = &self.bar {
            bar.show(self.texts(sweep));
        }
    }

    fn say(&self, text: &str, output: &Output) {
        let say = || output.say(&format!("phalanx: {text}"));
        match &self.bar {
            Some(bar) => bar.suspend(say),
            None => say(),
        }
    }

    /// Says why it waits, where that is news.
    pub(crate) fn say_why_waiting(&mut self, output: &Output) {
        let Some(sweep) = &self.seen else { return };
        let reason = sweep.reason.as_ref().filter(|reason| reason.code != "submitted");
        let waits = matches!(sweep.state(), pb::sweep::State::Queued | pb::sweep::State::Paused);
        let text = reason.filter(|_| waits).map(|reason| reason.text.clone()).unwrap_or_default();
        if !text.is_empty() && text != self.waits {
            self.say(&format!("{} is {}: {text}", sweep.id, sweep.state_name()), output);
        }
        self.waits = text;
    }

    fn texts(&self, sweep: &pb::Sweep) -> [String; 2] {
        let counts = sweep.counts.unwrap_or_default();
        let mut first = vec![format!("{} {}", sweep.id, sweep.name), progress(sweep)];
        let by_state = [
            (counts.running, "running"),
            (counts.queued, "queued"),
            (counts.paused, "paused"),
            (counts.stopped, "stopped early"),
            (counts.failed, "failed"),
        ];
        first.extend(
            by_state.iter().filter(|(count, _)| *count > 0).map(|(count, word)| format!("{count} {word}")),
        );
        let mut second = Vec::new();
        if sweep.objectives.len() > 1 {
            second.push(format!("{} on the front", sweep.front.len()));
        } else if let Some(best) = &sweep.best {
            let (line, value) = (sparkline(&self.best), shown_value(best.value));
            second.push(format!("best {} {value} (trial {}) {line}", metric(sweep), best.number));
        }
        second.extend(saved(sweep).map(|saved| format!("{saved:.0} % of the steps saved")));
        second.extend(self.left(sweep).map(|left| format!("{} left", duration(left))));
        [first.join(" · "), second.join(" · ")]
    }

    fn left(&self, sweep: &pb::Sweep) -> Option<Duration> {
        let done = ended(sweep);
        (done >= WARM_UP && sweep.trials > done)
            .then(|| self.started.elapsed().mul_f64((sweep.trials - done) as f64 / done as f64))
    }
}

fn metric(sweep: &pb::Sweep) -> &str {
    sweep.objectives.first().map_or("value", |one| one.metric.as_str())
}

fn ended(sweep: &pb::Sweep) -> u64 {
    let counts = sweep.counts.unwrap_or_default();
    counts.complete + counts.stopped + counts.failed + counts.cancelled
}

fn progress(sweep: &pb::Sweep) -> String {
    let counts = sweep.counts.unwrap_or_default();
    // A trial at a rung may be done with for good, and often is.
    let done = ended(sweep) + counts.paused;
    match sweep.trials {
        0 => format!("{done} trials"),
        most => format!("{done} of {most} trials"),
    }
}

/// How much of what its trials would have run to the last rung was not run, in percent.
fn saved(sweep: &pb::Sweep) -> Option<f64> {
    let counts = sweep.counts.unwrap_or_default();
    let whole = (ended(sweep) + counts.paused).checked_mul(sweep.max_step).filter(|whole| *whole > 0)?;
    Some(100.0 * (1.0 - (sweep.steps_run as f64 / whole as f64).min(1.0)))
}

/// The last values as bars, the lowest and the highest of them at the ends of the scale.
fn sparkline(values: &[f64]) -> String {
    let values = &values[values.len().saturating_sub(SPARKLINE)..];
    let low = values.iter().copied().fold(f64::INFINITY, f64::min);
    let span = values.iter().copied().fold(f64::NEG_INFINITY, f64::max) - low;
    let bar = |value: &f64| {
        let height = if span > 0.0 { (value - low) / span } else { 1.0 };
        BARS[((height * (BARS.len() - 1) as f64).round() as usize).min(BARS.len() - 1)]
    };
    values.iter().map(bar).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sparkline_goes_from_low_to_high() {
        assert_eq!(sparkline(&[0.0, 0.5, 1.0]), "▁▅█");
        assert_eq!(sparkline(&[2.0]), "█");
        assert_eq!(sparkline(&[]), "");
        assert_eq!(sparkline(&[f64::INFINITY, 1.0]).chars().count(), 2);
    }

    #[test]
    fn the_live_lines_say_what_is_known() {
        let mut output = Output::new(false, true);
        output.stderr_is_terminal = false;
        let counts = pb::TrialCounts { complete: 2, stopped: 4, running: 2, ..pb::TrialCounts::default() };
        let objective = pb::SweepObjective { metric: "acc".into(), ..pb::SweepObjective::default() };
        let sweep = pb::Sweep {
            id: "s1".into(),
            name: "digits".into(),
            trials: 6,
            counts: Some(counts),
            objectives: vec![objective],
            steps_run: 15,
            max_step: 10,
            best: Some(pb::BestTrial { number: 3, value: 0.5, ..pb::BestTrial::default() }),
            ..pb::Sweep::default()
        };
        let mut view = View::new(&sweep, &output);
        view.show(&sweep, &[], &output);
        assert_eq!(
            view.texts(&sweep),
            [
                "s1 digits · 6 of 6 trials · 2 running · 4 stopped early",
                "best acc 0.5 (trial 3) █ · 75 % of the steps saved"
            ]
        );
    }
}
