//! Sweeps: handed in, followed to their end, and told of.

mod view;

use crate::args::Global;
use crate::attach::{self, Attached, Words};
use crate::client::{Client, Route};
use crate::failure::{DONE, FAILED, Failure};
use crate::file::JobFile;
use crate::follow::{Feed, Step, follow};
use crate::output::Output;
use crate::progress::duration;
use crate::submit;
use phalanx_api::{json, v1 as pb};
use phalanx_core::SweepId;
use std::cell::RefCell;
use std::collections::BTreeSet;
use std::time::Duration;
use tonic::{Status, Streaming};
use view::{View, WAITING};

/// Trials asked for at a time.
const PAGE: i32 = 1000;

/// Whether an id is a sweep's.
pub(crate) fn is_sweep_id(id: &str) -> bool {
    id.parse::<SweepId>().is_ok()
}

/// One sweep as it is now, with its file.
pub(crate) async fn get(client: &Client, id: &str) -> Result<pb::Sweep, Failure> {
    let request = pb::GetSweepRequest { id: id.to_owned() };
    Ok(client.sweeps.clone().get(request).await?.into_inner())
}

/// All sweeps, the newest first.
pub(crate) async fn all(client: &Client) -> Result<Vec<pb::Sweep>, Failure> {
    let (mut sweeps, mut page_token) = (Vec::new(), String::new());
    loop {
        let request = pb::ListSweepsRequest { page_size: PAGE, page_token };
        let page = client.sweeps.clone().list(request).await?.into_inner();
        sweeps.extend(page.sweeps);
        if page.next_page_token.is_empty() {
            return Ok(sweeps);
        }
        page_token = page.next_page_token;
    }
}

/// All trials of a sweep, by number.
pub(crate) async fn trials(client: &Client, id: &str) -> Result<Vec<pb::Trial>, Failure> {
    let (mut trials, mut page_token) = (Vec::new(), String::new());
    loop {
        let request = pb::ListTrialsRequest { id: id.to_owned(), page_size: PAGE, page_token };
        let page = client.sweeps.clone().trials(request).await?.into_inner();
        trials.extend(page.trials);
        if page.next_page_token.is_empty() {
            return Ok(trials);
        }
        page_token = page.next_page_token;
    }
}

/// Shows something of the job of every trial, by number; followed, of each trial as it ends, until the sweep has.
pub(crate) async fn each_job(
    route: &Route,
    id: &str,
    follows: bool,
    output: &Output,
    show: impl AsyncFn(&str) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let show = async |trial: &pb::Trial| {
        output.say(&format!("phalanx: trial {} ({})", trial.number, trial.job));
        show(&trial.job).await
    };
    if !(follows && route.is_live()) {
        for trial in trials(&route.connect().await?, id).await?.iter().filter(|trial| !trial.job.is_empty()) {
            show(trial).await?;
        }
        return Ok(());
    }
    let mut shown = BTreeSet::new();
    let hear = async |_: &pb::Sweep, changed: Vec<pb::Trial>| {
        for trial in changed.iter().filter(|trial| trial.end_time.is_some() && !trial.job.is_empty()) {
            if shown.insert(trial.number) {
                show(trial).await?;
            }
        }
        Ok(())
    };
    follow(route, output, &mut SweepFeed { id: id.to_owned(), hear }).await.map(drop)
}

/// What becomes of a sweep and its trials.
pub(crate) struct SweepFeed<T: AsyncFnMut(&pb::Sweep, Vec<pb::Trial>) -> Result<(), Failure>> {
    /// The sweep.
    pub(crate) id: String,
    /// Hears of every change.
    pub(crate) hear: T,
}

impl<T: AsyncFnMut(&pb::Sweep, Vec<pb::Trial>) -> Result<(), Failure>> Feed for SweepFeed<T> {
    type Message = pb::WatchSweepResponse;
    type End = pb::Sweep;

    async fn open(&self, client: &mut Client, after_seq: u64) -> Result<Streaming<Self::Message>, Status> {
        let request = pb::WatchSweepRequest { id: self.id.clone(), after_seq };
        Ok(client.sweeps.watch(request).await?.into_inner())
    }

    async fn take(&mut self, message: Self::Message) -> Result<Step<pb::Sweep>, Failure> {
        let sweep = message.sweep.unwrap_or_default();
        (self.hear)(&sweep, message.trials).await?;
        Ok(if sweep.is_terminal() { Step::Over(Box::new(sweep)) } else { Step::Row(message.seq) })
    }
}

/// `run` of a sweep file, on a service or on one within this process; the answer is the exit code.
pub(crate) async fn run(global: &Global, file: &JobFile, output: &Output) -> Result<u8, Failure> {
    let start = async |client: &Client| {
        let sweep = submit::create_sweep(client, file).await?;
        let view = View::new(&sweep, output);
        Ok(SweepRun { id: sweep.id, view })
    };
    attach::to_its_end(global, output, start).await
}

/// A sweep that is followed.
struct SweepRun {
    id: String,
    view: View,
}

impl Attached for SweepRun {
    type End = pb::Sweep;
    const WORDS: Words = Words {
        again: ("wait", "wait for it"),
        ending: ("ending", "and its trials"),
        leaving: "leaving; the trials are being killed",
        stuck: "the sweep does not end; leaving it to the guards",
    };

    fn id(&self) -> &str {
        &self.id
    }

