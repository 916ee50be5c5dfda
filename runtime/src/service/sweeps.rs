//! Sweeps: asked for, followed, and those whose trials others run.

use super::control::{Control, Input};
use super::{Handle, Shared};
use crate::controller::{Answer, Asking, Refusal, SweepSubmission};
use crate::error::Error;
use crate::store::Write;
use phalanx_core::limits::REQUEST_ID_BYTES;
use phalanx_core::spec::SweepSpec;
use phalanx_core::{BestTrial, JobId, NewEvent, Sweep, SweepId, Trial, TrialId};
use phalanx_tuner::{Decision, Outcome, Study};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;

/// Messages on their way to one who watches.
const BATCHES: usize = 4;
/// Trials in a message.
const TRIALS: u32 = 500;
/// Between two looks at a sweep that changes all the time.
const WATCH_PAUSE: Duration = Duration::from_millis(50);
/// A sweep's name where neither the file nor the request has one.
const UNNAMED: &str = "sweep";

/// A sweep as somebody hands it in.
#[derive(Clone, Debug, Default)]
pub struct SweepRequest {
    /// The sweep file.
    pub toml: String,
    /// Makes a repeated request answer the first result.
    pub request_id: Option<String>,
    /// Checks and changes nothing.
    pub validate_only: bool,
    /// Where relative paths of the file start from.
    pub base_dir: Option<PathBuf>,
    /// The sweep's name where the file has none.
    pub default_name: Option<String>,
    /// Its trials are run by those who ask for them.
    pub external: bool,
}

/// What people ask of sweeps.
#[derive(Debug)]
pub(super) enum SweepAsk {
    Validate(Box<SweepSubmission>),
    Create { submission: Box<SweepSubmission>, request_id: Option<(String, [u8; 32])> },
    Cancel(SweepId),
    Pause(SweepId),
    Resume(SweepId),
}

/// What one who watches a sweep is told.
#[derive(Clone, Debug)]
pub struct SweepChange {
    /// Everything up to here has been told.
    pub seq: u64,
    /// The sweep as it is now.
    pub sweep: Sweep,
    /// Trials that have changed.
    pub trials: Vec<Trial>,
}

/// What one who runs the trials of an external sweep is told.
#[derive(Clone, Debug)]
pub enum Answered {
    /// A trial to run; whether it was paused before.
    Trial(Box<Trial>, bool),
    /// Nothing now.
    Wait,
    /// Nothing any more.
    Done,
    /// What a trial is to do.
    Decision(Decision),
    /// A trial as it ended, and the best so far.
    Told(Box<Trial>, Option<Box<BestTrial>>),
}

impl From<Answer> for Answered {
    fn from(answer: Answer) -> Self {
        match answer {
            Answer::Trial { trial, resumed } => Answered::Trial(trial, resumed),
            Answer::Wait => Answered::Wait,
            Answer::Done => Answered::Done,
            Answer::Decision(decision) => Answered::Decision(decision),
            Answer::Told(trial, best) => Answered::Told(trial, best),
        }
    }
}

impl Handle {
    /// Starts a sweep and answers once it is durable; with `validate_only` the answer has the id 0.
    pub async fn create_sweep(&self, request: SweepRequest) -> Result<Sweep, Error> {
        check_request_id(request.request_id.as_deref())?;
        let name = request.default_name.as_deref().filter(|name| !name.is_empty()).unwrap_or(UNNAMED);
        let parse = if request.external { SweepSpec::parse } else { SweepSpec::parse_runnable };
        let spec = parse(&request.toml, name)
            .map_err(|problems| Error::InvalidFile { problems, text: request.toml.clone() })?;
        let fingerprint = fingerprint(&request);
        let base_dir = match request.base_dir {
            Some(dir) => dir,
            None => std::env::current_dir().unwrap_or_else(|_| PathBuf::from("/")),
        };
        let submission = Box::new(SweepSubmission { spec, base_dir, external: request.external });
        let ask = match (request.validate_only, request.request_id) {
            (true, _) => SweepAsk::Validate(submission),
            (false, id) => SweepAsk::Create { submission, request_id: id.map(|id| (id, fingerprint)) },
        };
        self.sweep_ask(ask).await
    }

    /// One sweep.
    pub async fn sweep(&self, id: SweepId) -> Result<Sweep, Error> {
        self.shared.state.sweep(id).await?.ok_or(Error::UnknownSweep(id))
    }

