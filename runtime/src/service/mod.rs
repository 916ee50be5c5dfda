//! The service: the controller's loop, the agents' sessions and the readers that follow jobs.
//!
//! [`Service::open`] reads the store, [`Service::run`] owns the controller until it is told to stop, and everybody else
//! holds a [`Handle`]. A handle without a service reads the records at rest.

mod answers;
mod artifacts;
mod control;
mod events;
mod follow;
mod groups;
mod local_agent;
mod nodes;
mod notify;
mod secrets;
mod session;
mod site;
mod sweeps;
mod writes;

pub use artifacts::Artifact;
pub use control::Clock;
pub use events::{EVENTS_TAIL, EventQuery};
pub use follow::{ChangeBatch, LogBatch, PointBatch, Query};
pub use groups::{GROUP_WAIT, GroupRequest};
pub use local_agent::LocalAgent;
pub use site::{Setting, Site};
pub use sweeps::{Answered, SweepChange, SweepRequest};

pub use phalanx_tuner::{Decision, Error as StudyError, Outcome};

use crate::controller::{self, Controller, QueueChange, QueueStatus, Queues, Submission};
use crate::error::Error;
use crate::store::{Access, DataLock, Endpoint, LogRow, RecordLimits, Records, Secrets, State};
use control::{Control, Input, Request};
use groups::GroupTable;
use notify::Notifier;
use phalanx_api::v1 as pb;
use phalanx_core::limits::REQUEST_ID_BYTES;
use phalanx_core::resources::Capacity;
use phalanx_core::spec::QueueSpec;
use phalanx_core::{Cpus, Device, Job, JobId, JobSpec, NodeName, NodeState, Rank, Reason, SweepId};
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, oneshot, watch};
use tokio_stream::Stream;
use tokio_util::sync::CancellationToken;

/// How long an agent may be silent unless configured otherwise.
pub const DEFAULT_NODE_TIMEOUT: Duration = Duration::from_secs(15);
/// Inputs that wait for the controller; a sender waits when they are so many.
const INBOX: usize = 4096;
/// Who does what is done within this process.
const LOCAL: &str = "local";
/// Bytes of lines that a look at a log's end takes at most.
const TAIL_BYTES: usize = 2 << 20;
/// A job's name where neither the file nor the request has one.
const UNNAMED: &str = "job";
/// Of a page of jobs so many that wait are told why at this moment; the rest say what the last decision said.
const EXPLAINED_JOBS: usize = 100;

/// What a service is started with.
#[derive(Clone, Debug)]
pub struct ServiceConfig {
    /// The folder of its records; made where it is missing.
    pub data_dir: PathBuf,
    /// It belongs to a `run`: it runs that run's jobs only.
    pub embedded: bool,
    /// How much of a job's log is kept.
    pub records: RecordLimits,
    /// What the site sets.
    pub site: Site,
}

/// A job as somebody hands it in.
#[derive(Clone, Debug, Default)]
pub struct JobRequest {
    /// The job file.
    pub toml: String,
    /// Makes a repeated request answer the first result.
    pub request_id: Option<String>,
    /// Checks and changes nothing.
    pub validate_only: bool,
    /// Where relative paths of the file start from.
    pub base_dir: Option<PathBuf>,
    /// The job's name where the file has none.
    pub default_name: Option<String>,
}

/// The service itself, in numbers.
#[derive(Clone, Debug)]
pub struct Status {
    /// How long it has been up; zero for records at rest.
    pub uptime: Duration,
    /// Jobs by the name of their state.
    pub jobs: BTreeMap<String, u64>,
    /// The data folder.
    pub data_dir: PathBuf,
}

/// A node: what it has, what is free, and whether its agent is there.
#[derive(Clone, Debug)]
pub struct NodeStatus {
    /// Its name.
    pub name: NodeName,
    /// Whether it takes work.
    pub state: NodeState,
    /// All it has.
    pub capacity: Capacity,
    /// CPUs nobody holds.
    pub cpus_free: Cpus,
    /// Memory nobody holds.
    pub memory_free_bytes: u64,
    /// Custom resources nobody holds, in thousandths.
    pub custom_free: BTreeMap<String, u64>,
    /// Its devices, in the order of their index.
    pub devices: Vec<DeviceStatus>,
}

