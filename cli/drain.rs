//! `drain`: a node finishes what it runs and is given nothing new.

use crate::args::Global;
use crate::client::Route;
use crate::failure::Failure;
use crate::output::Output;
use clap::Args;
use clap_complete::engine::ArgValueCompleter;
use phalanx_api::{json, v1 as pb};

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  phalanx drain gpu1             it finishes what it runs, and can then be taken away
  phalanx drain gpu1 --undo      it takes work again")]
pub(crate) struct DrainArgs {
    /// The node's name
    #[arg(add = ArgValueCompleter::new(crate::completions::nodes))]
    node: String,
    /// Let it take work again
    #[arg(long)]
    undo: bool,
}

/// Runs it.
pub(crate) async fn run(global: &Global, args: &DrainArgs, output: &Output) -> Result<(), Failure> {
    let mut cluster = Route::to_live_service(global)?.connect().await?.cluster;
    let request = pb::DrainRequest { node: args.node.clone(), undo: args.undo };
    let node = cluster.drain(request).await?.into_inner();
    if output.json {
        return output.document(&json::node(&node));
    }
    output.say(&format!("phalanx: {} is {}", node.name, node.state().as_str_name()));
    Ok(())
}
