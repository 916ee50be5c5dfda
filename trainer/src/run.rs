//! One rank's training, from the specification to the last step.

use crate::Error;
use crate::bucket::{HEAD_LEN, Head, buckets, own_slices};
use crate::check::check;
use crate::checkpoint::{self, Destination, Loaded, State, Writer};
use crate::data::Dataset;
use crate::environment::Environment;
use crate::evaluate::{Judgement, judge};
use crate::gang::{Common, Gang};
use crate::gradient::{Cut, Task, Worker};
use crate::model::{self, Model};
use crate::optimizer::{self, Optimizer, Step};
use crate::place::Place;
use crate::progress;
use crate::report::Reporter;
use crate::sampler::{Position, Sampler};
use crate::schedule;
use crate::terminated::Terminated;
use phalanx_collective::ArenaBuffer;
use phalanx_core::spec::{TrainDuration, TrainSpec, WorkerSpec};
use std::path::{Path, PathBuf};
use std::time::Instant;

/// How a run ended.
#[derive(Clone, Debug, PartialEq)]
pub struct Outcome {
    /// Optimizer steps done, those before a restart included.
    pub steps: u64,
    /// Whether it was asked to end early.
    pub stopped: bool,
    /// The last step's loss; `None` if this process made no step.
    pub loss: Option<f64>,
    /// What the validation part said at last.
    pub judgement: Option<Judgement>,
    /// What the test part said at the end.
    pub test: Option<Judgement>,
}

/// Trains the built-in model that `spec` asks for, as one rank of the gang that `environment` describes. It may be called
/// again and again in one process.
///
/// # Errors
/// See [`Error`].
pub fn run(spec: &WorkerSpec, environment: &Environment) -> Result<Outcome, Error> {
    on_threads(spec, environment, || {
        let data = read(spec, environment)?;
        let (name, model) = model::build(&spec.train, &data)?;
        train(spec, environment, data, name, model)
    })
}

/// The same with a model of the caller's: `build` makes it for the data, drawing its first parameters by the seed, so that
/// all ranks begin alike.
///
/// # Errors
/// See [`Error`].
pub fn run_model(
    spec: &WorkerSpec,
    environment: &Environment,
    build: impl FnOnce(&Dataset, u64) -> Result<Box<dyn Model>, Error> + Send,
) -> Result<Outcome, Error> {
    on_threads(spec, environment, || {
        let data = read(spec, environment)?;
        let model = build(&data, spec.train.seed)?;
        let name = name_of(&*model);
        train(spec, environment, data, name, model)
    })
}

/// The same with data of the caller's too, in place of what `spec` names.
///
/// # Errors
/// See [`Error`].
pub fn run_on(
    spec: &WorkerSpec,
    environment: &Environment,
    data: Dataset,
    build: impl FnOnce(&Dataset, u64) -> Result<Box<dyn Model>, Error> + Send,
) -> Result<Outcome, Error> {
    on_threads(spec, environment, || {
        let model = build(&data, spec.train.seed)?;
        let name = name_of(&*model);
        train(spec, environment, data, name, model)
    })
}

fn train(
    spec: &WorkerSpec,
    environment: &Environment,
    data: Dataset,
    model_name: String,
    model: Box<dyn Model>,
) -> Result<Outcome, Error> {
    match Run::start(spec, environment, data, model_name, model)? {
        Some(run) => run.finish(),
        None => Ok(Outcome { steps: 0, stopped: true, loss: None, judgement: None, test: None }),
    }
}

/// Runs `train` in a pool of the run's own threads, which matrix products and layers use.
fn on_threads<T: Send>(
    spec: &WorkerSpec,
    environment: &Environment,
    train: impl FnOnce() -> Result<T, Error> + Send,
) -> Result<T, Error> {
    let threads = spec.train.threads.or(environment.threads).map_or_else(
        || std::thread::available_parallelism().map_or(1, usize::from),
        |threads| threads as usize,
    );
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
    let pool =
        pool.map_err(|error| Error::Configuration(format!("cannot start {threads} threads: {error}")))?;
    pool.install(train)
}

fn read(spec: &WorkerSpec, environment: &Environment) -> Result<Dataset, Error> {
    let scratch = environment.scratch.clone().unwrap_or_else(std::env::temp_dir);
    let train = &spec.train;
    Ok(Dataset::read(&train.data, train.loss, train.seed, &spec.base_dir, &scratch)?)
}

