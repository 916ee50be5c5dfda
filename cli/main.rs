//! The Phalanx command: arguments in, one subcommand run, an exit code out.
#![cfg_attr(test, allow(clippy::unwrap_used))]

mod agent;
mod args;
mod attach;
mod bench;
mod best;
mod cert;
mod change;
mod check;
mod client;
mod completions;
mod config;
mod convert;
mod describe;
mod doctor;
mod drain;
mod embedded;
mod events;
mod export;
mod failure;
mod file;
mod follow;
mod groups;
mod lines;
mod live;
mod logs;
mod machine;
mod metrics;
mod nodes;
mod output;
mod progress;
mod ps;
mod queues;
mod reference;
mod replay;
mod report;
mod run;
mod secret;
mod simulate;
mod study;
mod submit;
mod sweep;
mod table;
mod token;
mod top;
mod trials;
mod up;
mod wait;
mod why;
mod worker;

use args::{Args, Command};
use change::Change;
use clap::Parser;
use failure::{DONE, Failure};
use output::Output;
use std::process::ExitCode;
use tracing_subscriber::EnvFilter;

fn main() -> ExitCode {
    // One that was started as `/proc/self/exe` would be called `exe` in the process table. Without the name it runs as well.
    let _ = nix::sys::prctl::set_name(c"phalanx");
    completions::answer();
    let args = Args::parse();
    let output = Output::new(args.global.json, args.global.quiet);
    start_tracing(&output);
    match dispatch(args, &output) {
        Ok(code) => ExitCode::from(code),
        Err(failure) => {
            output.failure(&failure);
            ExitCode::from(failure.code)
        }
    }
}

/// Runs the subcommand; the answer is the exit code.
fn dispatch(Args { global, command }: Args, output: &Output) -> Result<u8, Failure> {
    let done = |()| DONE;
    let global = &global;
    match &command {
        Command::Run(args) => wide(run::run(global, args, output)),
        Command::Up(args) => wide(up::run(global, args, output)).map(done),
        Command::Agent(args) => wide(agent::run(global, args, output)).map(done),
        Command::Submit(args) => slim(submit::run(global, args, output)).map(done),
        Command::Wait(args) => slim(wait::run(global, args, output)),
        Command::Logs(args) => slim(logs::run(global, args, output)).map(done),
        Command::Metrics(args) => slim(metrics::run(global, args, output)).map(done),
        Command::Describe(args) => slim(describe::run(global, args, output)).map(done),
        Command::Ps(args) => slim(ps::run(global, args, output)).map(done),
        Command::Trials(args) => slim(trials::run(global, args, output)).map(done),
        Command::Best(args) => slim(best::run(global, args, output)).map(done),
        Command::Cancel(args) => slim(change::run(global, Change::Cancel, args, output)).map(done),
        Command::Pause(args) => slim(change::run(global, Change::Pause, args, output)).map(done),
        Command::Resume(args) => slim(change::run(global, Change::Resume, args, output)).map(done),
        Command::Why(args) => slim(why::run(global, args, output)).map(done),
        Command::Nodes => slim(nodes::run(global, output)).map(done),
        Command::Drain(args) => slim(drain::run(global, args, output)).map(done),
        Command::Events(args) => slim(events::run(global, args, output)).map(done),
        Command::Secret(args) => slim(secret::run(global, args, output)).map(done),
        Command::Queues(args) => slim(queues::run(global, args, output)).map(done),
        Command::Export(args) => slim(export::run(global, args, output)).map(done),
        Command::Top(args) => slim(top::run(global, args, output)).map(done),
        Command::Config(args) => slim(config::run(global, args, output)).map(done),
        Command::Groups(args) => slim(groups::run(global, args, output)).map(done),
        Command::Check(args) => slim(check::run(global, args, output)).map(done),
        Command::Report(args) => report::run(args, output).map(done),
        Command::Doctor => doctor::run(global, output).map(done),
        Command::Cert(args) => cert::run(args, output).map(done),
        Command::Token(args) => slim(token::run(global, args, output)).map(done),
        Command::Bench(args) => {
            bench::run(args, output.json).map_err(|error| Failure::failed(format!("{error:#}"))).map(done)
        }
        Command::Simulate(args) => simulate::run(global, args, output).map(done),
        Command::Replay(args) => replay::run(global, args, output).map(done),
        Command::Convert(args) => convert::run(args, output).map(done),
        Command::Study(args) => study::run(global, args, output).map(done),
        Command::Completions(args) => completions::run(args).map(done),
        Command::Man(args) => reference::run(args).map(done),
        Command::Worker(args) => worker::worker(args).map(done),
        Command::Guard => Ok(worker::guard()),
    }
}

/// On one thread: a command that only asks.
fn slim<T>(future: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(future)
}

/// On several: a command that holds a service or an agent.
fn wide<T>(future: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let ended = runtime.block_on(future);
    // What is left by now has had its time.
    runtime.shutdown_background();
    ended
}

/// What goes wrong behind the scenes goes to stderr; RUST_LOG says how much of it.
fn start_tracing(output: &Output) {
    let default = if output.quiet { "error" } else { "warn" };
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(default));
    let format = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    format.with_target(false).with_ansi(output.stderr_color()).init();
}
