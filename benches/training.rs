//! Data-parallel training beside PyTorch's, in turn in one run: the same nets, batches and number of ranks.
//!
//! `cargo bench --bench training [-- mlp|cnn|transformer|start|checkpoint …]`. PyTorch's interpreter is `$PHALANX_PEERS` (a
//! program, or a folder with `venv/bin/python` or `bin/python`), else a `python3` that can import it.

#[path = "support/spread.rs"]
mod spread;
#[path = "support/verdict.rs"]
mod verdict;

use std::collections::BTreeMap;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use phalanx_trainer::{
    Activation, Batch, Cnn, CnnSpec, Dataset, Environment, Error, Gradient, Loss, Mlp, Model, Norm, Sample,
    Targets, Tensor, Transformer, TransformerSpec, WorkerSpec, Write, run_on,
};

use spread::spread;
use verdict::verdict;

type Failed = Box<dyn std::error::Error>;

/// Rounds in which each is measured once.
const ROUNDS: usize = 5;
/// Steps before the clock runs.
const WARM_UP: usize = 10;
/// Nets, timed steps, and what we must be ahead of PyTorch by.
const NETS: [(&str, usize, f64); 3] = [("mlp", 150, 1.3), ("transformer", 40, 1.3), ("cnn", 40, 0.8)];
/// What a gang must reach of the same two ranks without communication.
const EFFICIENCY: f64 = 0.9;
/// Seconds from the start of a gang of two to the end of its first step.
const START: f64 = 0.3;

fn main() -> Result<(), Failed> {
    let args: Vec<String> = std::env::args().skip(1).filter(|arg| !arg.starts_with("--")).collect();
    if let [kind, net, steps] = &args[..]
        && kind == "worker"
    {
        println!("{}", worker(net, steps.parse()?)?);
        return Ok(());
    }
    let wanted = |name: &str| args.is_empty() || args.iter().any(|arg| arg == name);
    let python = find_python();
    if python.is_none() {
        println!("PyTorch is absent: set PHALANX_PEERS to the interpreter of a venv with torch");
    }
    for (net, steps, goal) in NETS {
        if wanted(net) {
            compare(net, steps, goal, python.as_deref())?;
        }
    }
    if wanted("start") {
        start()?;
    }
    if wanted("checkpoint") {
        checkpoint()?;
    }
    Ok(())
}

fn compare(net: &str, steps: usize, goal: f64, python: Option<&Path>) -> Result<(), Failed> {
    let mut rounds: BTreeMap<&str, Vec<f64>> = BTreeMap::new();
    for _ in 0..ROUNDS {
        rounds.entry("ours").or_default().push(ours(net, steps, true)?);
        rounds.entry("ours apart").or_default().push(ours(net, steps, false)?);
        if let Some(python) = python {
            let found = peer(python, net, steps)?;
            rounds.entry("PyTorch DDP").or_default().push(found["ddp"]);
            rounds.entry("PyTorch apart").or_default().push(found["apart"]);
        }
    }
    println!("{net}: steps/s of two ranks with one thread each, median of {ROUNDS} rounds (min to max)");
    for (who, found) in &rounds {
        let (median, min, max) = spread(found);
        println!("  {who:<14} {median:>8.1} ({min:.1} to {max:.1})");
    }
    let median = |who: &str| rounds.get(who).map(|found| spread(found).0);
    if let (Some(ours), Some(apart)) = (median("ours"), median("ours apart")) {
        print_verdict("  ours over the same ranks without communication", ours / apart, EFFICIENCY);
    }
    if let (Some(ours), Some(ddp)) = (median("ours"), median("PyTorch DDP")) {
        print_verdict("  ours over PyTorch DDP", ours / ddp, goal);
    }
    if let (Some(ddp), Some(apart)) = (median("PyTorch DDP"), median("PyTorch apart")) {
        println!("  PyTorch DDP over PyTorch apart: {:.2}", ddp / apart);
    }
    Ok(())
}

