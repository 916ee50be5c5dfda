//! The loop around the controller: it takes inputs in, commits what the controller decides, and only then acts.
//!
//! Cancel: `shutdown` ends the attempts first and then the loop. Error: a store that cannot commit (a full disk) stops
//! nothing but the answers: what is owed is tried again until it succeeds, and requests are refused meanwhile.

use super::answers::{Answer, Asked};
use super::groups::GroupTable;
use super::sweeps::{Answered, SweepAsk};
use super::writes::all_writes;
use super::{DeviceStatus, NodeStatus, Shared};
use crate::controller::{Asking, Controller, Effects, QueueChange, QueueStatus, Saved, Submission};
use crate::error::Error;
use crate::protocol::{AgentEvent, Command, Hello};
use crate::store::{StoreError, Write};
use phalanx_core::spec::{QueueSpec, SchedulingSpec};
use phalanx_core::{
    Group, GroupName, GroupSpec, GroupState, Job, JobId, JobState, NodeName, Reason, Sweep, SweepId, Time,
};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

/// Inputs that one commit takes together.
const BATCH: usize = 256;
/// Between two tries to commit what is owed.
const RETRY: Duration = Duration::from_secs(1);
/// How long a shutdown waits for attempts to end before it leaves them to their agents.
const SHUTDOWN_BOUND: Duration = Duration::from_secs(60);

/// What the loop is told.
#[derive(Debug)]
pub(super) enum Input {
    /// Somebody asks for something.
    Request(Request, oneshot::Sender<Result<Job, Error>>),
    /// Somebody asks for something about a placement group.
    Group(GroupAsk, oneshot::Sender<Result<Group, Error>>),
    /// Somebody asks for something about a sweep.
    Sweep(SweepAsk, oneshot::Sender<Result<Sweep, Error>>),
    /// Somebody runs the trials of an external sweep. The name makes a repeated question answer the first result.
    Asking {
        sweep: SweepId,
        asking: Asking,
        name: Option<String>,
        to: oneshot::Sender<Result<Answered, Error>>,
    },
    /// Somebody looks at the nodes.
    Nodes(oneshot::Sender<Vec<NodeStatus>>),
    /// An agent's session began; later ones of the same node replace it.
    Joined { hello: Hello, session: u64, to: mpsc::Sender<Outgoing> },
    /// A session ended.
    Left { node: NodeName, session: u64 },
    /// What happened on a node; its records are committed already.
    Happened { node: NodeName, session: u64, events: Vec<AgentEvent>, through: u64 },
    /// Every queue with what is in it.
    Queues(oneshot::Sender<Vec<QueueStatus>>),
    /// A change of queues over the API.
    ChangeQueues(Box<QueueChange>, oneshot::Sender<Result<(), Error>>),
    /// The configuration was read anew.
    Configure(BTreeMap<String, QueueSpec>, Box<SchedulingSpec>, oneshot::Sender<Result<(), Error>>),
    /// Live use of a node's devices.
    DeviceUse { node: NodeName, devices: Vec<(u64, f64)> },
}

/// What people ask for.
#[derive(Debug)]
pub(super) enum Request {
    Validate(Box<Submission>),
    Submit { submission: Box<Submission>, request_id: Option<(String, [u8; 32])> },
    Cancel(JobId),
    Pause(JobId),
    Resume(JobId),
}

/// What people ask of placement groups.
#[derive(Debug)]
pub(super) enum GroupAsk {
    Validate(Box<GroupSpec>),
    Create { spec: Box<GroupSpec>, request_id: Option<(String, [u8; 32])> },
    Remove(GroupName),
}

/// What the loop tells a session.
#[derive(Debug)]
pub(super) enum Outgoing {
    /// A command for the agent.
    Command(Command),
    /// Everything up to here is committed.
    Ack(u64),
}

/// The wall clock, made steady: it never goes back while the process lives.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    epoch: Duration,
    started: Instant,
}

impl Clock {
    /// Reads the wall clock once.
    pub fn start() -> Self {
        let epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Clock { epoch, started: Instant::now() }
    }

    /// The time.
    pub fn now(&self) -> Time {
        Time::ZERO + self.epoch + self.started.elapsed()
    }
}

struct Session {
    id: u64,
    to: mpsc::Sender<Outgoing>,
    /// Events applied since the last commit.
    applied: Option<u64>,
}