/// A model of the caller's in checkpoints and messages.
fn name_of(model: &dyn Model) -> String {
    format!("custom of {} tensors", model.tensors().len())
}

pub(crate) struct Run<'a> {
    spec: &'a WorkerSpec,
    environment: &'a Environment,
    pub(crate) train: &'a TrainSpec,
    pub(crate) data: Dataset,
    pub(crate) model_name: String,
    pub(crate) data_hash: String,
    pub(crate) model: Box<dyn Model>,
    pub(crate) optimizer: Optimizer,
    sampler: Sampler,
    pub(crate) position: Position,
    pub(crate) total_steps: u64,
    /// What follows the last step is done: judging, telling, keeping.
    pub(crate) settled: bool,
    /// Some rank was asked to stop.
    pub(crate) stop: bool,
    /// The ranks have agreed to leave one another after the last step, because there are more.
    pub(crate) leave: bool,
    /// Parameters, optimizer and position are those of the gang. Not so in a rank that has come later, until it has copied
    /// them.
    pub(crate) has_state: bool,
    pub(crate) worker: Worker,
    pub(crate) gradient: ArenaBuffer<f32>,
    pub(crate) gang: Gang,
    pub(crate) reporter: Reporter,
    checkpoints: Option<Writer>,
    /// The step of the checkpoint that this process started from.
    restored: Option<u64>,
    terminated: Terminated,
    pub(crate) loss: Option<f64>,
    pub(crate) judgement: Option<Judgement>,
    pub(crate) test: Option<Judgement>,
    /// The moving average of the parameters, where there is one, gathered for judging.
    average: Vec<f32>,
    /// When the throughput was last measured, and the samples since.
    pub(crate) measured: (Instant, u64),
    /// The step of the last progress line.
    pub(crate) printed: u64,
}

