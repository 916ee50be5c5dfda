//! The gang of a job: how many workers, what each needs, and where they may run.

use super::group::GroupName;
use super::reader::Table;
use crate::limits::{GANG_WORKERS, NAME_BYTES};
use crate::resources::{Cpus, GpuRequest, Resources, WHOLE};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use toml::de::DeValue;

/// How many workers a gang has: `min == max` unless it is elastic.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Workers {
    /// It starts with no fewer.
    pub min: u32,
    /// It starts with no more.
    pub max: u32,
}

/// How a gang's workers are laid over the nodes, named as Ray names them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Placement {
    /// On as few nodes as possible.
    #[default]
    Pack,
    /// On as many nodes as possible; a node may take several.
    Spread,
    /// All on one node or not at all.
    StrictPack,
    /// Each on a node of its own or not at all.
    StrictSpread,
}

impl Placement {
    const WORDS: [(&'static str, Placement); 4] = [
        ("pack", Placement::Pack),
        ("spread", Placement::Spread),
        ("strict-pack", Placement::StrictPack),
        ("strict-spread", Placement::StrictSpread),
    ];

    /// The word for it in a file.
    pub fn as_str(self) -> &'static str {
        Placement::WORDS.iter().find(|(_, placement)| *placement == self).map_or("", |(word, _)| word)
    }
}

/// What a node's label must be.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LabelRule {
    /// One of these values.
    In(BTreeSet<String>),
    /// None of these values; a node without the label matches.
    NotIn(BTreeSet<String>),
    /// The label is there, or is not.
    Exists(bool),
}

impl LabelRule {
    /// Whether a node with this value of the label (or without it) matches.
    pub fn matches(&self, value: Option<&str>) -> bool {
        match self {
            LabelRule::In(values) => value.is_some_and(|value| values.contains(value)),
            LabelRule::NotIn(values) => value.is_none_or(|value| !values.contains(value)),
            LabelRule::Exists(wanted) => value.is_some() == *wanted,
        }
    }
}

/// What one rank asks for beyond the gang's common request.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct BundleSpec {
    /// Labels its node must have.
    pub labels: BTreeMap<String, LabelRule>,
}

/// The gang a job runs as.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct GangSpec {
    /// How many workers.
    pub workers: Workers,
    /// What each of them needs.
    pub each: Resources,
    /// Labels that every worker's node must have.
    pub labels: BTreeMap<String, LabelRule>,
    /// More rules per rank; empty, or one entry a rank.
    pub bundles: Vec<BundleSpec>,
    /// How the workers are laid over the nodes.
    pub placement: Placement,
    /// A label key of which all workers' nodes must have one value in common.
    pub topology: Option<String>,
    /// The placement group it runs in; without one it runs on what no group holds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<GroupName>,
}

impl Default for GangSpec {
    fn default() -> Self {
        GangSpec {
            workers: Workers { min: 1, max: 1 },
            each: Resources { cpus: Cpus::from_cores(1), ..Resources::default() },
            labels: BTreeMap::new(),
            bundles: Vec::new(),
            placement: Placement::default(),
            topology: None,
            group: None,
        }
    }
}

pub(super) fn read(table: Table<'_>) -> GangSpec {
    let default = GangSpec::default();
    let each = Resources {
        cpus: table.milli("cpus").map_or(default.each.cpus, Cpus::from_milli),
        gpus: read_gpus(&table).unwrap_or_default(),
        memory_bytes: table.bytes("memory").unwrap_or_default(),
        custom: read_custom(&table),
    };
    let gang = GangSpec {
        workers: read_workers(&table).unwrap_or(default.workers),
        each,
        labels: read_labels(&table),
        bundles: table.tables("bundles").into_iter().map(read_bundle).collect(),
        placement: table.word("placement", &Placement::WORDS).unwrap_or_default(),
        topology: table.text("topology"),
        group: read_group(&table),
    };
    check_bundles(&table, &gang);
    if gang.placement == Placement::StrictSpread && gang.topology.as_deref() == Some("hostname") {
        table.problem(
            table.span_of("topology"),
            "`strict-spread` wants different nodes, `topology = \"hostname\"` one",
        );
    }
    table.finish();
    gang
}

fn read_group(table: &Table<'_>) -> Option<GroupName> {
    match GroupName::parse(&table.text("group")?) {
        Ok(name) => Some(name),
        Err(message) => {
            table.problem(table.span_of("group"), message);
            None
        }
    }
}

