//! Sweeps and their trials as messages.

use crate::v1 as pb;
use crate::{int, timestamp};
use phalanx_core::spec::{MetricMode, Objective, ParamValue, Params, Stopping, SweepSpec};
use phalanx_core::sweep::Stint;
use phalanx_core::{BestTrial, Job, Sweep, SweepState, Trial, TrialCounts, TrialState};
use prost_types::value::Kind;

impl From<SweepState> for pb::sweep::State {
    fn from(state: SweepState) -> Self {
        match state {
            SweepState::Queued => pb::sweep::State::Queued,
            SweepState::Running => pb::sweep::State::Running,
            SweepState::Paused => pb::sweep::State::Paused,
            SweepState::Succeeded => pb::sweep::State::Succeeded,
            SweepState::Failed => pb::sweep::State::Failed,
            SweepState::Cancelled => pb::sweep::State::Cancelled,
        }
    }
}

impl From<TrialState> for pb::trial::State {
    fn from(state: TrialState) -> Self {
        match state {
            TrialState::Queued => pb::trial::State::Queued,
            TrialState::Running => pb::trial::State::Running,
            TrialState::Paused => pb::trial::State::Paused,
            TrialState::Complete => pb::trial::State::Complete,
            TrialState::Stopped => pb::trial::State::Stopped,
            TrialState::Failed => pb::trial::State::Failed,
            TrialState::Cancelled => pb::trial::State::Cancelled,
        }
    }
}

/// Parameters as a JSON object.
fn params(params: &Params) -> prost_types::Struct {
    let value = |value: &ParamValue| {
        let kind = match value {
            ParamValue::Bool(flag) => Kind::BoolValue(*flag),
            // Integers of a parameter stay where a double counts exactly.
            ParamValue::Int(number) => Kind::NumberValue(*number as f64),
            ParamValue::Float(number) => Kind::NumberValue(*number),
            ParamValue::Text(text) => Kind::StringValue(text.clone()),
        };
        prost_types::Value { kind: Some(kind) }
    };
    prost_types::Struct { fields: params.iter().map(|(name, found)| (name.clone(), value(found))).collect() }
}

impl From<&BestTrial> for pb::BestTrial {
    fn from(best: &BestTrial) -> Self {
        pb::BestTrial {
            number: best.number,
            params: Some(params(&best.params)),
            value: best.values.first().map_or(f64::NAN, |value| value.0),
            values: best.values.iter().map(|value| value.0).collect(),
            job: best.job.map(|job| job.to_string()).unwrap_or_default(),
        }
    }
}

impl From<&TrialCounts> for pb::TrialCounts {
    fn from(counts: &TrialCounts) -> Self {
        pb::TrialCounts {
            complete: counts.complete,
            stopped: counts.stopped,
            failed: counts.failed,
            running: counts.running,
            queued: counts.queued,
            paused: counts.paused,
            cancelled: counts.cancelled,
        }
    }
}

impl From<&Objective> for pb::SweepObjective {
    fn from(objective: &Objective) -> Self {
        let mode = match objective.mode {
            MetricMode::Min => "min",
            MetricMode::Max => "max",
        };
        pb::SweepObjective {
            metric: objective.metric.clone(),
            mode: mode.to_owned(),
            target: objective.target,
        }
    }
}

impl From<&Trial> for pb::Trial {
    fn from(trial: &Trial) -> Self {
        let value = |value: &Option<phalanx_core::report::Metric>| value.map(|value| value.0);
        let reported = trial.values.iter().any(Option::is_some);
        let values = trial.values.iter().filter(|_| reported);
        pb::Trial {
            number: trial.number,
            state: pb::trial::State::from(trial.state) as i32,
            params: Some(params(&trial.params)),
            value: trial.values.first().and_then(value),
            values: values.map(|found| value(found).unwrap_or(f64::NAN)).collect(),
            step: trial.step,
            job: trial.job.map(|job| job.to_string()).unwrap_or_default(),
            sampler: trial.sampler.clone(),
            message: trial.message.clone(),
            start_time: Some(timestamp(trial.started)),
            end_time: trial.ended.map(timestamp),
            stints: trial.stints.iter().map(Into::into).collect(),
        }
    }
}