    /// Sweeps with ids below `before`, the newest first.
    pub async fn sweeps(&self, before: Option<SweepId>, limit: u32) -> Result<Vec<Sweep>, Error> {
        Ok(self.shared.state.sweeps(before, limit).await?)
    }

    /// Ends a sweep and its trials for good.
    pub async fn cancel_sweep(&self, id: SweepId) -> Result<Sweep, Error> {
        self.sweep_ask(SweepAsk::Cancel(id)).await
    }

    /// Starts no more trials of a sweep, and pauses those that run.
    pub async fn pause_sweep(&self, id: SweepId) -> Result<Sweep, Error> {
        self.sweep_ask(SweepAsk::Pause(id)).await
    }

    /// Lets a paused sweep go on.
    pub async fn resume_sweep(&self, id: SweepId) -> Result<Sweep, Error> {
        self.sweep_ask(SweepAsk::Resume(id)).await
    }

    /// Trials of a sweep from a number on, in their order.
    pub async fn trials(&self, id: SweepId, from: u64, limit: u32) -> Result<Vec<Trial>, Error> {
        Ok(self.shared.state.trials(id, from, limit).await?)
    }

    /// One trial.
    pub async fn trial(&self, id: TrialId) -> Result<Trial, Error> {
        let found = self.trials(id.sweep, id.number, 1).await?.into_iter().next();
        found.filter(|trial| trial.number == id.number).ok_or(Error::UnknownTrial(id))
    }

    /// What becomes of a sweep and its trials after `after_seq`; ends after the terminal one.
    pub fn sweep_changes(
        &self,
        id: SweepId,
        after_seq: u64,
    ) -> impl Stream<Item = Result<SweepChange, Error>> + use<> {
        let (sender, receiver) = mpsc::channel(BATCHES);
        let shared = self.shared.clone();
        // Cancel: dropping the stream ends the task. Error: it is the stream's last item.
        tokio::spawn(async move {
            if let Err(error) = watch(&shared, id, after_seq, &sender).await {
                // A reader that has gone needs no error.
                let _ = sender.send(Err(error)).await;
            }
        });
        ReceiverStream::new(receiver)
    }

    /// A trial of an external sweep to run. A repeated question of one name answers the first result.
    pub async fn ask_trial(&self, sweep: SweepId, name: Option<String>) -> Result<Answered, Error> {
        check_request_id(name.as_deref())?;
        self.ask_of(sweep, Asking::Ask, name).await
    }

    /// What a trial of an external sweep is to do after a report.
    pub async fn report_trial(&self, trial: TrialId, step: u64, value: f64) -> Result<Answered, Error> {
        self.ask_of(trial.sweep, Asking::Report { number: trial.number, step, value }, None).await
    }

    /// Says how a trial of an external sweep ended, with the values of the constraints' metrics by name.
    pub async fn tell_trial(
        &self,
        trial: TrialId,
        outcome: Outcome,
        constraints: BTreeMap<String, f64>,
    ) -> Result<Answered, Error> {
        let asking = Asking::Tell { number: trial.number, outcome, constraints };
        self.ask_of(trial.sweep, asking, None).await
    }

    async fn ask_of(&self, sweep: SweepId, asking: Asking, name: Option<String>) -> Result<Answered, Error> {
        let (to, answered) = oneshot::channel();
        let input = Input::Asking { sweep, asking, name, actor: self.actor.clone(), to };
        self.inbox()?.send(input).await.map_err(|_| Error::Unavailable)?;
        answered.await.map_err(|_| Error::Unavailable)?
    }

    async fn sweep_ask(&self, ask: SweepAsk) -> Result<Sweep, Error> {
        let (answer, answered) = oneshot::channel();
        self.inbox()?
            .send(Input::Sweep(ask, self.actor.clone(), answer))
            .await
            .map_err(|_| Error::Unavailable)?;
        answered.await.map_err(|_| Error::Unavailable)?
    }
}

