//! Programs of other frameworks that know nothing of us, under the torchrun contract.
#![allow(missing_docs, clippy::unwrap_used)]

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Debian's own Python, for which `python3-torch` (1.13, with gloo) is built.
const PYTHON: &str = "/usr/bin/python3";
/// The virtual environment with JAX and Lightning.
const FRAMEWORKS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/target/frameworks-venv/bin/python");
/// Longest time for two ranks to import a framework, which takes seconds on a busy machine, and train.
const LIMIT: Duration = Duration::from_secs(180);

/// Debian's PyTorch 1.13 has dataclasses that Python 3.11 refuses, in a part that Lightning imports and does not need here.
const WITHOUT_SHARDED_TENSORS: &str = r#"
import sys, types
for name in ("torch.distributed._shard", "torch.distributed._shard.sharded_tensor"):
    sys.modules[name] = types.ModuleType(name)
sys.modules[name].pre_load_state_dict_hook = sys.modules[name].state_dict_hook = lambda *_: None
"#;

#[test]
fn a_plain_ddp_script_trains_on_two_ranks() {
    example("pytorch", PYTHON, "torch.distributed", r#""train_ddp.py", "--epochs", "5""#, "");
}

#[test]
fn a_plain_lightning_script_trains_on_two_ranks() {
    example("lightning", FRAMEWORKS, "lightning, torch", r#""train.py""#, WITHOUT_SHARDED_TENSORS);
}

#[test]
fn a_plain_jax_script_trains_on_two_ranks() {
    example("jax", FRAMEWORKS, "jax", r#""train.py""#, "");
}

/// Runs an example's job with this Python, in which `first` runs before the script.
fn example(name: &str, python: &str, modules: &str, script: &str, first: &str) {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("sitecustomize.py"), first).unwrap();
    let mut import = Command::new(python);
    import.args(["-c", &format!("import {modules}")]).env("PYTHONPATH", folder.path());
    if !import.stderr(Stdio::null()).status().is_ok_and(|status| status.success()) {
        println!("skipped: {python} has no {modules}; .ci/run installs it");
        return;
    }
    let mut run = Command::new(env!("CARGO_BIN_EXE_phalanx"));
    run.args(["run", &format!("examples/{name}/job.toml"), "--set"])
        .arg(format!("program.command=[\"{python}\", {script}]"))
        .env("PYTHONPATH", folder.path());
    let stdout = succeed(&mut run, folder.path());

    // Each rank met the other, and both ended with the same weights.
    let weights: Vec<&str> =
        [0, 1].map(|rank| after(&stdout, &format!("rank {rank} of 2 weights: "))).to_vec();
    assert_eq!(weights[0], weights[1], "{stdout}");
    let accuracy: f64 = after(&stdout, "held-out accuracy: ").parse().unwrap();
    assert!(accuracy > 0.9, "{stdout}");
}

/// What a command prints that ends well in time.
fn succeed(command: &mut Command, folder: &Path) -> String {
    let [stdout, stderr]: [PathBuf; 2] = ["stdout", "stderr"].map(|name| folder.join(name));
    let start = Instant::now();
    let mut run = command
        .env("PHALANX_DATA", folder.join("data"))
        .env_remove("PHALANX_SERVER")
        .current_dir(Path::new(env!("CARGO_MANIFEST_DIR")))
        .stdin(Stdio::null())
        .stdout(File::create(&stdout).unwrap())
        .stderr(File::create(&stderr).unwrap())
        .spawn()
        .unwrap();
    let status = loop {
        if let Some(status) = run.try_wait().unwrap() {
            break status;
        }
        if start.elapsed() > LIMIT {
            run.kill().unwrap();
            panic!("still running after {LIMIT:?}:\n{}", fs::read_to_string(&stderr).unwrap());
        }
        std::thread::sleep(Duration::from_millis(20));
    };
    let (stdout, stderr) = (fs::read_to_string(&stdout).unwrap(), fs::read_to_string(&stderr).unwrap());
    assert!(status.success(), "{status}\n{stdout}\n{stderr}");
    stdout
}

/// The rest of the line that has `label`.
fn after<'a>(text: &'a str, label: &str) -> &'a str {
    let line = text.lines().find_map(|line| line.split_once(label)).map(|(_, rest)| rest.trim());
    line.unwrap_or_else(|| panic!("no line with {label:?} in\n{text}"))
}
