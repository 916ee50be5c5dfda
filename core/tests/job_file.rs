//! Job files as people write them: what is read, and what a wrong one is answered with.
#![allow(clippy::unwrap_used)]

use phalanx_core::spec::{DataSpec, HeldOut, JobSpec, LabelRule, ModelSpec, Optimizer, Placement, Work};
use phalanx_core::{Cpus, GpuRequest};
use std::time::Duration;

fn rendered(text: &str) -> String {
    JobSpec::parse(text, "job").unwrap_err().render("job.toml", text)
}

#[test]
fn everything_the_contract_names_is_read() {
    let text = r#"
version = 1
name = "digits"
queue = "default"
priority = -3
time_limit = "2h"
max_failures = 3
grace = "5s"
env = { OMP_NUM_THREADS = "1" }
secrets = ["HF_TOKEN"]

[gang]
workers = { min = 1, max = 4 }
cpus = 0.5
gpus = 0.25
memory = "512MiB"
resources = { license = 1 }
labels = { accelerator = "H100", zone = { in = ["x", "y"] }, spot = { exists = false }, rack = { not_in = ["r9"] } }
placement = "strict-pack"
topology = "rack"

[program]
command = ["python", "train.py", "--lr", "0.1"]
workdir = "src"

[checkpoint]
every_steps = 100
keep = 2
metric = "val/loss"
mode = "min"
"#;
    let spec = JobSpec::parse(text, "job").unwrap();
    assert_eq!((spec.name.as_str(), spec.priority, spec.max_failures), ("digits", -3, 3));
    assert_eq!((spec.time_limit, spec.grace), (Some(Duration::from_secs(7200)), Duration::from_secs(5)));
    let gang = &spec.gang;
    assert_eq!((gang.workers.min, gang.workers.max), (1, 4));
    assert_eq!((gang.each.cpus, gang.each.gpus), (Cpus::from_milli(500), GpuRequest::Share(250)));
    assert_eq!((gang.each.memory_bytes, gang.each.custom["license"]), (512 << 20, 1000));
    assert_eq!(gang.labels["zone"], LabelRule::In(["x", "y"].map(str::to_owned).into()));
    assert_eq!(gang.labels["spot"], LabelRule::Exists(false));
    assert_eq!(gang.placement, Placement::StrictPack);
    let Work::Program(program) = &spec.work else { panic!("no program") };
    assert_eq!((program.command.len(), program.workdir.as_deref()), (4, Some("src")));
    assert_eq!(spec.checkpoint.keep, 2);
}

#[test]
fn the_trainer_table_is_read_with_its_defaults() {
    let text = r#"
version = 1
[train]
model = { kind = "mlp", hidden = [256] }
data = { kind = "csv", path = "digits.csv", target = "label", validation = 0.2 }
optimizer = { kind = "adamw", lr = 0.002 }
epochs = 10
"#;
    let spec = JobSpec::parse(text, "job").unwrap();
    let Work::Train(train) = &spec.work else { panic!("no training") };
    assert!(matches!(&train.model, ModelSpec::Mlp { hidden, .. } if hidden == &[256]));
    let DataSpec::Csv(data) = &train.data else { panic!("no table") };
    assert_eq!((&data.validation, data.normalize), (&Some(HeldOut::Fraction(0.2)), true));
    assert!(
        matches!(train.optimizer, Optimizer::AdamW(fields) if fields.lr == 0.002 && fields.weight_decay == 0.01)
    );
}

#[test]
fn every_problem_is_told_at_once_with_line_and_caret() {
    let text = "version = 1\npriorty = 3\n\n[gang]\nworkers = 0\ncpus = -1\ngpus = 1.5\nplacement = \"packed\"\n\n[program]\ncommand = \"train.py\"\n";
    let expected = "\
error: unknown key `priorty`
 --> job.toml:2:1
  |
2 | priorty = 3
  | ^^^^^^^ did you mean `priority`?

error: `gang.workers` is 0; it must be 1 to 65536
 --> job.toml:5:11
  |
5 | workers = 0
  |           ^

error: `gang.cpus`: `-1` is not a number with at most three decimals, 0 or more
 --> job.toml:6:8
  |
6 | cpus = -1
  |        ^^

error: `gang.gpus` must be a whole number, or below 1 to share a GPU
 --> job.toml:7:8
  |
7 | gpus = 1.5
  |        ^^^

error: `gang.placement` cannot be \"packed\"
 --> job.toml:8:13
  |
8 | placement = \"packed\"
  |             ^^^^^^^^ did you mean `pack`?

error: `program.command` is the text \"train.py\"; expected a list of texts
  --> job.toml:11:11
   |
11 | command = \"train.py\"
   |           ^^^^^^^^^^
";
    assert_eq!(rendered(text), expected);
}

