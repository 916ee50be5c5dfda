//! The controller's life of a job, step by step: what it stores and what it orders.

use super::*;
use crate::protocol::{AgentEvent, Happening, Hello, RankExit};
use phalanx_core::flight::{DType, LastWords, Op, OpRecord, OpState, Signature};
use phalanx_core::job::Member;
use phalanx_core::resources::{Capacity, Cpus};
use phalanx_core::spec::QueueSpec;
use phalanx_core::{AttemptState, JobSpec, Rank};
use std::path::PathBuf;

const NODE_TIMEOUT: Duration = Duration::from_secs(15);

struct Scene {
    controller: Controller,
    now: Time,
    seq: u64,
    stored: BTreeMap<JobId, Job>,
    queues: BTreeMap<String, QueueSpec>,
    shares: BTreeMap<String, Share>,
    sent: Vec<(NodeName, Command)>,
}

fn config() -> Config {
    Config { embedded: false, node_timeout: NODE_TIMEOUT, queues: Queues::default() }
}

fn first() -> Loaded {
    Loaded { next_job: 1, ..Loaded::default() }
}

fn node(name: &str) -> NodeName {
    name.parse().unwrap()
}

fn hello(name: &str, incarnation: &str, attempts: &[AttemptId]) -> Hello {
    Hello {
        node: node(name),
        incarnation: incarnation.to_owned(),
        outbox: "o".to_owned(),
        capacity: Capacity { cpus: Cpus::from_cores(2), memory_bytes: 1 << 30, ..Capacity::default() },
        attempts: attempts.to_vec(),
        address: "127.0.0.1".to_owned(),
    }
}

impl Scene {
    fn new(nodes: &[&str]) -> Scene {
        Scene::with_queues(nodes, "")
    }

    /// With the queues of a configuration.
    fn with_queues(nodes: &[&str], site: &str) -> Scene {
        let site = phalanx_core::spec::ServiceSpec::parse(&format!("version = 1\n{site}")).unwrap();
        let file = site.queues.into_iter().map(|queue| (queue.name.clone(), queue)).collect();
        let queues = Queues { file, api: BTreeMap::new(), scheduling: site.scheduling };
        let controller = Controller::restore(Config { queues, ..config() }, Time::ZERO, first());
        let mut scene = Scene {
            controller,
            now: Time::ZERO,
            seq: 0,
            stored: BTreeMap::new(),
            queues: BTreeMap::new(),
            shares: BTreeMap::new(),
            sent: Vec::new(),
        };
        for name in nodes {
            scene.controller.joined(Time::ZERO, &hello(name, "p1", &[]));
        }
        scene.settle();
        scene
    }

    fn settle(&mut self) {
        self.controller.tick(self.now);
        let effects = self.controller.settle(self.now);
        self.shares.extend(effects.shares);
        for write in effects.queues {
            match write {
                QueueWrite::Set(queue) => drop(self.queues.insert(queue.name.clone(), queue)),
                QueueWrite::Reset(name) => drop(self.queues.remove(&name)),
            }
        }
        self.stored.extend(effects.jobs.into_iter().map(|saved| (saved.job.id, saved.job)));
        self.sent.extend(effects.sends);
    }

    fn submit(&mut self, more: &str) -> JobId {
        let text = format!("version = 1\n{more}\n[program]\ncommand = [\"true\"]\n");
        let spec = JobSpec::parse(&text, "job").unwrap();
        let submission = Submission { spec, base_dir: PathBuf::from("/") };
        let id = self.controller.submit(self.now, submission).unwrap().id;
        self.controller.accept();
        self.settle();
        id
    }

    fn happened(&mut self, name: &str, job: JobId, what: Happening) {
        self.seq += 1;
        let attempt = AttemptId { job, number: self.stored[&job].attempts.len() as u32 };
        let event = AgentEvent { seq: self.seq, attempt, time: self.now, what };
        self.controller.happened(self.now, &node(name), &event);
        self.settle();
    }

    fn run_ranks(&mut self, name: &str, job: JobId, ranks: std::ops::Range<Rank>) {
        self.happened(name, job, Happening::Reserved { master_port: 4000 });
        for rank in ranks {
            self.happened(name, job, Happening::RankStarted { rank, pid: 1, life: 0 });
        }
    }

    fn exit(&mut self, name: &str, job: JobId, rank: Rank, code: i32, asked: bool) {
        let exit = RankExit {
            rank,
            code,
            message: format!("exited with code {code}"),
            asked,
            not_started: code == 127,
            life: 0,
        };
        self.happened(name, job, Happening::RankExited(exit));
    }

    fn gone(&mut self, name: &str, job: JobId) {
        self.happened(name, job, Happening::Gone { unreaped: String::new() });
    }

    fn pass(&mut self, duration: Duration) {
        self.now = self.now + duration;
        self.settle();
    }

    fn state(&self, job: JobId) -> JobState {
        self.stored[&job].state
    }

    fn take_sent(&mut self) -> Vec<(NodeName, Command)> {
        std::mem::take(&mut self.sent)
    }

    /// A service that died and came back: nothing but what was stored is left.
    fn restart(&mut self) {
        let jobs = self.stored.values().filter(|job| !job.state.is_terminal()).cloned().collect();
        let nodes = self.controller.nodes().map(|node| node.record.clone()).collect();
        let loaded = Loaded {
            live_jobs: jobs,
            next_job: self.stored.len() as u64 + 1,
            nodes,
            queues: self.queues.clone(),
            shares: self.shares.clone().into_iter().collect(),
            passed: Vec::new(),
            groups: Vec::new(),
            sweeps: Vec::new(),
            next_sweep: 1,
        };
        let file = Queues { api: BTreeMap::new(), ..self.controller.queues().clone() };
        let config = Config { queues: file, ..config() };
        self.controller = Controller::restore(config, self.now, loaded);
    }
}

