//! The loop around the controller: it takes inputs in, commits what the controller decides, and only then acts.
//!
//! Cancel: `shutdown` ends the attempts first and then the loop. Error: a store that cannot commit (a full disk) stops
//! nothing but the answers: what is owed is tried again until it succeeds, and requests are refused meanwhile.

use super::answers::{Answer, Asked};
use super::groups::GroupTable;
use super::sweeps::{Answered, SweepAsk};
use super::writes::{all_writes, record_start};
use super::{NodeStatus, Shared};
use crate::controller::{
    Asking, Controller, Effects, QueueChange, QueueStatus, QueueWrite, Saved, Submission,
};
use crate::error::Error;
use crate::protocol::{AgentEvent, Command, Hello};
use crate::store::{StoreError, Write};
use phalanx_core::spec::{QueueSpec, SchedulingSpec};
use phalanx_core::{
    Group, GroupName, GroupSpec, Job, JobId, JobState, NewEvent, NodeName, Reason, Sweep, SweepId, Time,
};
use std::collections::BTreeMap;
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
    Request(Request, Actor, oneshot::Sender<Result<Job, Error>>),
    /// Somebody asks for something about a placement group.
    Group(GroupAsk, Actor, oneshot::Sender<Result<Group, Error>>),
    /// Somebody asks for something about a sweep.
    Sweep(SweepAsk, Actor, oneshot::Sender<Result<Sweep, Error>>),
    /// Somebody runs the trials of an external sweep. The name makes a repeated question answer the first result.
    Asking {
        sweep: SweepId,
        asking: Asking,
        name: Option<String>,
        actor: Actor,
        to: oneshot::Sender<Result<Answered, Error>>,
    },
    /// There is a value for a secret.
    KnowSecret { name: String, event: NewEvent },
    /// A secret is to be forgotten.
    ForgetSecret { name: String, event: NewEvent, to: oneshot::Sender<Result<(), Error>> },
    /// A node is to finish what it runs and be given nothing new, or to take work again.
    Drain { node: String, drain: bool, actor: Actor, to: oneshot::Sender<Result<(), Error>> },
    /// Somebody did something that the controller has no part in.
    Note(NewEvent),
    /// Somebody looks at the nodes.
    Nodes(oneshot::Sender<Vec<NodeStatus>>),
    /// An agent's session began; later ones of the same node replace it.
    Joined { hello: Hello, session: u64, to: mpsc::Sender<Outgoing> },
    /// A session ended.
    Left { node: NodeName, session: u64 },
    /// What happened on a node; its records are committed already.
    Happened { node: NodeName, session: u64, events: Vec<AgentEvent>, through: u64 },
    /// Why jobs or groups wait, with the numbers of this moment.
    Explain(Vec<JobId>, oneshot::Sender<BTreeMap<JobId, Reason>>),
    /// Every queue with what is in it.
    Queues(oneshot::Sender<Vec<QueueStatus>>),
    /// A change of queues over the API.
    ChangeQueues(Box<QueueChange>, Actor, oneshot::Sender<Result<(), Error>>),
    /// The configuration was read anew.
    Configure(BTreeMap<String, QueueSpec>, Box<SchedulingSpec>, oneshot::Sender<Result<(), Error>>),
    /// Live use of a node's devices.
    DeviceUse { node: NodeName, devices: Vec<(u64, f64)> },
}

