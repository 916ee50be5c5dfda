//! What must hold of every outcome of every scenario, checked from outside: the scenario and what came out of it, and
//! nothing that the scheduler believes of itself.

use phalanx_core::spec::{Happening, Scenario, ScenarioJob, ScenarioNode};
use phalanx_core::{GpuRequest, NodeName, Placement, Time};
use phalanx_scheduler::Kind;
use phalanx_scheduler::simulate::{Attempt, JobOutcome, Outcome, PlacedRank};
use std::collections::{BTreeMap, BTreeSet};

/// Rounding of one attempt's work to whole microseconds, in seconds.
const ROUNDING: f64 = 2e-5;

type Finding = Result<(), String>;

/// Checks an outcome; the message names the rule and the job.
#[allow(unreachable_pub, reason = "a module of several test crates")]
pub fn audit(scenario: &Scenario, outcome: &Outcome) -> Finding {
    let nodes: BTreeMap<&str, &ScenarioNode> =
        scenario.nodes.iter().map(|node| (node.name.as_str(), node)).collect();
    let jobs: Vec<(&ScenarioJob, &JobOutcome)> = scenario.jobs.iter().zip(&outcome.jobs).collect();
    ensure(jobs.len() == outcome.jobs.len(), || "every job has an outcome".to_owned())?;
    for (spec, job) in &jobs {
        let told = |finding: Finding| finding.map_err(|what| format!("job {}: {what}: {job:?}", spec.name));
        told(ends(spec, job))?;
        told(reasons(job))?;
        told(work(spec, job))?;
        for attempt in &job.attempts {
            told(placement(spec, attempt, &nodes))?;
            told(outcome_of(scenario, spec, attempt))?;
        }
        told(resizes(scenario, spec, job, &jobs))?;
    }
    conservation(scenario, &jobs)?;
    quotas(scenario, &jobs)?;
    guarantees(scenario, &jobs)
}

fn ensure(holds: bool, rule: impl FnOnce() -> String) -> Finding {
    if holds { Ok(()) } else { Err(rule()) }
}

fn seconds(time: Time) -> f64 {
    time.as_micros() as f64 / 1e6
}

/// Nothing is left hanging: whoever could run has run, and its attempts follow one another.
fn ends(spec: &ScenarioJob, job: &JobOutcome) -> Finding {
    let last = job.attempts.last().map(|attempt| attempt.outcome);
    let ended = match job.state {
        "finished" => last == Some("finished"),
        "failed" => last == Some("time_limit"),
        "cancelled" => {
            last.is_none_or(|last| matches!(last, "cancelled" | "preempted" | "node_lost" | "resized"))
        }
        "infeasible" => last.is_none_or(|last| matches!(last, "preempted" | "node_lost")),
        _ => false,
    };
    ensure(ended, || "whoever could run has run to an end that its last attempt says".to_owned())?;
    ensure(job.submitted == spec.at && job.start == job.attempts.first().map(|first| first.start), || {
        "submitted when the scenario says, started with its first attempt".to_owned()
    })?;
    let closed = job.attempts.iter().all(|attempt| attempt.end.is_some_and(|end| end >= attempt.start));
    let ordered = job.attempts.windows(2).all(|pair| pair[0].end <= Some(pair[1].start));
    let first = job.attempts.first().is_none_or(|first| first.start >= spec.at);
    ensure(closed && ordered && first, || "attempts follow one another from the submission on".to_owned())
}

/// Whoever did not start at once was told why at once, with numbers.
fn reasons(job: &JobOutcome) -> Finding {
    let waited =
        job.start != Some(job.submitted) && !(job.state == "cancelled" && job.end == Some(job.submitted));
    ensure(!waited || job.reasons.iter().any(|told| told.at == job.submitted), || {
        "whoever waits is told why".to_owned()
    })?;
    let says = job.reasons.iter().all(|told| {
        told.text.chars().any(|letter| letter.is_ascii_digit()) || told.text.starts_with("there are no nodes")
    });
    ensure(says, || "a reason has numbers in it".to_owned())
}

fn workers(attempt: &Attempt) -> u32 {
    attempt.bundles.len() as u32
}