#[test]
fn a_gang_is_reserved_everywhere_before_any_rank_starts() {
    let mut scene = Scene::new(&["a", "b"]);
    let job = scene.submit("[gang]\nworkers = 4\n");
    assert_eq!(scene.state(job), JobState::Starting);
    let sent = scene.take_sent();
    assert!(sent.len() == 2 && sent.iter().all(|(_, command)| matches!(command, Command::Reserve { .. })));
    scene.happened("a", job, Happening::Reserved { master_port: 4000 });
    assert!(scene.take_sent().is_empty());
    scene.happened("b", job, Happening::Reserved { master_port: 0 });
    let launches: Vec<_> = scene
        .take_sent()
        .into_iter()
        .filter_map(|(_, c)| match c {
            Command::Start(launch) => Some(launch),
            _ => None,
        })
        .collect();
    assert_eq!(
        launches.iter().map(|l| (l.world, l.master_port, l.group_world, l.ranks.len())).collect::<Vec<_>>(),
        [(4, 4000, 2, 2), (4, 4000, 2, 2)]
    );
    assert_eq!(launches.iter().map(|l| l.group_rank).collect::<Vec<_>>(), [0, 1]);
}

#[test]
fn a_job_succeeds_when_its_last_process_is_gone() {
    let mut scene = Scene::new(&["a"]);
    let job = scene.submit("[gang]\nworkers = 2\n");
    scene.run_ranks("a", job, 0..2);
    assert_eq!(scene.state(job), JobState::Running);
    scene.exit("a", job, 0, 0, false);
    scene.exit("a", job, 1, 0, false);
    assert_eq!(scene.state(job), JobState::Running);
    scene.gone("a", job);
    assert_eq!((scene.state(job), scene.stored[&job].exit_code), (JobState::Succeeded, Some(0)));
}

#[test]
fn the_first_failing_rank_ends_the_gang_and_counts() {
    let mut scene = Scene::new(&["a"]);
    let job = scene.submit("max_failures = 1\n[gang]\nworkers = 2\n");
    scene.run_ranks("a", job, 0..2);
    scene.take_sent();
    scene.exit("a", job, 1, 3, false);
    assert!(matches!(scene.take_sent()[..], [(_, Command::Stop { ask_first: false, .. })]));
    scene.exit("a", job, 0, 143, true);
    scene.gone("a", job);
    let first = &scene.stored[&job].attempts[0];
    assert_eq!((first.state, first.exit_code, first.failed_rank), (AttemptState::Failed, Some(3), Some(1)));
    assert!(first.message.contains("rank 1 exited with code 3"));
    // One failure is allowed: the second attempt runs, fails, and its code is the job's.
    scene.run_ranks("a", job, 0..2);
    assert_eq!(scene.state(job), JobState::Running);
    scene.exit("a", job, 0, 5, false);
    scene.exit("a", job, 1, 143, true);
    scene.gone("a", job);
    assert_eq!((scene.state(job), scene.stored[&job].exit_code), (JobState::Failed, Some(5)));
}

#[test]
fn a_failure_names_the_operation_that_missed_its_rank_over_all_nodes() {
    let mut scene = Scene::new(&["a", "b"]);
    let job = scene.submit("max_failures = 0\n[gang]\nworkers = 2\nplacement = \"strict-spread\"\n");
    scene.run_ranks("a", job, 0..1);
    scene.run_ranks("b", job, 1..2);
    let words = |rank, seq, state| {
        let call = Signature { op: Op::Broadcast, dtype: DType::F64, reduce: None, peer: 0, bytes: 16 };
        let ops = vec![OpRecord { seq, call, state, started_ns: 1, ended_ns: 2 }];
        Happening::Flight { ranks: vec![LastWords { rank, ops }] }
    };
    let ranks = scene.stored[&job].attempts[0].ranks.clone();
    scene.exit(ranks[1].node.as_str(), job, 1, 3, false);
    scene.exit(ranks[0].node.as_str(), job, 0, 143, true);
    scene.happened(ranks[1].node.as_str(), job, words(1, 6, OpState::Done));
    scene.gone(ranks[1].node.as_str(), job);
    scene.happened(ranks[0].node.as_str(), job, words(0, 7, OpState::Failed));
    scene.gone(ranks[0].node.as_str(), job);
    let message = &scene.stored[&job].attempts[0].message;
    assert!(
        message.starts_with(
            "rank 1 exited with code 3; rank 1 did not come to operation 7, broadcast from rank 0 of 2 x f64, in which \
             rank 0 waited"
        ),
        "{message}"
    );
    assert_eq!(scene.stored[&job].reason.text, *message);
}

#[test]
fn a_command_that_cannot_start_is_not_tried_again() {
    let mut scene = Scene::new(&["a"]);
    let job = scene.submit("max_failures = 9\n");
    scene.happened("a", job, Happening::Reserved { master_port: 1 });
    scene.exit("a", job, 0, 127, false);
    scene.gone("a", job);
    assert_eq!((scene.state(job), scene.stored[&job].exit_code), (JobState::Failed, Some(127)));
}

#[test]
fn a_cancelled_job_is_cancelled_even_if_its_program_ends_well() {
    let mut scene = Scene::new(&["a"]);
    let job = scene.submit("");
    scene.run_ranks("a", job, 0..1);
    scene.controller.cancel(scene.now, job).unwrap();
    scene.controller.accept();
    scene.settle();
    scene.exit("a", job, 0, 0, true);
    assert_eq!(scene.state(job), JobState::Running);
    scene.gone("a", job);
    assert_eq!(scene.state(job), JobState::Cancelled);
}

