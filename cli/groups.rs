//! `groups`: standing placement groups, made, looked at and removed.

use crate::args::Global;
use crate::client::{Client, Route};
use crate::describe::gang;
use crate::failure::Failure;
use crate::file::JobFile;
use crate::output::Output;
use crate::table;
use clap::{Args, Subcommand};
use phalanx_api::{json, v1 as pb};
use phalanx_core::quantity::parse_duration;
use phalanx_core::{GroupName, GroupSpec};
use serde_json::{Value, json};
use std::fmt::Write;
use std::path::PathBuf;
use std::time::Duration;

/// Groups of one page of the list.
const PAGE: i32 = 1000;

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  phalanx groups                                          all placement groups
  phalanx groups create pool.toml --wait 30s              made, and answered when its bundles are kept
  phalanx groups create --name pool --set gang.workers=4 --set gang.gpus=1
  phalanx run train.toml --set gang.group=pool            a job in it
  phalanx groups why pool
  phalanx groups remove pool                              ends what runs in it")]
pub(crate) struct GroupsArgs {
    #[command(subcommand)]
    command: Option<GroupsCommand>,
}

#[derive(Debug, Subcommand)]
enum GroupsCommand {
    /// Hold bundles for jobs to run in; prints the group's name
    #[command(after_help = "Example of a file:
  version = 1
  name = \"pool\"              # and namespace, queue, priority
  [gang]
  workers = 4                # so many bundles …
  cpus = 2                   # … of so much each
  placement = \"spread\"       # labels, bundles and topology as in a job

Examples:
  phalanx groups create pool.toml --wait 30s
  phalanx groups create --name pool --set gang.workers=4")]
    Create(CreateArgs),
    /// All about a group
    #[command(after_help = "Example:\n  phalanx groups describe pool --json | jq '.bundles[].node'")]
    Describe(NameArgs),
    /// Why a group waits
    #[command(after_help = "Example:\n  phalanx groups why pool")]
    Why(NameArgs),
    /// Give a group's bundles back and end what runs in it; removing it twice changes nothing
    #[command(after_help = "Example:\n  phalanx groups remove pool")]
    Remove(NameArgs),
}

#[derive(Debug, Args)]
struct CreateArgs {
    /// The group's file; `-` is stdin
    #[arg(required_unless_present = "name")]
    file: Option<PathBuf>,
    /// Its name, as NAME or NAMESPACE/NAME, where no file says it
    #[arg(long, conflicts_with = "file")]
    name: Option<String>,
    /// Wait until it is ready, at most so long
    #[arg(long, value_name = "TIME")]
    wait: Option<String>,
    /// A repeated request with the same id answers the first one's group
    #[arg(long, value_name = "ID", default_value = "")]
    request_id: String,
}

#[derive(Debug, Args)]
struct NameArgs {
    /// NAME, or NAMESPACE/NAME
    name: String,
}

/// Runs it.
pub(crate) async fn run(global: &Global, args: &GroupsArgs, output: &Output) -> Result<(), Failure> {
    match &args.command {
        None => list(global, output).await,
        Some(GroupsCommand::Create(args)) => create(global, args, output).await,
        Some(GroupsCommand::Describe(args)) => {
            let group = get(global, args).await?;
            match output.json {
                true => output.document(&json::group(&group)),
                false => output.line(in_words(&group, output).trim_end()),
            }
        }
        Some(GroupsCommand::Why(args)) => why(&get(global, args).await?, output),
        Some(GroupsCommand::Remove(args)) => remove(global, args, output).await,
    }
}

async fn list(global: &Global, output: &Output) -> Result<(), Failure> {
    let client = Route::to_records(global).await?.connect().await?;
    let mut groups = Vec::new();
    let mut page_token = String::new();
    loop {
        let request = pb::ListPlacementGroupsRequest { page_size: PAGE, page_token, ..Default::default() };
        let page = client.cluster.clone().list_placement_groups(request).await?.into_inner();
        groups.extend(page.groups);
        page_token = page.next_page_token;
        if page_token.is_empty() {
            break;
        }
    }
    if output.json {
        return output.document(&Value::Array(groups.iter().map(json::group).collect()));
    }
    let mut rows = table::new(output, &["GROUP", "STATE", "QUEUE", "BUNDLES", "NODES", "REASON"]);
    for group in &groups {
        let wanted = group.gang.as_ref().map_or(0, |gang| gang.max_workers);
        rows.add_row([
            shown(group),
            group.state().as_str_name().to_owned(),
            group.queue.clone(),
            format!("{} of {wanted}", group.bundles.len()),
            nodes(group).join(" "),
            group.reason.as_ref().map(|reason| reason.text.clone()).unwrap_or_default(),
        ]);
    }
    output.line(&table::list(rows))
}

