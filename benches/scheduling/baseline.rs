//! Other schedulers on one pool of GPUs: FIFO, EASY with the jobs' true lengths, and preemptive least attained service.

use super::Job;
use super::figures::Busy;

/// How a baseline orders and preempts.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Baseline {
    Fifo,
    Easy,
    Las,
}

/// When each job ends under a baseline, and the stretches of time with the GPUs that are busy in each.
pub(crate) fn baseline(kind: Baseline, jobs: &[Job], gpus: u32) -> (Vec<f64>, Vec<Busy>) {
    let mut left: Vec<f64> = jobs.iter().map(|job| job.seconds).collect();
    let mut attained = vec![0.0f64; jobs.len()];
    let mut ends = vec![0.0f64; jobs.len()];
    let mut busy: Vec<Busy> = Vec::new();
    let mut running: Vec<usize> = Vec::new();
    let mut waiting: Vec<usize> = Vec::new();
    let (mut now, mut next) = (0.0f64, 0);
    // Levels of attained service: 3,600 GPU-seconds and ten times that, as Tiresias discretises.
    let level = |attained: f64| [3600.0, 36_000.0].iter().filter(|&&bound| attained >= bound).count();
    loop {
        let used: u32 = running.iter().map(|&at| jobs[at].gpus).sum();
        let mut free = gpus - used;
        if kind == Baseline::Las {
            waiting.append(&mut running);
            waiting.sort_by(|&a, &b| (level(attained[a]), a).cmp(&(level(attained[b]), b)));
            free = gpus;
            let (start, wait): (Vec<usize>, Vec<usize>) = waiting.iter().partition(|&&at| {
                let fits = jobs[at].gpus <= free;
                free -= if fits { jobs[at].gpus } else { 0 };
                fits
            });
            (running, waiting) = (start, wait);
        } else {
            while let Some(&first) = waiting.first().filter(|&&at| jobs[at].gpus <= free) {
                free -= jobs[first].gpus;
                running.push(waiting.remove(0));
            }
            if let (Baseline::Easy, Some(&head)) = (kind, waiting.first()) {
                let mut by_end: Vec<(f64, u32)> =
                    running.iter().map(|&at| (now + left[at], jobs[at].gpus)).collect();
                by_end.sort_by(|a, b| a.0.total_cmp(&b.0));
                let (mut sum, mut shadow) = (free, f64::INFINITY);
                for (end, gpus) in by_end {
                    sum += gpus;
                    if sum >= jobs[head].gpus {
                        shadow = end;
                        break;
                    }
                }
                let mut extra = sum.saturating_sub(jobs[head].gpus);
                let mut at = 1;
                while at < waiting.len() {
                    let job = jobs[waiting[at]];
                    let short = now + job.seconds <= shadow;
                    if job.gpus <= free && (short || job.gpus <= extra) {
                        free -= job.gpus;
                        extra -= if short { 0 } else { job.gpus };
                        running.push(waiting.remove(at));
                    } else {
                        at += 1;
                    }
                }
            }
        }
        let arrival = jobs.get(next).map_or(f64::INFINITY, |job| job.at);
        let end = running.iter().map(|&at| now + left[at]).fold(f64::INFINITY, f64::min);
        let crossing = |at: usize| {
            let bound = if attained[at] < 3600.0 { 3600.0 } else { 36_000.0 };
            let crosses = kind == Baseline::Las && attained[at] < bound && !waiting.is_empty();
            if crosses { now + (bound - attained[at]) / f64::from(jobs[at].gpus) } else { f64::INFINITY }
        };
        let level_at = running.iter().map(|&at| crossing(at)).fold(f64::INFINITY, f64::min);
        let then = arrival.min(end).min(level_at.max(now + 1e-6));
        if then.is_infinite() {
            break;
        }
        busy.push(Busy { from: now, to: then, gpus: running.iter().map(|&at| jobs[at].gpus).sum() });
        for &at in &running {
            left[at] -= then - now;
            attained[at] += (then - now) * f64::from(jobs[at].gpus);
        }
        now = then;
        running.retain(|&at| {
            if left[at] <= 1e-6 {
                ends[at] = now;
            }
            left[at] > 1e-6
        });
        while jobs.get(next).is_some_and(|job| job.at <= now) {
            waiting.push(next);
            next += 1;
        }
    }
    (ends, busy)
}