#[test]
fn a_paused_job_goes_on_from_its_checkpoint() {
    let mut scene = Scene::new(&["a"]);
    let job = scene.submit("");
    scene.run_ranks("a", job, 0..1);
    scene.happened("a", job, Happening::Checkpoint { step: 7, path: "/c/7".into() });
    scene.controller.pause(scene.now, job).unwrap();
    scene.controller.accept();
    scene.settle();
    assert!(matches!(scene.take_sent().last(), Some((_, Command::Stop { ask_first: true, .. }))));
    scene.exit("a", job, 0, 143, true);
    scene.gone("a", job);
    assert_eq!((scene.state(job), scene.stored[&job].failures), (JobState::Paused, 0));
    scene.controller.resume(scene.now, job).unwrap();
    scene.controller.accept();
    scene.settle();
    scene.happened("a", job, Happening::Reserved { master_port: 1 });
    let launch = scene.take_sent().into_iter().find_map(|(_, c)| match c {
        Command::Start(launch) => Some(launch),
        _ => None,
    });
    assert_eq!(launch.unwrap().checkpoint, Some(PathBuf::from("/c/7")));
}

#[test]
fn a_rank_that_starts_late_finds_the_checkpoint_of_its_attempt() {
    let mut scene = Scene::new(&["a"]);
    let job = scene.submit("max_failures = 1\n[gang]\nworkers = 2\n");
    scene.run_ranks("a", job, 0..2);
    let hand_over = |scene: &mut Scene, step: u64| {
        let path = format!("/c/{step}").into();
        scene.happened("a", job, Happening::Checkpoint { step, path });
        let dropped = scene.take_sent().into_iter().filter_map(|(_, command)| match command {
            Command::DropCheckpoint { path } => Some(path.to_str().unwrap().to_owned()),
            _ => None,
        });
        dropped.collect::<Vec<String>>()
    };
    assert_eq!(hand_over(&mut scene, 1), [""; 0]);
    assert_eq!(hand_over(&mut scene, 2), ["/c/1"]);
    scene.exit("a", job, 0, 1, false);
    scene.exit("a", job, 1, 143, true);
    scene.gone("a", job);
    scene.run_ranks("a", job, 0..1);
    // Rank 1 has yet to read the one that both started from.
    assert_eq!((hand_over(&mut scene, 3), hand_over(&mut scene, 4)), (vec![], vec!["/c/3".to_owned()]));
    scene.happened("a", job, Happening::RankStarted { rank: 1, pid: 1, life: 0 });
    let steps =
        |scene: &Scene| scene.stored[&job].checkpoints.iter().map(|kept| kept.step).collect::<Vec<u64>>();
    assert_eq!(steps(&scene), [2, 4]);
    (0..2).for_each(|rank| scene.exit("a", job, rank, 0, false));
    scene.gone("a", job);
    assert_eq!((scene.state(job), steps(&scene)), (JobState::Succeeded, vec![4]));
}

#[test]
fn a_lost_node_brings_an_older_checkpoint_and_the_latest_stays_the_latest() {
    let mut scene = Scene::new(&["a"]);
    let job = scene.submit("max_failures = 1\n");
    scene.run_ranks("a", job, 0..1);
    scene.exit("a", job, 0, 1, false);
    scene.gone("a", job);
    scene.run_ranks("a", job, 0..1);
    scene.happened("a", job, Happening::Checkpoint { step: 9, path: "/c/9".into() });
    let attempt = AttemptId { job, number: 1 };
    let what = Happening::Checkpoint { step: 5, path: "/c/5".into() };
    let late = AgentEvent { seq: 100, attempt, time: scene.now, what };
    scene.controller.happened(scene.now, &node("a"), &late);
    scene.settle();
    assert_eq!(scene.stored[&job].checkpoints.last().unwrap().step, 9);
}

#[test]
fn a_job_that_outruns_its_limit_fails_with_124() {
    let mut scene = Scene::new(&["a"]);
    let job = scene.submit("time_limit = \"10s\"\n");
    scene.pass(Duration::from_secs(60));
    scene.run_ranks("a", job, 0..1);
    scene.pass(Duration::from_secs(9));
    assert!(!scene.sent.iter().any(|(_, command)| matches!(command, Command::Stop { .. })));
    assert_eq!(scene.controller.next_timer(), Some(scene.now + Duration::from_secs(1)));
    scene.pass(Duration::from_secs(1));
    scene.exit("a", job, 0, 143, true);
    scene.gone("a", job);
    assert_eq!((scene.state(job), scene.stored[&job].exit_code), (JobState::Failed, Some(124)));
}

#[test]
fn a_refused_start_gives_every_reservation_back_and_waits_before_the_next() {
    let mut scene = Scene::new(&["a", "b"]);
    let job = scene.submit("[gang]\nworkers = 4\n");
    scene.happened("a", job, Happening::Reserved { master_port: 1 });
    scene.take_sent();
    scene.happened("b", job, Happening::Refused { message: "no space left".to_owned() });
    let stops = scene.take_sent();
    assert_eq!(stops.iter().filter(|(_, command)| matches!(command, Command::Stop { .. })).count(), 2);
    scene.gone("a", job);
    scene.gone("b", job);
    assert_eq!((scene.state(job), scene.stored[&job].failures), (JobState::Restarting, 0));
    assert!(scene.stored[&job].reason.text.contains("no space left"));
    assert!(scene.take_sent().is_empty());
    scene.pass(RETRY_FIRST);
    assert_eq!(scene.state(job), JobState::Starting);
}

#[test]
fn a_service_that_comes_back_goes_on_with_what_its_agents_still_run() {
    let mut scene = Scene::new(&["a"]);
    let job = scene.submit("[gang]\nworkers = 2\n");
    let waiting = scene.submit("[gang]\nworkers = 2\n");
    scene.run_ranks("a", job, 0..2);
    scene.restart();
    // Until its agent has spoken, the gang keeps what it holds.
    scene.pass(Duration::from_secs(1));
    assert_eq!(scene.state(waiting), JobState::Queued);
    let attempt = AttemptId { job, number: 1 };
    scene.controller.joined(scene.now, &hello("a", "p1", &[attempt]));
    scene.exit("a", job, 0, 0, false);
    scene.exit("a", job, 1, 0, false);
    scene.gone("a", job);
    assert_eq!((scene.state(job), scene.stored[&job].attempts.len()), (JobState::Succeeded, 1));
    assert_eq!(scene.state(waiting), JobState::Starting);
}