/// A finished job has done exactly its work, kept by the rules, and nobody outruns a limit.
fn work(spec: &ScenarioJob, job: &JobOutcome) -> Finding {
    let (mut saved, mut ran, total) = (0.0, 0.0, spec.work.as_secs_f64());
    for (number, attempt) in job.attempts.iter().enumerate() {
        let length = seconds(attempt.end.unwrap_or_default()) - seconds(attempt.start);
        let restart = if number > 0 { spec.restart.as_secs_f64() } else { 0.0 };
        let part = f64::from(workers(attempt)) / f64::from(spec.gang.workers.max);
        let speed = if part == 1.0 { 1.0 } else { part.powf(spec.efficiency) };
        let done = saved + (length - restart).max(0.0) * speed;
        ran += length;
        saved = match attempt.outcome {
            "resized" | "finished" => done,
            "preempted" | "node_lost" => spec.checkpoint_every.map_or(saved, |every| {
                let every = every.as_secs_f64();
                // A checkpoint at this very moment may have been written or not, by rounding.
                ((done + ROUNDING) / every).floor().max(saved / every) * every
            }),
            _ => saved,
        };
    }
    // Seconds since the beginning are as coarse as doubles of their size.
    let coarse = job.end.map_or(0.0, |end| end.as_micros() as f64 / 1e6) * 4.0 * f64::EPSILON;
    let rounding = ROUNDING * (1.0 + job.attempts.len() as f64) + total * 1e-9 + coarse;
    ensure(job.state != "finished" || saved + rounding >= total, || {
        format!("finished with {saved} s of {total} s")
    })?;
    let limit = spec.time_limit.map_or(f64::INFINITY, |limit| limit.as_secs_f64());
    ensure(ran <= limit + rounding, || format!("ran {ran} s with a limit of {limit} s"))?;
    ensure(job.state != "failed" || ran + rounding >= limit, || "failed before its time limit".to_owned())
}

/// All of a gang or nothing, on nodes that its labels, strategy and topology allow, on devices of its own.
fn placement(spec: &ScenarioJob, attempt: &Attempt, nodes: &BTreeMap<&str, &ScenarioNode>) -> Finding {
    let (gang, bundles) = (&spec.gang, &attempt.bundles);
    let whole = (gang.workers.min..=gang.workers.max).contains(&workers(attempt));
    let counted = bundles.iter().enumerate().all(|(at, bundle)| bundle.rank == at as u32);
    ensure(whole && counted, || "a gang starts whole or not at all".to_owned())?;
    let used: BTreeSet<&str> = bundles.iter().map(|bundle| bundle.node.as_str()).collect();
    let strategy = match gang.placement {
        Placement::StrictPack => used.len() == 1,
        Placement::StrictSpread => used.len() == bundles.len(),
        Placement::Pack | Placement::Spread => true,
    };
    ensure(strategy, || "the strategy is kept".to_owned())?;
    let mut devices = BTreeSet::new();
    for bundle in bundles {
        let Some(node) = nodes.get(bundle.node.as_str()) else {
            return Err("a node that is none".to_owned());
        };
        let own = gang.bundles.get(bundle.rank as usize).map(|own| &own.labels);
        let mut rules = gang.labels.iter().chain(own.into_iter().flatten());
        let value = |key: &str| match node.capacity.labels.get(key) {
            Some(value) => Some(value.as_str()),
            None => (key == "node").then_some(node.name.as_str()),
        };
        ensure(rules.all(|(key, rule)| rule.matches(value(key))), || "labels are kept".to_owned())?;
        let named = bundle.gpus.iter().all(|&gpu| (gpu as usize) < node.capacity.devices.len());
        let enough = bundle.gpus.len() as u32 == gang.each.gpus.devices();
        ensure(named && enough, || "a rank has the devices it asks for".to_owned())?;
        let fresh = bundle.gpus.iter().all(|&gpu| devices.insert((bundle.node.as_str(), gpu)));
        ensure(fresh, || "two ranks share a device".to_owned())?;
    }
    let Some(key) = &gang.topology else { return Ok(()) };
    let values: BTreeSet<Option<&String>> =
        used.iter().map(|name| nodes[name].capacity.labels.get(key)).collect();
    ensure(values.len() == 1 && !values.contains(&None), || "one topology domain".to_owned())
}

/// An attempt ends only for what the scenario allows.
fn outcome_of(scenario: &Scenario, spec: &ScenarioJob, attempt: &Attempt) -> Finding {
    let at = attempt.end.unwrap_or_default();
    let mut events = scenario.events.iter().filter(|event| event.at == at);
    let allowed = match attempt.outcome {
        "finished" => true,
        "preempted" => spec.preemptible,
        "resized" => spec.gang.workers.min < spec.gang.workers.max,
        "time_limit" => spec.time_limit.is_some(),
        "cancelled" => events.any(|event| event.what == Happening::Cancel(spec.name.clone())),
        "node_lost" => {
            let lost = |name: &NodeName| attempt.bundles.iter().any(|bundle| bundle.node == name.as_str());
            events.any(|event| matches!(&event.what, Happening::NodeLost(name) if lost(name)))
        }
        _ => false,
    };
    ensure(allowed, || format!("an attempt may not end as {}", attempt.outcome))
}