async fn watch(
    shared: &Arc<Shared>,
    id: SweepId,
    mut after: u64,
    sender: &mpsc::Sender<Result<SweepChange, Error>>,
) -> Result<(), Error> {
    let mut news = shared.sweep_news.subscribe(id);
    loop {
        news.borrow_and_update();
        // Read before its trials: what has changed up to its number is among them.
        let sweep = shared.state.sweep(id).await?.ok_or(Error::UnknownSweep(id))?;
        let over = sweep.now.state.is_terminal();
        loop {
            let trials = shared.state.changed_trials(id, after, TRIALS).await?;
            let full = trials.len() == TRIALS as usize;
            let last = trials.last().map_or(after, |trial| trial.changed);
            let seq = if full { last } else { last.max(sweep.now.seq) };
            if seq > after || (over && !full) {
                let change = SweepChange { seq, sweep: sweep.clone(), trials };
                if sender.send(Ok(change)).await.is_err() {
                    return Ok(());
                }
            }
            after = seq;
            if !full {
                break;
            }
        }
        if over {
            return Ok(());
        }
        tokio::select! {
            changed = news.changed() => if changed.is_err() { return Ok(()) },
            () = sender.closed() => return Ok(()),
        }
        tokio::time::sleep(WATCH_PAUSE).await;
    }
}

impl Control {
    pub(super) async fn apply_sweep(
        &mut self,
        ask: SweepAsk,
        writes: &mut Vec<Write>,
        seen: &mut BTreeMap<String, ([u8; 32], JobId)>,
    ) -> Result<Sweep, Error> {
        let now = self.clock.now();
        match ask {
            SweepAsk::Validate(submission) => {
                self.controller.validate_sweep(&submission)?;
                self.study_of(&submission.spec).await?;
                Ok(self.controller.preview_sweep(now, *submission))
            }
            SweepAsk::Create { submission, request_id: None } => {
                let study = self.study_of(&submission.spec).await?;
                Ok(self.controller.create_sweep_with(now, *submission, study)?)
            }
            SweepAsk::Create { submission, request_id: Some((request_id, fingerprint)) } => {
                let earlier = match seen.get(&request_id) {
                    Some(&earlier) => Some(earlier),
                    None => self.shared.state.request(&request_id).await?,
                };
                match earlier {
                    Some((same, id)) if same == fingerprint => self.latest_sweep(SweepId(id.0)).await,
                    Some(_) => Err(Error::Conflict { request_id }),
                    None => {
                        let study = self.study_of(&submission.spec).await?;
                        let sweep = self.controller.create_sweep_with(now, *submission, study)?;
                        let job = JobId(sweep.id.0);
                        seen.insert(request_id.clone(), (fingerprint, job));
                        writes.push(Write::Request { request_id, fingerprint, job });
                        Ok(sweep)
                    }
                }
            }
            SweepAsk::Cancel(id) => match self.controller.cancel_sweep(id) {
                Ok(sweep) => Ok(sweep),
                Err(refusal) => self.refuse_sweep(id, refusal.into(), "cancelled").await,
            },
            SweepAsk::Pause(id) => match self.controller.pause_sweep(id) {
                Ok(sweep) => Ok(sweep),
                Err(refusal) => self.refuse_sweep(id, refusal.into(), "paused").await,
            },
            SweepAsk::Resume(id) => match self.controller.resume_sweep(id) {
                Ok(sweep) => Ok(sweep),
                Err(refusal) => self.refuse_sweep(id, refusal.into(), "resumed").await,
            },
        }
    }

    /// A new study, with what the older sweeps that it names have found.
    async fn study_of(&self, spec: &SweepSpec) -> Result<Study, Error> {
        let mut study = Study::new(spec);
        for &sweep in &spec.learn_from {
            let refuse = |why: String| Error::LearnFrom { sweep, why };
            let log = self.shared.state.study_log(sweep).await?;
            if log.is_empty() {
                return Err(refuse("there is no such sweep; `phalanx ps -a --sweeps` lists all".to_owned()));
            }
            let learnt = study.learn_from(&log).map_err(|error| refuse(error.to_string()))?;
            if learnt == 0 {
                return Err(refuse(
                    "none of its trials is complete and a point of this sweep's space".to_owned(),
                ));
            }
        }
        Ok(study)
    }

    async fn latest_sweep(&self, id: SweepId) -> Result<Sweep, Error> {
        match self.controller.sweep(id) {
            Some(sweep) => Ok(sweep.clone()),
            None => self.shared.state.sweep(id).await?.ok_or(Error::UnknownSweep(id)),
        }
    }

    /// The controller only knows sweeps that are not over. Cancelling a cancelled one again is no error.
    async fn refuse_sweep(&self, id: SweepId, error: Error, asked: &'static str) -> Result<Sweep, Error> {
        let Error::UnknownSweep(_) = error else { return Err(error) };
        let sweep = self.shared.state.sweep(id).await?.ok_or(Error::UnknownSweep(id))?;
        let state = sweep.now.state;
        if state == phalanx_core::SweepState::Cancelled && asked == "cancelled" {
            return Ok(sweep);
        }
        Err(Error::SweepState { sweep: id, state, asked })
    }