impl<'a> Run<'a> {
    /// `None`: the training was over before this rank came to it.
    fn start(
        spec: &'a WorkerSpec,
        environment: &'a Environment,
        data: Dataset,
        model_name: String,
        mut model: Box<dyn Model>,
    ) -> Result<Option<Run<'a>>, Error> {
        let train = &spec.train;
        check(train, &data, &*model, environment)?;
        let tensors = model.tensors().to_vec();
        let parameters = model.parameters().len();
        let own = match train.shard_optimizer {
            true => own_slices(&buckets(&tensors), environment.rank as usize, environment.world as usize),
            false => std::iter::once(0..parameters).collect(),
        };
        let mut optimizer = Optimizer::new(train.optimizer, train.ema, &train.no_decay, &tensors, &own);
        optimizer.begin_average(model.parameters());
        let data_hash = data.fingerprint()?.to_hex().to_string();
        // A rank that keeps a part of the optimizer's state to itself takes it along when it is killed.
        let Some(place) = Place::first(environment, !train.shard_optimizer)? else { return Ok(None) };
        let has_state = place.is_first();
        let checkpoint = environment.checkpoint.as_deref().filter(|_| has_state);
        let loaded = checkpoint.map(Loaded::read_or_earlier).transpose()?;
        let fingerprint = fingerprint(spec, &data_hash, &*model);
        let sampler = Sampler::new(data.training.len() as u64, u64::from(train.batch_size), train.seed);
        let mut position = Position::default();
        let first = state(train, &data, &model_name, &data_hash, position, None);
        if let Some(loaded) = &loaded {
            loaded.check(&first)?;
            loaded.restore(&tensors, model.parameters_mut(), &mut optimizer)?;
            position = loaded.state.position;
        }
        let common = Common { run: fingerprint, checkpoint: loaded.as_ref().map(|loaded| loaded.hash) };
        // NCCL sums in an order of its own, and shards have theirs.
        let on_device = !train.logical_shards && model.device_gradient().is_some();
        let gang = Gang::meet(environment, place, common, &tensors, train.overlap, on_device)?;
        let Some(gang) = gang else { return Ok(None) };
        let mut run = Run {
            spec,
            environment,
            train,
            total_steps: match train.duration {
                TrainDuration::Epochs(epochs) => epochs.saturating_mul(sampler.steps_per_epoch()),
                TrainDuration::Steps(steps) => steps,
            },
            settled: true,
            stop: false,
            leave: false,
            has_state,
            worker: worker(train, &gang, parameters),
            gradient: gang.gradient_buffer(parameters)?,
            gang,
            data,
            model_name,
            data_hash,
            model,
            optimizer,
            sampler,
            position,
            reporter: Reporter::new(None),
            checkpoints: None,
            restored: loaded.map(|loaded| loaded.state.position.step),
            terminated: Terminated::on_sigterm()?,
            loss: None,
            judgement: None,
            test: None,
            average: Vec::new(),
            measured: (Instant::now(), 0),
            printed: position.step,
        };
        // Restored after the last step: what is left is to say how good the model is.
        run.settled = !run.done();
        run.lead(first);
        Ok(Some(run))
    }

    /// The first of the ranks speaks for all: it reports, and keeps the checkpoints, which continue a run that `first`
    /// describes. It stays the first for as long as it lives.
    pub(crate) fn lead(&mut self, first: State) {
        if self.gang.rank() > 0 || self.checkpoints.is_some() {
            return;
        }
        self.reporter = Reporter::new(self.environment.socket.clone());
        let tensors = self.model.tensors();
        self.checkpoints = destination(self.spec, self.environment)
            .map(|to| Writer::new(to, tensors, first, &self.optimizer.slots()));
    }

    fn finish(mut self) -> Result<Outcome, Error> {
        if self.gang.is_first() {
            progress::announce(&self);
        } else if !self.agree_in_time()? {
            return Ok(self.outcome(true));
        }
        loop {
            match self.go_on() {
                Ok(Some(outcome)) => return Ok(outcome),
                Ok(None) => {}
                Err(error) if self.gang.outlives(&error) => {}
                Err(error) => {
                    // What was measured before it is worth having; the error at hand says more than one from here.
                    let _ = self.reporter.flush();
                    return Err(error);
                }
            }
            if !self.regroup()? {
                return Ok(self.outcome(true));
            }
        }
    }

    /// Trains and ends; `None` where the ranks have agreed to leave one another before the end.
    fn go_on(&mut self) -> Result<Option<Outcome>, Error> {
        self.measured.0 = Instant::now();
        loop {
            if !self.settled {
                self.settle()?;
            }
            if self.done() || self.stop {
                let stopped = !self.done();
                self.end(stopped)?;
                return Ok(Some(self.outcome(stopped)));
            }
            if self.leave {
                return Ok(None);
            }
            self.step()?;
        }
    }

    /// What follows a step. It may be done again, where a rank is lost in it.
    fn settle(&mut self) -> Result<(), Error> {
        let epoch_ended = self.position.index == 0;
        let judged = self.done() || self.train.eval_every.map_or(epoch_ended, |every| self.at(every));
        if judged {
            self.judge(self.done())?;
        }
        progress::report(self, judged)?;
        if judged {
            // What the tuner says to this score holds from this very step on, on every rank.
            self.reporter.flush()?;
            self.stop |= self.gang.any(self.reporter.stop())?;
        }
        let due = self.spec.checkpoint.every_steps.map_or(epoch_ended, |every| self.at(every));
        // One that was restored after the last step has nothing new to keep.
        if (due || self.stop || self.done()) && self.loss.is_some() {
            self.checkpoint()?;
        }
        self.settled = true;
        Ok(())
    }

    pub(crate) fn done(&self) -> bool {
        match self.train.duration {
            TrainDuration::Epochs(epochs) => self.position.epoch >= epochs,
            TrainDuration::Steps(steps) => self.position.step >= steps,
        }
    }

    pub(crate) fn at(&self, every: u64) -> bool {
        self.position.step.is_multiple_of(every)
    }

    /// The gradient of the next step, with its sum of squares, where that is wanted. With a sharded optimizer each rank is left
    /// with its own slices.
    fn gradient(&mut self) -> Result<(Head, f64), Error> {
        let sharded = self.sharded();
        let task = Task {
            model: &mut *self.model,
            sampler: &mut self.sampler,
            data: &self.data,
            position: self.position,
        };
        let leave = self.gang.is_over();
        let mut flight = self.gang.flight(&mut self.gradient, !sharded);
        let loss = self.worker.compute(task, &mut flight)?;
        let stop = self.terminated.is_raised() || self.reporter.stop();
        Head { loss, stop, usage_changed: self.worker.usage.changed(), leave }.write(flight.head());
        let landed = flight.land();
        let mut landed = landed.map_err(|source| self.gang.fail(source))?;
        if self.gang.on_device()
            && let Some(device) = self.model.device_gradient()
        {
            landed = self.gang.reduce_on_device(device, &mut self.gradient, sharded)?;
        }
        if sharded {
            return self.gang.reduce_own(&mut self.gradient, landed > 0);
        }
        let head = self.gang.reduce(&mut self.gradient, landed)?;
        let norm = self.train.clip.map_or(0.0, |_| optimizer::squared_norm(&self.gradient[HEAD_LEN..]));
        Ok((head, norm))
    }

    /// Whether each rank keeps its slices of the optimizer's state only.
    fn sharded(&self) -> bool {
        self.train.shard_optimizer && self.gang.world() > 1
    }

    /// One optimizer step.
    fn step(&mut self) -> Result<(), Error> {
        let sharded = self.sharded();
        let (head, squared_norm) = self.gradient()?;
        if head.usage_changed {
            self.worker.usage.compare(&mut self.gang, self.model.tensors())?;
        }
        let number = self.position.step + 1;
        if !head.loss.is_finite() {
            return Err(self.diverged(f64::from(head.loss), number));
        }
        let scale = self.train.clip.map_or(1.0, |clip| optimizer::clip_scale(squared_norm, clip));
        let parameters = self.model.parameters_mut();
        let gradient = &self.gradient[HEAD_LEN..];
        let lr =
            self.optimizer.lr() * schedule::factor(self.train.schedule, self.position.step, self.total_steps);
        self.optimizer.update(parameters, gradient, Step { scale, lr, number });
        if sharded {
            self.gang.gather(parameters)?;
        }
        let places = self.sampler.batch(self.position);
        self.measured.1 += places.end - places.start;
        self.position = self.sampler.advance(self.position);
        self.loss = Some(f64::from(head.loss));
        (self.settled, self.leave) = (false, head.leave);
        self.stop |= head.stop;
        Ok(())
    }

    /// The learning rate of the last step.
    pub(crate) fn last_lr(&self) -> f64 {
        let before = self.position.step.saturating_sub(1);
        self.optimizer.lr() * schedule::factor(self.train.schedule, before, self.total_steps)
    }

    /// Judges the model on the validation part, and at the end on the test part: with the average of its parameters,
    /// where that is kept.
    fn judge(&mut self, at_end: bool) -> Result<(), Error> {
        self.with_average(|Run { gang, model, data, judgement, test, .. }| {
            *judgement = judge(gang, &mut **model, data, &data.validation)?;
            if at_end {
                *test = judge(gang, &mut **model, data, &data.test)?;
            }
            Ok(())
        })
    }

    /// Does something with the average of the parameters in their place, where that is kept.
    fn with_average(&mut self, act: impl FnOnce(&mut Self) -> Result<(), Error>) -> Result<(), Error> {
        if self.train.ema.is_some() {
            self.average.resize(self.model.parameters().len(), 0.0);
            let slot = self.optimizer.slots().len() - 1;
            self.optimizer.spread(slot, &mut self.average);
            if self.train.shard_optimizer {
                self.gang.gather(&mut self.average)?;
            }
        }
        self.swap_average();
        let result = act(self);
        self.swap_average();
        result
    }

    fn swap_average(&mut self) {
        if !self.average.is_empty() {
            self.model.parameters_mut().swap_with_slice(&mut self.average);
        }
    }

    fn diverged(&mut self, loss: f64, step: u64) -> Error {
        let written = match &mut self.checkpoints {
            Some(writer) => writer.finish().ok().and_then(|_| writer.latest()),
            None => None,
        };
        let last_checkpoint = match written.or(self.restored) {
            Some(step) => format!("the last checkpoint is of step {step}"),
            None => "there is no checkpoint".to_owned(),
        };
        Error::Diverged { loss, step, last_checkpoint }
    }

    fn checkpoint(&mut self) -> Result<(), Error> {
        // Where the optimizer's state is shared out, all ranks put it together.
        let whole = match self.sharded() {
            true => Some(self.gather_optimizer()?),
            false => None,
        };
        let state = self.state();
        let (loss, step) = (self.loss.unwrap_or(f64::NAN), self.position.step);
        let Some(writer) = &mut self.checkpoints else { return Ok(()) };
        // The agent ranks checkpoints by their metrics, so these go first.
        self.reporter.flush()?;
        let parameters = self.model.parameters();
        if !writer.finish()? {
            return Err(self.diverged(loss, step));
        }
        match whole {
            Some(whole) => writer.write(state, parameters, |at, values| values.copy_from_slice(&whole[at])),
            None => writer.write(state, parameters, |at, values| self.optimizer.spread(at, values)),
        }
        Ok(())
    }

    fn gather_optimizer(&mut self) -> Result<Vec<Vec<f32>>, Error> {
        let mut whole = Vec::new();
        for slot in 0..self.optimizer.slots().len() {
            let mut values = vec![0.0; self.model.parameters().len()];
            self.optimizer.spread(slot, &mut values);
            self.gang.gather(&mut values)?;
            whole.push(values);
        }
        Ok(whole)
    }

    fn state(&self) -> State {
        let score = self.spec.checkpoint.metric.as_deref().and_then(|metric| {
            let metrics = self.judgement.iter().flat_map(|judgement| judgement.metrics("val"));
            metrics.chain(self.loss.map(|loss| ("loss".to_owned(), loss))).find(|(name, _)| name == metric)
        });
        let score = score.map(|(_, value)| value);
        state(self.train, &self.data, &self.model_name, &self.data_hash, self.position, score)
    }

    fn end(&mut self, stopped: bool) -> Result<(), Error> {
        self.reporter.flush()?;
        let written = self.checkpoints.as_mut().map_or(Ok(true), Writer::finish)?;
        if !written {
            return Err(self.diverged(self.loss.unwrap_or(f64::NAN), self.position.step));
        }
        let export = self.train.export.as_ref().filter(|_| !stopped);
        if let Some(path) = export.map(|path| self.spec.base_dir.join(path)) {
            self.export(&path)?;
        }
        progress::end(self, stopped);
        self.gang.part()
    }

    pub(crate) fn outcome(&mut self, stopped: bool) -> Outcome {
        let (judgement, test) = (self.judgement.take(), self.test.take());
        Outcome { steps: self.position.step, stopped, loss: self.loss, judgement, test }
    }

    fn export(&mut self, path: &Path) -> Result<(), Error> {
        self.with_average(|run| {
            if run.gang.rank() > 0 {
                return Ok(());
            }
            checkpoint::export(path, &run.state(), run.model.tensors(), run.model.parameters())
        })
    }
}

