//! The `[train]` table: what the built-in trainer trains, on what, and how.

mod data;
mod model;
mod optimizer;

pub use data::{ArrayData, DataSpec, HeldOut, TableData, TextColumn, TextData, Tokenizer};
pub use model::{Activation, CnnSpec, ModelSpec, Norm, TransformerSpec};
pub use optimizer::{AdamFields, Optimizer, Schedule};

use super::gang::Workers;
use super::job::{CheckpointPolicy, parse_document, read_checkpoint};
use super::reader::{Sink, Table};
use crate::diagnostic::Problems;
use crate::limits::SPEC_FILE_BYTES;
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
    /// Tensors with one of these texts in their names have no weight decay.
    #[serde(default)]
    pub no_decay: Vec<String>,
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
    /// Decay of the moving average of the parameters, which is then what is judged and exported.
    #[serde(default)]
    pub ema: Option<f64>,
    /// Seeds initial parameters and the order of samples.
    pub seed: u64,
    /// Rank 0 reports the loss every so many steps.
    pub log_every: u64,
    /// Evaluates every so many steps; `None` at the end of each epoch.
    pub eval_every: Option<u64>,
    /// Gradients are summed in fixed logical shards, so that losses do not depend on the number of workers.
    pub logical_shards: bool,
    /// Each worker keeps the optimizer's state of its own slice of the parameters only.
    #[serde(default)]
    pub shard_optimizer: bool,
    /// Whether gradients are reduced while the way back still computes; `None` where it pays.
    #[serde(default)]
    pub overlap: Option<bool>,
    /// Threads per worker; `None` takes the bundle's CPUs.
    pub threads: Option<u32>,
    /// What computes.
    pub backend: Backend,
    /// What it computes in.
    #[serde(default)]
    pub precision: Precision,
    /// The safetensors file that the trained model is written to, relative to the job file's folder.
    #[serde(default)]
    pub export: Option<String>,
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
    /// The CPU, by layers of our own.
    Burn,
    /// libtorch: the CPU, or the bundle's GPU.
    Tch,
}

/// What products, convolutions and attention are computed in. Parameters, norms, losses, the gradient and the optimizer are of
/// f32 in any case (Micikevicius et al. 2018).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Precision {
    /// 32 bits.
    #[default]
    F32,
    /// 16 bits with the range of 32: gradients need no scaling.
    Bf16,
}

const LOSSES: [(&str, Loss); 4] =
    [("cross-entropy", Loss::CrossEntropy), ("mse", Loss::Mse), ("mae", Loss::Mae), ("bce", Loss::Bce)];

impl WorkerSpec {
    /// Reads the `[train]` and `[checkpoint]` tables of a file for a model that the caller brings: `train.model` and
    /// `train.data` may be left out, and everything else in the file belongs to others. Relative paths start at `base_dir`.
    ///
    /// # Errors
    /// Every problem of the two tables.
    pub fn parse_custom(text: &str, base_dir: impl Into<PathBuf>) -> Result<WorkerSpec, Problems> {
        let document = parse_document(text, SPEC_FILE_BYTES)?;
        let sink = Sink::default();
        let root = Table::root(&document, &sink);
        root.require("train", "[train]");
        let train = root.table("train").and_then(|table| read_for(table, true));
        let checkpoint = root.table("checkpoint").map(read_checkpoint).unwrap_or_default();
        let name = root.name().unwrap_or_else(|| "custom".to_owned());
        let spec = train.map(|train| WorkerSpec { name, train, checkpoint, base_dir: base_dir.into() });
        sink.into_problems().into_result(spec)
    }
}

pub(super) fn read(table: Table<'_>) -> Option<TrainSpec> {
    read_for(table, false)
}

