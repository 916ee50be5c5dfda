//! The `[train]` table: what the built-in trainer trains, on what, and how.

use super::gang::Workers;
use super::job::CheckpointPolicy;
use super::reader::{Table, as_number};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;
use toml::de::DeValue;

/// What a rank of the built-in trainer is given: the JSON of `phalanx worker --spec FILE`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WorkerSpec {
    /// The job's name.
    pub name: String,
    /// What to train.
    pub train: TrainSpec,
    /// When to make a checkpoint.
    pub checkpoint: CheckpointPolicy,
    /// The folder that relative data paths start from.
    pub base_dir: PathBuf,
}

/// The shards that `deterministic = "logical-shards"` cuts each global batch into. Workers must divide it.
pub const LOGICAL_SHARDS: u32 = 8;

/// Work for the built-in trainer; every field is valid and every default filled in.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TrainSpec {
    /// The model.
    pub model: ModelSpec,
    /// What it learns from.
    pub data: DataSpec,
    /// The loss; `None` picks by model and target.
    pub loss: Option<Loss>,
    /// The optimizer.
    pub optimizer: Optimizer,
    /// How the learning rate moves.
    pub schedule: Schedule,
    /// When training ends.
    pub duration: Duration,
    /// Samples per optimizer step, over all workers and accumulation rounds.
    pub batch_size: u32,
    /// Rounds of gradients per optimizer step.
    pub accumulate: u32,
    /// Largest global norm of the gradient.
    pub clip: Option<f64>,
    /// Seeds initial parameters and the order of samples.
    pub seed: u64,
    /// Rank 0 reports the loss every so many steps.
    pub log_every: u64,
    /// Evaluates every so many steps; `None` at the end of each epoch.
    pub eval_every: Option<u64>,
    /// Gradients are summed in fixed logical shards, so that losses do not depend on the number of workers.
    pub logical_shards: bool,
    /// Threads per worker; `None` takes the bundle's CPUs.
    pub threads: Option<u32>,
    /// What computes.
    pub backend: Backend,
}

/// A built-in model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum ModelSpec {
    /// One affine map.
    Linear,
    /// Affine maps with an activation between them.
    Mlp {
        /// Widths of the hidden layers.
        hidden: Vec<u32>,
        /// Between the layers.
        activation: Activation,
    },
}

/// The function between layers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Activation {
    /// max(x, 0).
    Relu,
    /// x · Φ(x).
    Gelu,
    /// tanh x.
    Tanh,
}

/// Where samples come from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum DataSpec {
    /// A file of comma-separated values with a header.
    Csv {
        /// The file, relative to the job file's folder.
        path: String,
        /// The column to predict.
        target: String,
        /// What the model is judged on.
        validation: Option<Validation>,
        /// Whether features are scaled to mean 0 and variance 1 of the training part.
        normalize: bool,
    },
}

/// The held-out part.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Validation {
    /// Another file of the same columns.
    File(String),
    /// This share of the samples, picked by the seed.
    Fraction(f64),
}

/// What is minimised.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Loss {
    /// Negative log-likelihood of classes.
    CrossEntropy,
    /// Mean squared error.
    Mse,
    /// Mean absolute error.
    Mae,
    /// Binary cross-entropy of a 0/1 target.
    Bce,
}

/// How parameters follow gradients.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub enum Optimizer {
    /// Stochastic gradient descent with momentum; decay is added to the gradient.
    Sgd {
        /// Learning rate.
        lr: f64,
        /// Momentum; 0 for none.
        momentum: f64,
        /// L2 weight decay.
        weight_decay: f64,
    },
    /// Adam (Kingma & Ba 2015); decay is added to the gradient.
    Adam(AdamFields),
    /// Adam with decoupled weight decay (Loshchilov & Hutter 2019).
    AdamW(AdamFields),
    /// Lion (Chen et al. 2023).
    Lion {
        /// Learning rate.
        lr: f64,
        /// Decay rates of the update and of the momentum.
        betas: [f64; 2],
        /// Decoupled weight decay.
        weight_decay: f64,
    },
}

/// What Adam and AdamW have in common.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct AdamFields {
    /// Learning rate.
    pub lr: f64,
    /// Decay rates of the first and second moment.
    pub betas: [f64; 2],
    /// Keeps the division finite.
    pub eps: f64,
    /// Weight decay.
    pub weight_decay: f64,
}