/// Elastic gangs grow at most so often, and shrink only for someone of higher priority who starts.
fn resizes(
    scenario: &Scenario,
    spec: &ScenarioJob,
    job: &JobOutcome,
    jobs: &[(&ScenarioJob, &JobOutcome)],
) -> Finding {
    let interval = scenario.policy.resize_interval.map_or(60.0, |interval| interval.as_secs_f64());
    let at_once = scenario.policy.grace.unwrap_or_default().is_zero();
    for pair in job.attempts.windows(2).filter(|pair| pair[0].outcome == "resized") {
        let (before, after) = (&pair[0], &pair[1]);
        ensure(before.end == Some(after.start), || "a resized gang goes on at once".to_owned())?;
        let length = seconds(after.start) - seconds(before.start);
        let grew = workers(after) > workers(before);
        ensure(!grew || length + 1e-6 >= interval, || format!("grew after {length} s"))?;
        let served = |(other, outcome): &(&ScenarioJob, &JobOutcome)| {
            other.priority > spec.priority
                && outcome.attempts.iter().any(|attempt| attempt.start == after.start)
        };
        let shrank = workers(after) < workers(before);
        ensure(!shrank || !at_once || jobs.iter().any(served), || "shrank for nobody".to_owned())?;
    }
    Ok(())
}

/// When attempts hold something: from their start to their end, ends first.
fn moments<'a>(
    jobs: &[(&'a ScenarioJob, &'a JobOutcome)],
) -> Vec<(Time, bool, &'a ScenarioJob, &'a Attempt)> {
    let attempts =
        jobs.iter().flat_map(|&(spec, job)| job.attempts.iter().map(move |attempt| (spec, attempt)));
    let held = attempts.filter(|(_, attempt)| attempt.end > Some(attempt.start));
    let mut moments: Vec<(Time, bool, &ScenarioJob, &Attempt)> = held
        .flat_map(|(spec, attempt)| {
            let end = attempt.end.unwrap_or_default();
            [(attempt.start, true, spec, attempt), (end, false, spec, attempt)]
        })
        .collect();
    moments.sort_by_key(|&(at, starts, _, _)| (at, starts));
    moments
}

/// Nothing is held twice, and nothing on a node that is not there.
fn conservation(scenario: &Scenario, jobs: &[(&ScenarioJob, &JobOutcome)]) -> Finding {
    let mut free: BTreeMap<&str, Free> =
        scenario.nodes.iter().map(|node| (node.name.as_str(), Free::all_of(node))).collect();
    let up = up_times(scenario);
    for (at, starts, spec, attempt) in moments(jobs) {
        for bundle in &attempt.bundles {
            let Some(free) = free.get_mut(bundle.node.as_str()) else { continue };
            free.change(spec, bundle, starts);
            let problem = free.problem();
            ensure(problem.is_none(), || {
                format!(
                    "node {} at {}: {} with {}",
                    bundle.node,
                    seconds(at),
                    problem.unwrap_or_default(),
                    spec.name
                )
            })?;
            let end = attempt.end.unwrap_or_default();
            let stands =
                up[bundle.node.as_str()].iter().any(|&(from, to)| from <= attempt.start && end <= to);
            ensure(stands, || {
                format!("node {} is not up for {} at {}", bundle.node, spec.name, seconds(at))
            })?;
        }
    }
    Ok(())
}

/// What is free of a node, signed so that too little shows.
struct Free {
    amounts: BTreeMap<Kind, i128>,
    devices: Vec<i64>,
}

impl Free {
    fn all_of(node: &ScenarioNode) -> Self {
        let capacity = &node.capacity;
        let mut amounts = BTreeMap::from([
            (Kind::Cpu, i128::from(capacity.cpus.milli())),
            (Kind::Memory, i128::from(capacity.memory_bytes)),
        ]);
        let custom =
            capacity.custom.iter().map(|(name, &milli)| (Kind::Custom(name.clone()), i128::from(milli)));
        amounts.extend(custom);
        Free { amounts, devices: vec![1000; capacity.devices.len()] }
    }

    fn change(&mut self, spec: &ScenarioJob, bundle: &PlacedRank, takes: bool) {
        let (each, sign) = (&spec.gang.each, if takes { -1 } else { 1 });
        let custom = each.custom.iter().map(|(name, &milli)| (Kind::Custom(name.clone()), milli));
        let fixed = [(Kind::Cpu, each.cpus.milli()), (Kind::Memory, each.memory_bytes)];
        for (kind, amount) in fixed.into_iter().chain(custom) {
            *self.amounts.entry(kind).or_default() += sign * i128::from(amount);
        }
        let shares = match each.gpus {
            GpuRequest::None => 0,
            GpuRequest::Whole(_) => 1000,
            GpuRequest::Share(shares) => i64::from(shares),
        };
        for &gpu in &bundle.gpus {
            self.devices[gpu as usize] += sign as i64 * shares;
        }
    }

