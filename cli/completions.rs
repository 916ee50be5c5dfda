//! `completions`: scripts for shells, and what they complete while somebody types: ids and names of the service.

use crate::args::{self, Global};
use crate::client::{Client, Route};
use crate::failure::Failure;
use clap::{Args, CommandFactory, Parser};
use clap_complete::engine::CompletionCandidate;
use clap_complete::env::{CompleteEnv, Shells};
use phalanx_api::v1 as pb;
use std::ffi::OsStr;
use std::io::Write;
use std::time::Duration;

/// The variable by which a shell's script asks.
const VARIABLE: &str = "PHALANX_COMPLETE";
/// Whoever types does not wait longer than this for ids.
const PATIENCE: Duration = Duration::from_millis(500);
/// Ids that are offered, the newest first.
const OFFERED: i32 = 200;

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  phalanx completions bash > ~/.local/share/bash-completion/completions/phalanx
  phalanx completions zsh > ~/.zfunc/_phalanx
  phalanx completions fish > ~/.config/fish/completions/phalanx.fish

The script asks phalanx while you type, so that it knows the ids of jobs and sweeps and the names of nodes.")]
pub(crate) struct CompletionsArgs {
    /// bash, zsh, fish, elvish or powershell
    #[arg(value_parser = ["bash", "zsh", "fish", "elvish", "powershell"])]
    shell: String,
}

/// Runs it.
pub(crate) fn run(args: &CompletionsArgs) -> Result<(), Failure> {
    let shells = Shells::builtins();
    let shell = shells.completer(&args.shell).ok_or_else(|| Failure::usage("no such shell"))?;
    let program = std::env::current_exe()?;
    let mut script = Vec::new();
    shell.write_registration(VARIABLE, "phalanx", "phalanx", &program.to_string_lossy(), &mut script)?;
    Ok(std::io::stdout().write_all(&script)?)
}

/// Answers a shell that asks, and ends the process then; does nothing otherwise.
pub(crate) fn answer() {
    CompleteEnv::with_factory(args::Args::command).var(VARIABLE).complete();
}

/// Ids of jobs and of sweeps that begin so.
pub(crate) fn ids(begun: &OsStr) -> Vec<CompletionCandidate> {
    let ids = ask(async |client: Client| {
        let (jobs, sweeps) = tokio::join!(newest_jobs(&client), newest_sweeps(&client));
        Some([sweeps?, jobs?].concat())
    });
    offered(begun, ids)
}

/// Ids of sweeps that begin so.
pub(crate) fn sweeps(begun: &OsStr) -> Vec<CompletionCandidate> {
    offered(begun, ask(async |client: Client| newest_sweeps(&client).await))
}

async fn newest_jobs(client: &Client) -> Option<Vec<(String, String)>> {
    let request = pb::ListJobsRequest { page_size: OFFERED, ..Default::default() };
    let jobs = client.jobs.clone().list(request).await.ok()?.into_inner().jobs;
    Some(jobs.iter().map(|job| (job.id.clone(), format!("{} {}", job.name, job.state_name()))).collect())
}

async fn newest_sweeps(client: &Client) -> Option<Vec<(String, String)>> {
    let request = pb::ListSweepsRequest { page_size: OFFERED, ..Default::default() };
    let sweeps = client.sweeps.clone().list(request).await.ok()?.into_inner().sweeps;
    let about = |sweep: &pb::Sweep| format!("{} {}", sweep.name, sweep.state_name());
    Some(sweeps.iter().map(|sweep| (sweep.id.clone(), about(sweep))).collect())
}

/// Names of nodes that begin so.
pub(crate) fn nodes(begun: &OsStr) -> Vec<CompletionCandidate> {
    let names = ask(async |client: Client| {
        let nodes = client.cluster.clone().nodes(pb::NodesRequest {}).await.ok()?.into_inner().nodes;
        Some(
            nodes
                .into_iter()
                .map(|node| (node.name.clone(), node.state().as_str_name().to_owned()))
                .collect(),
        )
    });
    offered(begun, names)
}

fn offered(begun: &OsStr, all: Vec<(String, String)>) -> Vec<CompletionCandidate> {
    let begun = begun.to_string_lossy();
    let fitting = all.into_iter().filter(|(name, _)| name.starts_with(&*begun));
    fitting.map(|(name, what)| CompletionCandidate::new(name).help(Some(what.into()))).collect()
}

/// Asks the service that the environment means; nothing is offered where there is none, or where it takes too long.
fn ask<F>(question: impl FnOnce(Client) -> F) -> Vec<(String, String)>
where
    F: Future<Output = Option<Vec<(String, String)>>>,
{
    let asked = async {
        let client = Route::to_records(&environment()).await.ok()?.connect().await.ok()?;
        question(client).await
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let answered = runtime.ok().and_then(|runtime| {
        runtime.block_on(async { tokio::time::timeout(PATIENCE, asked).await.ok().flatten() })
    });
    answered.unwrap_or_default()
}

/// The flags as the environment has them: those on the line are not read yet.
fn environment() -> Global {
    args::Args::try_parse_from(["phalanx", "doctor"]).map(|args| args.global).unwrap_or_default()
}
