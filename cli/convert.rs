//! `phalanx convert`: sweeps of other tools as sweep files.

mod wandb;

use crate::failure::Failure;
use crate::output::Output;
use std::io::Read;
use std::path::{Path, PathBuf};

/// Turn a sweep of another tool into a sweep file
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  phalanx convert sweep.yaml > sweep.toml      a Weights & Biases sweep
  phalanx convert sweep.yaml -o sweep.toml && phalanx check sweep.toml

What has no counterpart is said on stderr, with what was put in its place.")]
pub(crate) struct ConvertArgs {
    /// The sweep configuration of Weights & Biases, in YAML; `-` is stdin
    file: PathBuf,
    /// Write the sweep file here, and not to stdout; an existing file is left alone
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
}

pub(crate) fn run(args: &ConvertArgs, output: &Output) -> Result<(), Failure> {
    let shown = args.file.display();
    let text = read(&args.file).map_err(|error| Failure::usage(format!("cannot read {shown}: {error}")))?;
    let converted = wandb::convert(&text).map_err(|problem| Failure::usage(format!("{shown}: {problem}")))?;
    for note in &converted.notes {
        output.say(&format!("note: {note}"));
    }
    match &args.output {
        None => output.line(converted.toml.trim_end()),
        Some(path) => write_new(path, &converted.toml)
            .map_err(|error| Failure::failed(format!("cannot write {}: {error}", path.display()))),
    }
}

fn read(path: &Path) -> std::io::Result<String> {
    if path != Path::new("-") {
        return std::fs::read_to_string(path);
    }
    let mut text = String::new();
    std::io::stdin().read_to_string(&mut text).map(|_| text)
}

fn write_new(path: &Path, text: &str) -> std::io::Result<()> {
    std::io::Write::write_all(&mut std::fs::File::create_new(path)?, text.as_bytes())
}
