//! `top`: the service live on a terminal, or one snapshot of it as JSON.

mod app;
mod curve;
mod draw;
mod keys;
mod snapshot;

use crate::args::Global;
use crate::change::Change;
use crate::client::Route;
use crate::failure::{Failure, INTERRUPTED};
use crate::output::Output;
use crate::run::Interrupts;
use app::{App, Wish};
use clap::Args;
use curve::Follower;
use keys::Keys;
use phalanx_api::v1 as pb;
use ratatui::DefaultTerminal;
use snapshot::Snapshot;
use std::time::Duration;
use tokio::time::{MissedTickBehavior, interval};

/// A look that takes longer is given up: keys wait for it.
const LOOK_BOUND: Duration = Duration::from_secs(3);

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  phalanx top                      nodes, devices and jobs, live
  phalanx top --every 5            looked at every 5 seconds
  phalanx top --json | jq '.jobs[].id'

Keys: up and down (or j and k) select a job, a shows those that are over, Tab goes to sweeps and devices,
c cancels, p pauses or resumes, q leaves.")]
pub(crate) struct TopArgs {
    /// Seconds between two looks at the service
    #[arg(long, value_name = "SECONDS", default_value = "1", value_parser = clap::value_parser!(u64).range(1..=3600))]
    every: u64,
}

/// Runs it.
pub(crate) async fn run(global: &Global, args: &TopArgs, output: &Output) -> Result<(), Failure> {
    let route = Route::to_live_service(global)?;
    if output.json {
        let snapshot = Snapshot::take(&route.connect().await?, false).await?;
        return output.document(&snapshot.document());
    }
    if !output.stdout_is_terminal {
        return Err(Failure::usage("`top` draws on a terminal; `phalanx top --json` prints what it shows"));
    }
    let mut interrupts = Interrupts::listen()?;
    // The first look comes before the screen is taken: what goes wrong is said as by any other command.
    let mut app = App::new(Snapshot::take(&route.connect().await?, false).await?, output.color());
    let mut screen = Screen::open()?;
    tokio::select! {
        ended = live(&route, &mut app, &mut screen, Duration::from_secs(args.every)) => ended,
        () = interrupts.next() => Err(Failure::new(INTERRUPTED, "")),
    }
}

/// The terminal, which is given back as it was however this ends.
struct Screen(DefaultTerminal);

impl Screen {
    fn open() -> Result<Screen, Failure> {
        // It also gives the terminal back where the program panics.
        Ok(Screen(ratatui::try_init()?))
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        ratatui::restore();
    }
}

/// Draws until somebody wants to leave. A service that goes away is shown as such, and waited for.
async fn live(route: &Route, app: &mut App, screen: &mut Screen, every: Duration) -> Result<(), Failure> {
    let mut keys = Keys::listen();
    let mut follower = Follower::default();
    let mut looks = interval(every);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        screen.0.draw(|frame| draw::draw(app, frame))?;
        let wish = tokio::select! {
            event = keys.next() => app.event(event?),
            _ = looks.tick() => Wish::Look,
        };
        match wish {
            Wish::Nothing => {}
            Wish::Leave => return Ok(()),
            Wish::Look => look(route, app, &mut follower).await,
            Wish::Change(change, id) => {
                app.tell(match ask(route, change, id).await {
                    Ok(job) => format!("{} is {}", job.id, job.state_name()),
                    Err(failure) => failure.message,
                });
                look(route, app, &mut follower).await;
            }
        }
    }
}

/// Takes in how things are now.
async fn look(route: &Route, app: &mut App, follower: &mut Follower) {
    let looked = async {
        let client = route.connect().await?;
        let snapshot = Snapshot::take(&client, app.shows_all()).await?;
        let curve = match app.selected_job() {
            Some(id) => Some(follower.read(&client, id).await?.clone()),
            None => None,
        };
        Ok::<_, Failure>((snapshot, curve))
    };
    match tokio::time::timeout(LOOK_BOUND, looked).await {
        Ok(Ok((snapshot, curve))) => app.take(snapshot, curve),
        Ok(Err(failure)) => app.away(failure.message),
        Err(_) => app.away(format!("the service did not answer within {} s", LOOK_BOUND.as_secs())),
    }
}

async fn ask(route: &Route, change: Change, id: String) -> Result<pb::Job, Failure> {
    let mut jobs = route.connect().await?.jobs;
    let answer = match change {
        Change::Cancel => jobs.cancel(pb::CancelJobRequest { id }).await,
        Change::Pause => jobs.pause(pb::PauseJobRequest { id }).await,
        Change::Resume => jobs.resume(pb::ResumeJobRequest { id }).await,
    };
    Ok(answer?.into_inner())
}