impl From<&Stint> for pb::Stint {
    fn from(stint: &Stint) -> Self {
        pb::Stint { start_time: Some(timestamp(stint.from)), end_time: stint.until.map(timestamp) }
    }
}

impl From<&Sweep> for pb::Sweep {
    /// Without the file: see [`pb::Sweep::with_file`].
    fn from(sweep: &Sweep) -> Self {
        let (asked, now) = (&sweep.asked, &sweep.now);
        let spec = &asked.spec;
        pb::Sweep {
            // A validated submission is no sweep yet.
            id: if sweep.id.0 == 0 { String::new() } else { sweep.id.to_string() },
            name: spec.name.clone(),
            state: pb::sweep::State::from(now.state) as i32,
            reason: Some((&now.reason).into()),
            queue: spec.job.as_ref().map(|job| job.queue.clone()).unwrap_or_default(),
            priority: spec.job.as_ref().map_or(0, |job| job.priority),
            best: now.best.as_ref().map(Into::into),
            front: now.front.iter().map(Into::into).collect(),
            counts: Some((&now.counts).into()),
            steps_run: now.steps_run,
            objectives: spec.objectives.iter().map(Into::into).collect(),
            search: spec.search.as_str().to_owned(),
            stopping: spec.stopping.as_str().to_owned(),
            params: spec.params.iter().map(|param| param.name.clone()).collect(),
            trials: most_trials(spec),
            concurrency: spec.concurrency.unwrap_or(0),
            external: asked.external,
            submit_time: Some(timestamp(asked.submitted)),
            start_time: now.started.map(timestamp),
            end_time: now.ended.map(timestamp),
            gang: spec.job.as_ref().filter(|_| !asked.external).map(|job| (&job.gang).into()),
            toml: String::new(),
            base_dir: String::new(),
            max_step: match spec.stopping {
                Stopping::Asha(halving) | Stopping::Hyperband(halving) => halving.max,
                _ => 0,
            },
        }
    }
}

/// How many trials a sweep has at most; 0 where that is not known before.
fn most_trials(spec: &SweepSpec) -> u64 {
    let grid = spec.grid_size();
    match (spec.trials, grid) {
        (Some(trials), Some(grid)) => trials.min(grid),
        (Some(only), None) | (None, Some(only)) => only,
        (None, None) => 0,
    }
}

impl pb::Sweep {
    /// The name of its state; empty for one that this program does not know.
    pub fn state_name(&self) -> &'static str {
        pb::sweep::State::try_from(self.state).map_or("", |state| state.as_str_name())
    }

    /// Nothing follows.
    pub fn is_terminal(&self) -> bool {
        use pb::sweep::State;
        matches!(self.state(), State::Succeeded | State::Failed | State::Cancelled)
    }

    /// With the file it was made of.
    pub fn with_file(self, sweep: &Sweep) -> Self {
        let toml = sweep.asked.spec.source().to_owned();
        pb::Sweep { toml, base_dir: sweep.asked.base_dir.to_string_lossy().into_owned(), ..self }
    }
}

impl pb::Trial {
    /// The name of its state; empty for one that this program does not know.
    pub fn state_name(&self) -> &'static str {
        pb::trial::State::try_from(self.state).map_or("", |state| state.as_str_name())
    }
}

/// The sweep and the number of the trial that a job is.
pub(crate) fn trial_of(job: &Job) -> (String, Option<i32>) {
    let Some(trial) = &job.trial else { return (String::new(), None) };
    (trial.id.sweep.to_string(), Some(int(u32::try_from(trial.id.number).unwrap_or(u32::MAX))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn states_have_the_same_names_on_the_wire() {
        for &state in SweepState::ALL {
            assert_eq!(pb::sweep::State::from(state).as_str_name(), state.as_str());
            let sweep = pb::Sweep { state: pb::sweep::State::from(state) as i32, ..pb::Sweep::default() };
            assert_eq!((sweep.is_terminal(), sweep.state_name()), (state.is_terminal(), state.as_str()));
        }
        for &state in TrialState::ALL {
            assert_eq!(pb::trial::State::from(state).as_str_name(), state.as_str());
        }
    }
}