    fn problem(&self) -> Option<String> {
        let short = self.amounts.iter().find(|(_, amount)| **amount < 0);
        let device = self.devices.iter().position(|&free| !(0..=1000).contains(&free));
        short
            .map(|(kind, amount)| format!("{kind:?} is {amount} short"))
            .or_else(|| device.map(|at| format!("device {at} has {} free", self.devices[at])))
    }
}

/// From when to when each node is there.
fn up_times(scenario: &Scenario) -> BTreeMap<&str, Vec<(Time, Time)>> {
    let mut changes: Vec<(Time, u8, usize, &str, bool)> =
        scenario.nodes.iter().map(|node| (node.at, 0, 0, node.name.as_str(), true)).collect();
    for (at, event) in scenario.events.iter().enumerate() {
        match &event.what {
            Happening::NodeLost(name) => changes.push((event.at, 1, at, name.as_str(), false)),
            Happening::NodeJoined(name) => changes.push((event.at, 1, at, name.as_str(), true)),
            Happening::Cancel(_) => {}
        }
    }
    changes.sort();
    let never = Time::from_micros(u64::MAX);
    let mut up: BTreeMap<&str, Vec<(Time, Time)>> = BTreeMap::new();
    for (at, _, _, name, joins) in changes {
        let spans = up.entry(name).or_default();
        let open = spans.last().is_some_and(|&(_, to)| to == never);
        match (joins, open) {
            (true, false) => spans.push((at, never)),
            (false, true) => {
                if let Some(last) = spans.last_mut() {
                    last.1 = at;
                }
            }
            _ => {}
        }
    }
    up
}

fn asked(spec: &ScenarioJob, kind: &str, attempt: &Attempt) -> u128 {
    let each = &spec.gang.each;
    let one = match kind {
        "cpus" => each.cpus.milli(),
        "gpus" => each.gpus.shares(),
        "memory" => each.memory_bytes,
        name => each.custom.get(name).copied().unwrap_or(0),
    };
    u128::from(one) * attempt.bundles.len() as u128
}

/// No queue ever holds more than its quota.
fn quotas(scenario: &Scenario, jobs: &[(&ScenarioJob, &JobOutcome)]) -> Finding {
    for queue in &scenario.queues {
        for (kind, quota) in queue.quota.named() {
            let mut held = 0u128;
            for (at, starts, spec, attempt) in
                moments(jobs).into_iter().filter(|entry| entry.2.queue == queue.name)
            {
                let amount = asked(spec, kind, attempt);
                held = if starts { held + amount } else { held - amount };
                ensure(held <= u128::from(quota), || {
                    format!("queue {} holds {held} {kind} of {quota} at {}", queue.name, seconds(at))
                })?;
            }
        }
    }
    Ok(())
}

/// What another queue takes by preemption leaves a queue its guarantee.
fn guarantees(scenario: &Scenario, jobs: &[(&ScenarioJob, &JobOutcome)]) -> Finding {
    if !scenario.policy.grace.unwrap_or_default().is_zero() {
        return Ok(());
    }
    let attempts =
        || jobs.iter().flat_map(|&(spec, job)| job.attempts.iter().map(move |attempt| (spec, attempt)));
    for (spec, attempt) in attempts().filter(|(_, attempt)| attempt.outcome == "preempted") {
        let at = attempt.end.unwrap_or_default();
        let of_queue = || attempts().filter(|(other, _)| other.queue == spec.queue);
        // One of its own may have taken it.
        if of_queue().any(|(_, other)| other.start == at) {
            continue;
        }
        let queue = scenario.queues.iter().find(|queue| queue.name == spec.queue);
        for (kind, guaranteed) in queue.into_iter().flat_map(|queue| queue.guaranteed.named()) {
            let stays = of_queue().filter(|(_, other)| other.start < at && other.end > Some(at));
            let held: u128 = stays.map(|(other, attempt)| asked(other, kind, attempt)).sum();
            let lost = asked(spec, kind, attempt);
            ensure(lost == 0 || held >= u128::from(guaranteed), || {
                format!(
                    "{} is taken from queue {} below its guarantee at {}",
                    spec.name,
                    spec.queue,
                    seconds(at)
                )
            })?;
        }
    }
    Ok(())
}
