//! A service that writes down what it hears, and an agent that talks to it.

use phalanx_api::v1 as pb;
use phalanx_core::id::AttemptId;
use phalanx_core::resources::Capacity;
use phalanx_core::spec::WorkerSpec;
use phalanx_core::{Cpus, JobId};
use phalanx_runtime::agent::{Agent, AgentConfig, Connection, Containment};
use phalanx_runtime::launch::{Launch, LaunchWork, RankLaunch};
use phalanx_runtime::protocol::wire::{self, FromAgent};
use phalanx_runtime::protocol::{AgentEvent, Command, Happening, Hello, RankExit};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tokio_util::sync::CancellationToken;
use tonic::transport::{Channel, Server};
use tonic::{Request, Response, Status, Streaming};

pub const NODE_TIMEOUT: Duration = Duration::from_secs(2);

#[derive(Default)]
pub struct Heard {
    pub hellos: Vec<Hello>,
    pub events: Vec<AgentEvent>,
    to_agent: Option<mpsc::Sender<Result<pb::ServiceMessage, Status>>>,
    next: BTreeMap<String, u64>,
}

#[derive(Clone, Default)]
pub struct Fake(pub Arc<Mutex<Heard>>, CancellationToken);

#[tonic::async_trait]
impl pb::agents_server::Agents for Fake {
    type ConnectStream = ReceiverStream<Result<pb::ServiceMessage, Status>>;

    async fn connect(
        &self,
        request: Request<Streaming<pb::AgentMessage>>,
    ) -> Result<Response<Self::ConnectStream>, Status> {
        let mut inbound = request.into_inner();
        let (sender, receiver) = mpsc::channel(1024);
        let (heard, down) = (self.0.clone(), self.1.clone());
        let session = async move {
            let Ok(Some(first)) = inbound.message().await else { return };
            let hello = wire::hello(first).unwrap();
            let outbox = hello.outbox.clone();
            sender.send(Ok(wire::welcome(NODE_TIMEOUT))).await.unwrap();
            {
                let mut heard = heard.lock().unwrap();
                heard.hellos.push(hello);
                heard.to_agent = Some(sender.clone());
            }
            let mine = sender.clone();
            while let Ok(Some(message)) = inbound.message().await {
                let answer = match wire::from_agent(message).unwrap() {
                    FromAgent::Heartbeat(_) => wire::heartbeat(),
                    FromAgent::Event(event) => {
                        let seq = event.seq;
                        let heard = &mut *heard.lock().unwrap();
                        let next = heard.next.entry(outbox.clone()).or_insert(1);
                        if seq >= *next {
                            assert_eq!(seq, *next, "events are numbered without gaps");
                            *next += 1;
                            heard.events.push(event);
                        }
                        wire::ack(seq)
                    }
                };
                let _ = sender.send(Ok(answer)).await;
            }
            heard.lock().unwrap().to_agent.take_if(|current| current.same_channel(&mine));
        };
        tokio::spawn(async move {
            tokio::select! { () = session => {}, () = down.cancelled() => {} }
        });
        Ok(Response::new(ReceiverStream::new(receiver)))
    }
}

/// A service on a port, until dropped or cut.
pub struct Service {
    pub fake: Fake,
    pub port: u16,
    down: CancellationToken,
}

impl Service {
    pub async fn start() -> Service {
        Service::on(Fake::default(), 0).await
    }