#[test]
fn an_agent_that_was_restarted_has_lost_its_ranks() {
    let mut scene = Scene::new(&["a"]);
    let job = scene.submit("");
    scene.run_ranks("a", job, 0..1);
    scene.controller.left(scene.now, &node("a"));
    scene.controller.joined(scene.now, &hello("a", "p2", &[]));
    scene.settle();
    let attempts = &scene.stored[&job].attempts;
    assert_eq!((attempts.len(), attempts[0].state), (2, AttemptState::Lost));
    assert_eq!((scene.state(job), scene.stored[&job].failures), (JobState::Starting, 0));
}

#[test]
fn a_silent_node_is_lost_and_its_gang_starts_elsewhere_only_after_the_fence() {
    let mut scene = Scene::new(&["a", "b"]);
    let job = scene.submit("grace = \"3s\"\n[gang]\nworkers = 2\n");
    let at = scene.stored[&job].attempts[0].ranks[0].node.clone();
    scene.run_ranks(at.as_str(), job, 0..2);
    scene.controller.left(scene.now, &at);
    scene.pass(NODE_TIMEOUT);
    assert!(scene.controller.nodes().any(|node| node.lost && node.record.name == at));
    assert_eq!(scene.stored[&job].attempts.len(), 1);
    scene.pass(Duration::from_secs(3) + FENCE_MARGIN);
    let attempts = &scene.stored[&job].attempts;
    assert_eq!((attempts[0].state, attempts[1].ranks[0].node != at), (AttemptState::Lost, true));
}

#[test]
fn an_agent_that_ended_its_ranks_alone_has_not_finished_the_job() {
    let mut scene = Scene::new(&["a"]);
    let job = scene.submit("");
    scene.run_ranks("a", job, 0..1);
    scene.exit("a", job, 0, 143, true);
    scene.gone("a", job);
    assert_eq!(scene.stored[&job].attempts[0].state, AttemptState::Lost);
    assert_eq!(scene.state(job), JobState::Starting);
}

#[test]
fn what_could_not_be_ended_keeps_its_device() {
    let mut scene = Scene::new(&[]);
    let mut with_gpu = hello("a", "p1", &[]);
    with_gpu.capacity.devices = phalanx_gpu::declared(1);
    scene.controller.joined(Time::ZERO, &with_gpu);
    let job = scene.submit("max_failures = 1\n[gang]\ngpus = 1\n");
    scene.run_ranks("a", job, 0..1);
    scene.exit("a", job, 0, 1, false);
    scene.happened("a", job, Happening::Gone { unreaped: "pid 7".to_owned() });
    assert_eq!(scene.state(job), JobState::Restarting);
    assert!(scene.stored[&job].attempts[0].message.contains("pid 7"));
}

#[test]
fn requests_that_cannot_be_committed_have_not_happened() {
    let mut scene = Scene::new(&["a"]);
    let spec = JobSpec::parse("version = 1\n[program]\ncommand = [\"true\"]\n", "job").unwrap();
    let first = scene.submit("[gang]\nworkers = 2\n");
    let waiting = scene.submit("");
    scene.controller.submit(scene.now, Submission { spec, base_dir: "/".into() }).unwrap();
    scene.controller.cancel(scene.now, waiting).unwrap();
    scene.controller.cancel(scene.now, first).unwrap();
    scene.controller.roll_back();
    scene.take_sent();
    scene.settle();
    assert!(scene.take_sent().is_empty());
    assert_eq!(
        scene.controller.jobs().map(|job| (job.id, job.state)).collect::<Vec<_>>(),
        [(first, JobState::Starting), (waiting, JobState::Queued)]
    );
}

#[test]
fn what_can_never_be_placed_is_refused_with_the_numbers() {
    let scene = Scene::new(&["a"]);
    let text = "version = 1\n[gang]\ncpus = 64\n[program]\ncommand = [\"true\"]\n";
    let submission = Submission { spec: JobSpec::parse(text, "job").unwrap(), base_dir: "/".into() };
    let Err(Refusal::Infeasible(reason)) = scene.controller.validate(&submission) else { panic!("accepted") };
    assert!(reason.text.contains("64") && reason.text.contains('2'), "{}", reason.text);
}

#[test]
fn the_jobs_of_a_killed_run_fail_and_those_of_a_service_wait_for_it() {
    let mut scene = Scene::new(&["a"]);
    let job = scene.submit("");
    scene.run_ranks("a", job, 0..1);
    let mut orphan = scene.stored[&job].clone();
    orphan.embedded = true;
    let embedded = Config { embedded: true, ..config() };
    let mut controller = Controller::restore(
        embedded,
        scene.now,
        Loaded { next_job: 3, live_jobs: vec![orphan, scene.stored[&job].clone()], ..Loaded::default() },
    );
    let effects = controller.settle(scene.now);
    assert_eq!(effects.jobs.len(), 1);
    assert_eq!((effects.jobs[0].job.state, effects.jobs[0].job.exit_code), (JobState::Failed, Some(125)));
    assert_eq!(controller.jobs().count(), 0);
}

#[test]
fn a_gang_gives_way_to_one_of_higher_priority_and_keeps_its_place() {
    let mut scene = Scene::new(&["a"]);
    let low = scene.submit("[gang]\nworkers = 2\n");
    scene.run_ranks("a", low, 0..2);
    let stubborn = scene.submit("priority = 5\npreemptible = false\n[gang]\nworkers = 2\n");
    assert!(matches!(scene.take_sent().last(), Some((_, Command::Stop { ask_first: true, .. }))));
    scene.exit("a", low, 0, 143, true);
    scene.exit("a", low, 1, 143, true);
    scene.gone("a", low);
    assert_eq!((scene.state(low), scene.stored[&low].failures), (JobState::Preempted, 0));
    assert!(scene.stored[&low].attempts[0].message.contains(&stubborn.to_string()));
    assert_eq!(scene.state(stubborn), JobState::Starting);
    // What is not preemptible stays, whatever waits.
    scene.run_ranks("a", stubborn, 0..2);
    scene.take_sent();
    scene.submit("priority = 9\n[gang]\nworkers = 2\n");
    assert!(scene.take_sent().is_empty());
}