/// A device and its use.
#[derive(Clone, Debug)]
pub struct DeviceStatus {
    /// What it is.
    pub device: Device,
    /// Thousandths that can be given out.
    pub free_shares: u16,
    /// In bytes, by the driver; 0 when unknown.
    pub memory_used_bytes: u64,
    /// In percent, by the driver; 0 when unknown.
    pub utilization: f64,
}

/// What readers share with the loop.
#[derive(Debug)]
struct Shared {
    data_dir: PathBuf,
    started: Instant,
    state: State,
    records: Records,
    notifier: Notifier<JobId>,
    sweep_news: Notifier<SweepId>,
    /// Jobs that are not terminal, as they were last committed.
    live: RwLock<BTreeMap<JobId, Arc<Job>>>,
    /// Placement groups, as they were last committed.
    groups: RwLock<GroupTable>,
    /// Values that jobs may name.
    secrets: RwLock<secrets::Known>,
    secret_store: Secrets,
    /// Why the waiting ones wait, as of the last decision.
    reasons: RwLock<BTreeMap<JobId, Reason>>,
    /// What the site sets.
    site: RwLock<Site>,
}

/// A service that has opened its store and not started yet.
pub struct Service {
    control: Control,
    inbox: mpsc::Receiver<Input>,
    lock: DataLock,
}

impl Service {
    /// Takes the data folder, reads the store and gets ready to go on from there.
    pub async fn open(config: ServiceConfig) -> Result<(Service, Handle), Error> {
        let purpose = if config.embedded { "run" } else { "service" };
        let lock = DataLock::acquire(&config.data_dir, purpose)?;
        let state = State::open(&config.data_dir, Access::ReadWrite).await?;
        let records = Records::open(&config.data_dir, Access::ReadWrite, config.records.clone()).await?;
        let loaded = state.load().await?;
        let clock = Clock::start();
        let queues = Queues {
            file: by_name(&config.site.spec.queues),
            api: BTreeMap::new(),
            scheduling: config.site.spec.scheduling.clone(),
        };
        let mut controller = Controller::restore(
            controller::Config {
                embedded: config.embedded,
                node_timeout: config.site.node_timeout(),
                queues,
            },
            clock.now(),
            loaded,
        );
        let problems = controller.misfits(controller.queues());
        if !problems.0.is_empty() {
            return Err(Error::Misfit(problems));
        }
        let shared = Arc::new(Shared::new(config.data_dir, state, records));
        let secrets = shared.secret_store.load()?;
        secrets.keys().for_each(|name| controller.know_secret(name.clone()));
        *shared.secrets.write().unwrap_or_else(PoisonError::into_inner) = secrets;
        let (sender, inbox) = mpsc::channel(INBOX);
        let control = Control::new(controller, shared.clone(), clock);
        let node_timeout = config.site.node_timeout();
        shared.set_site(config.site);
        let handle = Handle { shared, inbox: Some(sender), node_timeout, actor: Arc::from(LOCAL) };
        Ok((Service { control, inbox, lock }, handle))
    }

    /// Tells programs on this machine where the service can be reached.
    pub fn announce(&self, endpoint: &Endpoint) -> Result<(), Error> {
        Ok(endpoint.write(&self.lock)?)
    }

    /// Runs until `shutdown`, then ends what runs within the jobs' grace times, and returns when nothing is left.
    pub async fn run(self, shutdown: CancellationToken) -> Result<(), Error> {
        let ended = self.control.run(self.inbox, shutdown).await;
        // Where it cannot be removed it counts for nothing, because nobody holds the folder any more.
        let _ = Endpoint::remove(&self.lock);
        ended
    }
}

impl Shared {
    fn new(data_dir: PathBuf, state: State, records: Records) -> Self {
        Shared {
            secrets: RwLock::default(),
            secret_store: Secrets::of(&data_dir),
            data_dir,
            started: Instant::now(),
            state,
            records,
            notifier: Notifier::default(),
            sweep_news: Notifier::default(),
            live: RwLock::default(),
            groups: RwLock::default(),
            reasons: RwLock::default(),
            site: RwLock::default(),
        }
    }

    fn set_site(&self, site: Site) {
        *self.site.write().unwrap_or_else(PoisonError::into_inner) = site;
    }

