//! The shim of NCCL and of the CUDA driver for tests: how to build it, and how to run a test where the loader finds it.

use std::path::{Path, PathBuf};
use std::process::Command;

/// Builds it in `folder`, where the loader then finds it; none, with a word about it, where no C compiler is installed.
pub(crate) fn build(folder: &Path, flags: &[&str]) -> Option<PathBuf> {
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/../collective/tests/shim/nccl_shim.c");
    let library = folder.join("libnccl.so.2");
    let mut cc = Command::new("cc");
    cc.args(["-shared", "-fPIC", "-O1", "-Wall", "-Werror", "-Wno-unused-function", "-pthread"]).args(flags);
    match cc.arg("-o").arg(&library).arg(source).status() {
        Ok(status) => assert!(status.success(), "cc failed on {source}"),
        Err(error) => {
            println!("skipped: cc cannot be run ({error})");
            return None;
        }
    }
    // One library under both names, so that streams and communicators know each other.
    std::os::unix::fs::symlink("libnccl.so.2", folder.join("libcuda.so.1")).unwrap();
    Some(folder.to_owned())
}

/// The test `name` of this very binary in a process of its own, which finds libraries in `folder` first.
pub(crate) fn again(name: &str, folder: &Path) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", name, "--nocapture", "--test-threads", "1"]);
    let others = std::env::var_os("LD_LIBRARY_PATH").unwrap_or_default();
    let paths = std::iter::once(folder.to_owned()).chain(std::env::split_paths(&others));
    command.env("LD_LIBRARY_PATH", std::env::join_paths(paths).unwrap());
    command
}
