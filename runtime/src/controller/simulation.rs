//! The controller and the agents' machines in a simulated world: by a seed, agents and the service are killed, links are
//! cut with messages in flight, commands arrive twice, people cancel and pause, ranks fail. After every event the world
//! is checked; in the end, when nothing disturbs it any more, every job must have ended and nothing be left.

mod elastic;
mod sweeps;

use super::*;
use crate::agent::machine::{AgentMachine, Input, Output};
use crate::launch::Launch;
use crate::protocol::{AgentEvent, Happening, Hello, RankExit};
use phalanx_core::job::Member;
use phalanx_core::resources::{Capacity, Cpus};
use phalanx_core::spec::{QueueSpec, ServiceSpec};
use phalanx_core::{Group, GroupName, GroupSpec, GroupState, JobSpec, Rank};

const NODE_TIMEOUT: Duration = Duration::from_secs(15);
const NODES: u64 = 3;
const CORES: u32 = 4;
const JOBS: u64 = 12;
const GROUPS: u64 = 4;
const SWEEPS: u64 = 3;
/// Groups of these names stand at most: the largest job must fit beside them.
const GROUP_NAMES: [&str; 2] = ["pool", "wide"];
const CHAOS: Duration = Duration::from_secs(300);
const CALM: Duration = Duration::from_secs(1800);
/// A guard ends its ranks this soon after its agent was killed.
const GUARD: Duration = Duration::from_secs(5);

/// Queues of every sort: one with a guarantee, one with a quota, one of least attained service.
const SITE: &str = r#"
version = 1
[[queue]]
name = "gold"
weight = 2
guaranteed = { cpus = 4 }
[[queue]]
name = "capped"
quota = { cpus = 4 }
[[queue]]
name = "fair"
discipline = "las"
[scheduling]
max_bypass = 4
resize_interval = 10
share_half_life = 60
las_threshold_seconds = 20
grace_seconds = 1
"#;
const QUEUES: [&str; 4] = ["default", "gold", "capped", "fair"];
/// What `capped` may hold at most, in thousandths of a CPU.
const CAP_MILLI: u64 = 4000;

/// SplitMix64: small, seeded and the same everywhere.
struct Dice(u64);

impl Dice {
    fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.roll() % bound
    }

    fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }

    fn up_to(&mut self, longest: Duration) -> Duration {
        Duration::from_micros(1 + self.below(longest.as_micros() as u64))
    }
}

#[derive(Debug)]
enum Step {
    Submit,
    Group,
    Sweep,
    Disturb,
    Calm,
    ToAgent { node: NodeName, session: u64, command: Command },
    AckTo { node: NodeName, session: u64, seq: u64 },
    ToService { node: NodeName, session: u64, event: AgentEvent },
    Connect(NodeName),
    Alone(NodeName),
    AgentUp(NodeName),
    ServiceUp,
    ControllerTimer,
    RankStarts { node: NodeName, incarnation: u64, attempt: AttemptId, rank: Rank },
    RankEnds { node: NodeName, incarnation: u64, attempt: AttemptId, rank: Rank, life: u32, code: i32 },
    Meets { node: NodeName, attempt: AttemptId, who: Member, epoch: u32 },
    ProcessesDie { node: NodeName, incarnation: u64 },
    Reports { node: NodeName, incarnation: u64, attempt: AttemptId, step: u64 },
    Answered { node: NodeName, incarnation: u64, attempt: AttemptId, step: u64 },
    Input { node: NodeName, incarnation: u64, input: Input },
}

/// A machine with its agent and the processes on it.
struct Host {
    incarnation: u64,
    alive: bool,
    machine: AgentMachine,
    outbox: Vec<AgentEvent>,
    seq: u64,
    session: Option<u64>,
    /// When it last heard of the service.
    heard: Time,
    /// Processes by attempt and rank, with the agent's process that started them.
    ranks: BTreeMap<(AttemptId, Rank), u64>,
    /// Processes of elastic gangs.
    elastic: BTreeMap<(AttemptId, Rank), elastic::Process>,
    /// Those of them that were killed and may be started again.
    killed: BTreeSet<(AttemptId, Rank)>,
    /// Attempts that have been told to end.
    ended: BTreeSet<AttemptId>,
    /// Attempts whose folder is on the disk.
    folders: BTreeSet<AttemptId>,
    /// Trials whose rank 0 runs here.
    trials: BTreeMap<AttemptId, sweeps::Process>,
}

/// What survives a kill of the service.
#[derive(Default)]
struct Disk {
    jobs: BTreeMap<JobId, Job>,
    nodes: BTreeMap<NodeName, NodeRecord>,
    queues: BTreeMap<String, QueueSpec>,
    shares: BTreeMap<String, Share>,
    groups: BTreeMap<JobId, Group>,
    sweeps: sweeps::StoredSweeps,
    /// The highest number given out.
    last: u64,
}

