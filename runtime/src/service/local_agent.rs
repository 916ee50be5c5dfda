//! The agent of this machine: a process of its own, so that ranks, their pipes and their exit codes outlive a killed
//! service.

use crate::store::DataLock;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;
use tokio::process::Command;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// Between two looks at an agent that is not our child.
const LOOK: Duration = Duration::from_millis(200);
/// An agent that ends is started again after this.
const RESPAWN: Duration = Duration::from_millis(500);
/// How long an agent may take to end its ranks and itself.
const END_BOUND: Duration = Duration::from_secs(30);

/// How the agent of this machine is started.
#[derive(Clone, Debug)]
pub struct LocalAgent {
    /// The program, usually this one.
    pub program: PathBuf,
    /// What it is told.
    pub args: Vec<String>,
    /// Its own folder: it holds the lock there while it lives, and writes `agent.log`.
    pub agent_dir: PathBuf,
}

impl LocalAgent {
    /// Keeps one agent alive until `shutdown`, then ends it; one that a killed service left behind is taken over.
    ///
    /// Cancel: the agent is asked to end and waited for. Error: an agent that cannot be started is tried again.
    pub async fn run(self, shutdown: CancellationToken) {
        while !shutdown.is_cancelled() {
            if DataLock::holder(&self.agent_dir).is_some() {
                tokio::select! {
                    () = tokio::time::sleep(LOOK) => {}
                    () = shutdown.cancelled() => {}
                }
                continue;
            }
            match self.spawn() {
                Ok(mut child) => {
                    tokio::select! {
                        status = child.wait() => {
                            if !shutdown.is_cancelled() {
                                tracing::warn!(?status, "the local agent ended; starting it again");
                            }
                        }
                        () = shutdown.cancelled() => {
                            self.end().await;
                            // Reaped here, or by the system after us.
                            let _ = tokio::time::timeout(LOOK, child.wait()).await;
                            return;
                        }
                    }
                }
                Err(error) => {
                    tracing::error!(%error, program = %self.program.display(), "cannot start the local agent")
                }
            }
            tokio::select! {
                () = tokio::time::sleep(RESPAWN) => {}
                () = shutdown.cancelled() => {}
            }
        }
        self.end().await;
    }

    fn spawn(&self) -> std::io::Result<tokio::process::Child> {
        std::fs::create_dir_all(&self.agent_dir)?;
        let log = std::fs::File::create(self.agent_dir.join("agent.log"))?;
        // A group of its own: a Ctrl-C at the service's terminal is the service's to handle.
        let mut command = Command::new(&self.program);
        command
            .arg0("phalanx")
            .args(&self.args)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .process_group(0);
        command.spawn()
    }

    async fn end(&self) {
        let deadline = Instant::now() + END_BOUND;
        let mut signal = Signal::SIGTERM;
        while let Some(holder) = DataLock::holder(&self.agent_dir) {
            // It may be gone by now, which is what is wanted.
            let _ = kill(Pid::from_raw(holder.pid as i32), signal);
            if Instant::now() >= deadline {
                signal = Signal::SIGKILL;
            }
            tokio::time::sleep(LOOK / 10).await;
        }
    }
}
