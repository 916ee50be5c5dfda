//! `run`: a job or a sweep to its end, on a service or on one within this process.

use crate::args::Global;
use crate::attach::{self, Attached, Words};
use crate::client::{Client, Route};
use crate::failure::Failure;
use crate::file::JobFile;
use crate::follow::{Changes, Lines as LineFeed, Points, Rows, follow};
use crate::lines::{Lines, Target};
use crate::output::Output;
use crate::progress::{Progress, duration};
use crate::submit;
use crate::sweep;
use crate::wait::{exit_code, outcome};
use clap::Args;
use phalanx_api::{json, v1 as pb};
use std::cell::RefCell;
use std::io::IsTerminal;
use std::path::PathBuf;
use std::time::Duration;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;

/// A job that still waits after this says why.
const WAITING: Duration = Duration::from_secs(1);

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  phalanx run job.toml                            a job file
  phalanx run job.toml --set gang.workers=4       with a key changed
  phalanx run sweep.toml                          a search: a live view of its trials, the best one in the end
  phalanx run -- python train.py --lr 0.1         a command, in this folder
  phalanx run --set gang.workers=2 -- ./train     two ranks of it
  phalanx run --json job.toml 2>/dev/null         only the finished job as JSON

Without a service it runs in this process and leaves nothing behind but its records.
The exit code is the job's own; a sweep's is 0 when it ended with at least one complete trial, else 1.")]
pub(crate) struct RunArgs {
    /// The job or sweep file; `-` is stdin
    #[arg(required_unless_present = "command", conflicts_with = "command")]
    pub(crate) file: Option<PathBuf>,
    /// A command and its arguments instead of a file
    #[arg(last = true, value_name = "CMD")]
    pub(crate) command: Vec<String>,
}

/// Runs it; the answer is the job's own code.
pub(crate) async fn run(global: &Global, args: &RunArgs, output: &Output) -> Result<u8, Failure> {
    let file = match &args.file {
        Some(path) => JobFile::read(path, global)?,
        None => JobFile::of_command(&args.command, global)?,
    };
    // Problems are told with the file's own name, before anything is started.
    if file.is_sweep() {
        file.parse_sweep()?;
        return sweep::run(global, &file, output).await;
    }
    file.parse()?;
    let start = async |client: &Client| {
        let job = submit::submit(client, &file).await?;
        let screen = Screen::new(&job, output);
        Ok(JobRun { job, screen })
    };
    attach::to_its_end(global, output, start).await
}

/// A job that is followed.
struct JobRun {
    job: pb::Job,
    screen: Screen,
}

impl Attached for JobRun {
    type End = pb::Job;
    const WORDS: Words = Words {
        again: ("logs -f", "re-attach"),
        ending: ("asking", "to stop"),
        leaving: "leaving; the gang is being killed",
        stuck: "the gang does not end; leaving it to its guards",
    };

    fn id(&self) -> &str {
        &self.job.id
    }

    async fn follow(&mut self, route: &Route, output: &Output) -> Result<pb::Job, Failure> {
        Box::pin(follow_job(route, &self.job, &mut self.screen, output)).await
    }

    fn finish(&mut self, job: &pb::Job, output: &Output) -> Result<u8, Failure> {
        if output.json {
            output.document(&json::job(job))?;
        }
        output.say(&format!("phalanx: {}", outcome(job)));
        Ok(exit_code(job))
    }

    fn close(&mut self) {
        self.screen.progress.finish();
    }

    async fn cancel(&self, client: &Client) -> Result<(), Failure> {
        let cancel = pb::CancelJobRequest { id: self.job.id.clone() };
        Ok(client.jobs.clone().cancel(cancel).await.map(drop)?)
    }

    async fn see_end(&mut self, route: &Route, interrupted: bool, output: &Output) {
        // Somebody still reads what it says on its way out; or nobody reads any more.
        match interrupted {
            true => drop(Box::pin(follow_job(route, &self.job, &mut self.screen, output)).await),
            false => drop(wait_until_over(route, &self.job.id, output).await),
        }
    }
}

async fn wait_until_over(route: &Route, id: &str, output: &Output) -> Result<Option<pb::Job>, Failure> {
    let mut changes = Changes { id: id.to_owned(), hear: async |_: &pb::Job| Ok(()) };
    follow(route, output, &mut changes).await
}

/// What a followed job is shown on.
pub(crate) struct Screen {
    lines: Lines,
    progress: Progress,
    /// Already printed before a second look: lines up to here are not shown again.
    shown: u64,
    told: String,
}

impl Screen {
    fn new(job: &pb::Job, output: &Output) -> Self {
        let target = if output.json { Target::Stderr } else { Target::Streams };
        let workers = job.gang.as_ref().map_or(1, |gang| gang.max_workers);
        let mut progress = Progress::new(output.live());
        progress.job(job);
        Screen { lines: Lines::new(target, workers, output), progress, shown: 0, told: String::new() }
    }