/// How the learning rate moves over the run, as a factor of the optimizer's `lr`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub enum Schedule {
    /// It stays.
    Constant,
    /// Multiplied by `gamma` every `every` steps.
    Step {
        /// Steps between drops.
        every: u64,
        /// The factor of a drop.
        gamma: f64,
    },
    /// Linear warm-up, then half a cosine down to `floor`.
    Cosine {
        /// Steps of warm-up.
        warmup: u64,
        /// The last factor.
        floor: f64,
    },
    /// Linear warm-up, then linearly down to `floor`.
    Linear {
        /// Steps of warm-up.
        warmup: u64,
        /// The last factor.
        floor: f64,
    },
    /// Up from 1/25 to 1 over the first `rise` of the run, then down to 1e-4 by cosines (Smith & Topin 2018).
    OneCycle {
        /// The share of the run that rises.
        rise: f64,
    },
}

/// When training ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Duration {
    /// After so many passes over the data.
    Epochs(u64),
    /// After so many optimizer steps.
    Steps(u64),
}

/// What computes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Backend {
    /// What this build has that fits the bundle.
    #[default]
    Auto,
    /// burn on the CPU.
    Burn,
}

const LOSSES: [(&str, Loss); 4] =
    [("cross-entropy", Loss::CrossEntropy), ("mse", Loss::Mse), ("mae", Loss::Mae), ("bce", Loss::Bce)];

pub(super) fn read(table: Table<'_>) -> Option<TrainSpec> {
    table.require("model", "model = { kind = \"mlp\", hidden = [256] }");
    table.require("data", "data = { kind = \"csv\", path = \"data.csv\", target = \"label\" }");
    let model = table.table("model").and_then(read_model);
    let data = table.table("data").and_then(read_data);
    let loss = table.word("loss", &LOSSES);
    let optimizer = match table.table("optimizer") {
        Some(optimizer) => read_optimizer(optimizer),
        None => Some(Optimizer::Adam(AdamFields::DEFAULT)),
    };
    let schedule = table.table("schedule").map_or(Some(Schedule::Constant), read_schedule);
    let duration = read_duration(&table);
    let count = |key, default: i64| table.integer(key, 1..=i64::from(u32::MAX)).unwrap_or(default);
    let spec = TrainSpec {
        batch_size: count("batch_size", 32) as u32,
        accumulate: count("accumulate", 1) as u32,
        log_every: count("log_every", 10) as u64,
        eval_every: table.integer("eval_every", 1..=i64::MAX).map(|steps| steps as u64),
        clip: table.number("clip", "above 0", |clip| clip > 0.0),
        seed: table.integer("seed", 0..=i64::MAX).unwrap_or(0) as u64,
        logical_shards: table.word("deterministic", &[("logical-shards", true)]).unwrap_or(false),
        threads: table.integer("threads", 1..=1024).map(|threads| threads as u32),
        backend: read_backend(&table),
        model: model.clone().unwrap_or(ModelSpec::Linear),
        data: data.clone()?,
        loss,
        optimizer: optimizer.unwrap_or(Optimizer::Adam(AdamFields::DEFAULT)),
        schedule: schedule.unwrap_or(Schedule::Constant),
        duration,
    };
    table.word("precision", &[("f32", ())]);
    if spec.batch_size < spec.accumulate {
        let message =
            format!("`train.accumulate` is {} rounds for a batch of {}", spec.accumulate, spec.batch_size);
        table.problem(table.span_of("accumulate"), message);
    }
    table.finish();
    model.map(|_| spec)
}

/// What a `[train]` table asks of the gang around it.
pub(super) fn check_gang(root: &Table<'_>, train: &TrainSpec, workers: Workers) {
    if train.logical_shards && workers.min == workers.max && !LOGICAL_SHARDS.is_multiple_of(workers.min) {
        let message = format!(
            "`train.deterministic` cuts each batch into {LOGICAL_SHARDS} shards, which {} workers cannot share evenly",
            workers.min
        );
        root.problem_with_help(root.span_of("gang"), message, "use 1, 2, 4 or 8 workers");
    }
}

fn read_backend(table: &Table<'_>) -> Backend {
    if let Some(value) = table.value("backend")
        && matches!(value.get_ref(), DeValue::String(name) if name == "tch")
    {
        table.problem(
            value.span(),
            "`train.backend` is \"tch\", which this build does not have; use \"auto\" or \"burn\"",
        );
        return Backend::Auto;
    }
    table.word("backend", &[("auto", Backend::Auto), ("burn", Backend::Burn)]).unwrap_or_default()
}