/// The loop's own state.
pub(super) struct Control {
    pub(super) controller: Controller,
    pub(super) shared: Arc<Shared>,
    pub(super) clock: Clock,
    sessions: BTreeMap<NodeName, Session>,
    device_use: BTreeMap<NodeName, Vec<(u64, f64)>>,
    /// Decided and not committed yet.
    pub(super) owed: Effects,
    /// Why the last commit failed, if it did.
    failing: Option<StoreError>,
}

impl Control {
    pub(super) fn new(controller: Controller, shared: Arc<Shared>, clock: Clock) -> Self {
        let live = controller.jobs().map(|job| (job.id, Arc::new(job.clone()))).collect();
        *shared.live.write().unwrap_or_else(PoisonError::into_inner) = live;
        let groups = GroupTable::new(controller.groups().cloned());
        *shared.groups.write().unwrap_or_else(PoisonError::into_inner) = groups;
        Control {
            controller,
            shared,
            clock,
            sessions: BTreeMap::new(),
            device_use: BTreeMap::new(),
            owed: Effects::default(),
            failing: None,
        }
    }

    pub(super) async fn run(
        mut self,
        mut inbox: mpsc::Receiver<Input>,
        shutdown: CancellationToken,
    ) -> Result<(), Error> {
        let mut inputs = Vec::with_capacity(BATCH);
        let mut give_up: Option<Instant> = None;
        self.settle().await;
        loop {
            let wake = self.wake_after(give_up);
            tokio::select! {
                received = inbox.recv_many(&mut inputs, BATCH) => {
                    if received == 0 {
                        return Ok(());
                    }
                }
                () = tokio::time::sleep(wake) => {}
                () = shutdown.cancelled(), if give_up.is_none() => {
                    give_up = Some(Instant::now() + SHUTDOWN_BOUND);
                    self.controller.shut_down();
                }
            }
            self.step(&mut inputs).await;
            let over = give_up.is_some_and(|at| Instant::now() >= at);
            if over || give_up.is_some() && self.controller.is_idle() && self.failing.is_none() {
                return Ok(());
            }
        }
    }

    /// How long the loop may sleep.
    fn wake_after(&self, give_up: Option<Instant>) -> Duration {
        let timer = self.controller.next_timer().map(|at| at.since(self.clock.now()));
        let retry = self.failing.as_ref().map(|_| RETRY);
        let bound = give_up.map(|at| at.saturating_duration_since(Instant::now()));
        let hour = Duration::from_secs(3600);
        timer
            .into_iter()
            .chain(retry)
            .chain(bound)
            .min()
            .unwrap_or(hour)
            .clamp(Duration::from_millis(1), hour)
    }

    async fn step(&mut self, inputs: &mut Vec<Input>) {
        let mut requests = Vec::new();
        let mut news = Vec::new();
        let mut changes = Vec::new();
        let mut answers = Vec::new();
        for input in inputs.drain(..) {
            match input {
                Input::Request(request, answer) => requests.push(Asked::Job(request, answer)),
                Input::Group(ask, answer) => requests.push(Asked::Group(ask, answer)),
                Input::Sweep(ask, answer) => requests.push(Asked::Sweep(ask, answer)),
                Input::Nodes(answer) => drop(answer.send(self.node_status())),
                Input::Queues(answer) => drop(answer.send(self.controller.queue_status())),
                Input::ChangeQueues(change, answer) => changes.push((change, answer)),
                Input::Configure(queues, scheduling, answer) => {
                    let done = self.controller.configure(self.clock.now(), queues, *scheduling);
                    drop(answer.send(done.map_err(Error::Misfit)));
                }
                other => news.push(other),
            }
        }
        for input in news {
            match input {
                Input::Asking { sweep, asking, name, to } => {
                    answers.push((self.ask_sweep(sweep, asking, name).await, to));
                }
                other => self.take_in(other),
            }
        }
        if !requests.is_empty() {
            self.answer(requests).await;
        }
        for (change, answer) in changes {
            let changed = self.change_queues(&change).await;
            drop(answer.send(changed));
        }
        self.settle().await;
        for (answer, to) in answers {
            // What a study has answered stays answered: the caller asks again, and the store is tried until it takes it.
            let refused = self.failing.clone().map(|error| Err(Error::Store(error)));
            drop(to.send(refused.unwrap_or(answer)));
        }
    }

