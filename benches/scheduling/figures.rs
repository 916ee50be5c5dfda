//! What a schedule is worth: completion times, makespan, utilisation and fairness, from when each job ends.

use super::Job;

/// GPUs at work for a while.
pub(crate) struct Busy {
    pub(crate) from: f64,
    pub(crate) to: f64,
    pub(crate) gpus: u32,
}

/// The figures of one schedule, in seconds and parts of one.
pub(crate) struct Figures {
    pub(crate) mean: f64,
    pub(crate) p95: f64,
    pub(crate) makespan: f64,
    /// Up to the last submission; what follows is the trace's end and no scheduler's work.
    pub(crate) utilisation: f64,
    /// Finish-time fairness (Themis, NSDI'20): how long a job took over how long it would have taken alone on its part of the
    /// cluster; 1 is fair, more is worse. Mean, and the 95th percentile.
    pub(crate) unfairness: [f64; 2],
    /// What only the product's own runs tell.
    pub(crate) fragmentation: Option<f64>,
    pub(crate) preemptions: Option<f64>,
    pub(crate) decisions_per_second: Option<f64>,
}

impl Figures {
    pub(crate) fn of(jobs: &[Job], ends: &[f64], busy: &[Busy], gpus: u32) -> Self {
        let times: Vec<f64> = jobs.iter().zip(ends).map(|(job, end)| end - job.at).collect();
        let last = ends.iter().copied().fold(0.0, f64::max);
        let (first, submitted) = (jobs[0].at, jobs[jobs.len() - 1].at);
        let at_work = |busy: &Busy| (busy.to.min(submitted) - busy.from).max(0.0) * f64::from(busy.gpus);
        let work: f64 = busy.iter().map(at_work).sum();
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
            makespan: last - first,
            utilisation: work / f64::from(gpus) / (submitted - first),
            unfairness: [mean(&unfair), p95(unfair)],
            fragmentation: None,
            preemptions: None,
            decisions_per_second: None,
        }
    }

    /// The means of some schedules' figures as columns.
    pub(crate) fn line(schedules: &[&Figures]) -> String {
        let mean_of = |figure: &dyn Fn(&Figures) -> Option<f64>| {
            let values: Option<Vec<f64>> = schedules.iter().map(|figures| figure(figures)).collect();
            values.map(|values| mean(&values))
        };
        let column = |value: Option<f64>, decimals: usize| match value {
            Some(value) => format!("{value:>12.decimals$}"),
            None => format!("{:>12}", "-"),
        };
        [
            column(mean_of(&|figures| Some(figures.mean)), 0),
            column(mean_of(&|figures| Some(figures.p95)), 0),
            column(mean_of(&|figures| Some(figures.makespan)), 0),
            column(mean_of(&|figures| Some(figures.utilisation)), 3),
            column(mean_of(&|figures| Some(figures.unfairness[0])), 2),
            column(mean_of(&|figures| Some(figures.unfairness[1])), 2),
            column(mean_of(&|figures| figures.fragmentation), 3),
            column(mean_of(&|figures| figures.preemptions), 0),
            column(mean_of(&|figures| figures.decisions_per_second), 0),
        ]
        .concat()
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
