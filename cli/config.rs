//! `config`: the service's configuration, its layers, and what is in force.
//!
//! A file, below the environment (`PHALANX_SCHEDULING__MAX_BYPASS=8`), below `--set scheduling.max_bypass=8`.

use crate::args::Global;
use crate::client::{Route, data_dir};
use crate::failure::Failure;
use crate::output::Output;
use clap::{Args, Subcommand};
use phalanx_api::v1 as pb;
use phalanx_core::overrides;
use phalanx_core::spec::ServiceSpec;
use phalanx_runtime::service::{Handle, Site};
use serde_json::json;
use std::path::{Path, PathBuf};

/// The settings that a variable may set.
const SETTABLE: [&str; 7] = [
    "node_timeout",
    "scheduling.grace_seconds",
    "scheduling.max_bypass",
    "scheduling.resize_interval",
    "scheduling.share_half_life",
    "scheduling.las_threshold_seconds",
    "scheduling.las_preemptions",
];

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  phalanx config show
  phalanx config show --origin                 and the file and line, variable, flag or API that said so
  phalanx config show --config site.toml       what `phalanx up --config site.toml` would use")]
pub(crate) struct ConfigArgs {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Print the settings in force: those of the service that runs, else those it would start with
    #[command(after_help = "Examples:
  phalanx config show --origin
  phalanx config show --json | jq '.[] | select(.origin != \"default\")'")]
    Show(ShowArgs),
}

#[derive(Debug, Args)]
struct ShowArgs {
    /// Say where each comes from
    #[arg(long)]
    origin: bool,
    /// Look at this file instead of the running service
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

/// Runs it.
pub(crate) async fn run(global: &Global, args: &ConfigArgs, output: &Output) -> Result<(), Failure> {
    let What::Show(args) = &args.what;
    let asked = args.config.is_some() || !global.set.is_empty();
    let route = if asked { None } else { Route::to_service(global)? };
    let settings = match route {
        Some(route) => {
            let client = route.connect().await?;
            client.cluster.clone().settings(pb::SettingsRequest {}).await?.into_inner().settings
        }
        None => {
            let site = read(args.config.as_deref(), global)?;
            let settings = match Handle::read_only(&data_dir(global)?).await {
                Ok(records) => records.with_site(site).settings().await?,
                // Nothing has run here yet.
                Err(_) => site.settings(&[]),
            };
            let told = settings.into_iter();
            told.map(|set| pb::Setting { key: set.key, value: set.value, origin: set.origin }).collect()
        }
    };
    if output.json {
        let all = settings.iter();
        let all = all.map(|set| json!({ "key": set.key, "value": set.value, "origin": set.origin }));
        return output.document(&all.collect());
    }
    let lines: Vec<String> = settings
        .iter()
        .map(|set| {
            let line = format!("{} = {}", set.key, set.value);
            if args.origin { format!("{line:<48} # {}", set.origin) } else { line }
        })
        .collect();
    output.line(&lines.join("\n"))
}

/// Reads the configuration with all its layers. Without a file named, the default one may be absent.
pub(crate) fn read(given: Option<&Path>, global: &Global) -> Result<Site, Failure> {
    let path = given.map(Path::to_owned).or_else(default_path);
    let shown =
        path.as_deref().map_or_else(|| "the configuration".to_owned(), |path| path.display().to_string());
    let said = match path.as_deref().map(std::fs::read_to_string) {
        Some(Ok(text)) => text,
        Some(Err(error)) if given.is_some() || error.kind() != std::io::ErrorKind::NotFound => {
            return Err(Failure::usage(format!("cannot read {shown}: {error}; is the path right?")));
        }
        _ => "version = 1\n".to_owned(),
    };
    let variables: Vec<(String, String)> = SETTABLE
        .into_iter()
        .filter_map(|key| {
            let name = variable(key);
            let value = std::env::var(&name).ok().filter(|value| !value.is_empty())?;
            Some((name, format!("{key}={value}")))
        })
        .collect();
    check_variables()?;
    let above: Vec<String> =
        variables.iter().map(|(_, set)| set.clone()).chain(global.set.iter().cloned()).collect();
    let refused =
        |problems: phalanx_core::Problems, text: &str| Failure::usage(problems.render(&shown, text));
    let text = overrides::apply(&said, &above).map_err(|problems| refused(problems, &said))?;
    let mut spec = ServiceSpec::parse(&text).map_err(|problems| refused(problems, &text))?;
    // The lines are those of the file as it stands on the disk.
    spec.lines = ServiceSpec::lines_of(&said);
    let mut origins: std::collections::BTreeMap<String, String> =
        spec.lines.iter().map(|(key, line)| (key.clone(), format!("{shown}:{line}"))).collect();
    let key = |set: &str| set.split('=').next().unwrap_or_default().trim().to_owned();
    origins.extend(variables.iter().map(|(name, set)| (key(set), name.clone())));
    origins.extend(global.set.iter().map(|set| (key(set), "--set".to_owned())));
    Ok(Site { spec, origins })
}

/// A variable that is meant for a setting and names none is a mistake, like an unknown key of the file.
fn check_variables() -> Result<(), Failure> {
    let known: Vec<String> = SETTABLE.into_iter().map(variable).collect();
    let names = std::env::vars_os().filter_map(|(name, _)| name.into_string().ok());
    let mut meant = names.filter(|name| name.starts_with("PHALANX_") && name.contains("__"));
    match meant.find(|name| !known.contains(name)) {
        Some(name) => {
            Err(Failure::usage(format!("the variable {name} sets nothing; there is {}", known.join(", "))))
        }
        None => Ok(()),
    }
}

/// The variable of a key: `scheduling.max_bypass` is `PHALANX_SCHEDULING__MAX_BYPASS`.
fn variable(key: &str) -> String {
    format!("PHALANX_{}", key.replace('.', "__").to_uppercase())
}

fn default_path() -> Option<PathBuf> {
    let variable = |name| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let folder = variable("XDG_CONFIG_HOME").or_else(|| variable("HOME").map(|home| home.join(".config")))?;
    Some(folder.join("phalanx/config.toml"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_has_its_variable() {
        assert_eq!(variable("scheduling.max_bypass"), "PHALANX_SCHEDULING__MAX_BYPASS");
        assert_eq!(variable("node_timeout"), "PHALANX_NODE_TIMEOUT");
    }
}