fn print_verdict(what: &str, found: f64, goal: f64) {
    println!("{what}: {found:.2} (goal {goal}: {})", verdict(found >= goal));
}

/// Steps a second of the slower of two ranks, as one gang or apart.
fn ours(net: &str, steps: usize, together: bool) -> Result<f64, Failed> {
    let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
    let rank = |rank: usize| -> std::io::Result<Child> {
        let mut command = Command::new(std::env::current_exe()?);
        command.args(["worker", net, &steps.to_string()]).stdout(Stdio::piped()).env("OMP_NUM_THREADS", "1");
        for variable in ["PHALANX_SOCKET", "PHALANX_CHECKPOINT", "PHALANX_SCRATCH"] {
            command.env_remove(variable);
        }
        if together {
            command.env("RANK", rank.to_string()).env("WORLD_SIZE", "2");
            command.env("MASTER_ADDR", "127.0.0.1").env("MASTER_PORT", port.to_string());
        } else {
            command.env("RANK", "0").env("WORLD_SIZE", "1");
        }
        command.spawn()
    };
    let ranks = [rank(0)?, rank(1)?];
    let mut slower = f64::INFINITY;
    for rank in ranks {
        let output = rank.wait_with_output()?;
        if !output.status.success() {
            return Err(format!("a rank failed: {}", output.status).into());
        }
        let text = String::from_utf8(output.stdout)?;
        let rate: f64 = text.lines().last().unwrap_or_default().parse()?;
        slower = slower.min(rate);
    }
    Ok(slower)
}

fn peer(python: &Path, net: &str, steps: usize) -> Result<BTreeMap<String, f64>, Failed> {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/peers/ddp_training.py");
    let output =
        Command::new(python).args([script, net, &steps.to_string()]).stderr(Stdio::inherit()).output()?;
    if !output.status.success() {
        return Err(format!("the benchmark of PyTorch failed: {}", output.status).into());
    }
    let text = String::from_utf8(output.stdout)?;
    Ok(serde_json::from_str(text.lines().last().unwrap_or_default())?)
}

fn find_python() -> Option<PathBuf> {
    let mut candidates: Vec<PathBuf> = Vec::new();
    if let Some(peers) = std::env::var_os("PHALANX_PEERS").map(PathBuf::from) {
        candidates.extend([peers.join("venv/bin/python"), peers.join("bin/python"), peers]);
    }
    candidates.extend(["python3".into(), "/usr/bin/python3".into()]);
    candidates.into_iter().find(|python| {
        let mut command = Command::new(python);
        command.args(["-c", "import torch.distributed as d; assert d.is_available()"]);
        command.stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok_and(|status| status.success())
    })
}

/// A model that keeps the time of its passes.
struct Timed {
    model: Box<dyn Model>,
    passes: std::sync::mpsc::Sender<(Instant, Instant)>,
}

impl Model for Timed {
    fn tensors(&self) -> &[Tensor] {
        self.model.tensors()
    }

    fn parameters(&self) -> &[f32] {
        self.model.parameters()
    }

    fn parameters_mut(&mut self) -> &mut [f32] {
        self.model.parameters_mut()
    }

    fn forward_backward(
        &mut self,
        batch: &Batch,
        scale: f32,
        gradient: &mut dyn Gradient,
        write: Write,
    ) -> Result<f64, Error> {
        let begun = Instant::now();
        let loss = self.model.forward_backward(batch, scale, gradient, write)?;
        let _ = self.passes.send((begun, Instant::now())); // nobody may listen
        Ok(loss)
    }

    fn evaluate(&mut self, batch: &Batch, outputs: &mut Vec<f32>) -> Result<f64, Error> {
        self.model.evaluate(batch, outputs)
    }
}

