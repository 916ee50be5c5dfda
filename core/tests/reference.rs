//! `docs/reference/toml.md` names the keys that the parser knows, and no others: each of its tables says where it stands, an
//! unknown key is put there, and what the parser then says it knows is compared.
#![allow(missing_docs, clippy::unwrap_used)]

use phalanx_core::Problems;
use phalanx_core::spec::{GroupSpec, JobSpec, ServiceSpec, SweepSpec};
use std::collections::BTreeSet;

/// A key that nothing is like, so that all known ones are listed.
const UNKNOWN: &str = "qqqqqqqqqqqqqqqqqqqqqqqq";

/// The keys that are known in a table of a kind of file.
fn known(file: &str, table: &str, kind: Option<&str>) -> BTreeSet<String> {
    let kind = kind.map(|kind| format!("kind = \"{kind}\"\n")).unwrap_or_default();
    let list = matches!(table, "queue" | "objective" | "constraint");
    let head = match table {
        "" => String::new(),
        table if list => format!("[[{table}]]\n"),
        table => format!("[{table}]\n"),
    };
    let frame =
        if file == "sweep" && table != "sweep" { "[sweep]\nmetric = \"m\"\ntrials = 1\n" } else { "" };
    // Without them it is not looked at any further.
    let required = match table {
        "train" => {
            "model.kind = \"mlp\"\ndata = { kind = \"csv\", path = \"a\", target = \"b\" }\nepochs = 1\n"
        }
        _ => "",
    };
    let text = format!("{head}{kind}{UNKNOWN} = 1\n{required}{frame}");
    let parsed = match file {
        "job" => JobSpec::parse(&text, "job").err(),
        "sweep" => SweepSpec::parse(&text, "sweep").err(),
        "group" => GroupSpec::parse(&text).err(),
        "service" => ServiceSpec::parse(&text).err(),
        other => panic!("no such file: {other}"),
    };
    let Problems(problems) = parsed.unwrap_or_else(|| panic!("{file} [{table}] takes {UNKNOWN}"));
    let of_ours = problems.iter().find(|problem| problem.message.contains(UNKNOWN));
    let help = of_ours.and_then(|problem| problem.help.as_deref());
    let help = help.unwrap_or_else(|| panic!("{file} [{table}] {kind}: {problems:#?}"));
    help.strip_prefix("known here: ").unwrap().split(", ").map(str::to_owned).collect()
}

#[test]
fn every_key_is_in_the_reference_and_no_other() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/reference/toml.md");
    let page = std::fs::read_to_string(path).unwrap();
    let (mut tables, mut wrong) = (0, Vec::new());
    for part in page.split("<!-- keys of ").skip(1) {
        let (place, rest) = part.split_once(" -->").unwrap();
        let (file, table) = place.split_once(':').unwrap();
        let (table, kinds) = table.split_once('=').unwrap_or((table, ""));
        let rows = rest.trim_start().lines().take_while(|line| line.starts_with('|')).skip(2);
        let described: BTreeSet<String> = rows.map(|row| row.split('`').nth(1).unwrap().to_owned()).collect();
        let kinds: Vec<Option<&str>> = match kinds {
            "" => vec![None],
            kinds => kinds.split('|').map(|kind| Some(kind.trim())).collect(),
        };
        for kind in kinds {
            let known = known(file, table.trim(), kind);
            if known != described {
                let [missing, gone] = [&known - &described, &described - &known];
                wrong.push(format!("{place} ({kind:?}): missing {missing:?}, no more {gone:?}"));
            }
        }
        tables += 1;
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert!(tables > 30, "{tables} tables are compared");
}
