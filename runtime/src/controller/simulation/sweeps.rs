//! Sweeps in the simulated world: what their trials do, what is stored of them, and what must hold.

use super::*;
use phalanx_core::spec::SweepSpec;
use phalanx_core::{Sweep, SweepId, SweepState, Trial, TrialState, Wish};
use phalanx_tuner::{Record, Study};

/// A trial that is not stopped reports so often.
const STEPS: u64 = 9;
/// A report that nobody answers is given up.
const JUDGE_BOUND: Duration = Duration::from_secs(15);

/// What the disk has of sweeps.
#[derive(Default)]
pub(super) struct StoredSweeps {
    pub(super) sweeps: BTreeMap<SweepId, Sweep>,
    pub(super) trials: BTreeMap<(SweepId, u64), Trial>,
    logs: BTreeMap<SweepId, Vec<Record>>,
}

/// What a trial's rank 0 is at.
#[derive(Clone, Copy, Debug)]
pub(super) struct Process {
    number: u64,
    step: u64,
    judged: bool,
    /// It has reported and waits to be answered.
    waits: bool,
}

/// Always the same for a trial's step, whichever attempt reports it.
fn value(number: u64, step: u64) -> f64 {
    ((number * 7919 + step * 31) % 101) as f64 / step as f64
}

impl World {
    pub(super) fn make_sweep(&mut self) {
        let trials = 3 + self.dice.below(8);
        let stopping = [
            "kind = \"none\"",
            "kind = \"asha\"\nmin = 1\nmax = 9\neta = 3",
            "kind = \"asha\"\nmode = \"promote\"\nmin = 1\nmax = 9\neta = 3",
            "kind = \"asha\"\nmode = \"promote\"\nmin = 1\nmax = 9\neta = 3",
            "kind = \"median\"\nstartup = 2",
        ][self.dice.below(5) as usize];
        let concurrency = if self.dice.chance(50) {
            format!("concurrency = {}\n", 1 + self.dice.below(3))
        } else {
            String::new()
        };
        let failed = if self.dice.chance(30) { "max_failed_trials = 1\n" } else { "" };
        let limit = if self.dice.chance(10) { "time_limit = \"60s\"\n" } else { "" };
        let queue = QUEUES[self.dice.below(QUEUES.len() as u64) as usize];
        let workers = 1 + self.dice.below(2);
        let failures = self.dice.below(2);
        let text = format!(
            "version = 1\nqueue = \"{queue}\"\ngrace = \"2s\"\nmax_failures = {failures}\n[gang]\nworkers = {workers}\n\
             [program]\ncommand = [\"x\"]\n[sweep]\nmetric = \"m\"\ntrials = {trials}\n{concurrency}{failed}{limit}\
             [search]\nkind = \"random\"\n[stopping]\n{stopping}\n[params]\nx = {{ kind = \"int\", low = 0, high = 999 }}\n"
        );
        let spec = SweepSpec::parse_runnable(&text, "sweep").unwrap();
        let submission = SweepSubmission { spec, base_dir: "/".into(), external: false };
        match self.serve(|controller, now| controller.create_sweep(now, submission)) {
            Some(Ok(_)) => {}
            Some(Err(_)) | None => self.after(Duration::from_secs(1), Step::Sweep),
        }
    }

    pub(super) fn disturb_sweep(&mut self) {
        let ids: Vec<SweepId> = self.disk.sweeps.sweeps.keys().copied().collect();
        if ids.is_empty() {
            return;
        }
        let id = ids[self.dice.below(ids.len() as u64) as usize];
        match self.dice.below(6) {
            0 => drop(self.serve(|controller, _| controller.cancel_sweep(id))),
            1 | 2 => drop(self.serve(|controller, _| controller.pause_sweep(id))),
            _ => drop(self.serve(|controller, _| controller.resume_sweep(id))),
        }
    }

    /// What people have paused they let go on. Whether any sweep is still open.
    pub(super) fn calm_sweeps(&mut self) -> bool {
        let paused = self.disk.sweeps.sweeps.values().filter(|sweep| sweep.now.wish == Wish::Pause);
        for id in paused.map(|sweep| sweep.id).collect::<Vec<_>>() {
            self.serve(|controller, _| drop(controller.resume_sweep(id)));
        }
        self.disk.sweeps.sweeps.values().any(|sweep| !sweep.now.state.is_terminal())
    }