    /// The job as committed, with the reason of the last decision where it waits.
    async fn job(&self, id: JobId) -> Result<Job, Error> {
        let live = self.live.read().unwrap_or_else(PoisonError::into_inner).get(&id).cloned();
        match live {
            Some(job) => Ok(self.with_reason((*job).clone())),
            None => self.state.job(id).await?.ok_or(Error::UnknownJob(id)),
        }
    }

    /// Puts what is committed by now in the place of what was read.
    fn bring_up_to_date(&self, jobs: &mut [Job]) {
        let live = self.live.read().unwrap_or_else(PoisonError::into_inner);
        for job in jobs {
            if let Some(current) = live.get(&job.id) {
                *job = self.with_reason((**current).clone());
            }
        }
    }

    fn with_reason(&self, mut job: Job) -> Job {
        if job.state.is_waiting()
            && let Some(reason) = self.reasons.read().unwrap_or_else(PoisonError::into_inner).get(&job.id)
        {
            job.reason = reason.clone();
        }
        job
    }
}

/// The way to a service, or to its records at rest.
#[derive(Clone, Debug)]
pub struct Handle {
    shared: Arc<Shared>,
    inbox: Option<mpsc::Sender<Input>>,
    node_timeout: Duration,
    /// Who does what is done through it.
    actor: Arc<str>,
}

impl Handle {
    /// Reads the records in a data folder, whether or not a service runs on it; every change is refused.
    pub async fn read_only(data_dir: &Path) -> Result<Handle, Error> {
        let state = State::open(data_dir, Access::ReadOnly).await?;
        let records = Records::open(data_dir, Access::ReadOnly, RecordLimits::default()).await?;
        let groups = RwLock::new(GroupTable::new(state.groups().await?));
        let shared = Arc::new(Shared { groups, ..Shared::new(data_dir.to_owned(), state, records) });
        Ok(Handle { shared, inbox: None, node_timeout: DEFAULT_NODE_TIMEOUT, actor: Arc::from(LOCAL) })
    }

    /// Queues a job and answers once it is durable; with `validate_only` the answer has the id 0.
    pub async fn submit(&self, request: JobRequest) -> Result<Job, Error> {
        let bytes = request.request_id.as_ref().map_or(0, String::len);
        if bytes > REQUEST_ID_BYTES {
            return Err(Error::RequestIdTooLong { bytes, limit: REQUEST_ID_BYTES });
        }
        let name = request.default_name.as_deref().filter(|name| !name.is_empty()).unwrap_or(UNNAMED);
        let spec = JobSpec::parse(&request.toml, name)
            .map_err(|problems| Error::InvalidFile { problems, text: request.toml.clone() })?;
        let fingerprint = fingerprint(&request);
        let base_dir = match request.base_dir {
            Some(dir) => dir,
            None => std::env::current_dir().unwrap_or_else(|_| PathBuf::from("/")),
        };
        let submission = Box::new(Submission { spec, base_dir });
        let request = match (request.validate_only, request.request_id) {
            (true, _) => Request::Validate(submission),
            (false, id) => Request::Submit { submission, request_id: id.map(|id| (id, fingerprint)) },
        };
        self.ask(request).await
    }

    /// One job; where it waits, with the reason of this moment.
    pub async fn job(&self, id: JobId) -> Result<Job, Error> {
        let mut job = self.shared.job(id).await?;
        if job.state.is_waiting()
            && let Some(reason) = self.explain(vec![id]).await.remove(&id)
        {
            job.reason = reason;
        }
        Ok(job)
    }

    /// Why jobs or groups wait at this moment; those that do not are left out, and all where nobody decides.
    async fn explain(&self, ids: Vec<JobId>) -> BTreeMap<JobId, Reason> {
        let Ok(inbox) = self.inbox() else { return BTreeMap::new() };
        let (answer, answered) = oneshot::channel();
        match inbox.send(Input::Explain(ids, answer)).await {
            Ok(()) => answered.await.unwrap_or_default(),
            Err(_) => BTreeMap::new(),
        }
    }

