//! `phalanx bench`: what the machine gives.

use std::process::Command;

use anyhow::{Context, Result, bail};
use clap::{Args, Subcommand, ValueEnum};
use phalanx_collective::bench::{self, DEFAULT_SIZES, MAX_BYTES, Plan, Report};
use phalanx_collective::{MAX_WORLD, TransportChoice};

/// Arguments of `phalanx bench`.
#[derive(Debug, Args)]
pub(crate) struct BenchArgs {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Latency and bandwidth of an allreduce between processes of this host.
    ///
    /// Buffers are rewritten before every timed call, results are verified, figures are as nccl-tests states them: algbw
    /// is bytes over time, busbw is algbw x 2(n-1)/n, in decimal GB/s.
    #[command(
        after_help = "Examples:\n  phalanx bench allreduce\n  phalanx bench allreduce --world 4 --transport tcp --sizes 64KiB,1MiB --json"
    )]
    Allreduce {
        /// Number of ranks.
        #[arg(long, default_value_t = 2, value_parser = ranks, value_name = "N")]
        world: usize,
        /// What the data moves over.
        #[arg(long, value_enum, default_value_t = Over::Shm)]
        transport: Over,
        /// Sizes of the buffer, separated by commas: bytes, or with KiB, MiB, GiB, kB, MB, GB [default: 1KiB,64KiB,1MiB,25MiB]
        #[arg(long, value_delimiter = ',', value_parser = size, value_name = "SIZES")]
        sizes: Vec<usize>,
    },
    /// A rank of `allreduce`.
    #[command(hide = true)]
    Worker { task: String },
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Over {
    /// Shared memory
    Shm,
    /// TCP over the loopback interface
    Tcp,
    /// NCCL between GPUs of this host, one for each rank
    Nccl,
}

/// Runs `phalanx bench`.
///
/// # Errors
/// Whatever keeps it from measuring.
pub(crate) fn run(args: &BenchArgs, json: bool) -> Result<()> {
    match &args.what {
        What::Worker { task } => Ok(bench::work(task)?),
        What::Allreduce { world, transport, sizes } => {
            let sizes = if sizes.is_empty() { DEFAULT_SIZES.to_vec() } else { sizes.clone() };
            let transport = match *transport {
                Over::Shm => TransportChoice::Shm,
                Over::Tcp => TransportChoice::Tcp,
                Over::Nccl => TransportChoice::Nccl,
            };
            let exe = std::env::current_exe().context("finding this executable, which the ranks run")?;
            let command = || {
                let mut command = Command::new(&exe);
                command.args(["bench", "worker"]);
                command
            };
            let report =
                bench::run(&Plan { world: *world, transport, sizes, unsynchronised: false }, &command)?;
            if json {
                println!("{}", serde_json::to_string(&report)?);
            } else {
                print_table(&report);
            }
            Ok(())
        }
    }
}

fn print_table(report: &Report) {
    let transport = format!("{:?}", report.transport).to_lowercase();
    println!("allreduce of {} over {transport}, {} ranks", report.dtype, report.world);
    println!("{:>12} {:>12} {:>12} {:>12}", "bytes", "us", "algbw GB/s", "busbw GB/s");
    for m in &report.results {
        println!("{:>12} {:>12.1} {:>12.2} {:>12.2}", m.bytes, m.us, m.algbw_gbps, m.busbw_gbps);
    }
}

/// A number of ranks between which something moves.
fn ranks(text: &str) -> Result<usize> {
    match text.parse() {
        Ok(n) if (2..=MAX_WORLD).contains(&n) => Ok(n),
        _ => bail!("`{text}` ranks have nothing to exchange or are too many; ask for 2 to {MAX_WORLD}"),
    }
}

/// A size with an optional unit.
fn size(text: &str) -> Result<usize> {
    let units: [(&str, usize); 7] = [
        ("KiB", 1 << 10),
        ("MiB", 1 << 20),
        ("GiB", 1 << 30),
        ("kB", 1000),
        ("MB", 1_000_000),
        ("GB", 1_000_000_000),
        ("B", 1),
    ];
    let text = text.trim();
    let (number, unit) = units
        .into_iter()
        .find_map(|(name, unit)| text.strip_suffix(name).map(|number| (number.trim(), unit)))
        .unwrap_or((text, 1));
    match number.parse::<usize>().ok().and_then(|n| n.checked_mul(unit)) {
        Some(bytes) if bytes > 0 && bytes % 4 == 0 && bytes <= MAX_BYTES => Ok(bytes),
        Some(bytes) => bail!("{bytes} bytes are no whole number of f32 up to 4 GiB; ask for a multiple of 4"),
        None => bail!("`{text}` is no size; write a whole number with KiB, MiB, GiB, kB, MB or GB"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read() {
        assert_eq!(size("64KiB").unwrap(), 65_536);
        assert_eq!(size("1 MB").unwrap(), 1_000_000);
        assert_eq!(size("12").unwrap(), 12);
        for wrong in ["", "KiB", "1.5MiB", "-1", "1TiB", "99999999999GiB", "0", "6", "5GiB"] {
            assert!(size(wrong).is_err(), "{wrong}");
        }
        assert!(
            ranks("2").is_ok() && ["0", "1", "-2", "two", "5000"].iter().all(|wrong| ranks(wrong).is_err())
        );
    }
}
