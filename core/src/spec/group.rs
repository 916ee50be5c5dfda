//! A standing placement group: bundles that are held without a program, for jobs to run in.

use super::gang::{self, GangSpec};
use super::job::{parse_document, read_queue, read_version};
use super::queue::DEFAULT_QUEUE;
use super::reader::{Sink, Table};
use crate::diagnostic::Problems;
use crate::limits::{NAME_BYTES, SPEC_FILE_BYTES};
use serde::{Deserialize, Serialize};
use std::fmt;

/// The namespace of a group that names none.
pub const DEFAULT_NAMESPACE: &str = "default";

/// The name of a group, unique in its namespace: `NAME` in the namespace `default`, else `NAMESPACE/NAME`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct GroupName {
    /// Its namespace.
    pub namespace: String,
    /// Its name there.
    pub name: String,
}

impl GroupName {
    /// A name from its parts; an empty namespace is the default. The message says what is wrong.
    pub fn new(namespace: &str, name: &str) -> Result<Self, String> {
        let namespace = if namespace.is_empty() { DEFAULT_NAMESPACE } else { namespace };
        for (what, text) in [("namespace", namespace), ("name", name)] {
            let legal = |c: char| c.is_alphanumeric() || matches!(c, '-' | '_' | '.');
            if text.is_empty() || text.len() > NAME_BYTES || !text.chars().all(legal) {
                return Err(format!(
                    "the {what} of a placement group has 1 to {NAME_BYTES} bytes of letters, digits, `-`, `_` and `.`"
                ));
            }
        }
        Ok(GroupName { namespace: namespace.to_owned(), name: name.to_owned() })
    }

    /// Reads `NAME` or `NAMESPACE/NAME`; the message says what is wrong.
    pub fn parse(text: &str) -> Result<Self, String> {
        let (namespace, name) = text.split_once('/').unwrap_or((DEFAULT_NAMESPACE, text));
        if namespace.is_empty() {
            return Err("an empty namespace before `/`; leave the `/` out for the default one".to_owned());
        }
        GroupName::new(namespace, name)
    }
}

impl fmt::Display for GroupName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.namespace.as_str() {
            DEFAULT_NAMESPACE => f.write_str(&self.name),
            namespace => write!(f, "{namespace}/{}", self.name),
        }
    }
}

/// A valid placement group, as its file says it: `[gang]` is its bundles, `workers` how many there are.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupSpec {
    /// Its name.
    pub name: GroupName,
    /// The queue it waits in and whose quota it counts against.
    pub queue: String,
    /// Higher goes first.
    pub priority: i32,
    /// Its bundles, one a worker, all of them held as long as it stands.
    pub gang: GangSpec,
}

impl GroupSpec {
    /// Reads and checks a group's file. On failure every problem is told.
    pub fn parse(text: &str) -> Result<GroupSpec, Problems> {
        let document = parse_document(text, SPEC_FILE_BYTES)?;
        let sink = Sink::default();
        let table = Table::root(&document, &sink);
        read_version(&table);
        table.require("name", "name = \"pool\"");
        let namespace = table.text("namespace").unwrap_or_default();
        let name = table.text("name").and_then(|name| match GroupName::new(&namespace, &name) {
            Ok(name) => Some(name),
            Err(message) => {
                table.problem(table.span_of("name"), message);
                None
            }
        });
        let spec = name.map(|name| GroupSpec {
            name,
            queue: read_queue(&table).unwrap_or_else(|| DEFAULT_QUEUE.to_owned()),
            priority: table.integer("priority", i64::from(i32::MIN)..=i64::from(i32::MAX)).unwrap_or(0)
                as i32,
            gang: table.table("gang").map(gang::read).unwrap_or_default(),
        });
        for key in ["queue", "priority", "gang"] {
            table.has(key);
        }
        if let Some(spec) = &spec {
            check_gang(&table, &spec.gang);
        }
        table.note_unknown();
        sink.into_problems().into_result(spec)
    }
}

fn check_gang(table: &Table<'_>, gang: &GangSpec) {
    if gang.workers.min != gang.workers.max {
        table.problem(
            table.span_of("gang"),
            "the bundles of a placement group are fixed; give `workers` one number",
        );
    }
    if gang.group.is_some() {
        table.problem(
            table.span_of("gang"),
            "a placement group cannot stand in another one; take `group` out",
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_group_reads() {
        let text = "version = 1\nname = \"pool\"\npriority = 3\n[gang]\nworkers = 4\ncpus = 0.5\nplacement = \"spread\"\n";
        let spec = GroupSpec::parse(text).unwrap();
        assert_eq!(
            (spec.name.to_string().as_str(), spec.priority, spec.queue.as_str()),
            ("pool", 3, "default")
        );
        assert_eq!((spec.gang.workers.max, spec.gang.each.cpus.milli()), (4, 500));
        let spec = GroupSpec::parse(&format!("namespace = \"team\"\n{text}")).unwrap();
        assert_eq!(spec.name.to_string(), "team/pool");
        assert_eq!(GroupName::parse("team/pool"), Ok(spec.name));
    }

    #[test]
    fn what_is_wrong_with_a_group_is_told() {
        for (text, says) in [
            ("version = 1\n", "`name` is missing"),
            ("version = 1\nname = \"a/b\"\n", "letters, digits"),
            ("version = 1\nname = \"a\"\n[gang]\nworkers = { min = 1, max = 2 }\n", "are fixed"),
            ("version = 1\nname = \"a\"\n[gang]\ngroup = \"b\"\n", "cannot stand in another"),
            ("version = 1\nname = \"a\"\ncolour = 1\n", "colour"),
            ("version = 2\nname = \"a\"\n", "reads version 1"),
        ] {
            let problems = GroupSpec::parse(text).unwrap_err().to_string();
            assert!(problems.contains(says), "{problems}");
        }
        for text in ["", "/a", "a/", "a/b/c", "a b"] {
            assert!(GroupName::parse(text).is_err(), "{text}");
        }
    }
}
