//! `doctor`: what this machine has, and what to do about what is missing.

use crate::args::Global;
use crate::client::data_dir;
use crate::failure::Failure;
use crate::machine::memory_bytes;
use crate::output::Output;
use phalanx_core::quantity::format_bytes;
use phalanx_runtime::agent::{Containment, containment};
use phalanx_runtime::store::{DataLock, Endpoint};
use serde_json::{Value, json};
use std::net::{Ipv4Addr, TcpListener};
use std::num::NonZero;
use std::path::{Path, PathBuf};

/// Shown by `doctor --help`.
pub(crate) const EXAMPLES: &str = "Examples:
  phalanx doctor
  phalanx doctor --json | jq '.[] | select(.ok | not)'";

/// Less free space than this is worth a word.
const LITTLE_DISK_BYTES: u64 = 1 << 30;
/// Less shared memory than this is worth a word: containers often have 64 MiB.
const LITTLE_SHM_BYTES: u64 = 256 << 20;
/// Fewer open files than this are worth a word: browsers, agents and the pipes of ranks each take some.
const FEW_DESCRIPTORS: u64 = 4096;
/// The ports of `up`.
const PORTS: [u16; 2] = [7421, 7422];

/// One thing that was looked at.
struct Finding {
    what: &'static str,
    ok: bool,
    found: String,
    /// What to do; empty where nothing is to be done.
    advice: String,
}

impl Finding {
    fn good(what: &'static str, found: impl Into<String>) -> Self {
        Finding { what, ok: true, found: found.into(), advice: String::new() }
    }

    fn lacking(what: &'static str, found: impl Into<String>, advice: impl Into<String>) -> Self {
        Finding { what, ok: false, found: found.into(), advice: advice.into() }
    }
}

/// Runs it.
pub(crate) fn run(global: &Global, output: &Output) -> Result<(), Failure> {
    let data_dir = data_dir(global)?;
    let mut findings = vec![cpus(), memory(), supervision()];
    findings.extend(gpus());
    findings.extend([
        nccl(),
        libtorch(),
        shared_memory(),
        descriptors(),
        data(&data_dir),
        disk(&data_dir),
        service(&data_dir),
    ]);
    if output.json {
        let documents = findings.iter().map(|finding| {
            json!({ "what": finding.what, "ok": finding.ok, "found": finding.found, "advice": finding.advice })
        });
        return output.document(&Value::Array(documents.collect()));
    }
    for finding in &findings {
        let mark = if finding.ok { "ok" } else { "--" };
        output.line(&format!("{mark}  {:<14} {}", finding.what, finding.found))?;
        if !finding.advice.is_empty() {
            output.line(&format!("    {:<14} → {}", "", finding.advice))?;
        }
    }
    Ok(())
}

fn cpus() -> Finding {
    let usable = std::thread::available_parallelism().map_or(1, NonZero::get);
    Finding::good("cpus", format!("{usable} usable by this process"))
}

fn memory() -> Finding {
    match memory_bytes() {
        Some(bytes) => Finding::good("memory", format_bytes(bytes)),
        None => Finding::lacking("memory", "unknown", "mount /proc, or say it with `--memory`"),
    }
}

fn supervision() -> Finding {
    match containment() {
        Containment::Cgroup(path) => {
            Finding::good("containment", format!("cgroup v2 beneath {}", path.display()))
        }
        Containment::Subreaper => Finding::lacking(
            "containment",
            "a subreaper per attempt; no writable cgroup v2",
            "nothing is lost by it but limits by cgroup: run as root, or in a systemd scope with Delegate=yes",
        ),
    }
}

fn gpus() -> Vec<Finding> {
    let inventory = phalanx_gpu::inventory(None);
    let mut findings = Vec::new();
    let count = inventory.devices.len();
    match (&inventory.driver, count) {
        (Some(driver), 1..) => findings.push(Finding::good("gpus", format!("{count}, driver {driver}"))),
        (driver, _) => {
            let found = driver.as_ref().map_or("none".to_owned(), |driver| format!("none, driver {driver}"));
            let why = inventory.note.clone().unwrap_or_default();
            findings.push(Finding::lacking(
                "gpus",
                found,
                format!("{why}; `--gpus N` declares N for trying things out"),
            ));
        }
    }
    if count > 0 {
        if let Some(note) = &inventory.note {
            findings.push(Finding::lacking("gpus left out", note.clone(), ""));
        }
        for (device, row) in inventory.devices.iter().zip(inventory.links.rows()) {
            let row: Vec<String> = row.iter().map(ToString::to_string).collect();
            let memory = format_bytes(device.memory_bytes);
            let found = format!("{} {} {memory}, links {}", device.index, device.name, row.join(" "));
            findings.push(Finding::good("gpu", found));
        }
        findings.push(match phalanx_gpu::cuda_driver() {
            Ok(version) => Finding::good("cuda driver", version),
            Err(why) => Finding::lacking("cuda driver", "not usable", why),
        });
    }
    findings
}

