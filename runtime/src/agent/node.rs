//! The agent's loop: it feeds the machine and carries out what the machine says.

use super::machine::{AgentMachine, Input, Output};
use super::session::{FromSession, Session};
use super::supervisor::{Ground, Supervisor};
use super::{AgentConfig, outbox};
use phalanx_core::id::AttemptId;
use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::net::TcpSocket;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// What a session may have told that the loop has not taken in.
const INBOX: usize = 1024;
/// How often the loop looks whether the service is still there, in parts of the node timeout.
const LOOKS: u32 = 10;
/// How long an agent that ends waits for the service to take in what happened.
const LAST_WORDS: Duration = Duration::from_secs(2);
/// How often it looks.
const LOOK: Duration = Duration::from_millis(10);

/// When the service was last heard of.
#[derive(Debug)]
pub(super) struct Contact(Mutex<Instant>);

impl Contact {
    pub(super) fn note(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }

    fn silence(&self) -> Duration {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).elapsed()
    }
}

pub(super) struct Node {
    config: Arc<AgentConfig>,
    ground: Arc<Ground>,
    machine: AgentMachine,
    supervisors: BTreeMap<AttemptId, Supervisor>,
    /// Bound and not listened on, so that nobody is given the port until the ranks start.
    ports: BTreeMap<AttemptId, TcpSocket>,
    to_self: mpsc::UnboundedSender<Input>,
    inputs: mpsc::UnboundedReceiver<Input>,
}

impl Node {
    pub(super) fn new(config: Arc<AgentConfig>, ground: Arc<Ground>, machine: AgentMachine) -> Node {
        // Unbounded: a few messages an attempt, and none may be lost or block the one that ends it.
        let (to_self, inputs) = mpsc::unbounded_channel();
        let (supervisors, ports) = (BTreeMap::new(), BTreeMap::new());
        Node { config, ground, machine, supervisors, ports, to_self, inputs }
    }

    /// Cancel: `shutdown` ends all attempts first. Error: none; what fails is told to the service.
    pub(super) async fn run(mut self, outputs: Vec<Output>, shutdown: CancellationToken) {
        self.carry_out(outputs);
        let contact = Arc::new(Contact(Mutex::new(Instant::now())));
        let (to_loop, mut from_session) = mpsc::channel(INBOX);
        let ended = CancellationToken::new();
        let session = Session::new(self.config.clone(), self.ground.outbox.clone(), to_loop, contact.clone());
        let session = tokio::spawn(session.run(ended.clone()));
        let mut look = tokio::time::interval(self.config.node_timeout / LOOKS);
        let mut ending = false;
        loop {
            tokio::select! {
                Some(input) = self.inputs.recv() => self.take(input),
                Some(message) = from_session.recv() => match message {
                    FromSession::Input(input) => self.take(input),
                    // A session that has ended meanwhile no longer waits.
                    FromSession::Attempts(answer) => drop(answer.send(self.machine.attempts())),
                },
                () = shutdown.cancelled(), if !ending => {
                    ending = true;
                    self.take(Input::EndAll);
                }
                _ = look.tick() => {
                    self.ground.guards.thin_out();
                    if contact.silence() >= self.config.node_timeout {
                        if self.machine.is_busy() {
                            tracing::warn!("the service cannot be reached; ending its ranks");
                        }
                        self.take(Input::EndAll);
                        ending |= self.config.exit_when_alone;
                    }
                }
            }
            if ending && !self.machine.is_busy() {
                break;
            }
        }
        self.ground.guards.close().await;
        if contact.silence() < self.config.node_timeout {
            self.last_words().await;
        }
        ended.cancel();
        // It ends at the next turn; one that does not is ended.
        let abort = session.abort_handle();
        if tokio::time::timeout(LAST_WORDS, session).await.is_err() {
            abort.abort();
        }
    }

    /// Waits a moment for the service to take in what happened; the file keeps the rest.
    async fn last_words(&self) {
        let deadline = Instant::now() + LAST_WORDS;
        while !self.ground.outbox.is_empty() && Instant::now() < deadline {
            tokio::time::sleep(LOOK).await;
        }
    }

    fn take(&mut self, input: Input) {
        let outputs = self.machine.step(input);
        self.carry_out(outputs);
    }

    fn carry_out(&mut self, outputs: Vec<Output>) {
        let mut open: VecDeque<Output> = outputs.into();
        while let Some(output) = open.pop_front() {
            match output {
                Output::Say(attempt, what) => self.ground.outbox.say(attempt, &what),
                Output::FindPort(attempt) => {
                    let port =
                        self.find_port(attempt).map_err(|error| format!("no port can be had: {error}"));
                    open.extend(self.machine.step(Input::Port { attempt, port }));
                }
                Output::Launch(launch) => {
                    let attempt = launch.attempt;
                    self.ports.remove(&attempt);
                    let supervisor = Supervisor::start(self.ground.clone(), launch, self.to_self.clone());
                    self.supervisors.insert(attempt, supervisor);
                }
                Output::Ask { attempt, grace } => match self.supervisors.get(&attempt) {
                    Some(supervisor) => supervisor.ask(grace),
                    None => open.extend(self.machine.step(Input::AskedLongEnough(attempt))),
                },
                Output::Judged { attempt, step } => {
                    if let Some(supervisor) = self.supervisors.get(&attempt) {
                        supervisor.judged(step);
                    }
                }
                Output::Restart { attempt, who } => {
                    if let Some(supervisor) = self.supervisors.get(&attempt) {
                        supervisor.restart(who);
                    }
                }
                Output::Group { attempt, group } => {
                    if let Some(supervisor) = self.supervisors.get(&attempt) {
                        supervisor.group(group);
                    }
                }
                Output::End { attempt, grace } => {
                    if let Some(supervisor) = self.supervisors.get(&attempt) {
                        supervisor.end(grace);
                    }
                }
                Output::Release(attempt) => {
                    self.ports.remove(&attempt);
                    self.supervisors.remove(&attempt);
                }
                Output::DropCheckpoint(path) => {
                    let checkpoints = self.ground.checkpoints.clone();
                    tokio::task::spawn_blocking(move || checkpoints.drop(&path));
                }
            }
        }
    }

    fn find_port(&mut self, attempt: AttemptId) -> io::Result<u16> {
        let (held, port) = hold_port()?;
        self.ports.insert(attempt, held);
        Ok(port)
    }
}

/// A free port and the socket that keeps it: the system gives it to nobody who asks for any, and rank 0 may still bind
/// it by name once the socket is closed at the start of the ranks.
fn hold_port() -> io::Result<(TcpSocket, u16)> {
    let held = TcpSocket::new_v4()?;
    held.set_reuseaddr(true)?;
    held.bind(SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)))?;
    let port = held.local_addr()?.port();
    Ok((held, port))
}

/// An identity for this process of the agent.
pub(super) fn incarnation() -> String {
    format!("{}-{}", std::process::id(), outbox::now().as_micros())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_held_port_is_given_to_nobody_else_and_is_free_afterwards() {
        let held: Vec<(TcpSocket, u16)> = (0..64).map(|_| hold_port().unwrap()).collect();
        let ports: std::collections::BTreeSet<u16> = held.iter().map(|&(_, port)| port).collect();
        assert_eq!(ports.len(), 64);
        drop(held);
        let port = ports.first().copied().unwrap();
        std::net::TcpListener::bind(("0.0.0.0", port)).unwrap();
    }
}