    /// Jobs with ids below `before`, the newest first; all of them, or only those that are not over.
    pub async fn jobs(&self, before: Option<JobId>, limit: u32, unfinished: bool) -> Result<Vec<Job>, Error> {
        let mut jobs = self.shared.state.jobs(before, limit, unfinished).await?;
        self.shared.bring_up_to_date(&mut jobs);
        let waiting = jobs.iter().filter(|job| job.state.is_waiting()).map(|job| job.id);
        let waiting: Vec<JobId> = waiting.take(EXPLAINED_JOBS).collect();
        if !waiting.is_empty() {
            let mut reasons = self.explain(waiting).await;
            for job in &mut jobs {
                if let Some(reason) = reasons.remove(&job.id) {
                    job.reason = reason;
                }
            }
        }
        Ok(jobs)
    }

    /// Ends a job for good.
    pub async fn cancel(&self, id: JobId) -> Result<Job, Error> {
        self.ask(Request::Cancel(id)).await
    }

    /// Ends a job's processes until it is resumed.
    pub async fn pause(&self, id: JobId) -> Result<Job, Error> {
        self.ask(Request::Pause(id)).await
    }

    /// Lets a paused job go on.
    pub async fn resume(&self, id: JobId) -> Result<Job, Error> {
        self.ask(Request::Resume(id)).await
    }

    /// Every state of a job after `after_seq`, in batches; ends after the terminal one.
    pub fn changes(&self, id: JobId, after_seq: u64) -> impl Stream<Item = ChangeBatch> + use<> {
        follow::changes(self.shared.clone(), id, after_seq)
    }

    /// What a job's ranks wrote, in batches.
    pub fn logs(&self, id: JobId, query: Query) -> impl Stream<Item = LogBatch> + use<> {
        follow::logs(self.shared.clone(), id, query)
    }

    /// What a job's ranks reported, in batches.
    pub fn metrics(&self, id: JobId, query: Query) -> impl Stream<Item = PointBatch> + use<> {
        follow::metrics(self.shared.clone(), id, query)
    }

    /// The last lines of a job's log, the oldest of them first, of one rank or attempt only where asked.
    pub async fn log_tail(
        &self,
        id: JobId,
        rows: u32,
        rank: Option<Rank>,
        attempt: Option<u32>,
    ) -> Result<Vec<LogRow>, Error> {
        Ok(self.shared.records.tail(id, rows, TAIL_BYTES, rank, attempt).await?)
    }

    /// The numbers of a job's last line and last point; 0 before the first.
    pub async fn last_seq(&self, id: JobId) -> Result<(u64, u64), Error> {
        Ok(self.shared.records.last_seq(id).await?)
    }

    /// States that jobs have been in, of one job or of all, by the numbers of the whole service's changes.
    pub async fn job_feed(
        &self,
        after: u64,
        job: Option<JobId>,
        limit: u32,
    ) -> Result<Vec<(u64, Job)>, Error> {
        Ok(self.shared.state.feed(after, job, limit).await?)
    }

    /// The number of the latest change of any job; 0 before the first.
    pub async fn last_change(&self) -> Result<u64, Error> {
        Ok(self.shared.state.last_change().await?)
    }

    /// A receiver that changes whenever any job has entered another state.
    pub fn job_changes(&self) -> watch::Receiver<()> {
        self.shared.notifier.subscribe_states()
    }

    /// Every queue with what is in it, in the order of their names.
    pub async fn queues(&self) -> Result<Vec<QueueStatus>, Error> {
        let (answer, answered) = oneshot::channel();
        self.inbox()?.send(Input::Queues(answer)).await.map_err(|_| Error::Unavailable)?;
        answered.await.map_err(|_| Error::Unavailable)
    }

    /// Lets a node finish what it runs and gives it nothing new, or takes that back; answers once that is durable.
    pub async fn drain(&self, node: &str, drain: bool) -> Result<NodeStatus, Error> {
        let (answer, answered) = oneshot::channel();
        let (name, actor) = (node.to_owned(), self.actor.clone());
        let input = Input::Drain { node: name, drain, actor, to: answer };
        self.inbox()?.send(input).await.map_err(|_| Error::Unavailable)?;
        answered.await.map_err(|_| Error::Unavailable)??;
        let nodes = self.nodes().await?.into_iter();
        let unknown = || Error::UnknownNode(node.to_owned());
        nodes.into_iter().find(|status| status.name.as_str() == node).ok_or_else(unknown)
    }