/// Who asks.
pub(super) type Actor = Arc<str>;

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
    pub(super) device_use: BTreeMap<NodeName, Vec<(u64, f64)>>,
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
        let mut drains = Vec::new();
        let mut answers = Vec::new();
        for input in inputs.drain(..) {
            match input {
                Input::Request(request, actor, answer) => requests.push(Asked::Job(request, actor, answer)),
                Input::Group(ask, actor, answer) => requests.push(Asked::Group(ask, actor, answer)),
                Input::Sweep(ask, actor, answer) => requests.push(Asked::Sweep(ask, actor, answer)),
                Input::Nodes(answer) => drop(answer.send(self.node_status())),
                Input::Explain(ids, answer) => {
                    let explain = |&id: &JobId| Some((id, self.controller.explain(self.clock.now(), id)?));
                    drop(answer.send(ids.iter().filter_map(explain).collect()));
                }
                Input::Queues(answer) => drop(answer.send(self.controller.queue_status(self.clock.now()))),
                Input::ChangeQueues(change, actor, answer) => changes.push((change, actor, answer)),
                Input::Drain { node, drain, actor, to } => drains.push((node, drain, actor, to)),
                Input::Configure(queues, scheduling, answer) => {
                    let done = self.controller.configure(self.clock.now(), queues, *scheduling);
                    drop(answer.send(done.map_err(Error::Misfit)));
                }
                other => news.push(other),
            }
        }
        for input in news {
            match input {
                Input::Asking { sweep, asking, name, actor, to } => {
                    answers.push((self.ask_sweep(sweep, asking, name, &actor).await, to));
                }
                other => self.take_in(other),
            }
        }
        if !requests.is_empty() {
            self.answer(requests).await;
        }
        for (change, actor, answer) in changes {
            let changed = self.change_queues(&change, &actor).await;
            drop(answer.send(changed));
        }
        for (node, drain, actor, answer) in drains {
            let drained = self.drain(&node, drain, &actor).await;
            drop(answer.send(drained));
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
            Input::Note(event) => self.owed.events.push(event),
            Input::KnowSecret { name, event } => {
                self.controller.know_secret(name);
                self.owed.events.push(event);
            }
            Input::ForgetSecret { name, event, to } => {
                let forgotten = self.controller.forget_secret(&name).map_err(Error::from);
                self.owed.events.extend(forgotten.is_ok().then_some(event));
                drop(to.send(forgotten));
            }
            // The rest of a session that another one has replaced: the agent says it again in the new one.
            Input::Left { .. } | Input::Happened { .. } => {}
            // Answered before news is taken in.
            Input::Request(..)
            | Input::Group(..)
            | Input::Sweep(..)
            | Input::Asking { .. }
            | Input::Nodes(_)
            | Input::Explain(..)
            | Input::Queues(_)
            | Input::ChangeQueues(..)
            | Input::Drain { .. }
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
                Asked::Job(request, actor, to) => {
                    let action = request.action();
                    let answer = self.apply(request, &mut writes, &mut seen).await;
                    if let (Some(action), Ok(job)) = (action, &answer) {
                        writes.push(Write::Event(NewEvent::new(&actor, action, job.id, &job.spec.name)));
                    }
                    Answer::Job(Box::new(answer), to)
                }
                Asked::Group(ask, actor, to) => {
                    let action = ask.action();
                    let answer = self.apply_group(ask, &mut writes, &mut seen).await;
                    if let (Some(action), Ok(group)) = (action, &answer) {
                        writes.push(Write::Event(NewEvent::new(&actor, action, &group.spec.name, "")));
                    }
                    Answer::Group(Box::new(answer), to)
                }
                Asked::Sweep(ask, actor, to) => {
                    let action = ask.action();
                    let answer = self.apply_sweep(ask, &mut writes, &mut seen).await;
                    if let (Some(action), Ok(sweep)) = (action, &answer) {
                        writes.push(Write::Event(NewEvent::new(&actor, action, sweep.id, "")));
                    }
                    Answer::Sweep(Box::new(answer), to)
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
    async fn change_queues(&mut self, change: &QueueChange, actor: &str) -> Result<(), Error> {
        if self.failing.is_some() {
            self.settle().await;
        }
        self.controller.change_queues(self.clock.now(), change)?;
        let effects = self.controller.requested();
        let mut writes: Vec<Write> = all_writes(&effects).collect();
        let queues = effects.queues.iter().map(|write| match write {
            QueueWrite::Set(queue) => NewEvent::new(actor, "queue.set", &queue.name, ""),
            QueueWrite::Reset(name) => NewEvent::new(actor, "queue.reset", name, ""),
        });
        writes.extend(queues.map(Write::Event));
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
        if !effects.events.is_empty() || effects.jobs.iter().any(|saved| saved.entered) {
            self.shared.notifier.notify_states();
        }
        for (node, mut command) in effects.sends {
            if let Command::Start(launch) = &mut command {
                self.shared.reveal_to(launch);
            }
            self.tell(&node, Outgoing::Command(command));
        }
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
}
