//! The controller's life of a job, step by step: what it stores and what it orders.

use super::*;
use crate::protocol::{AgentEvent, Happening, Hello, RankExit};
use phalanx_core::resources::{Capacity, Cpus};
use phalanx_core::{AttemptState, JobSpec, Rank};
use std::path::PathBuf;

const NODE_TIMEOUT: Duration = Duration::from_secs(15);

struct Scene {
    controller: Controller,
    now: Time,
    seq: u64,
    stored: BTreeMap<JobId, Job>,
    sent: Vec<(NodeName, Command)>,
}

fn config() -> Config {
    Config { embedded: false, node_timeout: NODE_TIMEOUT }
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
        let controller = Controller::restore(config(), Time::ZERO, 1, Vec::new(), Vec::new());
        let mut scene =
            Scene { controller, now: Time::ZERO, seq: 0, stored: BTreeMap::new(), sent: Vec::new() };
        for name in nodes {
            scene.controller.joined(Time::ZERO, &hello(name, "p1", &[]));
        }
        scene.settle();
        scene
    }

    fn settle(&mut self) {
        self.controller.tick(self.now);
        let effects = self.controller.settle(self.now);
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
        self.controller.happened(&node(name), &event);
        self.settle();
    }

    fn run_ranks(&mut self, name: &str, job: JobId, ranks: std::ops::Range<Rank>) {
        self.happened(name, job, Happening::Reserved { master_port: 4000 });
        for rank in ranks {
            self.happened(name, job, Happening::RankStarted { rank, pid: 1 });
        }
    }

    fn exit(&mut self, name: &str, job: JobId, rank: Rank, code: i32, asked: bool) {
        let exit = RankExit {
            rank,
            code,
            message: format!("exited with code {code}"),
            asked,
            not_started: code == 127,
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
        let next = self.stored.len() as u64 + 1;
        self.controller = Controller::restore(config(), self.now, next, jobs, nodes);
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
    let embedded = Config { embedded: true, node_timeout: NODE_TIMEOUT };
    let mut controller =
        Controller::restore(embedded, scene.now, 3, vec![orphan, scene.stored[&job].clone()], Vec::new());
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
