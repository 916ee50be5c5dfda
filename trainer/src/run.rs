//! One rank's training, from the specification to the last line.

use crate::Error;
use crate::checkpoint::{Destination, Loaded, State, Writer};
use crate::data::Dataset;
use crate::environment::Environment;
use crate::evaluate::{Judgement, judge};
use crate::gang::Gang;
use crate::gradient::{Batch, Cut, Worker};
use crate::model::{Engine, Mlp};
use crate::optimizer::{self, Optimizer};
use crate::report::Reporter;
use crate::sampler::{Position, Sampler};
use crate::schedule;
use phalanx_collective::ArenaBuffer;
use phalanx_core::spec::{Activation, LOGICAL_SHARDS, ModelSpec, TrainDuration, TrainSpec, WorkerSpec};
use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

/// Progress lines of a run, at most about so many.
const PROGRESS_LINES: u64 = 20;

/// Most parameters of a model: 4 GiB of them.
const PARAMETERS: usize = 1 << 30;

/// How a run ended.
#[derive(Clone, Debug, PartialEq)]
pub struct Outcome {
    /// Optimizer steps done, those before a restart included.
    pub steps: u64,
    /// Whether it was asked to end early.
    pub stopped: bool,
    /// The last step's loss; `None` if this process made no step.
    pub loss: Option<f64>,
    /// What held-out rows said at last.
    pub judgement: Option<Judgement>,
}

/// Trains as one rank of the gang that `environment` describes.
///
/// # Errors
/// See [`Error`].
pub fn run(spec: &WorkerSpec, environment: &Environment) -> Result<Outcome, Error> {
    let mut run = Run::start(spec, environment)?;
    run.announce();
    match run.train() {
        Ok(stopped) => run.end(stopped),
        Err(error) => {
            // What was measured before it is worth having; the error at hand says more than one from here.
            let _ = run.reporter.flush();
            Err(error)
        }
    }
}

struct Run<'a> {
    spec: &'a WorkerSpec,
    train: &'a TrainSpec,
    data: Dataset,
    model_name: String,
    data_hash: String,
    engine: Box<dyn Engine>,
    optimizer: Optimizer,
    sampler: Sampler,
    position: Position,
    total_steps: u64,
    worker: Worker,
    gradient: ArenaBuffer<f32>,
    gang: Gang,
    reporter: Reporter,
    checkpoints: Option<Writer>,
    /// The step of the checkpoint that this process started from.
    restored: Option<u64>,
    terminated: Arc<AtomicBool>,
    loss: Option<f64>,
    judgement: Option<Judgement>,
    /// When the throughput was last measured, and the samples since.
    measured: (Instant, u64),
    /// The step of the last progress line.
    printed: u64,
}