/// Ends an attempt on one node as its agent would, after it was told to.
fn stopped(scene: &mut Scene, name: &str, job: JobId, ranks: Rank) {
    (0..ranks).for_each(|rank| scene.exit(name, job, rank, 143, true));
    scene.gone(name, job);
}

fn changed(scene: &mut Scene, toml: &str) -> Result<(), Refusal> {
    let change = QueueChange { toml: toml.to_owned(), ..QueueChange::default() };
    let changed = scene.controller.change_queues(scene.now, &change);
    scene.controller.accept();
    scene.settle();
    changed
}

#[test]
fn an_elastic_gang_gives_workers_back_and_takes_them_again() {
    let mut scene = Scene::with_queues(&["a"], "[scheduling]\nresize_interval = 10\ngrace_seconds = 3\n");
    let elastic = scene.submit("[gang]\nworkers = { min = 1, max = 2 }\n");
    scene.run_ranks("a", elastic, 0..2);
    scene.happened("a", elastic, Happening::Checkpoint { step: 5, path: "/c/5".into() });
    scene.take_sent();
    let urgent = scene.submit("priority = 1\n");
    let stop = Command::Stop {
        attempt: AttemptId { job: elastic, number: 1 },
        ask_first: true,
        grace: Duration::from_secs(3),
    };
    assert_eq!(scene.take_sent(), [(node("a"), stop)]);
    // The service dies in the middle of the resize: the gang keeps what it holds, and its place is promised.
    scene.restart();
    scene.controller.joined(scene.now, &hello("a", "p1", &[AttemptId { job: elastic, number: 1 }]));
    scene.settle();
    let other = scene.submit("");
    stopped(&mut scene, "a", elastic, 2);
    let attempts = &scene.stored[&elastic].attempts;
    assert_eq!((attempts[0].state, attempts[1].ranks.len()), (AttemptState::Resized, 1));
    assert!(attempts[0].message.contains("1 of 2 workers"), "{}", attempts[0].message);
    assert_eq!((scene.state(urgent), scene.state(other)), (JobState::Starting, JobState::Queued));
    scene.controller.cancel(scene.now, other).unwrap();
    scene.controller.accept();
    scene.take_sent();
    scene.happened("a", elastic, Happening::Reserved { master_port: 1 });
    let launch = scene.take_sent().into_iter().find_map(|(_, c)| match c {
        Command::Start(launch) => Some(launch),
        _ => None,
    });
    let launch = launch.unwrap();
    assert_eq!((launch.world, launch.checkpoint), (1, Some(PathBuf::from("/c/5"))));
    scene.happened("a", elastic, Happening::RankStarted { rank: 0, pid: 1, life: 0 });
    // It grows only once the interval is over, and nobody waits who could use the room.
    scene.run_ranks("a", urgent, 0..1);
    scene.exit("a", urgent, 0, 0, false);
    scene.gone("a", urgent);
    scene.take_sent();
    scene.pass(Duration::from_secs(9));
    assert!(scene.take_sent().is_empty());
    scene.pass(Duration::from_secs(1));
    assert!(matches!(scene.take_sent()[..], [(_, Command::Stop { ask_first: true, .. })]));
    // Somebody takes the room meanwhile: it goes on as it was.
    let quick = scene.submit("");
    assert_eq!(scene.state(quick), JobState::Starting);
    stopped(&mut scene, "a", elastic, 1);
    let job = &scene.stored[&elastic];
    assert_eq!(job.attempts.iter().map(|a| a.ranks.len()).collect::<Vec<_>>(), [2, 1, 1]);
    assert_eq!(
        (job.attempts[1].state, job.state, job.failures),
        (AttemptState::Resized, JobState::Starting, 0)
    );
}

#[test]
fn a_gang_that_would_lose_its_work_does_not_grow() {
    let mut scene = Scene::with_queues(&["a"], "[scheduling]\nresize_interval = 10\n");
    let first = scene.submit("");
    let elastic = scene.submit("[gang]\nworkers = { min = 1, max = 2 }\n");
    scene.run_ranks("a", first, 0..1);
    scene.run_ranks("a", elastic, 0..1);
    scene.exit("a", first, 0, 0, false);
    scene.gone("a", first);
    scene.take_sent();
    scene.pass(Duration::from_secs(60));
    assert!(scene.take_sent().is_empty());
    // With something to go on from it does.
    scene.happened("a", elastic, Happening::Checkpoint { step: 1, path: "/c/1".into() });
    assert!(matches!(scene.take_sent()[..], [(_, Command::Stop { ask_first: true, .. })]));
    stopped(&mut scene, "a", elastic, 1);
    assert_eq!(scene.stored[&elastic].attempts[1].ranks.len(), 2);
}

#[test]
fn an_elastic_gang_goes_on_smaller_when_a_node_is_lost() {
    let mut scene = Scene::new(&["a", "b"]);
    let elastic = scene.submit("grace = \"1s\"\n[gang]\nworkers = { min = 1, max = 4 }\n");
    scene.run_ranks("a", elastic, 0..2);
    scene.run_ranks("b", elastic, 2..4);
    scene.controller.left(scene.now, &node("b"));
    scene.pass(NODE_TIMEOUT);
    (0..2).for_each(|rank| scene.exit("a", elastic, rank, 143, true));
    scene.gone("a", elastic);
    scene.pass(Duration::from_secs(1) + FENCE_MARGIN);
    let attempts = &scene.stored[&elastic].attempts;
    assert_eq!((attempts[0].state, attempts[1].ranks.len()), (AttemptState::Lost, 2));
    assert!(attempts[1].ranks.iter().all(|rank| rank.node == node("a")));
}