    async fn follow(&mut self, route: &Route, output: &Output) -> Result<pb::Sweep, Failure> {
        let view = RefCell::new(&mut self.view);
        let hear = async |sweep: &pb::Sweep, trials: Vec<pb::Trial>| {
            view.borrow_mut().show(sweep, &trials, output);
            Ok(())
        };
        let mut feed = SweepFeed { id: self.id.clone(), hear };
        // Where it waits for long nothing may change, and the reason was heard before it was worth telling.
        let waiting = async {
            tokio::time::sleep(WAITING).await;
            view.borrow_mut().say_why_waiting(output);
            std::future::pending::<()>().await
        };
        let ended = tokio::select! {
            ended = follow(route, output, &mut feed) => ended,
            () = waiting => Ok(None),
        };
        over(ended?, &self.id)
    }

    fn finish(&mut self, sweep: &pb::Sweep, output: &Output) -> Result<u8, Failure> {
        self.view.close();
        output.say(&format!("phalanx: {}", outcome(sweep)));
        match output.json {
            true => output.document(&json::sweep(sweep))?,
            false => results(sweep).iter().try_for_each(|line| output.line(line))?,
        }
        Ok(exit_code(sweep))
    }

    fn close(&mut self) {
        self.view.close();
    }

    async fn cancel(&self, client: &Client) -> Result<(), Failure> {
        let cancel = pb::CancelSweepRequest { id: self.id.clone() };
        Ok(client.sweeps.clone().cancel(cancel).await.map(drop)?)
    }

    async fn see_end(&mut self, route: &Route, _interrupted: bool, output: &Output) {
        let _ = until_over(route, &self.id, output).await;
    }
}

fn over(ended: Option<pb::Sweep>, id: &str) -> Result<pb::Sweep, Failure> {
    ended.ok_or_else(|| Failure::trouble(format!("the service stopped telling of {id} before it was over")))
}

/// Waits for the end of a sweep.
pub(crate) async fn until_over(route: &Route, id: &str, output: &Output) -> Result<pb::Sweep, Failure> {
    if !route.is_live() {
        let sweep = get(&route.connect().await?, id).await?;
        let state = sweep.state_name();
        let text = format!("{id} is {state} in the records, and no service runs to go on with it");
        return sweep.is_terminal().then_some(sweep).ok_or_else(|| Failure::trouble(text));
    }
    let hear = async |_: &pb::Sweep, _: Vec<pb::Trial>| Ok(());
    over(follow(route, output, &mut SweepFeed { id: id.to_owned(), hear }).await?, id)
}

/// 0 where it came to its end with a complete trial.
pub(crate) fn exit_code(sweep: &pb::Sweep) -> u8 {
    if sweep.state() == pb::sweep::State::Succeeded { DONE } else { FAILED }
}

/// How a sweep ended, in a line.
pub(crate) fn outcome(sweep: &pb::Sweep) -> String {
    let reason = sweep.reason.as_ref().map_or("", |reason| reason.text.trim());
    let took = took(sweep).map(|took| format!(" after {}", duration(took))).unwrap_or_default();
    format!("{} {}{took}: {reason}", sweep.id, sweep.state_name())
}

fn took(sweep: &pb::Sweep) -> Option<Duration> {
    let start = sweep.submit_time.as_ref().map(phalanx_api::time_of)?;
    Some(sweep.end_time.as_ref().map(phalanx_api::time_of)?.since(start))
}

/// Its best trial, or the front of several objectives, for people.
pub(crate) fn results(sweep: &pb::Sweep) -> Vec<String> {
    let several = sweep.objectives.len() > 1;
    let shown: Vec<&pb::BestTrial> =
        if several { sweep.front.iter().collect() } else { sweep.best.iter().collect() };
    let head = if several { "on the front: trial" } else { "best trial" };
    let describe = |best: &pb::BestTrial| {
        let values = sweep.objectives.iter().zip(&best.values);
        let values: Vec<String> =
            values.map(|(one, value)| format!("{}: {}", one.metric, shown_value(*value))).collect();
        format!(
            "{head} {}: {}  with {}",
            best.number,
            values.join(", "),
            params_in_words(best.params.as_ref())
        )
    };
    shown.into_iter().map(describe).collect()
}

/// A value for people: six digits are enough for a glance, and what is exact stays so.
pub(crate) fn shown_value(value: f64) -> String {
    let short = format!("{value:.6}");
    let trimmed = short.trim_end_matches('0').trim_end_matches('.');
    if value != 0.0 && (value.abs() < 1e-4 || value.abs() >= 1e9) {
        format!("{value:.4e}")
    } else {
        trimmed.to_owned()
    }
}

/// `lr = 0.1, opt = "adamw"`.
pub(crate) fn params_in_words(params: Option<&prost_types::Struct>) -> String {
    let params = json::params(params);
    let words = params.as_object().into_iter().flatten().map(|(name, value)| format!("{name} = {value}"));
    words.collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_short_and_true() {
        let shown = [0.97222222222, 1.0, 0.000012345, 123456.5, -3.0].map(shown_value);
        assert_eq!(shown, ["0.972222", "1", "1.2345e-5", "123456.5", "-3"]);
    }

    #[test]
    fn ids_are_told_apart() {
        assert!(is_sweep_id("s1") && !is_sweep_id("j1") && !is_sweep_id("s1/2") && !is_sweep_id("s"));
    }
}