    /// Changes queues; answers once that is durable.
    pub async fn change_queues(&self, change: QueueChange) -> Result<(), Error> {
        let (answer, answered) = oneshot::channel();
        let input = Input::ChangeQueues(Box::new(change), self.actor.clone(), answer);
        self.inbox()?.send(input).await.map_err(|_| Error::Unavailable)?;
        answered.await.map_err(|_| Error::Unavailable)?
    }

    /// Takes over a configuration that was read anew; nothing has changed where it does not fit.
    /// `node_timeout` counts from the next start on, because the agents hold to the one they were told.
    pub async fn configure(&self, mut site: Site) -> Result<(), Error> {
        let (answer, answered) = oneshot::channel();
        let (queues, scheduling) = (by_name(&site.spec.queues), site.spec.scheduling.clone());
        let input = Input::Configure(queues, Box::new(scheduling), answer);
        self.inbox()?.send(input).await.map_err(|_| Error::Unavailable)?;
        answered.await.map_err(|_| Error::Unavailable)??;
        let before = self.shared.site.read().unwrap_or_else(PoisonError::into_inner).clone();
        site.keep_node_timeout(&before);
        self.shared.set_site(site);
        Ok(())
    }

    /// All settings in force, and where each was said.
    pub async fn settings(&self) -> Result<Vec<Setting>, Error> {
        let api: Vec<QueueSpec> = match &self.inbox {
            Some(_) => {
                let queues = self.queues().await?.into_iter();
                queues.filter(|queue| queue.from_api).map(|queue| queue.spec).collect()
            }
            None => self.shared.state.load().await?.queues.into_values().collect(),
        };
        Ok(self.shared.site.read().unwrap_or_else(PoisonError::into_inner).settings(&api))
    }

    /// What the site would set for a service on these records.
    pub fn with_site(self, site: Site) -> Self {
        self.shared.set_site(site);
        self
    }

    /// Every node, in the order of their names.
    pub async fn nodes(&self) -> Result<Vec<NodeStatus>, Error> {
        let (answer, answered) = oneshot::channel();
        self.inbox()?.send(Input::Nodes(answer)).await.map_err(|_| Error::Unavailable)?;
        answered.await.map_err(|_| Error::Unavailable)
    }

    /// The service in numbers.
    pub async fn status(&self) -> Result<Status, Error> {
        let jobs = self.shared.state.counts().await?;
        let uptime = if self.inbox.is_some() { self.shared.started.elapsed() } else { Duration::ZERO };
        Ok(Status { uptime, jobs, data_dir: self.shared.data_dir.clone() })
    }

    /// One session of an agent, for as long as its stream lives.
    pub async fn agent_session<S>(
        &self,
        inbound: S,
        peer: Option<IpAddr>,
    ) -> Result<mpsc::Receiver<pb::ServiceMessage>, Error>
    where
        S: Stream<Item = Result<pb::AgentMessage, tonic::Status>> + Send + Unpin + 'static,
    {
        let inbox = self.inbox()?.clone();
        Ok(session::start(self.shared.clone(), inbox, self.node_timeout, inbound, peer))
    }

    fn inbox(&self) -> Result<&mpsc::Sender<Input>, Error> {
        self.inbox.as_ref().ok_or_else(|| Error::ReadOnly { data_dir: self.shared.data_dir.clone() })
    }

    async fn ask(&self, request: Request) -> Result<Job, Error> {
        let (answer, answered) = oneshot::channel();
        self.inbox()?
            .send(Input::Request(request, self.actor.clone(), answer))
            .await
            .map_err(|_| Error::Unavailable)?;
        answered.await.map_err(|_| Error::Unavailable)?
    }
}

fn by_name(queues: &[QueueSpec]) -> BTreeMap<String, QueueSpec> {
    queues.iter().map(|queue| (queue.name.clone(), queue.clone())).collect()
}

/// Two submissions are the same when everything that matters for the job is.
fn fingerprint(request: &JobRequest) -> [u8; 32] {
    let base_dir = request.base_dir.as_deref().unwrap_or(Path::new("")).as_os_str().as_encoded_bytes();
    let name = request.default_name.as_deref().unwrap_or("");
    fingerprint_of(&[request.toml.as_bytes(), base_dir, name.as_bytes()])
}

fn fingerprint_of(parts: &[&[u8]]) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new();
    for part in parts {
        hasher.update(&(part.len() as u64).to_le_bytes());
        hasher.update(part);
    }
    *hasher.finalize().as_bytes()
}
