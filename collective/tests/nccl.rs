//! NVIDIA's own NCCL, where pip has installed it: it loads, says its version and makes ids without a GPU. What it does with one
//! is for `ci/gpu.sh`.
#![allow(missing_docs, clippy::unwrap_used)]

use std::path::{Path, PathBuf};
use std::process::Command;

use phalanx_collective::nccl::{Library, device_count};
use phalanx_collective::{Communicator, Config, Error, TransportChoice};

/// Set in the child process, whose loader finds the library.
const INSIDE: &str = "NCCL_TEST_INSIDE";

/// The folder of pip's nvidia-nccl-cu12 in `target/ci-venv`.
fn wheel() -> Option<PathBuf> {
    let venv = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/ci-venv/lib");
    let versions = std::fs::read_dir(venv).ok()?.flatten();
    versions
        .map(|version| version.path().join("site-packages/nvidia/nccl/lib"))
        .find(|folder| folder.join("libnccl.so.2").exists())
}

/// Not a test of its own: what the child process does.
#[test]
fn inside() {
    if std::env::var_os(INSIDE).is_none() {
        return;
    }
    let library = Library::load().unwrap();
    let version = library.version().unwrap();
    assert!(version >= (2, 14, 0), "{version:?}");
    let (one, other) = (library.unique_id().unwrap(), library.unique_id().unwrap());
    assert!(one.0 != other.0 && one.0 != [0; 128]);
    println!("say: NCCL {version:?}, split and shrink {:?}", library.can_split_and_shrink());
    let Err(no_gpu) = device_count() else { return };
    let config = Config { transport: TransportChoice::Nccl, ..Config::new(0, 1) };
    let error = Communicator::connect(Config { master_port: 1, ..config }).err();
    assert!(matches!(&no_gpu, Error::NoDevice { what } if what.contains("libcuda")), "{no_gpu}");
    assert!(error.is_some());
}

#[test]
fn the_real_library_loads_and_makes_ids_without_a_gpu() {
    let Some(folder) = wheel() else {
        println!("SKIPPED: no nvidia-nccl-cu12 in target/ci-venv; .ci/run installs it");
        return;
    };
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "inside", "--nocapture"]).env(INSIDE, "1").env("LD_LIBRARY_PATH", folder);
    // A sandbox may have no other interface.
    let output = command.env("NCCL_SOCKET_IFNAME", "lo").output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && said.contains("say: NCCL (2, "), "{output:?}");
    println!("{said}");
}