async fn create(global: &Global, args: &CreateArgs, output: &Output) -> Result<(), Failure> {
    let file = match (&args.file, &args.name) {
        (Some(path), _) => JobFile::read(path, global)?,
        (None, name) => {
            let name = group_name(name.as_deref().unwrap_or_default())?;
            let mut document = toml_edit::DocumentMut::new();
            document["version"] = toml_edit::value(1);
            document["name"] = toml_edit::value(name.name);
            document["namespace"] = toml_edit::value(name.namespace);
            JobFile::of_text("the group", document.to_string(), global)?
        }
    };
    GroupSpec::parse(&file.text).map_err(|problems| file.refused(&problems))?;
    let client = Route::to_live_service(global)?.connect().await?;
    let wait = args.wait.as_deref().map(wait_time).transpose()?;
    let request = pb::CreatePlacementGroupRequest {
        toml: file.text.clone(),
        request_id: args.request_id.clone(),
        validate_only: false,
        wait: wait.and_then(|wait| wait.try_into().ok()),
    };
    let group = client.cluster.clone().create_placement_group(request).await?.into_inner();
    match output.json {
        true => output.document(&json::group(&group))?,
        false => output.line(&shown(&group))?,
    }
    let ready = group.state() == pb::placement_group::State::Ready;
    match (wait, group.reason) {
        (Some(_), reason) if !ready => {
            let text = reason.map(|reason| reason.text).unwrap_or_default();
            let name = &group.name;
            Err(Failure::failed(format!("the placement group `{name}` is made and not ready yet: {text}")))
        }
        _ => Ok(()),
    }
}

async fn get(global: &Global, args: &NameArgs) -> Result<pb::PlacementGroup, Failure> {
    let GroupName { namespace, name } = group_name(&args.name)?;
    let client: Client = Route::to_records(global).await?.connect().await?;
    let request = pb::GetPlacementGroupRequest { namespace, name, wait: None };
    Ok(client.cluster.clone().get_placement_group(request).await?.into_inner())
}

async fn remove(global: &Global, args: &NameArgs, output: &Output) -> Result<(), Failure> {
    let GroupName { namespace, name } = group_name(&args.name)?;
    let client = Route::to_live_service(global)?.connect().await?;
    let request = pb::RemovePlacementGroupRequest { namespace, name };
    let group = client.cluster.clone().remove_placement_group(request).await?.into_inner();
    if output.json {
        return output.document(&json::group(&group));
    }
    let done = match group.state() {
        pb::placement_group::State::Removed => "there is no such placement group (any more)",
        _ => "it is being removed",
    };
    output.say(&format!("phalanx: {}: {done}", args.name));
    Ok(())
}

fn why(group: &pb::PlacementGroup, output: &Output) -> Result<(), Failure> {
    let reason = group.reason.clone().unwrap_or_default();
    let state = group.state().as_str_name();
    match output.json {
        true => output.document(&json!({
            "name": group.name,
            "namespace": group.namespace,
            "state": state,
            "reason": { "code": reason.code, "text": reason.text },
        })),
        false => output.line(&format!("{} is {state}: {}", shown(group), reason.text)),
    }
}

fn in_words(group: &pb::PlacementGroup, output: &Output) -> String {
    let mut out = String::new();
    let reason = group.reason.clone().unwrap_or_default();
    for (name, value) in [
        ("group", shown(group)),
        ("state", group.state().as_str_name().to_owned()),
        ("reason", format!("{} ({})", reason.text, reason.code)),
        ("queue", format!("{} (priority {})", group.queue, group.priority)),
        ("bundles", group.gang.as_ref().map(gang).unwrap_or_default()),
        ("made", table::time(group.create_time.as_ref())),
        ("ready", table::time(group.ready_time.as_ref())),
    ] {
        if !value.is_empty() {
            // Writing to a String cannot fail.
            let _ = writeln!(out, "{name:<12} {value}");
        }
    }
    if !group.bundles.is_empty() {
        let mut rows = table::new(output, &["BUNDLE", "NODE", "GPUS"]);
        for bundle in &group.bundles {
            let gpus: Vec<String> = bundle.gpus.iter().map(ToString::to_string).collect();
            rows.add_row([bundle.rank.to_string(), bundle.node.clone(), gpus.join(",")]);
        }
        let _ = writeln!(out, "\n{}", table::text(&rows));
    }
    out
}

fn shown(group: &pb::PlacementGroup) -> String {
    GroupName { namespace: group.namespace.clone(), name: group.name.clone() }.to_string()
}

fn nodes(group: &pb::PlacementGroup) -> Vec<String> {
    let mut nodes: Vec<String> = group.bundles.iter().map(|bundle| bundle.node.clone()).collect();
    nodes.sort();
    nodes.dedup();
    nodes
}

fn group_name(text: &str) -> Result<GroupName, Failure> {
    GroupName::parse(text).map_err(|message| Failure::usage(format!("`{text}`: {message}")))
}

fn wait_time(text: &str) -> Result<Duration, Failure> {
    parse_duration(text)
        .map_err(|_| Failure::usage(format!("--wait `{text}` is no time; write it as 30s or 5m")))
}