    pub(super) fn store_sweeps(&mut self, writes: Vec<SweepWrite>) {
        let disk = &mut self.disk.sweeps;
        for write in writes {
            let id = write.sweep.id;
            assert_eq!(write.fresh, !disk.sweeps.contains_key(&id), "{id} is made once");
            let log = disk.logs.entry(id).or_default();
            assert_eq!(log.len() as u64, write.logged, "the log of {id} has no gap");
            log.extend(write.records);
            disk.trials.extend(write.trials.into_iter().map(|trial| ((id, trial.number), trial)));
            disk.sweeps.insert(id, write.sweep);
        }
    }

    pub(super) fn loaded_sweeps(&self) -> Vec<LoadedSweep> {
        let disk = &self.disk.sweeps;
        let live = disk.sweeps.values().filter(|sweep| !sweep.now.state.is_terminal());
        let load = |sweep: &Sweep| {
            let trials = disk.trials.range((sweep.id, 0)..=(sweep.id, u64::MAX));
            let open: Vec<Trial> = trials
                .filter(|(_, trial)| !trial.state.is_terminal())
                .map(|(_, trial)| trial.clone())
                .collect();
            let jobs = open.iter().filter_map(|trial| self.disk.jobs.get(&trial.job?));
            let over = jobs.filter(|job| job.state.is_terminal()).cloned().collect();
            LoadedSweep {
                sweep: sweep.clone(),
                records: disk.logs[&sweep.id].clone(),
                open,
                over,
                checkpoints: Vec::new(),
            }
        };
        live.map(load).collect()
    }

    /// Rank 0 of a trial begins where its checkpoint ends.
    pub(super) fn trial_begins(&mut self, node: &NodeName, launch: &Launch) {
        let Some(trial) = launch.trial.as_ref().filter(|_| launch.ranks.iter().any(|rank| rank.rank == 0))
        else {
            return;
        };
        let restored =
            launch.checkpoint.as_ref().and_then(|path| path.file_name()?.to_str()?.parse::<u64>().ok());
        let process = Process {
            number: trial.id.number,
            step: restored.unwrap_or(0),
            judged: trial.judged.is_some(),
            waits: false,
        };
        self.hosts.get_mut(node).unwrap().trials.insert(launch.attempt, process);
        self.trial_goes_on(node, launch.attempt);
    }

    fn trial_goes_on(&mut self, node: &NodeName, attempt: AttemptId) {
        let incarnation = self.hosts[node].incarnation;
        let Some(process) = self.hosts[node].trials.get(&attempt).copied() else { return };
        let delay = self.dice.up_to(Duration::from_secs(3));
        let step = match process.step {
            STEPS.. => Step::RankEnds { node: node.clone(), incarnation, attempt, rank: 0, life: 0, code: 0 },
            _ if self.dice.chance(2) => {
                Step::RankEnds { node: node.clone(), incarnation, attempt, rank: 0, life: 0, code: 3 }
            }
            step => Step::Reports { node: node.clone(), incarnation, attempt, step: step + 1 },
        };
        self.after(delay, step);
    }

    pub(super) fn trial_reports(&mut self, node: &NodeName, incarnation: u64, attempt: AttemptId, step: u64) {
        let host = self.hosts.get_mut(node).unwrap();
        if host.ranks.get(&(attempt, 0)) != Some(&incarnation) || !host.alive {
            return;
        }
        let Some(process) = host.trials.get_mut(&attempt) else { return };
        (process.step, process.waits) = (step, process.judged);
        let process = *process;
        let metrics = BTreeMap::from([("m".to_owned(), value(process.number, step))]);
        self.say(node, attempt, Happening::Report { rank: 0, step, metrics });
        if process.judged {
            let given_up = Step::Answered { node: node.clone(), incarnation, attempt, step };
            self.after(JUDGE_BOUND, given_up);
        } else {
            self.trial_goes_on(node, attempt);
        }
    }

    /// A report has been answered, or given up.
    pub(super) fn trial_answered(&mut self, node: &NodeName, attempt: AttemptId, step: u64) {
        let host = self.hosts.get_mut(node).unwrap();
        let Some(process) = host.trials.get_mut(&attempt) else { return };
        if process.waits && process.step <= step {
            process.waits = false;
            self.trial_goes_on(node, attempt);
        }
    }

    /// A trial is asked to end: most leave a checkpoint and do, some do not listen.
    pub(super) fn trial_asked(&mut self, node: &NodeName, attempt: AttemptId) {
        let incarnation = self.hosts[node].incarnation;
        let Some(process) = self.hosts[node].trials.get(&attempt).copied() else { return };
        if self.dice.chance(15) || self.hosts[node].ranks.get(&(attempt, 0)) != Some(&incarnation) {
            return;
        }
        let path = format!("/c/{}", process.step).into();
        self.say(node, attempt, Happening::Checkpoint { step: process.step, path });
        let delay = self.dice.up_to(Duration::from_millis(200));
        self.after(
            delay,
            Step::RankEnds { node: node.clone(), incarnation, attempt, rank: 0, life: 0, code: 0 },
        );
    }

