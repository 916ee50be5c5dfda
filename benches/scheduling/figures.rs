//! What a schedule is worth: completion times, makespan, utilisation and fairness, from when each job ends.

use super::Job;

/// The figures of one schedule, in seconds and parts of one.
pub(crate) struct Figures {
    pub(crate) mean: f64,
    pub(crate) p95: f64,
    pub(crate) makespan: f64,
    pub(crate) utilisation: f64,
    /// Finish-time fairness (Themis, NSDI'20): how long a job took over how long it would have taken alone on its part of the
    /// cluster; 1 is fair, more is worse. Mean, and the 95th percentile.
    pub(crate) unfairness: [f64; 2],
}

impl Figures {
    pub(crate) fn of(jobs: &[Job], ends: &[f64], gpus: u32) -> Self {
        let times: Vec<f64> = jobs.iter().zip(ends).map(|(job, end)| end - job.at).collect();
        let last = ends.iter().copied().fold(0.0, f64::max);
        let work: f64 = jobs.iter().map(|job| job.seconds * f64::from(job.gpus)).sum();
        let demand = Demand::of(jobs, ends);
        let unfair = jobs.iter().zip(ends).map(|(job, &end)| {
            // Who shares the cluster while it is there: what all ask for, over what there is.
            let contention = (demand.mean(job.at, end) / f64::from(gpus)).max(1.0);
            (end - job.at) / (job.seconds * contention)
        });
        let unfair: Vec<f64> = unfair.collect();
        Figures {
            mean: mean(&times),
            p95: p95(times),
            makespan: last - jobs[0].at,
            utilisation: work / f64::from(gpus) / last,
            unfairness: [mean(&unfair), p95(unfair)],
        }
    }
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

fn p95(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() * 95 / 100]
}

/// GPUs that jobs in the system ask for, summed over time.
struct Demand {
    /// Moments, GPU-seconds asked for up to each, and GPUs asked for from there on.
    steps: Vec<(f64, f64, f64)>,
}

impl Demand {
    fn of(jobs: &[Job], ends: &[f64]) -> Self {
        let come = jobs.iter().map(|job| (job.at, f64::from(job.gpus)));
        let go = jobs.iter().zip(ends).map(|(job, &end)| (end, -f64::from(job.gpus)));
        let mut changes: Vec<(f64, f64)> = come.chain(go).collect();
        changes.sort_by(|a, b| a.0.total_cmp(&b.0));
        let (mut now, mut sum, mut asked) = (0.0, 0.0, 0.0);
        let steps = changes.into_iter().map(|(at, change)| {
            sum += (at - now) * asked;
            now = at;
            asked += change;
            (now, sum, asked)
        });
        Demand { steps: steps.collect() }
    }

    fn until(&self, at: f64) -> f64 {
        match self.steps.partition_point(|step| step.0 <= at) {
            0 => 0.0,
            after => {
                let (from, sum, asked) = self.steps[after - 1];
                sum + (at - from) * asked
            }
        }
    }

    fn mean(&self, from: f64, to: f64) -> f64 {
        if to > from { (self.until(to) - self.until(from)) / (to - from) } else { 0.0 }
    }
}