#[test]
fn queues_refuse_what_they_cannot_take_and_say_what_there_is() {
    let mut scene = Scene::with_queues(&["a"], "[[queue]]\nname = \"small\"\nquota = { cpus = 1 }\n");
    let job = |more: &str| {
        let text = format!("version = 1\n{more}\n[program]\ncommand = [\"true\"]\n");
        Submission { spec: JobSpec::parse(&text, "job").unwrap(), base_dir: "/".into() }
    };
    let unknown = scene.controller.validate(&job("queue = \"smal\""));
    let there = vec!["default".to_owned(), "small".to_owned()];
    assert_eq!(unknown, Err(Refusal::UnknownQueue { queue: "smal".to_owned(), there }));
    let large = scene.controller.validate(&job("queue = \"small\"\n[gang]\nworkers = 2\n"));
    let Err(Refusal::Infeasible(reason)) = large else { panic!("taken") };
    assert!(reason.text.contains("2 CPU") && reason.text.contains("quota is 1 CPU"), "{}", reason.text);
    let first = scene.submit("queue = \"small\"");
    let second = scene.submit("queue = \"small\"");
    assert_eq!(scene.state(first), JobState::Starting);
    assert_eq!(scene.controller.job(second).unwrap().reason.code, "waiting_quota");
    // One of higher priority takes the place of one in its own queue, quota or not.
    scene.run_ranks("a", first, 0..1);
    let urgent = scene.submit("queue = \"small\"\npriority = 1");
    stopped(&mut scene, "a", first, 1);
    assert_eq!((scene.state(first), scene.state(urgent)), (JobState::Preempted, JobState::Starting));
    scene.controller.cancel(scene.now, first).unwrap();
    scene.controller.accept();
    scene.settle();
    let status = scene.controller.queue_status(scene.now);
    assert_eq!((status[1].running, status[1].waiting.len()), (1, 1));
}

#[test]
fn a_change_of_queues_is_all_or_nothing_and_outlives_the_service() {
    let mut scene = Scene::with_queues(&["a"], "[[queue]]\nname = \"team\"\nweight = 2\n");
    let job = scene.submit("queue = \"team\"\n[gang]\nworkers = 2\n");
    let before = scene.controller.queues().clone();
    let bad = "[[queue]]\nname = \"new\"\n[[queue]]\nname = \"team\"\nquota.cpus = 1\nweigth = 3\n";
    let Err(Refusal::Queues { problems, .. }) = changed(&mut scene, bad) else { panic!("taken") };
    assert!(problems.to_string().contains("did you mean `weight`"), "{problems}");
    let bad = bad.replace("weigth = 3\n", "");
    let Err(Refusal::Queues { problems, .. }) = changed(&mut scene, &bad) else { panic!("taken") };
    assert!(problems.to_string().contains(&format!("{job} could never run")), "{problems}");
    assert_eq!((scene.controller.queues(), scene.queues.len()), (&before, 0));
    changed(&mut scene, "[[queue]]\nname = \"team\"\nweight = 5\n[[queue]]\nname = \"new\"\n").unwrap();
    scene.restart();
    let team = scene.controller.queues().get("team").unwrap();
    assert_eq!((team.weight, scene.controller.queues().get("new").is_some()), (5.0, true));
    // Reset: as the file has it; a queue with jobs in it that only the API had stays.
    let inside = scene.submit("queue = \"new\"");
    let reset = |names: &[&str]| QueueChange {
        reset: names.iter().map(|&name| name.to_owned()).collect(),
        ..QueueChange::default()
    };
    let Err(Refusal::Queues { problems, .. }) =
        scene.controller.change_queues(scene.now, &reset(&["team", "new"]))
    else {
        panic!("taken")
    };
    assert!(problems.to_string().contains(&format!("but {inside} are in it")), "{problems}");
    scene.controller.change_queues(scene.now, &reset(&["team"])).unwrap();
    // What could not be committed has not happened.
    scene.controller.roll_back();
    assert_eq!(scene.controller.queues().get("team").unwrap().weight, 5.0);
    scene.controller.change_queues(scene.now, &reset(&["team"])).unwrap();
    scene.controller.accept();
    scene.settle();
    assert_eq!((scene.controller.queues().get("team").unwrap().weight, scene.queues.len()), (2.0, 1));
    // A configuration without a queue that jobs are in is refused too.
    let gone = scene.controller.configure(scene.now, BTreeMap::new(), Default::default());
    assert!(gone.unwrap_err().to_string().contains("`team` would be gone"));
}

#[test]
fn who_has_had_less_goes_first_also_after_a_restart() {
    let site = "[[queue]]\nname = \"a\"\n[[queue]]\nname = \"b\"\n[[queue]]\nname = \"c\"\n";
    let order = |restart: bool| {
        let mut scene = Scene::with_queues(&["n"], site);
        let greedy = scene.submit("queue = \"a\"\n[gang]\nworkers = 2\n");
        scene.run_ranks("n", greedy, 0..2);
        scene.pass(Duration::from_secs(3600));
        let blocker = scene.submit("queue = \"c\"\npriority = 9\npreemptible = false\n[gang]\nworkers = 2\n");
        // The queue that has had much waits with the older job.
        let (late, early) = (
            scene.submit("queue = \"a\"\n[gang]\nworkers = 2\n"),
            scene.submit("queue = \"b\"\n[gang]\nworkers = 2\n"),
        );
        scene.exit("n", greedy, 0, 0, false);
        scene.exit("n", greedy, 1, 0, false);
        scene.gone("n", greedy);
        scene.run_ranks("n", blocker, 0..2);
        if restart {
            scene.restart();
            let attempt = AttemptId { job: blocker, number: 1 };
            scene.controller.joined(scene.now, &hello("n", "p1", &[attempt]));
            scene.settle();
        }
        scene.pass(Duration::from_secs(60));
        scene.exit("n", blocker, 0, 0, false);
        scene.exit("n", blocker, 1, 0, false);
        scene.gone("n", blocker);
        let share = scene.controller.cluster().share("a");
        (scene.state(late), scene.state(early), share.to_bits())
    };
    let untouched = order(false);
    assert_eq!((untouched.0, untouched.1), (JobState::Queued, JobState::Starting));
    assert_eq!(order(true), untouched);
}