    /// The other ranks of a trial end with its rank 0.
    pub(super) fn trial_rank_ended(&mut self, node: &NodeName, attempt: AttemptId, rank: Rank) {
        if rank != 0 || self.hosts.get_mut(node).unwrap().trials.remove(&attempt).is_none() {
            return;
        }
        let others: Vec<(NodeName, u64, Rank)> = self
            .hosts
            .iter()
            .flat_map(|(name, host)| host.ranks.iter().map(move |(key, started_by)| (name, key, started_by)))
            .filter(|(_, (other, _), _)| *other == attempt)
            .map(|(name, (_, rank), started_by)| (name.clone(), *started_by, *rank))
            .collect();
        for (node, incarnation, rank) in others {
            self.after(
                Duration::from_millis(5),
                Step::RankEnds { node, incarnation, attempt, rank, life: 0, code: 0 },
            );
        }
    }

    pub(super) fn check_sweeps(&self) -> Result<(), String> {
        let disk = &self.disk.sweeps;
        for sweep in disk.sweeps.values() {
            let trials: Vec<&Trial> =
                disk.trials.range((sweep.id, 0)..=(sweep.id, u64::MAX)).map(|(_, trial)| trial).collect();
            let mut counts = phalanx_core::TrialCounts::default();
            trials.iter().for_each(|trial| *counts.of(trial.state) += 1);
            if counts != sweep.now.counts {
                return Err(format!("{} counts {:?} and has {counts:?}", sweep.id, sweep.now.counts));
            }
            let most = sweep.asked.spec.concurrency.map_or(u64::MAX, u64::from);
            if counts.running + counts.queued > most {
                return Err(format!(
                    "{} of {} run, and {most} may",
                    counts.running + counts.queued,
                    sweep.id
                ));
            }
            if counts.all() > sweep.asked.spec.trials.unwrap_or(u64::MAX) {
                return Err(format!("{} has {} trials", sweep.id, counts.all()));
            }
            for trial in trials {
                let job = trial.job.and_then(|job| self.disk.jobs.get(&job));
                let job = job.ok_or_else(|| format!("{}/{} has no job", sweep.id, trial.number))?;
                let mine = job.trial.as_ref().is_some_and(|of| {
                    of.id.sweep == sweep.id && of.id.number == trial.number && of.params == trial.params
                });
                if !mine || job.state.is_terminal() != trial.state.is_terminal() {
                    let (id, number) = (sweep.id, trial.number);
                    return Err(format!(
                        "{id}/{number} is {} and its job {}: {:?}",
                        trial.state, job.state, job.trial
                    ));
                }
            }
        }
        Ok(())
    }

    /// Every sweep has ended, and its log says the same as what is shown of it.
    pub(super) fn finish_sweeps(&self, seed: u64) {
        let disk = &self.disk.sweeps;
        for sweep in disk.sweeps.values() {
            let (id, now) = (sweep.id, &sweep.now);
            assert!(now.state.is_terminal(), "seed {seed}: {id} never ended: {sweep:#?}");
            let study = Study::rebuild(&sweep.asked.spec, disk.logs[&id].clone()).unwrap();
            assert_eq!(study.trials().len() as u64, now.counts.all(), "seed {seed}: {id}");
            for told in study.trials() {
                let shown = &disk.trials[&(id, told.number)];
                assert_eq!(
                    format!("{:?}", told.state),
                    format!("{:?}", shown.state),
                    "seed {seed}: {id}/{}",
                    told.number
                );
                let values: Vec<f64> = shown.values.iter().flatten().map(|value| value.0).collect();
                assert!(shown.state != TrialState::Complete || values == told.values, "seed {seed}: {id}");
            }
            assert_eq!(
                now.best.as_ref().map(|best| best.number),
                study.best().map(|best| best.number),
                "seed {seed}"
            );
            let cut =
                now.state == SweepState::Cancelled || study.is_over() || now.reason.code == "time_limit";
            let wanted = sweep.asked.spec.trials.unwrap();
            assert!(cut || now.counts.all() == wanted, "seed {seed}: {id} ended early: {sweep:#?}");
            assert!(now.counts.complete > 0 || now.state != SweepState::Succeeded, "seed {seed}: {id}");
        }
    }
}