/// This rank's part of each batch.
pub(crate) fn worker(train: &TrainSpec, gang: &Gang, parameters: usize) -> Worker {
    let cut = if train.logical_shards { Cut::Shards } else { Cut::Rounds(u64::from(train.accumulate)) };
    Worker::new(gang.rank(), gang.world(), cut, parameters, train.seed)
}

/// What all ranks must have in common: the run, the data, and the order of the parameters.
fn fingerprint(spec: &WorkerSpec, data_hash: &str, model: &dyn Model) -> String {
    let mut hasher = blake3::Hasher::new();
    // Folders may differ between hosts; what was read from them may not.
    let common = (&spec.train, &spec.checkpoint, env!("CARGO_PKG_VERSION"));
    if let Ok(json) = serde_json::to_vec(&common) {
        hasher.update(&json);
    }
    hasher.update(data_hash.as_bytes());
    for tensor in model.tensors() {
        hasher.update(format!("{} {:?} {:?};", tensor.name, tensor.shape, tensor.range).as_bytes());
    }
    hasher.finalize().to_hex().to_string()
}

pub(crate) fn state(
    train: &TrainSpec,
    data: &Dataset,
    model: &str,
    data_hash: &str,
    position: Position,
    score: Option<f64>,
) -> State {
    let average = if train.ema.is_some() { " with ema" } else { "" };
    State {
        format: State::FORMAT,
        position,
        batch_size: train.batch_size,
        seed: train.seed,
        optimizer: format!("{}{average}", optimizer::name(train.optimizer)),
        model: model.to_owned(),
        data: data_hash.to_owned(),
        features: data.columns.clone(),
        scaling: data.scaling.clone(),
        classes: data.classes.clone(),
        vocabulary: data.vocabulary.clone(),
        score,
    }
}

/// Where checkpoints go: to the agent; without one into `PHALANX_SCRATCH`, if that is set.
fn destination(spec: &WorkerSpec, environment: &Environment) -> Option<Destination> {
    let scratch: PathBuf = environment.scratch.clone()?;
    Some(match environment.socket.clone() {
        Some(socket) => Destination::Agent { socket, scratch },
        None => {
            let (keep, mode) = (spec.checkpoint.keep as usize, spec.checkpoint.mode);
            Destination::Folder { path: scratch, keep, mode }
        }
    })
}