    fn take_in(&mut self, input: Input) {
        match input {
            Input::Joined { hello, session, to } => {
                self.sessions.insert(hello.node.clone(), Session { id: session, to, applied: None });
                self.controller.joined(self.clock.now(), &hello);
            }
            Input::Left { node, session } if self.is_current(&node, session) => {
                self.sessions.remove(&node);
                self.device_use.remove(&node);
                self.controller.left(self.clock.now(), &node);
            }
            Input::Happened { node, session, events, through } if self.is_current(&node, session) => {
                let now = self.clock.now();
                events.iter().for_each(|event| self.controller.happened(now, &node, event));
                if let Some(session) = self.sessions.get_mut(&node) {
                    session.applied = Some(through);
                }
            }
            Input::DeviceUse { node, devices } => drop(self.device_use.insert(node, devices)),
            // The rest of a session that another one has replaced: the agent says it again in the new one.
            Input::Left { .. } | Input::Happened { .. } => {}
            // Answered before news is taken in.
            Input::Request(..)
            | Input::Group(..)
            | Input::Sweep(..)
            | Input::Asking { .. }
            | Input::Nodes(_)
            | Input::Queues(_)
            | Input::ChangeQueues(..)
            | Input::Configure(..) => {}
        }
    }

    fn is_current(&self, node: &NodeName, session: u64) -> bool {
        self.sessions.get(node).is_some_and(|current| current.id == session)
    }

    /// Answers requests after one commit for all of them and for what is owed; where that fails none of them has happened.
    async fn answer(&mut self, requests: Vec<Asked>) {
        let mut writes = Vec::new();
        let mut answers = Vec::new();
        let mut seen: BTreeMap<String, ([u8; 32], JobId)> = BTreeMap::new();
        // While something is owed the store is in trouble: taking more promises would only make it owe more.
        if self.failing.is_some() {
            self.settle().await;
        }
        let news = self.controller.requested();
        self.owed.absorb(news);
        for asked in requests {
            answers.push(match asked {
                Asked::Job(request, to) => {
                    Answer::Job(Box::new(self.apply(request, &mut writes, &mut seen).await), to)
                }
                Asked::Group(ask, to) => {
                    Answer::Group(Box::new(self.apply_group(ask, &mut writes, &mut seen).await), to)
                }
                Asked::Sweep(ask, to) => {
                    Answer::Sweep(Box::new(self.apply_sweep(ask, &mut writes, &mut seen).await), to)
                }
            });
        }
        let effects = self.controller.requested();
        let writes: Vec<Write> = all_writes(&self.owed).chain(writes).chain(all_writes(&effects)).collect();
        let committed =
            if writes.is_empty() { Ok(()) } else { self.shared.state.commit(&writes).await.map(drop) };
        match committed {
            Ok(()) => {
                self.controller.accept();
                let owed = std::mem::take(&mut self.owed);
                self.publish(owed);
                self.publish(effects);
                answers.into_iter().for_each(Answer::give);
            }
            Err(error) => {
                self.controller.roll_back();
                answers.into_iter().for_each(|answer| answer.refuse(&error));
            }
        }
    }

    /// Changes queues once the change is committed; where that fails it has not happened.
    async fn change_queues(&mut self, change: &QueueChange) -> Result<(), Error> {
        if self.failing.is_some() {
            self.settle().await;
        }
        self.controller.change_queues(self.clock.now(), change)?;
        let effects = self.controller.requested();
        let writes: Vec<Write> = all_writes(&effects).collect();
        if !writes.is_empty()
            && let Err(error) = self.shared.state.commit(&writes).await
        {
            self.controller.roll_back();
            return Err(Error::Store(error));
        }
        self.controller.accept();
        self.publish(effects);
        Ok(())
    }

    async fn apply(
        &mut self,
        request: Request,
        writes: &mut Vec<Write>,
        seen: &mut BTreeMap<String, ([u8; 32], JobId)>,
    ) -> Result<Job, Error> {
        let now = self.clock.now();
        match request {
            Request::Validate(submission) => {
                self.controller.validate(&submission)?;
                Ok(self.controller.preview(now, *submission))
            }
            Request::Submit { submission, request_id: None } => {
                Ok(self.controller.submit(now, *submission)?)
            }
            Request::Submit { submission, request_id: Some((request_id, fingerprint)) } => {
                let earlier = match seen.get(&request_id) {
                    Some(&earlier) => Some(earlier),
                    None => self.shared.state.request(&request_id).await?,
                };
                match earlier {
                    Some((same, id)) if same == fingerprint => self.latest(id).await,
                    Some(_) => Err(Error::Conflict { request_id }),
                    None => {
                        let job = self.controller.submit(now, *submission)?;
                        seen.insert(request_id.clone(), (fingerprint, job.id));
                        writes.push(Write::Request { request_id, fingerprint, job: job.id });
                        Ok(job)
                    }
                }
            }
            Request::Cancel(id) => match self.controller.cancel(now, id) {
                Ok(job) => Ok(job),
                Err(refusal) => self.refuse_over(id, refusal.into(), "cancelled").await,
            },
            Request::Pause(id) => match self.controller.pause(now, id) {
                Ok(job) => Ok(job),
                Err(refusal) => self.refuse_over(id, refusal.into(), "paused").await,
            },
            Request::Resume(id) => match self.controller.resume(now, id) {
                Ok(job) => Ok(job),
                Err(refusal) => self.refuse_over(id, refusal.into(), "resumed").await,
            },
        }
    }