struct World {
    dice: Dice,
    now: Time,
    steps: BTreeMap<(Time, u64), Step>,
    next_step: u64,
    sessions: u64,
    /// The latest delivery per session and direction: a link keeps order.
    lanes: BTreeMap<(u64, bool), Time>,
    service: Option<Controller>,
    timer: Option<Time>,
    disk: Disk,
    hosts: BTreeMap<NodeName, Host>,
    promised: BTreeSet<JobId>,
    ended_well: BTreeSet<(AttemptId, Rank)>,
    /// Ranks that were started again and let in by the others.
    let_in: usize,
    calm: bool,
    log: Vec<String>,
}

fn config() -> Config {
    let site = ServiceSpec::parse(SITE).unwrap();
    let file = site.queues.into_iter().map(|queue| (queue.name.clone(), queue)).collect();
    let queues = Queues { file, api: BTreeMap::new(), scheduling: site.scheduling };
    Config { embedded: false, node_timeout: NODE_TIMEOUT, queues }
}

fn first() -> Loaded {
    Loaded { next_job: 1, ..Loaded::default() }
}

impl World {
    fn new(seed: u64) -> World {
        let mut world = World {
            dice: Dice(seed),
            now: Time::from_micros(1),
            steps: BTreeMap::new(),
            next_step: 0,
            sessions: 0,
            lanes: BTreeMap::new(),
            service: Some(Controller::restore(config(), Time::ZERO, first())),
            timer: None,
            disk: Disk::default(),
            hosts: BTreeMap::new(),
            promised: BTreeSet::new(),
            ended_well: BTreeSet::new(),
            let_in: 0,
            calm: false,
            log: Vec::new(),
        };
        for number in 0..NODES {
            let name: NodeName = format!("n{number}").parse().unwrap();
            let host = Host {
                incarnation: 1,
                alive: true,
                machine: AgentMachine::new(),
                outbox: Vec::new(),
                seq: 0,
                session: None,
                heard: Time::ZERO,
                ranks: BTreeMap::new(),
                elastic: BTreeMap::new(),
                killed: BTreeSet::new(),
                ended: BTreeSet::new(),
                folders: BTreeSet::new(),
                trials: BTreeMap::new(),
            };
            world.hosts.insert(name.clone(), host);
            world.after(Duration::ZERO, Step::Connect(name));
        }
        for _ in 0..JOBS {
            let at = world.dice.up_to(CHAOS / 2);
            world.after(at, Step::Submit);
        }
        for _ in 0..GROUPS {
            let at = world.dice.up_to(CHAOS / 2);
            world.after(at, Step::Group);
        }
        for _ in 0..SWEEPS {
            let at = world.dice.up_to(CHAOS / 2);
            world.after(at, Step::Sweep);
        }
        for _ in 0..40 {
            let at = world.dice.up_to(CHAOS);
            world.after(at, Step::Disturb);
        }
        world.after(CHAOS, Step::Calm);
        world
    }

    fn after(&mut self, delay: Duration, step: Step) {
        self.next_step += 1;
        self.steps.insert((self.now + delay, self.next_step), step);
    }

    /// Puts a message on a link: delayed, but never before an earlier one of the same direction.
    fn over_link(&mut self, session: u64, to_service: bool, step: Step) {
        let delay = if self.dice.chance(5) { Duration::from_secs(2) } else { Duration::from_millis(20) };
        let arrives = self.now + self.dice.up_to(delay);
        let lane = self.lanes.entry((session, to_service)).or_default();
        *lane = arrives.max(*lane);
        let delay = lane.since(self.now);
        self.after(delay, step);
    }

    fn run(&mut self, seed: u64) {
        while let Some(((at, _), step)) = self.steps.pop_first() {
            self.now = at;
            self.log.push(format!("{at} {step:?}"));
            self.perform(step);
            if let Err(broken) = self.check() {
                let tail = self.log.split_off(self.log.len().saturating_sub(60)).join("\n");
                panic!("seed {seed} at {at}: {broken}\n{tail}");
            }
        }
        let open: Vec<&Job> = self.disk.jobs.values().filter(|job| !job.state.is_terminal()).collect();
        let tail = self.log.split_off(self.log.len().saturating_sub(60)).join("\n");
        assert!(open.is_empty(), "seed {seed}: never ended: {open:#?}\n{tail}");
        assert!(self.disk.groups.is_empty(), "seed {seed}: never removed: {:#?}\n{tail}", self.disk.groups);
        let asked = self.disk.jobs.values().filter(|job| job.trial.is_none()).count();
        assert_eq!(asked, self.promised.len(), "seed {seed}");
        self.finish_sweeps(seed);
        for (name, host) in &self.hosts {
            assert!(host.ranks.is_empty() && !host.machine.is_busy(), "seed {seed}: {name} is not empty");
        }
        let controller = self.service.as_ref().unwrap();
        for view in controller.cluster().nodes() {
            assert_eq!(
                view.cpus_free,
                Cpus::from_cores(CORES),
                "seed {seed}: {} gives nothing back",
                view.name
            );
        }
    }

