//! The service's configuration: `config.toml`.

use super::job::{parse_document, read_version};
use super::queue::{QueueSpec, SchedulingSpec, read_queues, read_scheduling};
use super::reader::{Sink, Table};
use crate::diagnostic::{Problem, Problems};
use crate::limits::SPEC_FILE_BYTES;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeInclusive;
use std::time::Duration;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// How long an agent may be silent: shorter, and a busy machine is taken for a lost one.
const NODE_TIMEOUT_SECONDS: RangeInclusive<u64> = 1..=3600;
/// Node providers that are planned and not there.
const PLANNED_PROVIDERS: [&str; 2] = ["slurm", "kubernetes"];

/// What a site sets; what is not said is as the service has it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ServiceSpec {
    /// How long an agent may be silent.
    pub node_timeout: Option<Duration>,
    /// Queues, in the order of the file.
    pub queues: Vec<QueueSpec>,
    /// How the scheduler decides.
    pub scheduling: SchedulingSpec,
    /// The line of every key in the text, by its path; a queue's keys stand below `queue.NAME`.
    pub lines: BTreeMap<String, usize>,
}

impl ServiceSpec {
    /// Reads and checks a configuration. On failure every problem is told.
    pub fn parse(text: &str) -> Result<ServiceSpec, Problems> {
        let document = parse_document(text, SPEC_FILE_BYTES)?;
        let sink = Sink::default();
        let mut spec = read(Table::root(&document, &sink));
        spec.lines = lines(&document, text);
        sink.into_problems().into_result(Some(spec))
    }
}

impl ServiceSpec {
    /// The line of every key of a text that may be no more than a part of a configuration; empty where it does not parse.
    pub fn lines_of(text: &str) -> BTreeMap<String, usize> {
        parse_document(text, SPEC_FILE_BYTES).map(|document| lines(&document, text)).unwrap_or_default()
    }
}

/// Reads changes of queues: a TOML text with nothing but `[[queue]]` tables. A key that is left out stays as it is in
/// `current`, and the limit `"none"` takes one away.
pub fn parse_queues(text: &str, current: &BTreeMap<String, QueueSpec>) -> Result<Vec<QueueSpec>, Problems> {
    let document = parse_document(text, SPEC_FILE_BYTES)?;
    let sink = Sink::default();
    let table = Table::root(&document, &sink);
    let queues = read_queues(&table, &mut BTreeSet::new(), current);
    table.finish();
    sink.into_problems().into_result(Some(queues))
}

fn read(table: Table<'_>) -> ServiceSpec {
    read_version(&table);
    let node_timeout = table.duration("node_timeout");
    let sensible = |timeout: Duration| NODE_TIMEOUT_SECONDS.contains(&timeout.as_secs());
    if node_timeout.is_some_and(|timeout| !sensible(timeout)) {
        let (least, most) = (NODE_TIMEOUT_SECONDS.start(), NODE_TIMEOUT_SECONDS.end());
        table.problem(table.span_of("node_timeout"), format!("`node_timeout` must be {least} s to {most} s"));
    }
    let queues = read_queues(&table, &mut BTreeSet::new(), &BTreeMap::new());
    let scheduling = table.table("scheduling").map(read_scheduling).unwrap_or_default();
    if let Some(provider) = table.table("provider") {
        read_provider(provider);
    }
    table.finish();
    ServiceSpec { node_timeout, queues, scheduling, lines: BTreeMap::new() }
}

/// Where nodes come from: so far only this machine and the agents that people start.
fn read_provider(table: Table<'_>) {
    let planned = table.value("kind").and_then(|value| match value.get_ref() {
        DeValue::String(kind) => PLANNED_PROVIDERS.into_iter().find(|planned| planned == kind),
        _ => None,
    });
    let Some(kind) = planned else {
        table.word("kind", &[("local", ())]);
        return table.finish();
    };
    table.problem_with_help(
        table.span_of("kind"),
        format!("the provider `{kind}` is not there yet in this version"),
        "use `kind = \"local\"` and start `phalanx agent` on every machine",
    );
}

/// The line of every key, from 1.
fn lines(document: &Spanned<DeTable<'_>>, text: &str) -> BTreeMap<String, usize> {
    let mut lines = BTreeMap::new();
    walk(document.get_ref(), "", text, &mut lines);
    lines
}