    /// Answers one who runs the trials of an external sweep. What the study has said is committed before it is told.
    pub(super) async fn ask_sweep(
        &mut self,
        sweep: SweepId,
        asking: Asking,
        name: Option<String>,
        actor: &str,
    ) -> Result<Answered, Error> {
        let asked = asking.clone();
        let ends = |number| self.controller.is_open(TrialId { sweep, number });
        let ends = matches!(asking, Asking::Tell { number, .. } if ends(number));
        let fingerprint = *blake3::hash(format!("ask {sweep}").as_bytes()).as_bytes();
        if let Some(name) = &name {
            let owed = self.owed.asked.iter().find(|(owed, ..)| owed == name);
            let earlier = match owed {
                Some((_, fingerprint, number)) => Some((*fingerprint, JobId(*number))),
                None => self.shared.state.request(name).await?,
            };
            match earlier {
                Some((same, number)) if same == fingerprint => {
                    let trial = self.shared.state.trials(sweep, number.0, 1).await?.into_iter().next();
                    let id = TrialId { sweep, number: number.0 };
                    return trial
                        .map(|trial| Answered::Trial(Box::new(trial), false))
                        .ok_or(Error::UnknownTrial(id));
                }
                Some(_) => return Err(Error::Conflict { request_id: name.clone() }),
                None => {}
            }
        }
        let answer = match self.controller.ask_sweep(self.clock.now(), sweep, asking) {
            Ok(answer) => Answered::from(answer),
            Err(Refusal::SweepNotLive(_)) => return self.ask_ended(sweep, asked).await,
            Err(refusal) => return Err(refusal.into()),
        };
        if let (Some(name), Answered::Trial(trial, _)) = (name, &answer) {
            self.owed.asked.push((name, fingerprint, trial.number));
        }
        self.owed.events.extend(event(sweep, &answer, ends, actor));
        Ok(answer)
    }
}

/// What is noted of an answer: a trial that was handed out, or has ended by what was told. Told again nothing happens.
fn event(sweep: SweepId, answer: &Answered, ends: bool, actor: &str) -> Option<NewEvent> {
    let of = |trial: &Trial| TrialId { sweep, number: trial.number };
    match answer {
        Answered::Trial(trial, resumed) => {
            let text = if *resumed { "goes on" } else { "" };
            Some(NewEvent::new(actor, "trial.ask", of(trial), text))
        }
        Answered::Told(trial, _) if ends => {
            Some(NewEvent::new(actor, "trial.tell", of(trial), trial.state.as_str()))
        }
        _ => None,
    }
}

impl Control {
    /// Answers what is asked of a sweep that is over: nothing follows, and what was told stays as it was.
    async fn ask_ended(&self, sweep: SweepId, asking: Asking) -> Result<Answered, Error> {
        let state = &self.shared.state;
        let ended = state.sweep(sweep).await?.ok_or(Error::UnknownSweep(sweep))?;
        if !ended.asked.external {
            return Err(Error::NotExternal(sweep));
        }
        let (Asking::Report { number, .. } | Asking::Tell { number, .. }) = asking else {
            return Ok(Answered::Done);
        };
        let trial = state.trials(sweep, number, 1).await?.into_iter().next();
        let trial = trial.filter(|trial| trial.number == number);
        let trial = trial.ok_or(Error::UnknownTrial(TrialId { sweep, number }))?;
        match asking {
            Asking::Tell { .. } => Ok(Answered::Told(Box::new(trial), ended.now.best.map(Box::new))),
            _ => Err(Error::Study(phalanx_tuner::Error::Told(number))),
        }
    }
}

fn check_request_id(request_id: Option<&str>) -> Result<(), Error> {
    let bytes = request_id.map_or(0, str::len);
    if bytes > REQUEST_ID_BYTES {
        return Err(Error::RequestIdTooLong { bytes, limit: REQUEST_ID_BYTES });
    }
    Ok(())
}

/// Two submissions are the same when everything that matters for the sweep is.
fn fingerprint(request: &SweepRequest) -> [u8; 32] {
    let kind: &[u8] = if request.external { b"external sweep" } else { b"sweep" };
    let base_dir = request.base_dir.as_ref().map_or(&b""[..], |dir| dir.as_os_str().as_encoded_bytes());
    let name = request.default_name.as_deref().unwrap_or("");
    super::fingerprint_of(&[kind, request.toml.as_bytes(), base_dir, name.as_bytes()])
}
