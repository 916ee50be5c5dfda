//! `token`: prints the secret that opens the service.

use crate::args::Global;
use crate::client::{data_dir, given_token_file};
use crate::failure::Failure;
use crate::output::Output;
use clap::Args;
use phalanx_server::Tokens;
use serde_json::json;

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  phalanx token             opens everything: `authorization: Bearer TOKEN`
  phalanx token --agent     lets a machine join as a node, and nothing else
  curl -H \"Authorization: Bearer $(phalanx token)\" http://127.0.0.1:7422/metrics")]
pub(crate) struct TokenArgs {
    /// The token that can only join as a node
    #[arg(long)]
    agent: bool,
}

/// Runs it.
pub(crate) fn run(global: &Global, args: &TokenArgs, output: &Output) -> Result<(), Failure> {
    let data_dir = data_dir(global)?;
    let path = match (args.agent, given_token_file(global)) {
        (true, _) => Tokens::agent_file(&data_dir),
        (false, Some(given)) => given,
        (false, None) => Tokens::user_file(&data_dir),
    };
    if !path.exists() {
        let path = path.display();
        return Err(Failure::failed(format!(
            "there is no token at {path}; the first `phalanx up` makes one"
        )));
    }
    let token = Tokens::read(&path)?;
    match output.json {
        true => output.document(&json!({ "token": token, "token_file": path })),
        false => output.line(&token),
    }
}