    async fn apply_group(
        &mut self,
        ask: GroupAsk,
        writes: &mut Vec<Write>,
        seen: &mut BTreeMap<String, ([u8; 32], JobId)>,
    ) -> Result<Group, Error> {
        let now = self.clock.now();
        match ask {
            GroupAsk::Validate(spec) => match self.controller.validate_group(&spec)? {
                Some(same) => Ok(same),
                None => Ok(Controller::preview_group(now, *spec)),
            },
            GroupAsk::Create { spec, request_id: None } => Ok(self.controller.create_group(now, *spec)?),
            GroupAsk::Create { spec, request_id: Some((request_id, fingerprint)) } => {
                let earlier = match seen.get(&request_id) {
                    Some(&earlier) => Some(earlier),
                    None => self.shared.state.request(&request_id).await?,
                };
                match earlier {
                    Some((same, id)) if same == fingerprint => {
                        let group = self.controller.groups().find(|group| group.id == id).cloned();
                        Ok(group.unwrap_or_else(|| removed(now, id, *spec)))
                    }
                    Some(_) => Err(Error::Conflict { request_id }),
                    None => {
                        let group = self.controller.create_group(now, *spec)?;
                        seen.insert(request_id.clone(), (fingerprint, group.id));
                        writes.push(Write::Request { request_id, fingerprint, job: group.id });
                        Ok(group)
                    }
                }
            }
            GroupAsk::Remove(name) => {
                let found = self.controller.remove_group(now, &name)?;
                let gang = Default::default;
                let absent = || GroupSpec { name, queue: String::new(), priority: 0, gang: gang() };
                Ok(found.unwrap_or_else(|| removed(now, JobId(0), absent())))
            }
        }
    }

    /// The controller only knows jobs that are not over; for the others the store says what they became. Cancelling
    /// a cancelled job again is no error.
    async fn refuse_over(&self, id: JobId, error: Error, asked: &'static str) -> Result<Job, Error> {
        let Error::UnknownJob(_) = error else { return Err(error) };
        let job = self.shared.state.job(id).await?.ok_or(Error::UnknownJob(id))?;
        if job.state == JobState::Cancelled && asked == "cancelled" {
            return Ok(job);
        }
        Err(Error::WrongState { job: id, state: job.state, asked })
    }

    async fn latest(&self, id: JobId) -> Result<Job, Error> {
        match self.controller.job(id) {
            Some(job) => Ok(job.clone()),
            None => self.shared.job(id).await,
        }
    }

    /// Lets time pass, commits everything decided since, and acts on it.
    async fn settle(&mut self) {
        let now = self.clock.now();
        self.controller.tick(now);
        let started = Instant::now();
        let effects = self.controller.settle(now);
        if effects.planned {
            metrics::histogram!("phalanx_schedule_seconds").record(started.elapsed().as_secs_f64());
        }
        self.owed.absorb(effects);
        let writes: Vec<Write> = all_writes(&self.owed).collect();
        // What queues have had moves with time alone; it goes with the next commit that there is.
        let worth_it = writes.iter().any(|write| !matches!(write, Write::Share { .. }));
        if worth_it && let Err(error) = self.shared.state.commit(&writes).await {
            if self.failing.is_none() {
                tracing::error!(%error, "cannot commit; trying again until it succeeds");
            }
            self.failing = Some(error);
            return;
        }
        self.failing = None;
        let effects = std::mem::take(&mut self.owed);
        if !worth_it {
            self.owed.shares.clone_from(&effects.shares);
        }
        self.publish(effects);
        self.acknowledge();
    }