#[test]
fn an_idle_guarantee_is_lent_and_taken_back_by_preemption() {
    let mut scene = Scene::with_queues(&["a"], "[[queue]]\nname = \"gold\"\nguaranteed = { cpus = 2 }\n");
    let guest = scene.submit("priority = 9\n[gang]\nworkers = 2\n");
    scene.run_ranks("a", guest, 0..2);
    let owner = scene.submit("queue = \"gold\"\n[gang]\nworkers = 2\n");
    stopped(&mut scene, "a", guest, 2);
    assert_eq!((scene.state(guest), scene.stored[&guest].failures), (JobState::Preempted, 0));
    assert_eq!(scene.state(owner), JobState::Starting);
    // Neither takes it from the other again.
    scene.run_ranks("a", owner, 0..2);
    scene.take_sent();
    scene.pass(Duration::from_secs(600));
    assert!(scene.take_sent().is_empty());
}

#[test]
fn least_attained_service_gives_way_in_its_queue() {
    let site =
        "[[queue]]\nname = \"fair\"\ndiscipline = \"las\"\n[scheduling]\nlas_threshold_seconds = 100\n";
    let mut scene = Scene::with_queues(&["a"], site);
    let old = scene.submit("queue = \"fair\"\n[gang]\nworkers = 2\n");
    scene.run_ranks("a", old, 0..2);
    let young = scene.submit("queue = \"fair\"\n[gang]\nworkers = 2\n");
    scene.take_sent();
    scene.pass(Duration::from_secs(49));
    assert!(scene.take_sent().is_empty());
    assert_eq!(scene.controller.next_timer(), Some(scene.now + Duration::from_secs(1)));
    scene.pass(Duration::from_secs(1));
    stopped(&mut scene, "a", old, 2);
    assert_eq!((scene.state(old), scene.state(young)), (JobState::Preempted, JobState::Starting));
    scene.restart();
    assert_eq!(scene.controller.queue.get(old).unwrap().preemptions, 1);
}

#[test]
fn a_reason_has_the_numbers_of_the_moment_it_is_asked_for() {
    let mut scene = Scene::new(&["a"]);
    let [first, second] = [(); 2].map(|()| scene.submit(""));
    let waits = scene.submit("[gang]\nworkers = 2\n");
    let explained = |scene: &Scene| scene.controller.explain(scene.now, waits).unwrap().text;
    let text = explained(&scene);
    assert!(text.contains("0 CPU free") && text.contains(&first.to_string()), "{text}");
    scene.run_ranks("a", first, 0..1);
    scene.exit("a", first, 0, 0, false);
    scene.gone("a", first);
    let text = explained(&scene);
    assert!(text.contains("1 CPU free") && !text.contains(&first.to_string()), "{text}");
    assert!(text.contains(&format!("held by {second}")), "{text}");
    assert!(scene.controller.explain(scene.now, second).is_none());
}

/// An elastic gang of three on one node, or of two on each of two, whose ranks have met for the first time.
fn elastic(scene: &mut Scene, nodes: &[&str], more: &str) -> JobId {
    let id = scene.submit(&format!("grace = \"1s\"\n{more}\n[gang]\nworkers = {{ min = 1, max = 4 }}\n"));
    let each = 2;
    for (at, name) in nodes.iter().enumerate() {
        let first = at as Rank * each;
        scene.run_ranks(name, id, first..first + each);
    }
    for (at, name) in nodes.iter().enumerate() {
        let first = at as Rank * each;
        (first..first + each).for_each(|rank| scene.meets(name, id, (rank, 0), 0));
    }
    id
}

impl Scene {
    fn meets(&mut self, name: &str, id: JobId, (rank, life): (Rank, u32), epoch: u32) {
        let port = 5000 + rank as u16;
        self.happened(name, id, Happening::RankMeets { who: Member { rank, life }, epoch, port });
    }

    /// The latest group that a node was told of: its number, its ranks, and the port where they meet.
    fn group(&self, name: &str) -> (u32, Vec<Rank>, u16, bool) {
        let groups = self.sent.iter().rev().filter(|(to, _)| *to == node(name));
        let mut groups = groups.filter_map(|(_, command)| match command {
            Command::Group { group, .. } => Some(group.clone()),
            _ => None,
        });
        let group = groups.next().unwrap();
        let ranks = group.members.iter().map(|member| member.rank).collect();
        (group.epoch, ranks, group.master_port, group.leave)
    }

    fn killed(&mut self, name: &str, id: JobId, (rank, life): (Rank, u32)) {
        let message = "killed by signal 9 (SIGKILL)".to_owned();
        let exit = RankExit { rank, code: 137, message, asked: false, not_started: false, life };
        self.happened(name, id, Happening::RankExited(exit));
    }
}