fn walk(table: &DeTable<'_>, above: &str, text: &str, lines: &mut BTreeMap<String, usize>) {
    for (key, value) in table.iter() {
        let path = format!("{above}{}", key.get_ref());
        match value.get_ref() {
            DeValue::Table(inner) => walk(inner, &format!("{path}."), text, lines),
            DeValue::Array(items) => {
                for item in items {
                    if let DeValue::Table(inner) = item.get_ref()
                        && let Some(DeValue::String(name)) = inner.get("name").map(Spanned::get_ref)
                    {
                        walk(inner, &format!("{path}.{name}."), text, lines);
                    }
                }
            }
            _ => {}
        }
        if let Some((line, _)) = Problem::at(key.span(), "").place(text) {
            lines.insert(path, line);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SITE: &str = r#"
version = 1
node_timeout = "20s"

[[queue]]
name = "research"
weight = 2
guaranteed = { gpus = 2, memory = "1GiB" }
quota = { gpus = 6, resources = { license = 3 } }

[[queue]]
name = "batch"
discipline = "las"

[scheduling]
max_bypass = 8
resize_interval = "90s"
share_half_life = 3600
grace_seconds = 30
[provider]
kind = "local"
"#;

    fn refused(text: &str) -> String {
        ServiceSpec::parse(text).unwrap_err().render("config.toml", text)
    }

    #[test]
    fn reads_what_the_file_has_and_where_it_stands() {
        let spec = ServiceSpec::parse(SITE).unwrap();
        assert_eq!(spec.node_timeout, Some(Duration::from_secs(20)));
        let research = &spec.queues[0];
        assert_eq!((research.weight, research.guaranteed.gpus, research.las), (2.0, Some(2000), false));
        assert_eq!(research.quota.custom["license"], 3000);
        assert!(spec.queues[1].las);
        assert_eq!(spec.scheduling.max_bypass, Some(8));
        assert_eq!(spec.scheduling.resize_interval, Some(Duration::from_secs(90)));
        assert_eq!(spec.scheduling.share_half_life, Some(Duration::from_secs(3600)));
        assert_eq!(spec.scheduling.grace, Some(Duration::from_secs(30)));
        for (key, line) in
            [("node_timeout", 3), ("queue.research.weight", 7), ("queue.research.quota.gpus", 9)]
        {
            assert_eq!(spec.lines.get(key), Some(&line), "{key}");
        }
        assert_eq!(ServiceSpec::parse("version = 1\n").unwrap().queues, []);
    }

    #[test]
    fn every_problem_is_told_at_once_with_its_line() {
        let text = refused(
            "version = 1\nnode_timeout = \"2h\"\nnode_timout = 3\n[[queue]]\nname = \"a\"\nweigth = 1\nweight = 0\n\
             quota = { gpus = 1 }\nguaranteed = { gpus = 2 }\n[[queue]]\nname = \"a\"\ndiscipline = \"lifo\"\n\
             [[queue]]\nquota = { cpus = -1 }\n[scheduling]\nmax_bypas = 1\nshare_half_life = 0\n\
             [provider]\nkind = \"slurm\"\n",
        );
        for part in [
            "1 s to 3600 s",
            "did you mean `node_timeout`",
            "did you mean `weight`",
            "`queue.weight` is 0",
            "guarantee is above its quota in gpus",
            "two queues are named `a`",
            "lifo",
            "`queue.name` is missing",
            "cpus",
            "did you mean `max_bypass`",
            "share_half_life",
            "`slurm` is not there yet",
            "config.toml:19:8",
        ] {
            assert!(text.contains(part), "`{part}` is not in:\n{text}");
        }
        assert!(refused("node_timeout = \"9s\"\n").contains("version"));
        assert!(refused("version = 1\n[provider]\nkind = \"slrm\"\n").contains("slrm"));
    }

    #[test]
    fn a_change_keeps_what_it_does_not_name() {
        let spec = ServiceSpec::parse(SITE).unwrap();
        let current: BTreeMap<_, _> =
            spec.queues.into_iter().map(|queue| (queue.name.clone(), queue)).collect();
        let text = "[[queue]]\nname = \"research\"\nquota.gpus = \"none\"\nguaranteed.cpus = 4\n[[queue]]\nname = \"new\"\n";
        let changed = parse_queues(text, &current).unwrap();
        let research = &changed[0];
        assert_eq!(
            (research.weight, research.quota.gpus, research.quota.custom["license"]),
            (2.0, None, 3000)
        );
        assert_eq!((research.guaranteed.cpus, research.guaranteed.gpus), (Some(4000), Some(2000)));
        assert_eq!(changed[1], QueueSpec::new("new"));
        // The limit it keeps counts too.
        let problems =
            parse_queues("[[queue]]\nname = \"research\"\nquota.gpus = 1\n", &current).unwrap_err();
        assert!(problems.to_string().contains("above its quota"), "{problems}");
        assert!(parse_queues("[scheduling]\nmax_bypass = 1\n", &current).is_err());
    }
}