    fn perform(&mut self, step: Step) {
        match step {
            Step::Submit => self.submit(),
            Step::Group => self.make_group(),
            Step::Sweep => self.make_sweep(),
            Step::Disturb => self.disturb(),
            Step::Calm => self.calm_down(),
            Step::ToAgent { node, session, command } if self.hosts[&node].session == Some(session) => {
                self.feed(&node, Input::Command(command));
            }
            Step::AckTo { node, session, seq } if self.hosts[&node].session == Some(session) => {
                self.ack(&node, seq)
            }
            Step::ToService { node, session, event } if self.hosts[&node].session == Some(session) => {
                let through = event.seq;
                self.serve(|controller, now| controller.happened(now, &node, &event));
                if self.service.is_some() && self.hosts[&node].session == Some(session) {
                    self.over_link(session, false, Step::AckTo { node, session, seq: through });
                }
            }
            Step::Connect(node) => self.connect(&node),
            Step::Alone(node) => {
                let host = &self.hosts[&node];
                if host.session.is_none() && host.alive && self.now.since(host.heard) >= NODE_TIMEOUT {
                    self.feed(&node, Input::EndAll);
                }
            }
            Step::AgentUp(node) => self.agent_up(&node),
            Step::ServiceUp => self.service_up(),
            Step::ControllerTimer => drop(self.serve(|_, _| ())),
            Step::RankStarts { node, incarnation, attempt, rank } => {
                self.rank_starts(&node, incarnation, attempt, rank)
            }
            Step::RankEnds { node, incarnation, attempt, rank, life, code } => {
                self.rank_ends(&node, incarnation, attempt, Member { rank, life }, code);
            }
            Step::Meets { node, attempt, who, epoch } if self.hosts[&node].alive => {
                self.meets(&node, attempt, who, epoch);
            }
            Step::Reports { node, incarnation, attempt, step } => {
                self.trial_reports(&node, incarnation, attempt, step);
            }
            Step::Answered { node, incarnation, attempt, step } if self.runs(&node, incarnation) => {
                self.trial_answered(&node, attempt, step);
            }
            Step::ProcessesDie { node, incarnation } => {
                self.hosts.get_mut(&node).unwrap().ranks.retain(|_, started_by| *started_by != incarnation);
                self.elastic_cut(&node);
            }
            Step::Input { node, incarnation, input } if self.runs(&node, incarnation) => {
                self.feed(&node, input)
            }
            _ => {}
        }
    }

    fn runs(&self, node: &NodeName, incarnation: u64) -> bool {
        self.hosts[node].alive && self.hosts[node].incarnation == incarnation
    }

    /// Lets the controller do something; then commit and send, with a kill possible on either side of the commit.
    fn serve<R>(&mut self, act: impl FnOnce(&mut Controller, Time) -> R) -> Option<R> {
        let now = self.now;
        let controller = self.service.as_mut()?;
        let result = act(controller, now);
        let mut effects = controller.requested();
        controller.accept();
        controller.tick(now);
        effects.absorb(controller.settle(now));
        let timer = controller.next_timer();
        if !self.calm && self.dice.below(1000) < 3 {
            self.kill_service();
            return None;
        }
        self.disk.jobs.extend(effects.jobs.into_iter().map(|saved| (saved.job.id, saved.job)));
        self.disk.shares.extend(effects.shares);
        for write in effects.queues {
            match write {
                QueueWrite::Set(queue) => drop(self.disk.queues.insert(queue.name.clone(), queue)),
                QueueWrite::Reset(name) => drop(self.disk.queues.remove(&name)),
            }
        }
        self.store_sweeps(effects.sweeps);
        for group in effects.groups {
            self.disk.last = self.disk.last.max(group.id.0);
            if group.state == GroupState::Removed {
                self.disk.groups.remove(&group.id);
            } else {
                self.disk.groups.insert(group.id, group);
            }
        }
        self.disk.nodes.extend(effects.nodes.into_iter().map(|record| (record.name.clone(), record)));
        if !self.calm && self.dice.below(1000) < 3 {
            self.kill_service();
            return None;
        }
        for (node, command) in effects.sends {
            let Some(session) = self.hosts[&node].session else { continue };
            if self.dice.chance(5) {
                self.over_link(
                    session,
                    false,
                    Step::ToAgent { node: node.clone(), session, command: command.clone() },
                );
            }
            self.over_link(session, false, Step::ToAgent { node, session, command });
        }
        if let Some(at) = timer.filter(|&at| self.timer.is_none_or(|next| at < next || next <= now)) {
            self.timer = Some(at.max(now + Duration::from_micros(1)));
            self.after(at.since(now).max(Duration::from_micros(1)), Step::ControllerTimer);
        }
        Some(result)
    }

