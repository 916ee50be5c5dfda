//! `token`: prints the secret that opens the service.

use crate::args::Global;
use crate::client::{Route, data_dir, given_token_file};
use crate::failure::Failure;
use crate::output::Output;
use clap::Args;
use phalanx_api::v1 as pb;
use phalanx_runtime::store::Endpoint;
use phalanx_server::Tokens;
use serde_json::json;
use std::path::Path;

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  phalanx token             opens everything: `authorization: Bearer TOKEN`
  phalanx token --agent     lets a machine join as a node, and nothing else
  phalanx token --rotate    makes it anew: the old one opens nothing any more, and what it opened is cut
  phalanx token --url       the dashboard's address with the token, to be opened once
  curl -H \"Authorization: Bearer $(phalanx token)\" http://127.0.0.1:7422/metrics")]
pub(crate) struct TokenArgs {
    /// The token that can only join as a node
    #[arg(long)]
    agent: bool,
    /// Make it anew, and print the new one
    #[arg(long, conflicts_with = "url")]
    rotate: bool,
    /// The address that lets a browser in: it exchanges the token for a cookie
    #[arg(long, conflicts_with = "agent")]
    url: bool,
}

/// Runs it.
pub(crate) async fn run(global: &Global, args: &TokenArgs, output: &Output) -> Result<(), Failure> {
    let data_dir = data_dir(global)?;
    let path = match (args.agent, given_token_file(global)) {
        (true, _) => Tokens::agent_file(&data_dir),
        (false, Some(given)) => given,
        (false, None) => Tokens::user_file(&data_dir),
    };
    if args.rotate {
        let token = rotate(global, args.agent, &data_dir).await?;
        return match output.json {
            true => output.document(&json!({ "token": token, "token_file": path })),
            false => output.line(&token),
        };
    }
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

/// By the service where one runs, so that it knows; else in the data folder.
async fn rotate(global: &Global, agent: bool, data_dir: &Path) -> Result<String, Failure> {
    let Some(route) = Route::to_service(global)? else {
        return Ok(Tokens::load_or_make(data_dir)?.rotate(agent)?);
    };
    let mut cluster = route.connect().await?.cluster;
    Ok(cluster.rotate_token(pb::RotateTokenRequest { agent }).await?.into_inner().token)
}

/// What a browser opens once; a token needs no escaping.
fn login_url(http: &str, token: &str) -> String {
    format!("{http}/?token={token}")
}
