//! `cert`: a certificate for a service, under an authority that is made for it.

use crate::failure::Failure;
use crate::machine::own_names;
use crate::output::Output;
use clap::Args;
use phalanx_server::{CERT_FILE, Identity, KEY_FILE};
use serde_json::json;
use std::path::PathBuf;

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  phalanx cert tls --host gpu.example          ca.pem, cert.pem and their keys in the folder tls
  phalanx up --grpc 0.0.0.0:7421 --tls-cert tls/cert.pem --tls-key tls/key.pem --ca-file tls/ca.pem

`phalanx up --tls auto` does the same in the data folder. The authority is made once: run it again for another
certificate that the same ca.pem vouches for.")]
pub(crate) struct CertArgs {
    /// The folder to put it in; made where it is missing
    dir: PathBuf,
    /// A name or address that the certificate is for [default: this machine's]
    #[arg(long = "host", value_name = "NAME")]
    hosts: Vec<String>,
}

/// Runs it.
pub(crate) fn run(args: &CertArgs, output: &Output) -> Result<(), Failure> {
    let hosts = if args.hosts.is_empty() { own_names() } else { args.hosts.clone() };
    let (_, ca_file) = Identity::make(&args.dir, &hosts)?;
    let (cert, key) = (args.dir.join(CERT_FILE), args.dir.join(KEY_FILE));
    match output.json {
        true => output.document(&json!({ "ca_file": ca_file, "cert": cert, "key": key, "hosts": hosts })),
        false => {
            output.say(&format!("phalanx: a certificate for {}", hosts.join(", ")));
            [ca_file, cert, key].iter().try_for_each(|file| output.line(&file.display().to_string()))
        }
    }
}