    fn submit(&mut self) {
        if self.dice.chance(30) {
            return self.submit_in_group();
        }
        let queue = QUEUES[self.dice.below(QUEUES.len() as u64) as usize];
        let most = 1 + self.dice.below(if queue == "capped" { 4 } else { 6 });
        let workers = match self.dice.below(3) {
            0 => format!("{{ min = {}, max = {most} }}", 1 + self.dice.below(most)),
            _ => most.to_string(),
        };
        let saves = if self.dice.chance(50) { "[checkpoint]\nevery_steps = 1\n" } else { "" };
        let failures = self.dice.below(3);
        let limit = if self.dice.chance(15) { "time_limit = \"40s\"\n" } else { "" };
        let priority = self.dice.below(3);
        let text = format!(
            "version = 1\nqueue = \"{queue}\"\ngrace = \"2s\"\npriority = {priority}\nmax_failures = {failures}\n{limit}[gang]\nworkers = {workers}\n{saves}[program]\ncommand = [\"x\"]\n"
        );
        let spec = JobSpec::parse(&text, "job").unwrap();
        match self.serve(|controller, now| controller.submit(now, Submission { spec, base_dir: "/".into() }))
        {
            Some(Ok(job)) => drop(self.promised.insert(job.id)),
            Some(Err(_)) | None => self.after(Duration::from_secs(1), Step::Submit),
        }
        // A submission whose answer was lost may have been committed: it is as good as promised.
        self.note_promised();
    }

    fn note_promised(&mut self) {
        let asked = self.disk.jobs.values().filter(|job| job.trial.is_none());
        self.promised.extend(asked.map(|job| job.id));
    }

    /// Somebody makes a group, which keeps one or two cores of up to three nodes.
    fn make_group(&mut self) {
        let name = GROUP_NAMES[self.dice.below(2) as usize];
        let (bundles, strategy) = if name == "pool" { (3, "pack") } else { (2, "strict-spread") };
        let text = format!(
            "version = 1\nname = \"{name}\"\n[gang]\nworkers = {bundles}\nplacement = \"{strategy}\"\n"
        );
        let spec = GroupSpec::parse(&text).unwrap();
        if self.serve(|controller, now| controller.create_group(now, spec)).is_none() {
            self.after(Duration::from_secs(1), Step::Group);
        }
    }

    /// A job for a group; where there is none yet it is tried again, and where chaos is over it runs outside.
    fn submit_in_group(&mut self) {
        let group = if self.calm {
            String::new()
        } else {
            format!("group = \"{}\"\n", GROUP_NAMES[self.dice.below(2) as usize])
        };
        let workers = 1 + self.dice.below(2);
        let text = format!(
            "version = 1\ngrace = \"2s\"\n[gang]\nworkers = {workers}\n{group}[program]\ncommand = [\"x\"]\n"
        );
        let spec = JobSpec::parse(&text, "job").unwrap();
        match self.serve(|controller, now| controller.submit(now, Submission { spec, base_dir: "/".into() }))
        {
            Some(Ok(job)) => drop(self.promised.insert(job.id)),
            Some(Err(_)) | None => self.after(Duration::from_secs(5), Step::Submit),
        }
        self.note_promised();
    }

    fn remove_group(&mut self, name: &str) {
        let name = GroupName::parse(name).unwrap();
        self.serve(|controller, now| controller.remove_group(now, &name).map(drop));
    }

    fn disturb(&mut self) {
        let names: Vec<NodeName> = self.hosts.keys().cloned().collect();
        let node = names[self.dice.below(NODES) as usize].clone();
        let last = self.disk.jobs.keys().last().map_or(0, |id| id.0);
        let job = JobId(1 + self.dice.below(last.max(JOBS + GROUPS)));
        match self.dice.below(16) {
            13..=15 => self.disturb_sweep(),
            11 => self.remove_group(GROUP_NAMES[(job.0 % 2) as usize]),
            0 | 1 => self.kill_service(),
            10 => self.change_queue(),
            2 | 3 => self.kill_agent(&node),
            4..=6 => self.cut(&node),
            7 => drop(self.serve(|controller, now| controller.cancel(now, job))),
            8 => drop(self.serve(|controller, now| controller.pause(now, job))),
            _ => drop(self.serve(|controller, now| controller.resume(now, job))),
        }
    }