#[test]
fn an_elastic_gang_goes_on_without_a_killed_rank_and_takes_it_in_again() {
    let mut scene = Scene::new(&["a"]);
    let id = elastic(&mut scene, &["a"], "max_failures = 2");
    assert_eq!(scene.group("a"), (1, vec![0, 1], 5000, false));
    scene.killed("a", id, (0, 0));
    let again =
        Command::Restart { attempt: AttemptId { job: id, number: 1 }, who: Member { rank: 0, life: 1 } };
    assert!(scene.sent.contains(&(node("a"), again.clone())));
    assert_eq!((scene.state(id), scene.stored[&id].failures), (JobState::Running, 1));
    // The one that is left asks, twice over a cut, and stands alone at its own port.
    scene.meets("a", id, (1, 0), 1);
    assert_eq!(scene.group("a"), (2, vec![1], 5001, false));
    scene.meets("a", id, (1, 0), 1);
    assert_eq!(scene.group("a").0, 2);
    // What the dead one had said arrives late, and again.
    scene.meets("a", id, (0, 0), 1);
    scene.killed("a", id, (0, 0));
    assert_eq!(scene.stored[&id].failures, 1);
    // The one that was started again waits for the step under way.
    scene.happened("a", id, Happening::RankStarted { rank: 0, pid: 2, life: 1 });
    scene.meets("a", id, (0, 1), 0);
    assert_eq!(scene.group("a"), (2, vec![1], 5001, true));
    scene.meets("a", id, (1, 0), 2);
    assert_eq!(scene.group("a"), (3, vec![1, 0], 5001, false), "who has the state goes first");
    // A service that was killed goes on from what it had stored.
    let stored = Loaded { live_jobs: vec![scene.stored[&id].clone()], nodes: vec![record("a")], ..first() };
    scene.controller = Controller::restore(config(), scene.now, stored);
    scene.sent.clear();
    let attempt = AttemptId { job: id, number: 1 };
    scene.controller.joined(scene.now, &hello("a", "p1", &[attempt]));
    scene.settle();
    assert_eq!(scene.group("a"), (3, vec![1, 0], 5001, false), "a cut may have lost it");
    for rank in [0, 1] {
        let exit = RankExit {
            rank,
            code: 0,
            message: String::new(),
            asked: false,
            not_started: false,
            life: 1 - rank,
        };
        scene.happened("a", id, Happening::RankExited(exit));
    }
    scene.gone("a", id);
    let job = &scene.stored[&id];
    assert_eq!((job.state, job.attempts.len()), (JobState::Succeeded, 1));
    assert_eq!(job.attempts[0].failed_rank, Some(0));
    assert!(job.attempts[0].message.contains("rank 0 killed by signal 9"), "{}", job.attempts[0].message);
}

fn record(name: &str) -> NodeRecord {
    let Hello { node, incarnation, capacity, address, .. } = hello(name, "p1", &[]);
    NodeRecord { name: node, incarnation, capacity, address, draining: false }
}

#[test]
fn what_no_gang_outlives_ends_the_attempt() {
    let ends = |more: &str, act: &dyn Fn(&mut Scene, JobId)| {
        let mut scene = Scene::new(&["a"]);
        let id = elastic(&mut scene, &["a"], more);
        act(&mut scene, id);
        (scene.stored[&id].attempts[0].state, scene.stored[&id].attempts[0].message.clone())
    };
    let stopping = AttemptState::Stopping;
    // More failures than are allowed.
    assert_eq!(ends("", &|scene, id| scene.killed("a", id, (1, 0))).0, stopping);
    // A program that ends by itself with an error would end with it again.
    assert_eq!(ends("max_failures = 9", &|scene, id| scene.exit("a", id, 1, 1, false)).0, stopping);
    // None is left who knows how far it had come.
    let all = |scene: &mut Scene, id| (0..2).for_each(|rank| scene.killed("a", id, (rank, 0)));
    assert_eq!(ends("max_failures = 9", &all).0, stopping);
    // Ranks that lose one another without a death would do so for ever.
    let apart = |scene: &mut Scene, id| (0..2).for_each(|rank| scene.meets("a", id, (rank, 0), 1));
    let (state, message) = ends("max_failures = 9", &apart);
    assert!(state == stopping && message.contains("lost one another"), "{message}");
    // One that is started again while the others come to their end has nothing to do.
    let mut scene = Scene::new(&["a"]);
    let id = elastic(&mut scene, &["a"], "max_failures = 9");
    scene.killed("a", id, (1, 0));
    scene.exit("a", id, 0, 0, false);
    scene.happened("a", id, Happening::RankStarted { rank: 1, pid: 2, life: 1 });
    scene.meets("a", id, (1, 1), 0);
    assert_eq!(scene.group("a").1, Vec::<Rank>::new(), "nobody trains any more");
}

#[test]
fn an_elastic_gang_goes_on_without_a_lost_node_and_loses_no_step() {
    let mut scene = Scene::new(&["a", "b"]);
    let id = elastic(&mut scene, &["a", "b"], "");
    assert_eq!(scene.group("b"), (1, vec![0, 1, 2, 3], 5000, false));
    scene.controller.left(scene.now, &node("a"));
    scene.pass(NODE_TIMEOUT);
    assert_eq!(scene.state(id), JobState::Running);
    let (epoch, ranks, _, leave) = scene.group("b");
    assert_eq!((epoch, ranks, leave), (1, vec![2, 3], true), "they are told to leave what cannot end");
    (2..4).for_each(|rank| scene.meets("b", id, (rank, 0), 1));
    assert_eq!(scene.group("b"), (2, vec![2, 3], 5002, false));
    // The node's devices are free only once its agent must have ended what ran there: then they go on as a gang of two.
    scene.pass(Duration::from_secs(1) + FENCE_MARGIN);
    assert_eq!(scene.stored[&id].attempts[0].state, AttemptState::Stopping);
    (2..4).for_each(|rank| scene.exit("b", id, rank, 0, true));
    scene.gone("b", id);
    let attempts = &scene.stored[&id].attempts;
    assert_eq!((attempts[0].state, attempts[1].ranks.len()), (AttemptState::Resized, 2));
    assert!(attempts[1].ranks.iter().all(|rank| rank.node == node("b") && !rank.lost));
    // Its agent comes back with what it had run there.
    let attempt = AttemptId { job: id, number: 1 };
    scene.controller.joined(scene.now, &hello("a", "p1", &[attempt]));
    scene.settle();
    assert!(matches!(scene.sent.last(), Some((to, Command::Stop { .. })) if *to == node("a")));
}
