//! The agent with real processes: this binary is its own guard, its own agent to kill, and its own ranks.
#![allow(clippy::unwrap_used, missing_docs, unreachable_pub, clippy::exit)]

mod cases;
mod forks;
mod rank;
mod service;

use std::time::Instant;

fn main() {
    let args: Vec<String> = std::env::args().collect();
    match args.get(1).map(String::as_str) {
        Some("guard") => std::process::exit(phalanx_runtime::agent::guard_main(rank::worker)),
        Some("worker") => std::process::exit(rank::worker(&std::fs::read_to_string(&args[3]).unwrap())),
        Some("agent") => return service::agent_process(&args[2], &args[3]),
        Some("rank") => return rank::run(&args[2..]),
        _ => {}
    }
    let filter: Vec<&String> = args.iter().skip(1).filter(|arg| !arg.starts_with('-')).collect();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let mut failed = Vec::new();
    for (name, case) in cases::all().into_iter().chain(forks::all()) {
        if !filter.is_empty() && !filter.iter().any(|part| name.contains(part.as_str())) {
            continue;
        }
        let began = Instant::now();
        let outcome = runtime.block_on(async {
            let bounded = tokio::time::timeout(std::time::Duration::from_secs(60), tokio::spawn(case()));
            bounded.await.map_err(|_| "took longer than 60 s".to_owned())?.map_err(|error| error.to_string())
        });
        match outcome {
            Ok(()) => println!("{name} … ok, {} ms", began.elapsed().as_millis()),
            Err(error) => {
                println!("{name} … FAILED: {error}");
                failed.push(name);
            }
        }
    }
    if !failed.is_empty() {
        println!("failed: {}", failed.join(", "));
        std::process::exit(1);
    }
}