impl<'a> Run<'a> {
    fn start(spec: &'a WorkerSpec, environment: &Environment) -> Result<Run<'a>, Error> {
        let train = &spec.train;
        set_threads(train, environment);
        let data = Dataset::read(&train.data, train.loss, &spec.base_dir, train.seed)?;
        check(train, &data, environment)?;
        let (model_name, mut engine) = build(train, &data)?;
        let parameters = engine.parameters().len();
        let mut optimizer = Optimizer::new(train.optimizer, parameters);
        let data_hash = data.fingerprint().to_hex().to_string();
        let loaded = environment.checkpoint.as_deref().map(Loaded::read).transpose()?;
        let fingerprint = fingerprint(spec, &data_hash, loaded.as_ref());
        let sampler = Sampler::new(data.training.len() as u64, u64::from(train.batch_size), train.seed);
        let mut position = Position::default();
        if let Some(loaded) = &loaded {
            loaded.check(&state(train, &data, &model_name, &data_hash, position))?;
            loaded.restore(&mut *engine, &mut optimizer)?;
            position = loaded.state.position;
        }
        let gang = Gang::meet(environment, fingerprint, parameters)?;
        let cut = if train.logical_shards { Cut::Shards } else { Cut::Rounds(u64::from(train.accumulate)) };
        let leads = environment.rank == 0;
        let checkpoints =
            destination(environment).filter(|_| leads).map(|to| Writer::new(to, engine.tensors()));
        Ok(Run {
            spec,
            train,
            total_steps: match train.duration {
                TrainDuration::Epochs(epochs) => epochs.saturating_mul(sampler.steps_per_epoch()),
                TrainDuration::Steps(steps) => steps,
            },
            worker: Worker::new(gang.rank(), gang.world(), cut, parameters),
            gradient: gang.gradient_buffer(parameters)?,
            gang,
            data,
            model_name,
            data_hash,
            engine,
            optimizer,
            sampler,
            position,
            reporter: Reporter::new(environment.socket.clone().filter(|_| leads)),
            checkpoints,
            restored: loaded.map(|loaded| loaded.state.position.step),
            terminated: on_sigterm()?,
            loss: None,
            judgement: None,
            measured: (Instant::now(), 0),
            printed: position.step,
        })
    }

    /// Steps until the end or until asked to stop; the answer is whether it was asked.
    fn train(&mut self) -> Result<bool, Error> {
        self.measured.0 = Instant::now();
        if self.done() {
            // Restored after the last step: what is left is to say how good the model is.
            self.judgement = judge(&mut self.gang, &mut *self.engine, &self.data)?;
        }
        while !self.done() {
            let mut stop = self.step()?;
            let epoch_ended = self.position.index == 0;
            let judged = self.done() || self.train.eval_every.map_or(epoch_ended, |every| self.at(every));
            if judged {
                self.judgement = judge(&mut self.gang, &mut *self.engine, &self.data)?;
            }
            self.report(judged)?;
            if judged {
                // What the tuner says to this score holds from this very step on, on every rank.
                self.reporter.flush()?;
                stop |= self.gang.any(self.reporter.stop())?;
            }
            let due = self.spec.checkpoint.every_steps.map_or(epoch_ended, |every| self.at(every));
            if due || stop || self.done() {
                self.checkpoint()?;
            }
            if stop && !self.done() {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn done(&self) -> bool {
        match self.train.duration {
            TrainDuration::Epochs(epochs) => self.position.epoch >= epochs,
            TrainDuration::Steps(steps) => self.position.step >= steps,
        }
    }

    fn at(&self, every: u64) -> bool {
        self.position.step.is_multiple_of(every)
    }

    /// One optimizer step; the answer is whether any rank was asked to stop.
    fn step(&mut self) -> Result<bool, Error> {
        let batch = Batch {
            engine: &mut *self.engine,
            sampler: &mut self.sampler,
            data: &self.data,
            position: self.position,
        };
        self.worker.compute(batch, &mut self.gradient);
        if self.terminated.load(Ordering::Relaxed) || self.reporter.stop() {
            let last = self.gradient.len() - 1;
            self.gradient[last] = 1.0;
        }
        let tail = self.gang.reduce(&mut self.gradient)?;
        let step = self.position.step + 1;
        if !tail.loss.is_finite() {
            return Err(self.diverged(f64::from(tail.loss), step));
        }
        let gradient = &self.gradient[..self.engine.parameters().len()];
        let scale = self.train.clip.map_or(1.0, |clip| optimizer::clip_scale(gradient, clip));
        let lr = self.lr();
        self.optimizer.update(self.engine.parameters_mut(), gradient, scale, lr, step);
        let places = self.sampler.batch(self.position);
        self.measured.1 += places.end - places.start;
        self.position = self.sampler.advance(self.position);
        self.loss = Some(f64::from(tail.loss));
        Ok(tail.stop)
    }

    /// The learning rate of the coming step.
    fn lr(&self) -> f64 {
        self.optimizer.lr() * schedule::factor(self.train.schedule, self.position.step, self.total_steps)
    }

    fn diverged(&mut self, loss: f64, step: u64) -> Error {
        let written = match &mut self.checkpoints {
            Some(writer) => writer.finish().ok().and_then(|()| writer.latest()),
            None => None,
        };
        let last_checkpoint = match written.or(self.restored) {
            Some(step) => format!("the last checkpoint is of step {step}"),
            None => "there is no checkpoint".to_owned(),
        };
        Error::Diverged { loss, step, last_checkpoint }
    }

    fn report(&mut self, judged: bool) -> Result<(), Error> {
        let logged = self.at(self.train.log_every) || self.done();
        if self.gang.rank() > 0 || !(judged || logged) {
            return Ok(());
        }
        let mut metrics = Vec::with_capacity(5);
        if logged {
            let (since, samples) = std::mem::replace(&mut self.measured, (Instant::now(), 0));
            let lr = self.optimizer.lr()
                * schedule::factor(self.train.schedule, self.position.step - 1, self.total_steps);
            metrics.extend([("loss", self.loss.unwrap_or(f64::NAN)), ("lr", lr)]);
            metrics.push(("samples_per_s", samples as f64 / since.elapsed().as_secs_f64().max(1e-9)));
        }
        if judged {
            metrics.extend(self.judgement.iter().flat_map(Judgement::metrics));
            self.print_progress();
        }
        if metrics.is_empty() {
            return Ok(());
        }
        self.reporter.report(self.position.step, &metrics)
    }

    fn checkpoint(&mut self) -> Result<(), Error> {
        let Some(writer) = &mut self.checkpoints else { return Ok(()) };
        if !self.engine.parameters().iter().all(|parameter| parameter.is_finite()) {
            let (loss, step) = (self.loss.unwrap_or(f64::NAN), self.position.step);
            return Err(self.diverged(loss, step));
        }
        // The agent ranks checkpoints by their metrics, so these go first.
        self.reporter.flush()?;
        let state = state(self.train, &self.data, &self.model_name, &self.data_hash, self.position);
        writer.write(state, &*self.engine, &self.optimizer)
    }

    fn end(mut self, stopped: bool) -> Result<Outcome, Error> {
        self.reporter.flush()?;
        if let Some(writer) = &mut self.checkpoints {
            writer.finish()?;
        }
        if self.gang.rank() == 0 {
            self.print_end(stopped);
        }
        self.gang.part()?;
        Ok(Outcome { steps: self.position.step, stopped, loss: self.loss, judgement: self.judgement })
    }

    fn announce(&self) {
        if self.gang.rank() > 0 {
            return;
        }
        let mut line = format!(
            "training {} ({} parameters) on {} rows of {}, {} held out, {}",
            self.model_name,
            self.engine.parameters().len(),
            self.data.training.len(),
            self.data.path.display(),
            self.data.validation.len(),
            match self.gang.world() {
                1 => "1 worker".to_owned(),
                world => format!("{world} workers"),
            }
        );
        if self.position.step > 0 {
            line.push_str(&format!(", going on from step {}", self.position.step));
        }
        print(&line);
    }

    fn print_progress(&mut self) {
        if !self.done() && self.position.step < self.printed + self.total_steps / PROGRESS_LINES {
            return;
        }
        self.printed = self.position.step;
        let mut line = format!("step {}/{}", self.position.step, self.total_steps);
        line.push_str(&format!("  epoch {}", self.position.epoch));
        if let Some(loss) = self.loss {
            line.push_str(&format!("  loss {loss:.5}"));
        }
        for (name, value) in self.judgement.iter().flat_map(Judgement::metrics) {
            line.push_str(&format!("  {name} {value:.4}"));
        }
        print(&line);
    }

    fn print_end(&self, stopped: bool) {
        match (&self.judgement, stopped) {
            (_, true) => print(&format!("stopped at step {} as asked", self.position.step)),
            (Some(Judgement { score: (name, value), .. }), false) => {
                print(&format!("validation {name}: {value:.4}"))
            }
            (None, false) => print(&format!(
                "final loss: {:.5} (nothing is held out; `data.validation = 0.2` would say how good the model is)",
                self.loss.unwrap_or(f64::NAN)
            )),
        }
    }
}

/// A line for people. Nobody may be listening, which is no reason to stop training.
fn print(line: &str) {
    let mut out = std::io::stdout().lock();
    let _ = writeln!(out, "{line}").and_then(|()| out.flush());
}

/// Sizes the pool of threads that matrix products use.
fn set_threads(train: &TrainSpec, environment: &Environment) {
    let threads = train.threads.or(environment.threads).map_or_else(
        || std::thread::available_parallelism().map_or(1, usize::from),
        |threads| threads as usize,
    );
    // Only the first call in a process counts; later ones (in tests) find the pool made.
    let _ = rayon::ThreadPoolBuilder::new().num_threads(threads).build_global();
}

/// A flag that SIGTERM raises.
fn on_sigterm() -> Result<Arc<AtomicBool>, Error> {
    let flag = Arc::new(AtomicBool::new(false));
    signal_hook::flag::register(signal_hook::consts::SIGTERM, flag.clone())
        .map_err(Error::io("install a handler for", "SIGTERM"))?;
    Ok(flag)
}

/// What only the data and the gang tell.
fn check(train: &TrainSpec, data: &Dataset, environment: &Environment) -> Result<(), Error> {
    let rows = data.training.len();
    if train.batch_size as usize > rows {
        return Err(Error::Configuration(format!(
            "`train.batch_size` is {}, and the training part of {} has {rows} rows; make it at most {rows}",
            train.batch_size,
            data.path.display()
        )));
    }
    if train.logical_shards && !LOGICAL_SHARDS.is_multiple_of(environment.world) {
        return Err(Error::Configuration(format!(
            "`train.deterministic` cuts each batch into {LOGICAL_SHARDS} shards, which {} workers cannot share evenly; use 1, 2, 4 or 8",
            environment.world
        )));
    }
    Ok(())
}

/// The model that the specification asks for, and its name in checkpoints.
fn build(train: &TrainSpec, data: &Dataset) -> Result<(String, Box<dyn Engine>), Error> {
    let mut widths = vec![data.width()];
    let (kind, activation) = match &train.model {
        ModelSpec::Linear => ("linear", Activation::Relu),
        ModelSpec::Mlp { hidden, activation } => {
            widths.extend(hidden.iter().map(|&width| width as usize));
            ("mlp", *activation)
        }
    };
    widths.push(data.outputs());
    let count: usize = widths.windows(2).map(|pair| (pair[0] + 1) * pair[1]).sum();
    if count > PARAMETERS {
        return Err(Error::Configuration(format!(
            "`train.model` has {count} parameters; the limit is {PARAMETERS}; make `hidden` smaller"
        )));
    }
    let shape = widths.iter().map(ToString::to_string).collect::<Vec<_>>().join("-");
    let name = match (kind, activation) {
        ("linear", _) => format!("linear {shape}"),
        (_, Activation::Relu) => format!("mlp {shape} relu"),
        (_, Activation::Gelu) => format!("mlp {shape} gelu"),
        (_, Activation::Tanh) => format!("mlp {shape} tanh"),
    };
    Ok((name, Box::new(Mlp::new(&widths, activation, data.loss, train.seed))))
}

/// What all ranks must have in common.
fn fingerprint(spec: &WorkerSpec, data_hash: &str, loaded: Option<&Loaded>) -> String {
    let mut hasher = blake3::Hasher::new();
    // Folders may differ between hosts; what was read from them may not.
    let common = (&spec.train, &spec.checkpoint, env!("CARGO_PKG_VERSION"));
    if let Ok(json) = serde_json::to_vec(&common) {
        hasher.update(&json);
    }
    hasher.update(data_hash.as_bytes());
    if let Some(loaded) = loaded {
        hasher.update(loaded.hash.as_bytes());
    }
    hasher.finalize().to_hex().to_string()
}

fn state(train: &TrainSpec, data: &Dataset, model: &str, data_hash: &str, position: Position) -> State {
    State {
        format: State::FORMAT,
        position,
        batch_size: train.batch_size,
        seed: train.seed,
        optimizer: optimizer::name(train.optimizer).to_owned(),
        model: model.to_owned(),
        data: data_hash.to_owned(),
        features: data.columns.clone(),
        scaling: data.scaling.clone(),
        classes: data.classes.clone(),
    }
}

/// Where checkpoints go: to the agent; without one into `PHALANX_SCRATCH`, if that is set.
fn destination(environment: &Environment) -> Option<Destination> {
    /// Checkpoints that stay outside a job.
    const KEEP: usize = 2;
    let scratch = environment.scratch.clone()?;
    Some(match environment.socket.clone() {
        Some(socket) => Destination::Agent { socket, scratch },
        None => Destination::Folder { path: scratch, keep: KEEP },
    })
}
