//! `submit`: queues a job or starts a sweep, and prints its id.

use crate::args::Global;
use crate::client::{Client, Route};
use crate::failure::Failure;
use crate::file::JobFile;
use crate::output::Output;
use clap::Args;
use phalanx_api::{json, v1 as pb};
use std::path::PathBuf;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tonic::Code;

/// How often a submission whose answer was cut is repeated: its request id makes that safe.
const TRIES: u32 = 3;
const PAUSE: Duration = Duration::from_millis(200);

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  phalanx submit job.toml                        prints the id, such as j12
  phalanx submit sweep.toml                      a sweep's is such as s3
  phalanx submit job.toml --set priority=10
  id=$(phalanx submit job.toml) && phalanx wait $id
  phalanx submit job.toml --request-id nightly-2026-11-22   submitted once, however often this runs")]
pub(crate) struct SubmitArgs {
    /// The job or sweep file; `-` is stdin
    file: PathBuf,
    /// A repeated submission with the same id answers the first one's result
    #[arg(long, value_name = "ID")]
    request_id: Option<String>,
}

/// Runs it.
pub(crate) async fn run(global: &Global, args: &SubmitArgs, output: &Output) -> Result<(), Failure> {
    let file = JobFile::read(&args.file, global)?;
    let sweep = file.is_sweep().then(|| file.parse_sweep()).transpose()?;
    if sweep.is_none() {
        file.parse()?;
    }
    let client = Route::to_live_service(global)?.connect().await?;
    if sweep.is_some() {
        let request_id = args.request_id.clone().unwrap_or_else(fresh_request_id);
        let sweep = create_sweep_as(&client, &file, request_id).await?;
        return match output.json {
            true => output.document(&json::sweep(&sweep)),
            false => output.line(&sweep.id),
        };
    }
    let job = submit_as(&client, &file, args.request_id.clone().unwrap_or_else(fresh_request_id)).await?;
    match output.json {
        true => output.document(&json::job(&job)),
        false => output.line(&job.id),
    }
}

/// Hands a job in.
pub(crate) async fn submit(client: &Client, file: &JobFile) -> Result<pb::Job, Failure> {
    submit_as(client, file, fresh_request_id()).await
}

/// Asks whether a job could be run, and changes nothing.
pub(crate) async fn validate(client: &Client, file: &JobFile) -> Result<pb::Job, Failure> {
    let request = pb::SubmitRequest { validate_only: true, ..request(file, String::new())? };
    Ok(client.jobs.clone().submit(request).await?.into_inner())
}

fn request(file: &JobFile, request_id: String) -> Result<pb::SubmitRequest, Failure> {
    Ok(pb::SubmitRequest {
        toml: file.text.clone(),
        request_id,
        validate_only: false,
        base_dir: path_text(&file.base_dir)?,
        default_name: file.default_name.clone(),
    })
}

async fn submit_as(client: &Client, file: &JobFile, request_id: String) -> Result<pb::Job, Failure> {
    let request = request(file, request_id)?;
    repeated(async || client.jobs.clone().submit(request.clone()).await).await
}

/// Hands a sweep in.
pub(crate) async fn create_sweep(client: &Client, file: &JobFile) -> Result<pb::Sweep, Failure> {
    create_sweep_as(client, file, fresh_request_id()).await
}

/// Asks whether a sweep could be run, and changes nothing.
pub(crate) async fn validate_sweep(client: &Client, file: &JobFile) -> Result<pb::Sweep, Failure> {
    let request = pb::CreateSweepRequest { validate_only: true, ..sweep_request(file, String::new())? };
    Ok(client.sweeps.clone().create(request).await?.into_inner())
}

fn sweep_request(file: &JobFile, request_id: String) -> Result<pb::CreateSweepRequest, Failure> {
    Ok(pb::CreateSweepRequest {
        toml: file.text.clone(),
        request_id,
        validate_only: false,
        base_dir: path_text(&file.base_dir)?,
        default_name: file.default_name.clone(),
        external: false,
    })
}

async fn create_sweep_as(client: &Client, file: &JobFile, request_id: String) -> Result<pb::Sweep, Failure> {
    let request = sweep_request(file, request_id)?;
    repeated(async || client.sweeps.clone().create(request.clone()).await).await
}

/// Asks again where the answer was cut.
async fn repeated<T>(ask: impl AsyncFn() -> Result<tonic::Response<T>, tonic::Status>) -> Result<T, Failure> {
    let mut tries = 1;
    loop {
        match ask().await {
            Ok(answer) => return Ok(answer.into_inner()),
            Err(status) if status.code() == Code::Unavailable && tries < TRIES => {
                tries += 1;
                tokio::time::sleep(PAUSE).await;
            }
            Err(status) => return Err(status.into()),
        }
    }
}

/// The wire carries text; a folder that is none cannot be named on it.
fn path_text(path: &std::path::Path) -> Result<String, Failure> {
    let text = path.to_str().map(str::to_owned);
    text.ok_or_else(|| {
        Failure::usage(format!("the folder {} is not UTF-8; move the job file", path.display()))
    })
}

/// Unlike any other: which process asked, and when.
fn fresh_request_id() -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let host = nix::unistd::gethostname().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    format!("{host}-{}-{}", std::process::id(), now.as_nanos())
}
