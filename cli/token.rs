//! `token`: prints the secret that opens the service.

use crate::args::Global;
use crate::client::{data_dir, given_token_file};
use crate::failure::Failure;
use crate::output::Output;
use clap::Args;
use phalanx_runtime::store::Endpoint;
use phalanx_server::Tokens;
use serde_json::json;

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  phalanx token             opens everything: `authorization: Bearer TOKEN`
  phalanx token --agent     lets a machine join as a node, and nothing else
  phalanx token --url       the dashboard's address with the token, to be opened once
  curl -H \"Authorization: Bearer $(phalanx token)\" http://127.0.0.1:7422/metrics")]
pub(crate) struct TokenArgs {
    /// The token that can only join as a node
    #[arg(long)]
    agent: bool,
    /// The address that lets a browser in: it exchanges the token for a cookie
    #[arg(long, conflicts_with = "agent")]
    url: bool,
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
    if args.url {
        let endpoint = Endpoint::read(&data_dir).ok_or_else(|| {
            Failure::failed(format!("no service runs on {}; start one with `phalanx up`", data_dir.display()))
        })?;
        return match output.json {
            true => output.document(&json!({ "url": login_url(&endpoint.http, &token) })),
            false => output.line(&login_url(&endpoint.http, &token)),
        };
    }
    match output.json {
        true => output.document(&json!({ "token": token, "token_file": path })),
        false => output.line(&token),
    }
}

/// What a browser opens once; a token needs no escaping.
fn login_url(http: &str, token: &str) -> String {
    format!("{http}/?token={token}")
}