/// Reads the table; with `custom` model and data may be left out.
fn read_for(table: Table<'_>, custom: bool) -> Option<TrainSpec> {
    if !custom {
        table.require("model", "model = { kind = \"mlp\", hidden = [256] }");
        table.require("data", "data = { kind = \"csv\", path = \"data.csv\", target = \"label\" }");
    }
    let model = match table.table("model") {
        None if custom && !table.has("model") => Some(ModelSpec::Custom),
        model => model.and_then(model::read),
    };
    let data = match table.table("data") {
        None if custom && !table.has("data") => Some(DataSpec::Custom),
        data => data.and_then(data::read),
    };
    let loss = table.word("loss", &LOSSES);
    let adam = || (Optimizer::Adam(AdamFields::DEFAULT), Vec::new());
    let (optimizer, no_decay) =
        table.table("optimizer").map_or_else(|| Some(adam()), optimizer::read).unwrap_or_else(adam);
    let schedule = table.table("schedule").map_or(Some(Schedule::Constant), optimizer::read_schedule);
    let duration = read_duration(&table);
    let backend = read_backend(&table);
    let count = |key, default: i64| table.integer(key, 1..=i64::from(u32::MAX)).unwrap_or(default);
    let spec = TrainSpec {
        batch_size: count("batch_size", 32) as u32,
        accumulate: count("accumulate", 1) as u32,
        log_every: count("log_every", 10) as u64,
        eval_every: table.integer("eval_every", 1..=i64::MAX).map(|steps| steps as u64),
        clip: table.number("clip", "above 0", |clip| clip > 0.0),
        ema: table.number("ema", "above 0 and below 1, such as 0.999", |decay| decay > 0.0 && decay < 1.0),
        seed: table.integer("seed", 0..=i64::MAX).unwrap_or(0) as u64,
        logical_shards: table.word("deterministic", &[("logical-shards", true)]).unwrap_or(false),
        shard_optimizer: table.boolean("shard_optimizer").unwrap_or(false),
        overlap: table.boolean("overlap"),
        threads: table.integer("threads", 1..=1024).map(|threads| threads as u32),
        backend,
        precision: read_precision(&table, backend, custom),
        export: table.text("export"),
        model: model.clone().unwrap_or(ModelSpec::Linear),
        data: data.clone()?,
        loss,
        optimizer,
        no_decay,
        schedule: schedule.unwrap_or(Schedule::Constant),
        duration,
    };
    if spec.batch_size < spec.accumulate {
        let message =
            format!("`train.accumulate` is {} rounds for a batch of {}", spec.accumulate, spec.batch_size);
        table.problem(table.span_of("accumulate"), message);
    }
    if let Some(model) = &model {
        check_fit(&table, model, &spec);
    }
    table.finish();
    model.map(|_| spec)
}