    /// Somebody turns at a queue; what is promised to those who are in it stays possible.
    fn change_queue(&mut self) {
        let queue = QUEUES[self.dice.below(QUEUES.len() as u64) as usize];
        let weight = 1 + self.dice.below(4);
        let change = if self.dice.chance(30) {
            QueueChange { reset: vec![queue.to_owned()], ..QueueChange::default() }
        } else {
            let toml = format!("[[queue]]\nname = \"{queue}\"\nweight = {weight}\n");
            QueueChange { toml, ..QueueChange::default() }
        };
        self.serve(|controller, now| controller.change_queues(now, &change).unwrap());
        // Taking the quota off a queue's gangs is one thing, making them impossible another.
        let orphaned = "[[queue]]\nname = \"capped\"\nquota.cpus = 0\n".to_owned();
        let waits = |job: &Job| job.spec.queue == "capped";
        let change = QueueChange { toml: orphaned, ..QueueChange::default() };
        let refused = self.serve(|controller, now| {
            let some = controller.jobs().any(waits);
            (some, some && controller.change_queues(now, &change).is_err())
        });
        assert!(refused.is_none_or(|(some, refused)| some == refused), "an impossible quota was taken");
    }

    /// From here on nothing is disturbed, and what people have paused they let go on.
    fn calm_down(&mut self) {
        self.calm = true;
        let paused = self.disk.jobs.values().filter(|job| job.state == JobState::Paused);
        for id in paused.map(|job| job.id).collect::<Vec<_>>() {
            self.serve(|controller, now| controller.resume(now, id));
        }
        let open = self.calm_sweeps() || self.disk.jobs.values().any(|job| !job.state.is_terminal());
        // Every group comes to stand; then they are removed.
        if !open && self.disk.groups.values().all(|group| group.state == GroupState::Ready) {
            GROUP_NAMES.iter().for_each(|name| self.remove_group(name));
        }
        let open = open || !self.disk.groups.is_empty();
        if open && self.now < Time::ZERO + CHAOS + CALM {
            self.after(Duration::from_secs(10), Step::Calm);
        }
    }

    fn kill_service(&mut self) {
        if self.service.take().is_some() {
            for node in self.hosts.keys().cloned().collect::<Vec<_>>() {
                self.drop_session(&node);
            }
            let back = self.dice.up_to(Duration::from_secs(20));
            self.after(back, Step::ServiceUp);
        }
    }

    fn service_up(&mut self) {
        if self.service.is_some() {
            return;
        }
        let jobs: Vec<Job> =
            self.disk.jobs.values().filter(|job| !job.state.is_terminal()).cloned().collect();
        let next = self.disk.jobs.keys().last().map_or(0, |id| id.0).max(self.disk.last) + 1;
        let nodes = self.disk.nodes.values().cloned().collect();
        let loaded = Loaded {
            live_jobs: jobs,
            next_job: next,
            nodes,
            queues: self.disk.queues.clone(),
            shares: self.disk.shares.clone().into_iter().collect(),
            passed: Vec::new(),
            groups: self.disk.groups.values().cloned().collect(),
            sweeps: self.loaded_sweeps(),
            next_sweep: self.disk.sweeps.sweeps.keys().last().map_or(0, |id| id.0) + 1,
        };
        let service = Controller::restore(config(), self.now, loaded);
        // What queues have had is as the disk has it, to the bit, whatever is held again.
        for (queue, share) in service.cluster().shares() {
            let stored = self.disk.shares.get(queue).cloned().unwrap_or_default();
            assert_eq!(*share, stored, "{queue} forgot what it has had");
        }
        self.service = Some(service);
        self.serve(|_, _| ());
    }

    fn kill_agent(&mut self, node: &NodeName) {
        self.cut(node);
        let host = self.hosts.get_mut(node).unwrap();
        if !std::mem::replace(&mut host.alive, false) {
            return;
        }
        let incarnation = host.incarnation;
        let die = self.dice.up_to(GUARD);
        self.after(die, Step::ProcessesDie { node: node.clone(), incarnation });
        let up = self.dice.up_to(Duration::from_secs(40));
        self.after(up, Step::AgentUp(node.clone()));
    }

    /// A new process of the agent: it sweeps what the old one left and says so.
    fn agent_up(&mut self, node: &NodeName) {
        let host = self.hosts.get_mut(node).unwrap();
        host.alive = true;
        host.incarnation += 1;
        host.ranks.clear();
        host.killed.clear();
        host.trials.clear();
        let said: BTreeSet<AttemptId> = host
            .outbox
            .iter()
            .filter(|event| matches!(event.what, Happening::Gone { .. }))
            .map(|e| e.attempt)
            .collect();
        let cut = host.folders.difference(&said).copied().collect();
        let (machine, outputs) = AgentMachine::restore(said, cut);
        host.machine = machine;
        host.folders.clear();
        self.elastic_cut(node);
        self.carry_out(node, outputs);
        self.after(Duration::from_millis(10), Step::Connect(node.clone()));
    }

    fn cut(&mut self, node: &NodeName) {
        if self.drop_session(node) {
            let node = node.clone();
            self.serve(|controller, now| controller.left(now, &node));
        }
    }

    fn drop_session(&mut self, node: &NodeName) -> bool {
        let now = self.now;
        let host = self.hosts.get_mut(node).unwrap();
        if host.session.take().is_none() {
            return false;
        }
        host.heard = now;
        self.after(NODE_TIMEOUT, Step::Alone(node.clone()));
        let longest =
            if self.calm || self.dice.chance(70) { Duration::from_secs(3) } else { Duration::from_secs(60) };
        let back = self.dice.up_to(longest);
        self.after(back, Step::Connect(node.clone()));
        true
    }

