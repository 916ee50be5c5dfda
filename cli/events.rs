//! `events`: what happened, who did it, and to what.

use crate::args::Global;
use crate::client::Route;
use crate::failure::Failure;
use crate::output::Output;
use crate::table;
use clap::Args;
use clap_complete::engine::ArgValueCompleter;
use phalanx_api::{json, v1 as pb};

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  phalanx events                 the last events of the service
  phalanx events j12             all that happened to a job
  phalanx events gpu1            … or to a node, queue, placement group or secret, by its name
  phalanx events -f --json       everything from now on, one object a line")]
pub(crate) struct EventsArgs {
    /// The id of a job, or the name of what they are about
    #[arg(add = ArgValueCompleter::new(crate::completions::ids))]
    id: Option<String>,
    /// Wait for more, until interrupted
    #[arg(short, long)]
    follow: bool,
    /// Begin so many events before the end [default: 100 without an id, else all]
    #[arg(long, value_name = "N")]
    tail: Option<i32>,
}

/// Events of the whole service where nothing else is said.
const TAIL: i32 = 100;

/// Runs it.
pub(crate) async fn run(global: &Global, args: &EventsArgs, output: &Output) -> Result<(), Failure> {
    let mut cluster = Route::to_records(global).await?.connect().await?.cluster;
    let request = pb::EventsRequest {
        target: args.id.clone().unwrap_or_default(),
        after_seq: 0,
        follow: args.follow,
        tail: args.tail.unwrap_or(if args.id.is_some() { 0 } else { TAIL }),
    };
    let mut events = cluster.events(request).await?.into_inner();
    let whole_table = output.stdout_is_terminal && !output.json && !args.follow;
    let mut rows = table::new(output, &["TIME", "ACTOR", "ACTION", "TARGET", "WHAT"]);
    while let Some(message) = events.message().await? {
        let Some(event) = message.event else { continue };
        let time = json::time(event.time.as_ref()).as_str().unwrap_or_default().to_owned();
        match (output.json, whole_table) {
            (true, _) => output.document(&json::event(&event))?,
            (false, true) => {
                rows.add_row([time, event.actor, event.action, event.target, event.text]);
            }
            (false, false) => output.line(&format!(
                "{time} {:<8} {:<16} {} {}",
                event.actor, event.action, event.target, event.text
            ))?,
        }
    }
    if whole_table { output.line(&table::text(&rows)) } else { Ok(()) }
}
