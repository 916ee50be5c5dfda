//! Following what was handed in to its end, on a service or on one within this process, and what an interruption does to
//! it: on a service it goes on, here it ends.

use crate::args::Global;
use crate::client::{Client, Route, data_dir};
use crate::embedded::Embedded;
use crate::failure::{DONE, Failure, INTERRUPTED};
use crate::output::Output;
use crate::run::Interrupts;
use std::time::Duration;

/// What is interrupted and does not end is left to its guards after this.
const END_BOUND: Duration = Duration::from_secs(60);

/// A job or a sweep that is followed.
pub(crate) trait Attached {
    /// What it is at its end.
    type End;
    /// How it is spoken of.
    const WORDS: Words;

    /// Its id.
    fn id(&self) -> &str;

    /// Shows it until it is over.
    async fn follow(&mut self, route: &Route, output: &Output) -> Result<Self::End, Failure>;

    /// Says how it ended; the answer is the exit code.
    fn finish(&mut self, end: &Self::End, output: &Output) -> Result<u8, Failure>;

    /// Takes away what is live on the terminal.
    fn close(&mut self);

    /// Asks for its end.
    async fn cancel(&self, client: &Client) -> Result<(), Failure>;

    /// Sees it end after that: after an interruption somebody still looks.
    async fn see_end(&mut self, route: &Route, interrupted: bool, output: &Output);
}

/// How something that is followed is spoken of.
pub(crate) struct Words {
    /// The command that follows it again, and what for.
    pub(crate) again: (&'static str, &'static str),
    /// What an interruption does, around the id.
    pub(crate) ending: (&'static str, &'static str),
    /// What is said where nobody waits for the end.
    pub(crate) leaving: &'static str,
    /// What is said where the end does not come.
    pub(crate) stuck: &'static str,
}

/// Hands something in by `start` and follows it to its end; the answer is the exit code.
pub(crate) async fn to_its_end<T: Attached>(
    global: &Global,
    output: &Output,
    start: impl AsyncFnOnce(&Client) -> Result<T, Failure>,
) -> Result<u8, Failure> {
    match Route::to_service(global)? {
        Some(route) => Box::pin(on_service(&route, output, start)).await,
        None => Box::pin(here(global, output, start)).await,
    }
    .map_err(Failure::for_job)
}

async fn on_service<T: Attached>(
    route: &Route,
    output: &Output,
    start: impl AsyncFnOnce(&Client) -> Result<T, Failure>,
) -> Result<u8, Failure> {
    let mut interrupts = Interrupts::listen()?;
    let mut attached = start(&route.connect().await?).await?;
    tokio::select! {
        ended = attached.follow(route, output) => attached.finish(&ended.map_err(gone)?, output),
        () = interrupts.next() => {
            attached.close();
            let (id, flags, (command, purpose)) = (attached.id(), route.flags(), T::WORDS.again);
            output.say(&format!(
                "phalanx: {id} goes on without this terminal; `phalanx {command} {id}{flags}` to {purpose}, \
                 `phalanx cancel {id}{flags}` to end it"
            ));
            Err(Failure::new(INTERRUPTED, ""))
        }
    }
}

async fn here<T: Attached>(
    global: &Global,
    output: &Output,
    start: impl AsyncFnOnce(&Client) -> Result<T, Failure>,
) -> Result<u8, Failure> {
    let mut interrupts = Interrupts::listen()?;
    let data_dir = data_dir(global)?;
    let embedded = tokio::select! {
        embedded = Embedded::start(&data_dir, output) => embedded?,
        () = interrupts.next() => return Err(Failure::new(INTERRUPTED, "")),
    };
    let ended = Box::pin(run_here(&embedded.route(), output, &mut interrupts, start)).await;
    embedded.stop().await;
    ended
}

/// Ctrl-C ends it; a second one leaves at once, and the guards end what is left.
async fn run_here<T: Attached>(
    route: &Route,
    output: &Output,
    interrupts: &mut Interrupts,
    start: impl AsyncFnOnce(&Client) -> Result<T, Failure>,
) -> Result<u8, Failure> {
    let client = route.connect().await?;
    let mut attached = start(&client).await?;
    let (ended, interrupted) = tokio::select! {
        ended = attached.follow(route, output) => (ended.map_err(gone), false),
        () = interrupts.next() => {
            attached.close();
            let (before, after) = T::WORDS.ending;
            output.say(&format!("phalanx: {before} {} {after}; once more to leave at once", attached.id()));
            (Err(Failure::new(INTERRUPTED, "")), true)
        }
    };
    let failure = match ended {
        Ok(end) => return attached.finish(&end, output),
        Err(failure) => failure,
    };
    // Interrupted, or nobody reads any more: it ends with this command.
    if attached.cancel(&client).await.is_ok() {
        tokio::select! {
            () = attached.see_end(route, interrupted, output) => {}
            () = interrupts.next() => output.say(&format!("phalanx: {}", T::WORDS.leaving)),
            () = tokio::time::sleep(END_BOUND) => output.say(&format!("phalanx: {}", T::WORDS.stuck)),
        }
    }
    Err(failure)
}

/// A reader that has gone away ends `run` as an interruption does: the code of what ran is not known.
fn gone(failure: Failure) -> Failure {
    if failure.code == DONE { Failure::new(INTERRUPTED, "") } else { failure }
}
