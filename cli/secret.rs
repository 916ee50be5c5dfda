//! `secret`: values that jobs name and nobody is shown.

use crate::args::Global;
use crate::client::Route;
use crate::failure::Failure;
use crate::output::Output;
use clap::{Args, Subcommand};
use phalanx_api::v1 as pb;
use phalanx_core::limits::SECRET_BYTES;
use serde_json::{Value, json};
use std::io::Read;

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  phalanx secret set HF_TOKEN < token.txt      the value comes on stdin
  phalanx secret list
  phalanx secret rm HF_TOKEN

A job that has `secrets = [\"HF_TOKEN\"]` finds it in its environment. Its value is in no answer, event or log line.")]
pub(crate) struct SecretArgs {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Keep the value that comes on stdin; a line break at its end is left out
    #[command(after_help = "Examples:
  printf %s \"$TOKEN\" | phalanx secret set HF_TOKEN")]
    Set {
        /// Its name: that of a variable in the job's environment
        name: String,
    },
    /// Print the names of all secrets
    #[command(after_help = "Examples:
  phalanx secret list --json")]
    List,
    /// Forget a secret
    #[command(after_help = "Examples:
  phalanx secret rm HF_TOKEN")]
    Rm {
        /// Its name
        name: String,
    },
}

/// Runs it.
pub(crate) async fn run(global: &Global, args: &SecretArgs, output: &Output) -> Result<(), Failure> {
    let value = match &args.what {
        What::Set { .. } => read_value()?,
        What::List | What::Rm { .. } => String::new(),
    };
    let mut cluster = Route::to_live_service(global)?.connect().await?.cluster;
    let (done, name) = match &args.what {
        What::Set { name } => {
            cluster.set_secret(pb::SetSecretRequest { name: name.clone(), value }).await?;
            ("kept", name)
        }
        What::Rm { name } => {
            cluster.remove_secret(pb::RemoveSecretRequest { name: name.clone() }).await?;
            ("forgotten", name)
        }
        What::List => {
            let secrets = cluster.list_secrets(pb::ListSecretsRequest {}).await?.into_inner().secrets;
            let names = secrets.into_iter().map(|secret| secret.name);
            return match output.json {
                true => output.document(&Value::Array(names.map(|name| json!({ "name": name })).collect())),
                false => names.into_iter().try_for_each(|name| output.line(&name)),
            };
        }
    };
    match output.json {
        true => output.document(&json!({ "name": name })),
        false => {
            output.say(&format!("phalanx: the secret {name} is {done}"));
            Ok(())
        }
    }
}

fn read_value() -> Result<String, Failure> {
    let mut value = String::new();
    let mut stdin = std::io::stdin().take(SECRET_BYTES as u64 + 2);
    stdin.read_to_string(&mut value).map_err(|error| {
        Failure::usage(format!("cannot read the value from stdin: {error}; a secret is UTF-8 text"))
    })?;
    if let Some(line) = value.strip_suffix('\n') {
        let length = line.strip_suffix('\r').unwrap_or(line).len();
        value.truncate(length);
    }
    Ok(value)
}