    fn connect(&mut self, node: &NodeName) {
        let host = &self.hosts[node];
        if host.session.is_some() || !host.alive {
            return;
        }
        if self.service.is_none() {
            self.after(Duration::from_millis(500), Step::Connect(node.clone()));
            return;
        }
        self.sessions += 1;
        let session = self.sessions;
        let host = self.hosts.get_mut(node).unwrap();
        host.session = Some(session);
        let hello = Hello {
            node: node.clone(),
            incarnation: host.incarnation.to_string(),
            outbox: "o".to_owned(),
            capacity: Capacity {
                cpus: Cpus::from_cores(CORES),
                memory_bytes: 1 << 30,
                ..Capacity::default()
            },
            attempts: host.machine.attempts(),
            address: node.to_string(),
        };
        for event in host.outbox.clone() {
            self.over_link(session, true, Step::ToService { node: node.clone(), session, event });
        }
        self.serve(|controller, now| controller.joined(now, &hello));
    }

    fn ack(&mut self, node: &NodeName, seq: u64) {
        let host = self.hosts.get_mut(node).unwrap();
        let gone: Vec<AttemptId> = host
            .outbox
            .extract_if(.., |event| event.seq <= seq)
            .filter(|event| matches!(event.what, Happening::Gone { .. }))
            .map(|event| event.attempt)
            .collect();
        gone.into_iter().for_each(|attempt| self.feed(node, Input::GoneAcked(attempt)));
    }

    fn feed(&mut self, node: &NodeName, input: Input) {
        let outputs = self.hosts.get_mut(node).unwrap().machine.step(input);
        self.carry_out(node, outputs);
    }

    fn later(&mut self, node: &NodeName, delay: Duration, input: Input) {
        let incarnation = self.hosts[node].incarnation;
        self.after(delay, Step::Input { node: node.clone(), incarnation, input });
    }

    fn carry_out(&mut self, node: &NodeName, outputs: Vec<Output>) {
        for output in outputs {
            match output {
                Output::Say(attempt, what) => self.say(node, attempt, what),
                Output::FindPort(attempt) => {
                    let port = if self.dice.chance(3) { Err("no port".to_owned()) } else { Ok(4000) };
                    self.later(node, Duration::from_millis(1), Input::Port { attempt, port });
                }
                Output::Launch(launch) => self.launch(node, &launch),
                Output::Ask { attempt, grace } => {
                    self.trial_asked(node, attempt);
                    self.later(node, grace, Input::AskedLongEnough(attempt));
                }
                Output::Restart { attempt, who } => self.restart(node, attempt, who),
                Output::Group { attempt, group } => self.grouped(node, attempt, &group),
                Output::Judged { attempt, step } => self.trial_answered(node, attempt, step),
                Output::End { attempt, grace } => self.end(node, attempt, grace),
                Output::Release(attempt) => drop(self.hosts.get_mut(node).unwrap().folders.remove(&attempt)),
                Output::DropCheckpoint(_) => {}
            }
        }
    }

    fn say(&mut self, node: &NodeName, attempt: AttemptId, what: Happening) {
        let now = self.now;
        let host = self.hosts.get_mut(node).unwrap();
        host.seq += 1;
        let event = AgentEvent { seq: host.seq, attempt, time: now, what };
        host.outbox.push(event.clone());
        if let Some(session) = host.session {
            self.over_link(session, true, Step::ToService { node: node.clone(), session, event });
        }
    }

    fn launch(&mut self, node: &NodeName, launch: &Launch) {
        let attempt = launch.attempt;
        self.hosts.get_mut(node).unwrap().folders.insert(attempt);
        if self.dice.chance(3) {
            let message = "no space".to_owned();
            return self.later(node, Duration::from_millis(1), Input::LaunchFailed { attempt, message });
        }
        let incarnation = self.hosts[node].incarnation;
        for rank in launch.ranks.iter().map(|rank| rank.rank) {
            self.hosts.get_mut(node).unwrap().ranks.insert((attempt, rank), incarnation);
            let starts = self.dice.up_to(Duration::from_millis(50));
            if launch.trial.is_some() {
                self.after(starts, Step::RankStarts { node: node.clone(), incarnation, attempt, rank });
                // Rank 0 may be over before the link to this node brought the launch.
                if self.ended_well.contains(&(attempt, 0)) {
                    let ends = starts + Duration::from_millis(5);
                    let node = node.clone();
                    self.after(ends, Step::RankEnds { node, incarnation, attempt, rank, life: 0, code: 0 });
                }
                continue;
            }
            let who = Member { rank, life: 0 };
            if launch.elastic {
                self.elastic_begins(node, attempt, who);
            }
            self.rank_lives(node, attempt, who, launch.elastic);
        }
        self.trial_begins(node, launch);
    }