fn read_duration(table: &Table<'_>) -> Duration {
    let epochs = table.integer("epochs", 1..=i64::from(u32::MAX));
    let steps = table.integer("steps", 1..=i64::MAX);
    match (epochs, steps) {
        (Some(_), Some(_)) => {
            table.problem(table.span_of("steps"), "`train` has both `epochs` and `steps`; keep one");
            Duration::Epochs(1)
        }
        (Some(epochs), None) => Duration::Epochs(epochs as u64),
        (None, Some(steps)) => Duration::Steps(steps as u64),
        (None, None) => {
            if !table.has("epochs") && !table.has("steps") {
                table.problem_with_help(
                    table.span(),
                    "`train` does not say how long",
                    "add `epochs = 10` or `steps = 1000`",
                );
            }
            Duration::Epochs(1)
        }
    }
}

/// The `kind` of a table, or `None` with a problem.
fn kind<T: Copy>(table: &Table<'_>, kinds: &[(&'static str, T)]) -> Option<T> {
    table.require("kind", &format!("kind = \"{}\"", kinds[0].0));
    table.word("kind", kinds)
}

fn read_model(table: Table<'_>) -> Option<ModelSpec> {
    #[derive(Clone, Copy)]
    enum Kind {
        Linear,
        Mlp,
    }
    let model = match kind(&table, &[("mlp", Kind::Mlp), ("linear", Kind::Linear)])? {
        Kind::Linear => ModelSpec::Linear,
        Kind::Mlp => {
            const WORDS: [(&str, Activation); 3] =
                [("relu", Activation::Relu), ("gelu", Activation::Gelu), ("tanh", Activation::Tanh)];
            let hidden = read_hidden(&table);
            let activation = table.word("activation", &WORDS).unwrap_or(Activation::Relu);
            ModelSpec::Mlp { hidden, activation }
        }
    };
    table.finish();
    Some(model)
}

/// Widths of hidden layers: a list, or one number for one layer.
fn read_hidden(table: &Table<'_>) -> Vec<u32> {
    const DEFAULT_WIDTH: u32 = 128;
    let widths = 1..=65_536;
    let width = |width: i64| width as u32;
    match table.value("hidden").map(|value| value.get_ref()) {
        None => vec![DEFAULT_WIDTH],
        Some(DeValue::Integer(_)) => table.integer("hidden", widths).map(width).into_iter().collect(),
        Some(_) => table.integers("hidden", widths).unwrap_or_default().into_iter().map(width).collect(),
    }
}

fn read_data(table: Table<'_>) -> Option<DataSpec> {
    kind(&table, &[("csv", ())])?;
    table.require("path", "path = \"data.csv\"");
    table.require("target", "target = \"label\"");
    let (path, target) = (table.text("path"), table.text("target"));
    let validation = read_validation(&table);
    let normalize = table.boolean("normalize").unwrap_or(true);
    table.finish();
    Some(DataSpec::Csv { path: path?, target: target?, validation, normalize })
}

fn read_validation(table: &Table<'_>) -> Option<Validation> {
    let value = table.value("validation")?;
    match value.get_ref() {
        DeValue::String(path) => Some(Validation::File(path.to_string())),
        other if as_number(other) == Some(0.0) => None,
        _ => table
            .number("validation", "a file or a fraction below 1", |f| (0.0..1.0).contains(&f))
            .map(Validation::Fraction),
    }
}

impl AdamFields {
    const DEFAULT: AdamFields = AdamFields { lr: 1e-3, betas: [0.9, 0.999], eps: 1e-8, weight_decay: 0.0 };
}

fn read_optimizer(table: Table<'_>) -> Option<Optimizer> {
    #[derive(Clone, Copy)]
    enum Kind {
        Sgd,
        Adam,
        AdamW,
        Lion,
    }
    let kinds = [("sgd", Kind::Sgd), ("adam", Kind::Adam), ("adamw", Kind::AdamW), ("lion", Kind::Lion)];
    let kind = kind(&table, &kinds)?;
    let lr = |default| table.number("lr", "above 0", |lr| lr > 0.0).unwrap_or(default);
    let decay = |default| table.number("weight_decay", "0 or more", |decay| decay >= 0.0).unwrap_or(default);
    let adam = |default_decay| AdamFields {
        lr: lr(AdamFields::DEFAULT.lr),
        betas: read_betas(&table, AdamFields::DEFAULT.betas),
        eps: table.number("eps", "above 0", |eps| eps > 0.0).unwrap_or(AdamFields::DEFAULT.eps),
        weight_decay: decay(default_decay),
    };
    let optimizer = match kind {
        Kind::Sgd => Optimizer::Sgd {
            lr: lr(0.1),
            momentum: table
                .number("momentum", "0 or more and below 1", |m| (0.0..1.0).contains(&m))
                .unwrap_or(0.0),
            weight_decay: decay(0.0),
        },
        Kind::Adam => Optimizer::Adam(adam(0.0)),
        Kind::AdamW => Optimizer::AdamW(adam(0.01)),
        Kind::Lion => {
            Optimizer::Lion { lr: lr(1e-4), betas: read_betas(&table, [0.9, 0.99]), weight_decay: decay(0.0) }
        }
    };
    table.finish();
    Some(optimizer)
}