/// Whether model, data and loss go together, as far as the file tells.
fn check_fit(table: &Table<'_>, model: &ModelSpec, spec: &TrainSpec) {
    let problem = |key: &str, message: String, help: &str| {
        table.problem_with_help(table.span_of(key), message, help);
    };
    let (kind, text) = match &spec.data {
        DataSpec::Text(_) => ("text", true),
        DataSpec::Csv(data) | DataSpec::Parquet(data) | DataSpec::Arrow(data) => {
            ("a column of text", data.text.is_some())
        }
        _ => ("", false),
    };
    match model {
        ModelSpec::Linear | ModelSpec::Mlp { .. } | ModelSpec::Cnn(_) if text => {
            let message = format!("`train.data` is {kind}, which only a transformer reads");
            problem("model", message, "use `model = { kind = \"transformer\" }`");
        }
        ModelSpec::Cnn(_) => {
            if let DataSpec::Csv(data) | DataSpec::Parquet(data) | DataSpec::Arrow(data) = &spec.data
                && data.shape.is_none()
            {
                let message =
                    "a `cnn` needs images, and `train.data` does not say that a row is one".to_owned();
                problem("data", message, "add `shape = [CHANNELS, HEIGHT, WIDTH]` to it");
            }
        }
        _ => {}
    }
    if matches!(spec.data, DataSpec::Text(_)) && !matches!(spec.loss, None | Some(Loss::CrossEntropy)) {
        let message = "the next token of a text is a class, so that the loss is \"cross-entropy\"".to_owned();
        problem("loss", message, "leave `loss` out");
    }
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

/// libtorch computes in bf16; the layers of our own do not, and a model of the caller's does what it does.
fn read_precision(table: &Table<'_>, backend: Backend, custom: bool) -> Precision {
    let refuse = |message: &str, help: &str| {
        table.problem_with_help(table.span_of("precision"), message, help);
        Precision::F32
    };
    if let Some(value) = table.value("precision")
        && matches!(value.get_ref(), DeValue::String(name) if name == "f16")
    {
        return refuse(
            "`train.precision` is \"f16\", in whose range gradients vanish unless the loss is scaled, which the trainer does not do",
            "use \"bf16\", which has the range of f32 in as many bits",
        );
    }
    let words = [("f32", Precision::F32), ("bf16", Precision::Bf16)];
    match (table.word("precision", &words).unwrap_or_default(), backend) {
        (Precision::F32, _) => Precision::F32,
        (Precision::Bf16, _) if custom => refuse(
            "`train.precision` says nothing of a model of one's own, which computes in what its code says",
            "leave it out, and turn to bf16 in the model's `forward_backward`",
        ),
        (Precision::Bf16, Backend::Burn) => refuse(
            "`train.precision` is \"bf16\", and `train.backend` \"burn\" computes in f32 alone",
            "use `backend = \"tch\"`, or \"f32\"",
        ),
        (Precision::Bf16, _) if !cfg!(feature = "tch") => refuse(
            "`train.precision` is \"bf16\", which takes libtorch, and this build is without",
            &format!("use \"f32\", or {WITH_LIBTORCH}"),
        ),
        (Precision::Bf16, _) => Precision::Bf16,
    }
}

/// How to have what a build is without.
const WITH_LIBTORCH: &str = "build with libtorch 2.13: `pip install torch==2.13.0`, then `LIBTORCH_USE_PYTORCH=1 cargo build --release --features tch`";

fn read_backend(table: &Table<'_>) -> Backend {
    let words = [("auto", Backend::Auto), ("burn", Backend::Burn), ("tch", Backend::Tch)];
    let backend = table.word("backend", &words).unwrap_or_default();
    if backend == Backend::Tch && !cfg!(feature = "tch") {
        table.problem_with_help(
            table.span_of("backend"),
            "`train.backend` is \"tch\", which this build is without",
            format!("use \"auto\" or \"burn\", or {WITH_LIBTORCH}"),
        );
    }
    backend
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

#[cfg(test)]
mod tests {
    use super::{DataSpec, ModelSpec, Norm, Tokenizer, WorkerSpec};
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

    fn job(train: &str) -> Result<super::TrainSpec, String> {
        let text = format!("version = 1\n[train]\nepochs = 1\n{train}\n");
        match JobSpec::parse(&text, "job").map_err(|problems| problems.render("job.toml", &text))?.work {
            Work::Train(train) => Ok(*train),
            Work::Program(_) => unreachable!("the file has [train]"),
        }
    }

    const TABLE: &str = "data = { kind = \"csv\", path = \"a.csv\", target = \"y\" }";
    const TEXT: &str = "data = { kind = \"text\", path = \"a.txt\" }";

    #[test]
    fn every_model_has_its_defaults() {
        let model = |model: &str, data: &str| job(&format!("model = {{ {model} }}\n{data}")).unwrap().model;
        let images = "data = { kind = \"images\", path = \"digits\" }";
        let ModelSpec::Cnn(cnn) = model("kind = \"cnn\"", images) else { panic!("no cnn") };
        assert_eq!((cnn.channels, cnn.kernel, cnn.pool, cnn.norm), (vec![16, 32], 3, 2, Norm::Group));
        let ModelSpec::Cnn(cnn) = model("kind = \"cnn\", channels = 4, hidden = []", images) else {
            panic!("no cnn")
        };
        assert_eq!((cnn.channels, cnn.hidden), (vec![4], Vec::new()));
        let ModelSpec::Transformer(transformer) = model("kind = \"transformer\", width = 64", TEXT) else {
            panic!("no transformer")
        };
        assert_eq!((transformer.feed_forward, transformer.heads, transformer.tied), (256, 4, true));
        let DataSpec::Text(text) =
            job(&format!("model = {{ kind = \"transformer\" }}\n{TEXT}")).unwrap().data
        else {
            panic!("no text")
        };
        assert_eq!((text.tokenizer, text.context, text.stride), (Tokenizer::Char, 128, 128));
    }

    #[test]
    fn what_does_not_go_together_is_told_before_anything_starts() {
        let refused = |train: &str, expected: &str| {
            let error = job(train).unwrap_err();
            assert!(error.contains(expected), "{train}\n{error}");
        };
        let linear = "model = { kind = \"linear\" }";
        for (model, data, expected) in [
            (linear, TEXT, "`train.data` is text, which only a transformer reads"),
            ("model = { kind = \"cnn\" }", TABLE, "a `cnn` needs images"),
            ("model = { kind = \"cnn\", kernel = 4 }", TABLE, "`train.model.kernel` is 4; it must be odd"),
            ("model = { kind = \"cnn\", channels = [] }", TABLE, "lists 0 layers; it must be 1 to 64"),
            (
                "model = { kind = \"transformer\", heads = 3 }",
                TEXT,
                "is 3, which does not divide the width 128",
            ),
            ("model = { kind = \"mlp\", dropout = 1.0 }", TABLE, "it must be 0 or more and below 1"),
            (
                linear,
                "data = { kind = \"csv\", path = \"a\", target = \"y\", validation = 0.5, test = 0.5 }",
                "holds out 1 of the samples, which leaves nothing to train on",
            ),
            (
                linear,
                "data = { kind = \"csv\", path = \"a\", target = \"y\", shape = [8, 8] }",
                "has 2 numbers; it is channels, height and width",
            ),
            (
                linear,
                "data = { kind = \"csv\", path = \"a\", target = \"y\", context = 8 }",
                "`train.data.context` says nothing without `data.text`",
            ),
            (
                linear,
                "data = { kind = \"text\", path = \"a\", context = 8, stride = 9 }",
                "is 9, beyond the context of 8",
            ),
            (
                linear,
                "data = { kind = \"text\", path = \"a\", vocabulary = 300 }",
                "without `tokenizer = \"bpe\"`",
            ),
            (linear, "data = { kind = \"npy\", path = \"a.npy\" }", "`train.data.target` is missing"),
            (
                linear,
                "data = { kind = \"npy\", path = \"a\", target = \"b\", validation = \"c\" }",
                "`train.data.validation` names samples and no targets",
            ),
            (
                linear,
                "data = { kind = \"csv\", path = \"a\", target = \"y\", test = { path = \"b\", target = \"c\" } }",
                "`train.data.test` names a file of targets, which this kind of data has inside",
            ),
            (
                linear,
                "data = { kind = \"npy\", path = \"a\", target = \"b\", features = \"c\" }",
                "unknown key `features`",
            ),
            (
                "model = { kind = \"transformer\" }",
                "data = { kind = \"csv\", path = \"a\", target = \"y\", text = \"x\", normalize = true }",
                "`train.data.normalize` says nothing of a column of text",
            ),
        ] {
            refused(&format!("{model}\n{data}"), expected);
        }
        for (more, expected) in [
            ("precision = \"f16\"", "use \"bf16\", which has the range of f32"),
            ("precision = \"bf16\"\nbackend = \"burn\"", "`train.backend` \"burn\" computes in f32 alone"),
            ("precision = \"bf32\"", "did you mean `f32`"),
            ("ema = 1.0", "`train.ema` is 1; it must be above 0 and below 1"),
            (
                "optimizer = { kind = \"sgd\", no_decay = [\"\"] }",
                "an empty text, which is part of every name",
            ),
            ("schedule = { kind = \"one-cycle\", warmup = 3 }", "unknown key `warmup`"),
        ] {
            refused(&format!("{linear}\n{TABLE}\n{more}"), expected);
        }
        refused(
            &format!("model = {{ kind = \"transformer\" }}\n{TEXT}\nloss = \"mse\""),
            "the next token of a text is a class",
        );
    }

    #[test]
    fn bf16_takes_libtorch() {
        let train = format!("model = {{ kind = \"linear\" }}\n{TABLE}\nprecision = \"bf16\"");
        if cfg!(feature = "tch") {
            assert_eq!(job(&train).unwrap().precision, super::Precision::Bf16);
        } else {
            let error = job(&train).unwrap_err();
            assert!(error.contains("and this build is without"), "{error}");
            assert!(error.contains("--features tch"), "{error}");
        }
    }

    #[test]
    fn a_model_of_the_callers_needs_no_model_and_no_data() {
        let text = "[train]\nsteps = 3\n[checkpoint]\nkeep = 4\n[other]\nx = 1\n";
        let spec = WorkerSpec::parse_custom(text, "/base").unwrap();
        assert_eq!((&spec.train.model, &spec.train.data), (&ModelSpec::Custom, &DataSpec::Custom));
        assert_eq!(spec.checkpoint.keep, 4);
        let bf16 = "[train]\nsteps = 3\nprecision = \"bf16\"\n";
        let problems = WorkerSpec::parse_custom(bf16, "").unwrap_err();
        assert!(problems.to_string().contains("which computes in what its code says"), "{problems}");
        let problems = WorkerSpec::parse_custom("[train]\nstep = 3\n", "").unwrap_err();
        assert!(problems.to_string().contains("unknown key `step`"), "{problems}");
        assert!(job("model = { kind = \"linear\" }").unwrap_err().contains("`train.data` is missing"));
    }
}
