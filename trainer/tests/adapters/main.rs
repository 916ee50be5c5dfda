//! One net through every framework from the same first parameters: the same losses.
#![allow(clippy::unwrap_used)]

mod on_burn;
mod on_candle;
#[cfg(feature = "tch")]
mod on_tch;

use std::net::TcpListener;
use std::process::{Command, Stdio};

use phalanx_trainer::{
    Activation, Dataset, Environment, Error, Mlp, Model, Outcome, Sample, Targets, WorkerSpec, run_on,
};

const WIDTHS: [usize; 3] = [6, 16, 3];
/// What losses may differ by, relative: sums of f32 in other orders.
const TOLERANCE: f64 = 1e-4;

type Build = fn(&Dataset, u64) -> Result<Box<dyn Model>, Error>;

const FRAMEWORKS: &[(&str, Build)] = &[
    ("burn", on_burn::net),
    ("candle", on_candle::net),
    #[cfg(feature = "tch")]
    ("tch", on_tch::net),
];

fn data() -> Dataset {
    let values = (0..120 * 6).map(|at| ((at * at) as f32 * 0.37).sin() + (at / 6 % 3) as f32 * 0.4).collect();
    let targets = Targets::Classes((0..120).map(|row| row % 3).collect());
    let mut data = Dataset::of_values(Sample::Features(6), values, targets).unwrap();
    data.hold_out(0.2, 1).unwrap();
    data
}

fn train(steps: u64, more: &str, build: Build) -> Outcome {
    let text = format!(
        "[train]\nsteps = {steps}\nbatch_size = 16\nclip = 1.0\noptimizer = {{ kind = \"adamw\", lr = 0.01 }}\nthreads = 1\n{more}"
    );
    let spec = WorkerSpec::parse_custom(&text, "").unwrap();
    run_on(&spec, &Environment { world: 1, ..Environment::default() }, data(), build).unwrap()
}

fn layers(data: &Dataset, seed: u64) -> Mlp {
    Mlp::new(&WIDTHS, Activation::Tanh, 0.0, data.loss, seed).unwrap()
}

fn built_in(data: &Dataset, seed: u64) -> Result<Box<dyn Model>, Error> {
    Ok(Box::new(layers(data, seed)))
}

#[track_caller]
fn assert_alike(name: &str, found: &Outcome, expected: &Outcome) {
    let losses = |outcome: &Outcome| [outcome.loss.unwrap(), outcome.judgement.as_ref().unwrap().loss];
    for (found, expected) in losses(found).into_iter().zip(losses(expected)) {
        assert!((found - expected).abs() < TOLERANCE * expected, "{name}: {found} {expected}");
    }
}

#[test]
fn every_framework_trains_the_same() {
    for steps in [1, 7, 40] {
        for more in ["", "accumulate = 3\n", "deterministic = \"logical-shards\"\n"] {
            let expected = train(steps, more, built_in);
            for (name, build) in FRAMEWORKS {
                let found = train(steps, more, *build);
                assert_alike(&format!("{name} after {steps} {more}"), &found, &expected);
                assert_eq!(found, train(steps, more, *build), "{name}: a rerun has the same bits");
            }
        }
    }
}

/// The examples, which are their source and nothing else: two ranks each that learn to read digits.
#[test]
fn the_examples_are_ranks_of_a_gang() {
    let folder = std::env::current_exe().unwrap().ancestors().nth(2).unwrap().join("examples");
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/custom_model/train.toml");
    for (framework, _) in FRAMEWORKS {
        let name =
            if *framework == "burn" { "custom_model".into() } else { format!("custom_model_{framework}") };
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let ranks = [0, 1].map(|rank| {
            let mut command = Command::new(folder.join(&name));
            command.arg(file).stdout(Stdio::piped()).env("OMP_NUM_THREADS", "1");
            command.env("RANK", rank.to_string()).env("WORLD_SIZE", "2");
            command.env("MASTER_ADDR", "127.0.0.1").env("MASTER_PORT", port.to_string());
            command.spawn().unwrap_or_else(|error| panic!("{name}: {error}; cargo build --examples makes it"))
        });
        let [first, second] = ranks.map(|rank| rank.wait_with_output().unwrap());
        assert!(first.status.success() && second.status.success(), "{name}");
        let said = String::from_utf8(first.stdout).unwrap();
        let accuracy = said.lines().last().unwrap().strip_prefix("validation accuracy: ").unwrap();
        assert!(accuracy.parse::<f64>().unwrap() > 0.93, "{name}: {said}");
    }
}

#[test]
fn outputs_that_do_not_fit_the_targets_are_refused() {
    for (name, build) in FRAMEWORKS {
        let mut data = data();
        data.classes.push("one more".to_owned());
        let mut model = build(&data, 1).unwrap();
        let mut batch = phalanx_trainer::Batch::default();
        data.fill(&[0, 1], None, &mut batch).unwrap();
        let mut gradient = vec![0.0; model.parameters().len()];
        let error = model.forward_backward(&batch, 1.0, &mut gradient, phalanx_trainer::Write::Set);
        let error = error.unwrap_err().to_string();
        assert!(error.contains("6 outputs for 2 targets, which need 4 each"), "{name}: {error}");
    }
}