/// Trains a net as a rank and answers its steps a second.
fn worker(net: &str, steps: usize) -> Result<f64, Failed> {
    let world: usize = std::env::var("WORLD_SIZE")?.parse()?;
    let (batch, optimizer) = match net {
        "transformer" => (16, "{ kind = \"adamw\" }"),
        "cnn" => (128, "{ kind = \"adam\" }"),
        _ => (128, "{ kind = \"sgd\", lr = 0.01 }"),
    };
    let batch_size = batch * world;
    let text = format!(
        "[train]\nsteps = {}\nbatch_size = {batch_size}\noptimizer = {optimizer}\nlog_every = 1000000\n\
         [checkpoint]\nevery_steps = 1000000\n",
        WARM_UP + steps + 1
    );
    let spec = WorkerSpec::parse_custom(&text, "").map_err(|problems| problems.render("bench", &text))?;
    let (sender, passes) = std::sync::mpsc::channel();
    let data = data_for(net, 8 * batch * world)?;
    run_on(&spec, &Environment::read()?, data, |data, seed| {
        Ok(Box::new(Timed { model: model_for(net, data, seed)?, passes: sender }))
    })?;
    let begun: Vec<Instant> = passes.iter().map(|(begun, _)| begun).collect();
    let took = begun[WARM_UP + steps] - begun[WARM_UP];
    Ok(steps as f64 / took.as_secs_f64())
}

fn data_for(net: &str, samples: usize) -> Result<Dataset, Failed> {
    let noise = |at: usize| ((at as u32).wrapping_mul(2_654_435_761) >> 8) as f32 / 8_388_608.0 - 1.0;
    let classes = (0..samples).map(|at| (at * 7 % 10) as u32).collect();
    Ok(match net {
        "transformer" => {
            let tokens =
                (0..samples * 64 + 1).map(|at| (at as u32).wrapping_mul(2_654_435_761) >> 8).map(|t| t % 65);
            Dataset::of_tokens(tokens.collect(), 65, 64)?
        }
        _ => {
            let sample = if net == "cnn" { Sample::Image([1, 28, 28]) } else { Sample::Features(784) };
            Dataset::of_values(sample, (0..samples * 784).map(noise).collect(), Targets::Classes(classes))?
        }
    })
}

fn model_for(net: &str, data: &Dataset, seed: u64) -> Result<Box<dyn Model>, Error> {
    let loss = Loss::CrossEntropy;
    Ok(match net {
        "transformer" => {
            let spec = TransformerSpec {
                layers: 2,
                width: 128,
                heads: 4,
                feed_forward: 512,
                dropout: 0.0,
                tied: true,
            };
            Box::new(Transformer::new(&spec, data.sample, data.outputs(), loss, seed)?)
        }
        "cnn" => {
            let spec = CnnSpec {
                channels: vec![16, 32],
                kernel: 3,
                pool: 2,
                norm: Norm::None,
                hidden: vec![64],
                activation: Activation::Relu,
                dropout: 0.0,
            };
            Box::new(Cnn::new(&spec, [1, 28, 28], 10, loss, seed)?)
        }
        _ => Box::new(Mlp::new(&[784, 512, 256, 10], Activation::Relu, 0.0, loss, seed)?),
    })
}

/// A job of two ranks and one step, from its command line to its end: an upper bound for the way to the first step.
fn start() -> Result<(), Failed> {
    let job = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/digits/job.toml");
    let mut found = Vec::new();
    for _ in 0..ROUNDS {
        let folder = tempfile::tempdir()?;
        let begun = Instant::now();
        let status = Command::new(env!("CARGO_BIN_EXE_phalanx"))
            .args(["run", job, "--set", "train.epochs=1", "--set", "train.batch_size=1400", "--data"])
            .arg(folder.path())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()?;
        found.push(begun.elapsed().as_secs_f64());
        if !status.success() {
            return Err(format!("the job failed: {status}").into());
        }
    }
    let (median, min, max) = spread(&found);
    println!("a job of two ranks and two steps, start to end: {median:.2} s ({min:.2} to {max:.2})");
    println!(
        "  goal to the first step {START} s: {}",
        if median <= START { "met" } else { "see the rank's own part" }
    );
    Ok(())
}