fn read_betas(table: &Table<'_>, default: [f64; 2]) -> [f64; 2] {
    let Some(value) = table.value("betas") else { return default };
    if let DeValue::Array(items) = value.get_ref() {
        let betas: Vec<f64> = items.iter().filter_map(|item| as_number(item.get_ref())).collect();
        if let [first, second] = betas[..]
            && items.len() == 2
            && [first, second].iter().all(|beta| (0.0..1.0).contains(beta))
        {
            return [first, second];
        }
    }
    table
        .problem(value.span(), format!("`{}` must be two numbers from 0 to below 1", table.path_of("betas")));
    default
}

fn read_schedule(table: Table<'_>) -> Option<Schedule> {
    #[derive(Clone, Copy)]
    enum Kind {
        Constant,
        Step,
        Cosine,
        Linear,
        OneCycle,
    }
    let kinds = [
        ("constant", Kind::Constant),
        ("step", Kind::Step),
        ("cosine", Kind::Cosine),
        ("linear", Kind::Linear),
        ("one-cycle", Kind::OneCycle),
    ];
    let kind = kind(&table, &kinds)?;
    let warmup = || table.integer("warmup", 0..=i64::MAX).unwrap_or(0) as u64;
    let floor = || table.number("floor", "from 0 to 1", |floor| (0.0..=1.0).contains(&floor)).unwrap_or(0.0);
    let schedule = match kind {
        Kind::Constant => Schedule::Constant,
        Kind::Step => {
            table.require("every", "every = 1000");
            Schedule::Step {
                every: table.integer("every", 1..=i64::MAX).unwrap_or(1) as u64,
                gamma: table.number("gamma", "above 0", |gamma| gamma > 0.0).unwrap_or(0.1),
            }
        }
        Kind::Cosine => Schedule::Cosine { warmup: warmup(), floor: floor() },
        Kind::Linear => Schedule::Linear { warmup: warmup(), floor: floor() },
        Kind::OneCycle => Schedule::OneCycle {
            rise: table.number("rise", "between 0 and 1", |rise| rise > 0.0 && rise < 1.0).unwrap_or(0.3),
        },
    };
    table.finish();
    Some(schedule)
}

#[cfg(test)]
mod tests {
    use crate::JobSpec;
    use crate::spec::Work;

    fn parse(gang: &str, train: &str) -> Result<super::TrainSpec, String> {
        let data = r#"data = { kind = "csv", path = "a.csv", target = "y" }"#;
        let text = format!(
            "version = 1\n[gang]\n{gang}\n[train]\nmodel = {{ kind = \"linear\" }}\n{data}\n{train}\n"
        );
        match JobSpec::parse(&text, "job").map_err(|problems| problems.render("job.toml", &text))?.work {
            Work::Train(train) => Ok(*train),
            Work::Program(_) => unreachable!("the file has [train]"),
        }
    }

    #[test]
    fn logical_shards_need_a_gang_that_divides_them() {
        let train = "epochs = 1\ndeterministic = \"logical-shards\"";
        for workers in [1, 2, 4, 8] {
            assert!(parse(&format!("workers = {workers}"), train).unwrap().logical_shards);
        }
        let error = parse("workers = 3", train).unwrap_err();
        assert!(error.contains("8 shards, which 3 workers cannot share evenly"), "{error}");
        assert!(parse("workers = 3", "epochs = 1").is_ok());
    }

    #[test]
    fn a_worker_specification_survives_its_json() {
        let train = parse("workers = 2", "steps = 7\nclip = 0.3\noptimizer = { kind = \"lion\" }").unwrap();
        let spec = super::WorkerSpec {
            name: "n".to_owned(),
            train,
            checkpoint: Default::default(),
            base_dir: "/x y".into(),
        };
        let json = serde_json::to_string(&spec).unwrap();
        assert_eq!(serde_json::from_str::<super::WorkerSpec>(&json).unwrap(), spec);
    }
}