    /// When a rank's process is known to run, and how and when it ends.
    fn rank_lives(&mut self, node: &NodeName, attempt: AttemptId, who: Member, elastic: bool) {
        let (incarnation, Member { rank, life }) = (self.hosts[node].incarnation, who);
        let code = match elastic {
            true if self.dice.chance(25) => 137,
            _ if self.dice.chance(8) => 3,
            _ => 0,
        };
        let starts = self.dice.up_to(Duration::from_millis(50));
        let ends = starts + self.dice.up_to(Duration::from_secs(60));
        self.after(starts, Step::RankStarts { node: node.clone(), incarnation, attempt, rank });
        self.after(ends, Step::RankEnds { node: node.clone(), incarnation, attempt, rank, life, code });
    }

    fn rank_starts(&mut self, node: &NodeName, incarnation: u64, attempt: AttemptId, rank: Rank) {
        if self.runs(node, incarnation) && self.hosts[node].ranks.contains_key(&(attempt, rank)) {
            self.feed(node, Input::Started { attempt, rank, pid: 1 });
        }
    }

    fn rank_ends(
        &mut self,
        node: &NodeName,
        incarnation: u64,
        attempt: AttemptId,
        Member { rank, life }: Member,
        code: i32,
    ) {
        let host = self.hosts.get_mut(node).unwrap();
        let another = host.elastic.get(&(attempt, rank)).is_some_and(|process| process.life() != life);
        if host.ranks.get(&(attempt, rank)) != Some(&incarnation) || another {
            return;
        }
        host.ranks.remove(&(attempt, rank));
        self.elastic_ended(node, attempt, rank, code);
        self.trial_rank_ended(node, attempt, rank);
        if !self.hosts[node].alive {
            return;
        }
        if code == 0 {
            self.ended_well.insert((attempt, rank));
        }
        let exit = RankExit {
            rank,
            code,
            message: format!("exited with code {code}"),
            asked: false,
            not_started: false,
            life: 0,
        };
        self.feed(node, Input::Exited { attempt, exit });
        self.gone_if_empty(node, attempt);
    }

    fn gone_if_empty(&mut self, node: &NodeName, attempt: AttemptId) {
        let empty = !self.hosts[node].ranks.keys().any(|(other, _)| *other == attempt);
        if empty && !self.awaits_word(node, attempt) {
            self.later(node, Duration::from_millis(2), Input::Gone { attempt, unreaped: String::new() });
        }
    }

    fn end(&mut self, node: &NodeName, attempt: AttemptId, grace: Duration) {
        let incarnation = self.hosts[node].incarnation;
        let ranks: Vec<Rank> = self.hosts[node]
            .ranks
            .keys()
            .filter(|(other, _)| *other == attempt)
            .map(|&(_, rank)| rank)
            .collect();
        for rank in ranks {
            let ends = self.dice.up_to(grace.max(Duration::from_millis(1)));
            let life = self.hosts[node].elastic.get(&(attempt, rank)).map_or(0, elastic::Process::life);
            self.after(
                ends,
                Step::RankEnds { node: node.clone(), incarnation, attempt, rank, life, code: 143 },
            );
        }
        // Whatever was killed is not started again.
        let awaited_word = self.awaits_word(node, attempt);
        self.hosts.get_mut(node).unwrap().ended.insert(attempt);
        if awaited_word {
            self.gone_if_empty(node, attempt);
        }
    }

    /// No bundle is kept twice, what is kept fits beside what runs, and gangs run only where their group has a place.
    fn check_groups(&self) -> Result<(), String> {
        for group in self.disk.groups.values() {
            let ranks: Vec<Rank> = group.kept().map(|(_, bundle)| bundle.rank).collect();
            let distinct: BTreeSet<Rank> = ranks.iter().copied().collect();
            let wanted = group.spec.gang.workers.max as usize;
            if distinct.len() != ranks.len() || (group.state == GroupState::Ready && ranks.len() != wanted) {
                return Err(format!("{} is {} and keeps {ranks:?}", group.spec.name, group.state));
            }
        }
        for (name, host) in &self.hosts {
            let group_of = |attempt: &AttemptId| self.disk.jobs.get(&attempt.job).and_then(|job| job.group);
            let outside = host.ranks.keys().filter(|(attempt, _)| group_of(attempt).is_none()).count();
            let kept = self
                .disk
                .groups
                .values()
                .flat_map(Group::kept)
                .filter(|(seat, _)| seat.node == *name)
                .count();
            if outside + kept > CORES as usize {
                return Err(format!(
                    "{name} runs {outside} ranks beside {kept} kept bundles on {CORES} cores"
                ));
            }
            for (attempt, _) in host.ranks.keys() {
                let Some(id) = group_of(attempt) else { continue };
                let seats = self.disk.groups.get(&id).into_iter().flat_map(|group| &group.seats);
                if !seats.into_iter().any(|seat| seat.node == *name) {
                    return Err(format!("{attempt} runs on {name}, where its group has no place"));
                }
            }
        }
        Ok(())
    }