    fn line(&mut self, line: &pb::LogLine) -> Result<(), Failure> {
        if line.seq <= self.shown {
            return Ok(());
        }
        self.shown = line.seq;
        self.progress.line(&line.line);
        // What goes to a file does not touch the live line.
        match self.lines.is_shown(line) {
            true => self.progress.suspend(|| self.lines.write(line)),
            false => self.lines.write(line),
        }
    }

    fn tell(&mut self, text: String, output: &Output) {
        if text != self.told {
            self.progress.suspend(|| output.say(&format!("phalanx: {text}")));
            self.told = text;
        }
    }

    fn job(&mut self, job: &pb::Job, output: &Output) {
        self.progress.job(job);
        if matches!(
            job.state(),
            pb::job::State::Restarting | pb::job::State::Paused | pb::job::State::Preempted
        ) {
            let reason = job.reason.as_ref().map_or("", |reason| reason.text.as_str());
            self.tell(format!("{} is {}: {reason}", job.id, job.state_name()), output);
        }
    }
}

/// Shows a job until it is over and every line of it is shown.
async fn follow_job(
    route: &Route,
    job: &pb::Job,
    screen: &mut Screen,
    output: &Output,
) -> Result<pb::Job, Failure> {
    let shared = RefCell::new(screen);
    let rows = Rows { id: job.id.clone(), follow: true, ..Rows::default() };
    let mut lines =
        LineFeed { rows: rows.clone(), hear: async |line: pb::LogLine| shared.borrow_mut().line(&line) };
    let mut changes = Changes {
        id: job.id.clone(),
        hear: async |job: &pb::Job| {
            shared.borrow_mut().job(job, output);
            Ok(())
        },
    };
    let mut points = Points {
        rows,
        hear: async |point: pb::MetricPoint| {
            shared.borrow_mut().progress.point(&point);
            Ok(())
        },
    };
    // Only the lines' end is the end; whatever else fails, they say so themselves.
    let quiet = output.silent();
    let beside = async {
        let _ = tokio::join!(
            follow(route, &quiet, &mut changes),
            async {
                if output.live() {
                    let _ = follow(route, &quiet, &mut points).await;
                }
            },
            say_why_waiting(route, &job.id, &shared, output),
        );
        std::future::pending::<()>().await
    };
    let ended = tokio::select! {
        ended = follow(route, output, &mut lines) => ended,
        () = beside => Ok(None),
    };
    let mut screen = shared.borrow_mut();
    screen.progress.finish();
    let ended = ended?;
    screen.lines.finish()?;
    ended.ok_or_else(|| Failure::trouble(format!("the log of {} ended before the job did", job.id)))
}

/// Says why a job waits, whenever that changes, until it runs.
async fn say_why_waiting(route: &Route, id: &str, screen: &RefCell<&mut Screen>, output: &Output) {
    loop {
        tokio::time::sleep(WAITING).await;
        let job = match route.connect().await {
            Ok(client) => client.job(id).await,
            Err(_) => continue,
        };
        let Ok(job) = job else { continue };
        match job.state() {
            pb::job::State::Queued | pb::job::State::Preempted => {
                let reason = job.reason.as_ref().map_or("", |reason| reason.text.as_str());
                screen.borrow_mut().tell(format!("{id} waits: {reason}"), output);
            }
            pb::job::State::Restarting | pb::job::State::Paused => {}
            _ => return,
        }
    }
}

/// Ctrl-C, and what else asks a program to end.
pub(crate) struct Interrupts {
    signals: [Signal; 3],
    /// Who is told of a SIGHUP that is no terminal's end, where that does not mean to end.
    hangups: Option<mpsc::Sender<()>>,
    at_terminal: bool,
}

impl Interrupts {
    /// From now on they do not end the process by themselves.
    pub(crate) fn listen() -> Result<Interrupts, Failure> {
        let kinds = [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()];
        let [first, second, third] = kinds.map(signal);
        let at_terminal = std::io::stdin().is_terminal();
        Ok(Interrupts { signals: [first?, second?, third?], hangups: None, at_terminal })
    }

    /// A SIGHUP asks for something else from now on, unless the terminal that this was started from is gone.
    pub(crate) fn hangups(&mut self) -> mpsc::Receiver<()> {
        // One that waits stands for all that come meanwhile.
        let (told, hangups) = mpsc::channel(1);
        self.hangups = Some(told);
        hangups
    }

    /// The next one.
    pub(crate) async fn next(&mut self) {
        let [interrupt, terminate, hangup] = &mut self.signals;
        loop {
            tokio::select! {
                _ = interrupt.recv() => return,
                _ = terminate.recv() => return,
                _ = hangup.recv() => {}
            }
            let terminal_gone = self.at_terminal && !std::io::stdin().is_terminal();
            match &self.hangups {
                Some(hangups) if !terminal_gone => drop(hangups.try_send(())),
                _ => return,
            }
        }
    }
}

/// How long a job took, from its submission.
pub(crate) fn took(job: &pb::Job) -> String {
    let micros = |time: &Option<_>| time.as_ref().map(phalanx_api::time_of);
    match (micros(&job.submit_time), micros(&job.end_time)) {
        (Some(start), Some(end)) => duration(end.since(start)),
        _ => String::new(),
    }
}
