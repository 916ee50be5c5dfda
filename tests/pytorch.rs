//! PyTorch's DistributedDataParallel under the torchrun contract, with a script that knows nothing of us.
#![allow(missing_docs, clippy::unwrap_used)]

use std::fs::{self, File};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Debian's own Python, for which `python3-torch` (1.13, with gloo) is built.
const PYTHON: &str = "/usr/bin/python3";
/// Longest time for two ranks to import torch, which takes seconds on a busy machine, and train.
const LIMIT: Duration = Duration::from_secs(180);

#[test]
fn a_plain_ddp_script_trains_on_two_ranks() {
    let import = Command::new(PYTHON).args(["-c", "import torch.distributed"]).stderr(Stdio::null()).status();
    if !import.is_ok_and(|status| status.success()) {
        println!("skipped: {PYTHON} has no torch; install python3-torch");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let (stdout, stderr) = (folder.path().join("stdout"), folder.path().join("stderr"));
    let start = Instant::now();
    let mut run = Command::new(env!("CARGO_BIN_EXE_phalanx"))
        .args(["run", "examples/pytorch/job.toml", "--set"])
        .arg(format!(r#"program.command=["{PYTHON}", "train_ddp.py", "--epochs", "5"]"#))
        .env("PHALANX_DATA", folder.path().join("data"))
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

    // Each rank met the other, and both ended with the same weights.
    let weights: Vec<&str> =
        [0, 1].map(|rank| after(&stdout, &format!("rank {rank} of 2 weights: "))).to_vec();
    assert_eq!(weights[0], weights[1], "{stdout}");
    let accuracy: f64 = after(&stdout, "held-out accuracy: ").parse().unwrap();
    assert!(accuracy > 0.9, "{stdout}");
}

/// The rest of the line that has `label`.
fn after<'a>(text: &'a str, label: &str) -> &'a str {
    let line = text.lines().find_map(|line| line.split_once(label)).map(|(_, rest)| rest.trim());
    line.unwrap_or_else(|| panic!("no line with {label:?} in\n{text}"))
}