#[test]
fn a_file_that_says_nothing_to_run_is_told_what_to_add() {
    let told = rendered("name = \"x\"\n");
    assert!(told.contains("`version` is missing") && told.contains("version = 1"), "{told}");
    assert!(told.contains("nothing to run") && told.contains("[program]"), "{told}");
    assert!(rendered("version = 2\n[program]\ncommand = [\"true\"]\n").contains("reads version 1"));
    let both = "version = 1\n[program]\ncommand = [\"true\"]\n[train]\n";
    assert!(rendered(both).contains("not both"));
}

#[test]
fn syntax_errors_have_a_place() {
    let told = rendered("version = 1\nname = \n[gang\n");
    assert!(told.contains("job.toml:2:") && told.contains("job.toml:3:"), "{told}");
    assert!(rendered("version = 1\nversion = 1\n").contains("job.toml:2:1"));
}

#[test]
fn hostile_files_are_errors_and_no_more() {
    let deep = format!("version = 1\nx = {}{}\n", "[".repeat(100_000), "]".repeat(100_000));
    assert!(JobSpec::parse(&deep, "job").is_err());
    let tables = format!("version = 1\n{}\n", "a = {".repeat(50_000));
    assert!(JobSpec::parse(&tables, "job").is_err());
    let dotted = format!("version = 1\n{}a = 1\n", "a.".repeat(200_000));
    assert!(JobSpec::parse(&dotted, "job").is_err());
    let huge = format!("version = 1\nname = \"{}\"\n", "x".repeat(2 << 20));
    assert!(rendered(&huge).contains("the limit is 1048576"));
    for value in
        ["99999999999999999999999", "1e400", "nan", "-0.0", "0x10", "\"NaN\"", "[]", "{}", "1979-05-27"]
    {
        let text = format!(
            "version = 1\n[gang]\ncpus = {value}\nworkers = {value}\n[program]\ncommand = [\"true\"]\n"
        );
        assert!(JobSpec::parse(&text, "job").is_err(), "{value}");
    }
}

#[test]
fn names_and_environment_are_bounded() {
    let long = "n".repeat(257);
    let text = format!("version = 1\nname = \"{long}\"\n[program]\ncommand = [\"true\"]\n");
    assert!(rendered(&text).contains("257 bytes"));
    let text =
        "version = 1\nenv = { PHALANX_JOB = \"1\", \"a=b\" = \"\" }\n[program]\ncommand = [\"true\"]\n";
    let told = rendered(text);
    assert!(told.contains("`PHALANX_JOB`") && told.contains("`a=b`"), "{told}");
}

#[test]
fn contradictions_are_found() {
    let gang =
        |gang: &str| rendered(&format!("version = 1\n[gang]\n{gang}\n[program]\ncommand = [\"true\"]\n"));
    assert!(gang("workers = { min = 4, max = 2 }").contains("min 4 above max 2"));
    assert!(gang("workers = 2\nbundles = [{}]").contains("1 bundles for 2 workers"));
    assert!(gang("labels = { zone = { in = [] } }").contains("matches no node"));
    assert!(gang("labels = { zone = { in = [\"a\"], exists = true } }").contains("exactly one"));
    assert!(gang("resources = { gpus = 1 }").contains("no custom resource"));
}

#[test]
#[cfg(not(feature = "tch"))]
fn a_backend_that_the_build_is_without_says_how_to_get_it() {
    let text = "version = 1\n[train]\nmodel = { kind = \"linear\" }\ndata = { kind = \"csv\", path = \"a\", target = \"b\" }\n\
                epochs = 1\nbackend = \"tch\"\n";
    let error = rendered(text);
    for part in [
        "`train.backend` is \"tch\", which this build is without",
        "pip install torch==2.13.0",
        "LIBTORCH_USE_PYTORCH=1 cargo build --release --features tch",
        "job.toml:6:",
    ] {
        assert!(error.contains(part), "{error}");
    }
}