    fn check(&self) -> Result<(), String> {
        let mut running: BTreeMap<JobId, AttemptId> = BTreeMap::new();
        for (name, host) in &self.hosts {
            if host.ranks.len() > CORES as usize {
                let group = |attempt: &AttemptId| self.disk.jobs.get(&attempt.job).and_then(|job| job.group);
                let ranks: Vec<String> = host
                    .ranks
                    .keys()
                    .map(|(attempt, rank)| format!("{attempt} rank {rank} in {:?}", group(attempt)))
                    .collect();
                return Err(format!("{name} runs {ranks:?} on {CORES} cores"));
            }
            for &(attempt, rank) in host.ranks.keys() {
                let first = *running.entry(attempt.job).or_insert(attempt);
                if first != attempt {
                    return Err(format!("{first} and {attempt} run at once"));
                }
                if self.disk.jobs.get(&attempt.job).is_none_or(|job| job.state.is_terminal()) {
                    return Err(format!("rank {rank} of {attempt} runs after the job's end"));
                }
            }
        }
        self.check_groups()?;
        self.check_sweeps()?;
        for job in self.disk.jobs.values() {
            let well = |rank: usize| self.ended_well.contains(&(job.attempt_id(), rank as Rank));
            let ranks = job.attempts.last().map_or(&[][..], |attempt| &attempt.ranks);
            let all_well = ranks.iter().enumerate().all(|(rank, run)| run.lost || well(rank));
            if job.state == JobState::Succeeded && !all_well {
                return Err(format!("{} succeeded though not every rank did", job.id));
            }
            if job.failures > job.spec.max_failures + 1 {
                return Err(format!("{} failed {} times", job.id, job.failures));
            }
            if job.state == JobState::Failed && !matches!(job.exit_code, Some(3 | 124 | 137)) {
                return Err(format!("{} failed with {:?}", job.id, job.exit_code));
            }
        }
        if let Some(controller) = &self.service {
            let held = controller.cluster().held("capped").get(&phalanx_scheduler::Kind::Cpu);
            if held > CAP_MILLI {
                return Err(format!("`capped` holds {held} of {CAP_MILLI}"));
            }
        }
        for job in self.disk.jobs.values() {
            let (least, most) = (job.spec.gang.workers.min as usize, job.spec.gang.workers.max as usize);
            if let Some(odd) = job.attempts.iter().find(|past| !(least..=most).contains(&past.ranks.len())) {
                return Err(format!("{} had {} workers of {least} to {most}", job.id, odd.ranks.len()));
            }
            let failed = job.attempts.iter().filter(|past| past.state == AttemptState::Failed).count();
            let restarted = job.attempts.iter().flat_map(|past| &past.ranks).map(|rank| rank.life as usize);
            let failed = failed + restarted.sum::<usize>();
            if job.failures as usize > failed {
                return Err(format!("{} counts {} failures and had {failed}", job.id, job.failures));
            }
        }
        match self.promised.iter().find(|id| !self.disk.jobs.contains_key(id)) {
            Some(lost) => Err(format!("{lost} was promised and is not stored")),
            None => Ok(()),
        }
    }
}

#[test]
fn whatever_is_killed_and_cut_every_promise_is_kept() {
    let seeds =
        std::env::var("PHALANX_SIMULATION_SEEDS").ok().and_then(|text| text.parse().ok()).unwrap_or(300);
    let first = std::env::var("PHALANX_SIMULATION_SEED").ok().and_then(|text| text.parse().ok()).unwrap_or(0);
    let mut outcomes: BTreeMap<AttemptState, usize> = BTreeMap::new();
    let mut let_in = 0;
    let mut trials: BTreeMap<phalanx_core::TrialState, usize> = BTreeMap::new();
    for seed in first..first + seeds {
        let mut world = World::new(seed);
        world.run(seed);
        let_in += world.let_in;
        let attempts = world.disk.jobs.values().flat_map(|job| &job.attempts);
        attempts.for_each(|attempt| *outcomes.entry(attempt.state).or_default() += 1);
        let ended = world.disk.sweeps.trials.values();
        ended.for_each(|trial| *trials.entry(trial.state).or_default() += 1);
    }
    // The worlds have seen what they are there for.
    assert!(seeds < 100 || let_in > 10, "{let_in} ranks were let in");
    assert!(seeds < 100 || trials.values().filter(|count| **count > 10).count() == 4, "{trials:?}");
    let seen = |state| outcomes.get(&state).copied().unwrap_or(0);
    assert!(
        seeds < 100 || seen(AttemptState::Resized) > 10 && seen(AttemptState::Preempted) > 10,
        "{outcomes:?}"
    );
}