fn read_workers(table: &Table<'_>) -> Option<Workers> {
    let limit = 1..=i64::from(GANG_WORKERS);
    let value = table.value("workers")?;
    if !matches!(value.get_ref(), DeValue::Table(_)) {
        let count = table.integer("workers", limit)? as u32;
        return Some(Workers { min: count, max: count });
    }
    let range = table.table("workers")?;
    range.require("min", "min = 1");
    range.require("max", "max = 4");
    let (min, max) = (range.integer("min", limit.clone()), range.integer("max", limit));
    range.finish();
    let (min, max) = (min? as u32, max? as u32);
    if min > max {
        table.problem(value.span(), format!("`gang.workers` has min {min} above max {max}"));
        return None;
    }
    Some(Workers { min, max })
}

fn read_gpus(table: &Table<'_>) -> Option<GpuRequest> {
    let value = table.value("gpus")?;
    let milli = table.milli_value("gpus", value)?;
    match milli {
        0 => Some(GpuRequest::None),
        1..WHOLE => Some(GpuRequest::Share(milli as u16)),
        _ if milli.is_multiple_of(WHOLE) && milli / WHOLE <= u64::from(GANG_WORKERS) => {
            Some(GpuRequest::Whole((milli / WHOLE) as u32))
        }
        _ => {
            let message =
                format!("`{}` must be a whole number, or below 1 to share a GPU", table.path_of("gpus"));
            table.problem(value.span(), message);
            None
        }
    }
}

fn read_custom(table: &Table<'_>) -> BTreeMap<String, u64> {
    let Some(resources) = table.table("resources") else { return BTreeMap::new() };
    let mut custom = BTreeMap::new();
    for (name, span, value) in resources.entries() {
        match name {
            "cpu" | "cpus" | "gpu" | "gpus" | "memory" => {
                resources.problem_with_help(
                    span,
                    format!("`{name}` is no custom resource"),
                    "set it in [gang] itself",
                );
            }
            _ if name.is_empty() || name.len() > NAME_BYTES => {
                resources.problem(span, format!("a resource's name has 1 to {NAME_BYTES} bytes"));
            }
            _ => custom.extend(resources.milli_value(name, value).map(|milli| (name.to_owned(), milli))),
        }
    }
    custom.retain(|_, milli| *milli > 0);
    custom
}

fn read_bundle(table: Table<'_>) -> BundleSpec {
    let bundle = BundleSpec { labels: read_labels(&table) };
    table.finish();
    bundle
}

fn read_labels(table: &Table<'_>) -> BTreeMap<String, LabelRule> {
    let Some(labels) = table.table("labels") else { return BTreeMap::new() };
    let rules = labels.entries().filter_map(|(key, span, value)| {
        if key.is_empty() || key.len() > NAME_BYTES {
            labels.problem(span, format!("a label's key has 1 to {NAME_BYTES} bytes"));
            return None;
        }
        let rule = match value.get_ref() {
            DeValue::String(text) => LabelRule::In(BTreeSet::from([text.to_string()])),
            DeValue::Table(_) => read_rule(labels.table_value(key, value)?)?,
            _ => {
                let wanted = "a text, { in = [..] }, { not_in = [..] } or { exists = true }";
                labels.problem(value.span(), format!("the label `{key}` needs {wanted}"));
                return None;
            }
        };
        Some((key.to_owned(), rule))
    });
    rules.collect()
}

fn read_rule(table: Table<'_>) -> Option<LabelRule> {
    let set = |texts: Option<Vec<String>>| texts.map(BTreeSet::from_iter);
    let (within, without) = (set(table.texts("in")), set(table.texts("not_in")));
    let exists = table.boolean("exists");
    let span = table.span();
    let found =
        [table.has("in"), table.has("not_in"), table.has("exists")].iter().filter(|&&has| has).count();
    if found != 1 {
        table.problem(span.clone(), "a label rule has exactly one of `in`, `not_in` and `exists`");
    }
    if within.as_ref().is_some_and(BTreeSet::is_empty) {
        table.problem(span, "an empty `in` matches no node");
    }
    table.finish();
    within.map(LabelRule::In).or(without.map(LabelRule::NotIn)).or(exists.map(LabelRule::Exists))
}

fn check_bundles(table: &Table<'_>, gang: &GangSpec) {
    let count = gang.bundles.len();
    if count > 0 && count != gang.workers.max as usize {
        let workers = gang.workers.max;
        table.problem(
            table.span_of("bundles"),
            format!("{count} bundles for {workers} workers; give one entry a rank"),
        );
    }
}