    /// What is committed may be seen and sent.
    fn publish(&mut self, effects: Effects) {
        if !effects.jobs.is_empty() || !effects.reasons.is_empty() {
            let mut reasons = self.shared.reasons.write().unwrap_or_else(PoisonError::into_inner);
            reasons.extend(effects.reasons);
            for saved in effects.jobs.iter().filter(|saved| !saved.job.state.is_waiting()) {
                reasons.remove(&saved.job.id);
            }
            drop(reasons);
            let mut live = self.shared.live.write().unwrap_or_else(PoisonError::into_inner);
            for Saved { job, .. } in &effects.jobs {
                if job.state.is_terminal() {
                    live.remove(&job.id);
                } else {
                    live.insert(job.id, Arc::new(job.clone()));
                }
            }
        }
        self.publish_groups(effects.groups);
        for write in &effects.sweeps {
            self.shared.sweep_news.notify(write.sweep.id);
        }
        for saved in &effects.jobs {
            record_start(saved);
            self.shared.notifier.notify(saved.job.id);
        }
        if effects.jobs.iter().any(|saved| saved.entered) {
            self.shared.notifier.notify_states();
        }
        for (node, command) in effects.sends {
            self.tell(&node, Outgoing::Command(command));
        }
    }

    fn publish_groups(&self, groups: Vec<Group>) {
        if groups.is_empty() {
            return;
        }
        let ids: BTreeSet<JobId> = groups.iter().map(|group| group.id).collect();
        let mut reasons = self.shared.reasons.write().unwrap_or_else(PoisonError::into_inner);
        let waits = |group: &&Group| matches!(group.state, GroupState::Pending | GroupState::Repairing);
        for group in groups.iter().filter(|group| !waits(group)) {
            reasons.remove(&group.id);
        }
        drop(reasons);
        let mut table = self.shared.groups.write().unwrap_or_else(PoisonError::into_inner);
        groups.into_iter().for_each(|group| table.put(group));
        drop(table);
        ids.into_iter().for_each(|id| self.shared.notifier.notify(id));
    }

    fn acknowledge(&mut self) {
        let applied: Vec<(NodeName, u64)> = self
            .sessions
            .iter_mut()
            .filter_map(|(name, session)| Some((name.clone(), session.applied.take()?)))
            .collect();
        for (node, through) in applied {
            self.tell(&node, Outgoing::Ack(through));
        }
    }

    /// A session that does not take what it is told is dropped: its agent comes back and is brought up to date.
    fn tell(&mut self, node: &NodeName, message: Outgoing) {
        let Some(session) = self.sessions.get(node) else { return };
        if session.to.try_send(message).is_err() {
            self.sessions.remove(node);
            self.controller.left(self.clock.now(), node);
        }
    }

    fn node_status(&self) -> Vec<NodeStatus> {
        let views = self.controller.cluster().nodes();
        let states: BTreeMap<&NodeName, _> =
            self.controller.nodes().map(|node| (&node.record.name, node.state())).collect();
        let status = views.filter_map(|view| {
            let device_use = self.device_use.get(view.name);
            let used =
                |at: usize| device_use.and_then(|devices| devices.get(at)).copied().unwrap_or_default();
            let devices = view.devices.iter().enumerate().map(|(at, device)| DeviceStatus {
                device: device.device.clone(),
                free_shares: if device.quarantined { 0 } else { device.free },
                memory_used_bytes: used(at).0,
                utilization: used(at).1,
            });
            Some(NodeStatus {
                name: view.name.clone(),
                state: *states.get(view.name)?,
                capacity: view.capacity.clone(),
                cpus_free: view.cpus_free,
                memory_free_bytes: view.memory_free_bytes,
                custom_free: view.custom_free.clone(),
                devices: devices.collect(),
            })
        });
        status.collect()
    }
}

/// From submission to running, once a job.
fn record_start(Saved { job, entered }: &Saved) {
    let first = *entered && job.attempts.len() == 1 && job.state == JobState::Running;
    if let Some(started) = job.started.filter(|_| first) {
        metrics::histogram!("phalanx_job_start_seconds").record(started.since(job.submitted).as_secs_f64());
    }
}

/// What a request for a group that is no more is told.
fn removed(now: Time, id: JobId, spec: GroupSpec) -> Group {
    let reason = Reason::new("removed", "nothing of it is left");
    Group { id, state: GroupState::Removed, reason, ..Controller::preview_group(now, spec) }
}