fn nccl() -> Finding {
    match phalanx_gpu::nccl() {
        Ok(version) => Finding::good("nccl", version),
        Err(why) => Finding::lacking("nccl", "none; only needed for collectives between GPUs", why),
    }
}

/// The one that this process runs with, and whether it can use a GPU.
fn libtorch() -> Finding {
    let Some(file) = phalanx_gpu::libtorch() else {
        return Finding::lacking(
            "libtorch",
            "none; this build is without, which only `train.backend = \"tch\"` needs",
            "build with the feature `tch` and libtorch 2.13; docs/training.md says how",
        );
    };
    let found = |with: &str| format!("{}, {with}", file.display());
    if file.with_file_name("libtorch_cuda.so").exists() {
        Finding::good("libtorch", found("with CUDA"))
    } else if Path::new("/dev/nvidiactl").exists() {
        Finding::lacking(
            "libtorch",
            found("for CPUs only"),
            "run with one that has CUDA on LD_LIBRARY_PATH to train on the GPU; docs/training.md says how",
        )
    } else {
        Finding::good("libtorch", found("for CPUs only"))
    }
}

fn descriptors() -> Finding {
    match nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE) {
        Ok((soft, _)) if soft >= FEW_DESCRIPTORS => Finding::good("open files", format!("{soft} at most")),
        Ok((soft, hard)) => Finding::lacking(
            "open files",
            format!("{soft} at most"),
            format!("a service for many needs more: `ulimit -n {hard}`, or LimitNOFILE in its unit"),
        ),
        Err(error) => Finding::lacking("open files", "unknown", error.to_string()),
    }
}

fn shared_memory() -> Finding {
    match free_bytes(Path::new("/dev/shm")) {
        Some(free) if free >= LITTLE_SHM_BYTES => {
            Finding::good("shared memory", format!("{} free", format_bytes(free)))
        }
        Some(free) => Finding::lacking(
            "shared memory",
            format!("{} free in /dev/shm", format_bytes(free)),
            "ranks of one machine exchange gradients there: in a container use --shm-size=1g",
        ),
        None => Finding::lacking("shared memory", "no /dev/shm", "mount a tmpfs there"),
    }
}

fn data(data_dir: &Path) -> Finding {
    let existing = first_existing(data_dir);
    let writable = nix::unistd::access(&existing, nix::unistd::AccessFlags::W_OK).is_ok();
    match writable {
        true => Finding::good("data folder", data_dir.display().to_string()),
        false => Finding::lacking(
            "data folder",
            format!("{} cannot be written", data_dir.display()),
            "make it yours, or name another with --data",
        ),
    }
}

fn disk(data_dir: &Path) -> Finding {
    match free_bytes(&first_existing(data_dir)) {
        Some(free) if free >= LITTLE_DISK_BYTES => {
            Finding::good("disk", format!("{} free", format_bytes(free)))
        }
        Some(free) => Finding::lacking(
            "disk",
            format!("{} free", format_bytes(free)),
            "logs and checkpoints go there: free some",
        ),
        None => Finding::lacking("disk", "unknown", "the file system does not say"),
    }
}

fn service(data_dir: &Path) -> Finding {
    if let Some(endpoint) = Endpoint::read(data_dir) {
        return Finding::good("service", format!("runs: gRPC {}, {}", endpoint.grpc, endpoint.http));
    }
    if let Some(holder) = DataLock::holder(data_dir) {
        return Finding::good(
            "service",
            format!("the folder is in use by process {} ({})", holder.pid, holder.purpose),
        );
    }
    let taken: Vec<String> = PORTS
        .iter()
        .filter(|&&port| TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_err())
        .map(u16::to_string)
        .collect();
    match taken.is_empty() {
        true => {
            Finding::good("service", format!("none runs here; ports {} and {} are free", PORTS[0], PORTS[1]))
        }
        false => Finding::lacking(
            "service",
            format!("none runs here, and another program has port {}", taken.join(" and ")),
            "start it with `phalanx up --grpc 127.0.0.1:0 --http 127.0.0.1:0`",
        ),
    }
}

fn first_existing(path: &Path) -> PathBuf {
    path.ancestors().find(|path| path.exists()).unwrap_or(Path::new("/")).to_owned()
}

fn free_bytes(path: &Path) -> Option<u64> {
    let stat = nix::sys::statvfs::statvfs(path).ok()?;
    Some(stat.blocks_available() * stat.fragment_size())
}