/// How long a checkpoint of a model of 100 MB holds up training, beside one copy of it.
fn checkpoint() -> Result<(), Failed> {
    const PARAMETERS: usize = 25_000_000;
    const ALLOWED: Duration = Duration::from_millis(5);
    let folder = tempfile::tempdir()?;
    let environment = Environment { world: 1, scratch: Some(folder.path().into()), ..Environment::default() };
    let (sender, passes) = std::sync::mpsc::channel();
    // Steps 4, 8, … leave a checkpoint; time enough passes in between for it to be written.
    let text = "[train]\nsteps = 24\nbatch_size = 8\noptimizer = { kind = \"sgd\" }\nthreads = 1\nlog_every = 1000\n\
                [checkpoint]\nevery_steps = 4\nkeep = 0\n";
    let spec = WorkerSpec::parse_custom(text, "").map_err(|problems| problems.render("bench", text))?;
    let data = Dataset::of_values(Sample::Features(1), vec![0.5; 8], Targets::Values(vec![1.0; 8]))?;
    run_on(&spec, &environment, data, |_, _| {
        let shape = vec![PARAMETERS];
        let tensors = vec![Tensor { name: "weight".to_owned(), shape, range: 0..PARAMETERS }];
        let model = Idle { tensors, parameters: vec![0.1; PARAMETERS] };
        Ok(Box::new(Timed { model: Box::new(model), passes: sender }))
    })?;
    let passes: Vec<(Instant, Instant)> = passes.iter().collect();
    // Between the end of one pass and the start of the next: the update, and at some steps the checkpoint.
    let gap = |at: usize| passes[at].0 - passes[at - 1].1;
    let (mut with, mut without): (Vec<f64>, Vec<f64>) = (Vec::new(), Vec::new());
    (4..24)
        .for_each(|at| if at % 4 == 0 { &mut with } else { &mut without }.push(1e3 * gap(at).as_secs_f64()));
    let from = vec![0.5f32; PARAMETERS];
    let mut to = vec![0.25f32; PARAMETERS];
    let copies: Vec<f64> = (0..ROUNDS)
        .map(|_| {
            let begun = Instant::now();
            std::hint::black_box(&mut to).copy_from_slice(std::hint::black_box(&from));
            1e3 * begun.elapsed().as_secs_f64()
        })
        .collect();
    let (pause, copy) = (spread(&with).0 - spread(&without).0, spread(&copies).0);
    let met = pause <= copy + 1e3 * ALLOWED.as_secs_f64();
    println!("a checkpoint of 100 MB holds training up for {pause:.1} ms; one copy takes {copy:.1} ms");
    println!("  goal one copy and {} ms: {}", ALLOWED.as_millis(), verdict(met));
    Ok(())
}

/// A large model that does nothing but take its time.
struct Idle {
    tensors: Vec<Tensor>,
    parameters: Vec<f32>,
}

impl Model for Idle {
    fn tensors(&self) -> &[Tensor] {
        &self.tensors
    }

    fn parameters(&self) -> &[f32] {
        &self.parameters
    }

    fn parameters_mut(&mut self) -> &mut [f32] {
        &mut self.parameters
    }

    fn forward_backward(
        &mut self,
        _: &Batch,
        _: f32,
        gradient: &mut dyn Gradient,
        _: Write,
    ) -> Result<f64, Error> {
        std::thread::sleep(Duration::from_millis(300));
        gradient.open().fill(0.0);
        Ok(1.0)
    }

    fn evaluate(&mut self, _: &Batch, _: &mut Vec<f32>) -> Result<f64, Error> {
        Ok(1.0)
    }
}