    pub async fn on(fake: Fake, port: u16) -> Service {
        let listener = TcpListener::bind(("127.0.0.1", port)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let down = CancellationToken::new();
        let fake = Fake(fake.0, down.clone());
        let agents = pb::agents_server::AgentsServer::new(fake.clone());
        let (stop, incoming) = (down.clone(), TcpListenerStream::new(listener));
        tokio::spawn(async move {
            let server = Server::builder()
                .initial_stream_window_size(4 << 20)
                .initial_connection_window_size(8 << 20)
                .max_frame_size(1 << 20)
                .add_service(agents)
                .serve_with_incoming(incoming);
            tokio::select! { _ = server => {}, () = stop.cancelled() => {} }
        });
        Service { fake, port, down }
    }

    /// As if it were killed: every stream is cut.
    pub fn cut(self) -> Fake {
        self.down.cancel();
        let fake = self.fake;
        fake.0.lock().unwrap().to_agent = None;
        fake
    }

    pub async fn send(&self, command: Command) {
        let sender = self.until("a session", |heard| heard.to_agent.clone()).await;
        sender.send(Ok(wire::command(&command))).await.unwrap();
    }

    /// Waits until something can be found.
    pub async fn until<T>(&self, what: &str, find: impl Fn(&Heard) -> Option<T>) -> T {
        let deadline = Instant::now() + Duration::from_secs(30);
        loop {
            if let Some(found) = find(&self.fake.0.lock().unwrap()) {
                return found;
            }
            assert!(
                Instant::now() < deadline,
                "waited in vain for {what}: {:#?}",
                self.fake.0.lock().unwrap().events.iter().rev().take(20).collect::<Vec<_>>()
            );
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    /// Reserves and starts.
    pub async fn launch(&self, launch: Launch) {
        let attempt = launch.attempt;
        let reserve = Command::Reserve { attempt, wants_master_port: true };
        self.insist(reserve, attempt, |what| matches!(what, Happening::Reserved { .. })).await;
        let start = Command::Start(Box::new(launch));
        self.insist(start, attempt, |what| !matches!(what, Happening::Reserved { .. })).await;
    }

    /// Repeats a command until it has been answered: it is lost with the session that it was sent to.
    async fn insist(&self, command: Command, attempt: AttemptId, answers: impl Fn(&Happening) -> bool) {
        let answer = self.find(attempt, "an answer", |what| answers(what).then_some(()));
        let repeat = async {
            loop {
                self.send(command.clone()).await;
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        };
        tokio::select! { () = answer => {}, () = repeat => {} }
    }

    /// Starts and waits for the end.
    pub async fn complete(&self, launch: Launch) -> Vec<Happening> {
        let attempt = launch.attempt;
        self.launch(launch).await;
        self.gone(attempt).await
    }

    /// Everything of an attempt, once it is gone.
    pub async fn gone(&self, attempt: AttemptId) -> Vec<Happening> {
        self.find(attempt, "Gone", |what| matches!(what, Happening::Gone { .. }).then_some(())).await;
        // Nothing may follow.
        tokio::time::sleep(Duration::from_millis(20)).await;
        let heard = self.fake.0.lock().unwrap();
        let all: Vec<Happening> = heard
            .events
            .iter()
            .filter(|event| event.attempt == attempt)
            .map(|event| event.what.clone())
            .collect();
        assert!(matches!(all.last(), Some(Happening::Gone { .. })), "something follows Gone: {all:?}");
        all
    }

    pub async fn find<T>(&self, attempt: AttemptId, what: &str, find: impl Fn(&Happening) -> Option<T>) -> T {
        self.until(&format!("{what} of {attempt}"), |heard| {
            heard.events.iter().filter(|event| event.attempt == attempt).find_map(|event| find(&event.what))
        })
        .await
    }
}

/// An agent in this process.
pub struct Running {
    shutdown: CancellationToken,
    task: tokio::task::JoinHandle<()>,
}

impl Running {
    pub fn start(
        data_dir: &Path,
        port: u16,
        containment: Option<Containment>,
        exit_when_alone: bool,
    ) -> Running {
        let mut config = config(data_dir, port);
        config.containment = containment;
        config.exit_when_alone = exit_when_alone;
        let shutdown = CancellationToken::new();
        let stop = shutdown.clone();
        Running { shutdown, task: tokio::spawn(async move { Agent::new(config).run(stop).await.unwrap() }) }
    }

    pub async fn stop(self) {
        self.shutdown.cancel();
        self.task.await.unwrap();
    }

    pub async fn ended(self) {
        self.task.await.unwrap();
    }
}

fn config(data_dir: &Path, port: u16) -> AgentConfig {
    let connect = Arc::new(move || {
        let channel = async move {
            let channel = Channel::from_shared(format!("http://127.0.0.1:{port}"))?.connect().await?;
            Ok(Connection { channel, token: None })
        };
        Box::pin(channel) as futures_util::future::BoxFuture<'static, _>
    });
    let mut config =
        AgentConfig::new("here".parse().unwrap(), data_dir.to_owned(), Capacity::default(), connect);
    config.node_timeout = NODE_TIMEOUT;
    config
}

/// An agent as a process of its own, to be killed.
pub fn agent_process(data_dir: &str, port: &str) {
    let config = config(Path::new(data_dir), port.parse().unwrap());
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(Agent::new(config).run(CancellationToken::new())).unwrap();
}

/// The next attempt of a test.
pub fn attempt() -> AttemptId {
    static NEXT: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(1);
    AttemptId { job: JobId(NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed)), number: 1 }
}

pub fn launch(command: &[&str], ranks: u32) -> Launch {
    Launch {
        attempt: attempt(),
        work: LaunchWork::Program(command.iter().map(|word| (*word).to_owned()).collect()),
        workdir: "/".into(),
        env: BTreeMap::new(),
        secret_names: Vec::new(),
        secrets: BTreeMap::new(),
        cpus: Cpus::from_cores(1),
        memory_bytes: 0,
        world: ranks,
        group_rank: 0,
        group_world: 1,
        master_addr: "127.0.0.1".into(),
        master_port: 1,
        restart_count: 0,
        max_restarts: 0,
        grace: Duration::from_secs(10),
        checkpoint: None,
        trial: None,
        params: None,
        elastic: false,
        ranks: (0..ranks).map(|rank| RankLaunch { rank, visible_devices: String::new() }).collect(),
    }
}

pub fn sh(script: &str) -> Launch {
    launch(&["sh", "-c", script], 1)
}

/// A launch of this binary as a rank.
pub fn own(args: &[&str]) -> Launch {
    let program = std::env::current_exe().unwrap();
    let mut command = vec![program.to_str().unwrap(), "rank"];
    command.extend(args);
    launch(&command, 1)
}

/// A rank of the built-in trainer, as far as this binary plays one: see [`crate::rank::worker`].
pub fn built_in(part: &str) -> Launch {
    let text = "version = 1\n[train]\nepochs = 1\nbatch_size = 1\noptimizer = { kind = \"sgd\", lr = 1.0 }\n\
                data = { kind = \"csv\", path = \"none.csv\", target = \"y\" }\n";
    let spec = WorkerSpec::parse_custom(text, "/").unwrap();
    let mut launch = launch(&[], 1);
    launch.work = LaunchWork::Worker(Box::new(spec));
    launch.env.insert("PART".into(), part.into());
    launch
}

pub fn exits(all: &[Happening]) -> Vec<RankExit> {
    let exit = |what: &Happening| match what {
        Happening::RankExited(exit) => Some(exit.clone()),
        _ => None,
    };
    all.iter().filter_map(exit).collect()
}

/// What a rank wrote, as bytes.
pub fn written(all: &[Happening], rank: u32, stderr: bool) -> Vec<u8> {
    let mut bytes = Vec::new();
    for what in all {
        if let Happening::Log(chunk) = what
            && chunk.rank == rank
            && chunk.stderr == stderr
        {
            bytes.extend(&chunk.line);
            bytes.extend(chunk.newline.then_some(b'\n'));
        }
    }
    bytes
}

/// Processes, zombies aside, whose command line contains a text.
pub fn processes_with(text: &str) -> Vec<i32> {
    let entries = std::fs::read_dir("/proc").unwrap().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    pids.filter(|pid| {
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        String::from_utf8_lossy(&line).contains(text)
    })
    .collect()
}

/// An argument for `sleep` that no other test uses.
pub fn mark() -> String {
    let attempt = attempt();
    format!("{}.{}", 10_000 + attempt.job.0, std::process::id())
}
