//! From files to a dataset: which samples train, which classes there are, what is normalised.

use super::error::{CellProblem, DataError};
use super::source::{Places, Source};
use super::store::Store;
use super::table::shown;
use super::target::{self, Cells, Class, Targets};
use super::{Dataset, Sample, scaling};
use crate::random::Stream;
use crate::sampler::Permutation;
use phalanx_core::spec::{HeldOut, Loss};
use std::collections::BTreeMap;
use std::path::Path;

/// The targets of one file.
pub(super) struct Part {
    pub(super) source: Source,
    pub(super) targets: Cells,
    pub(super) places: Places,
}

/// What readers have found: the training file's samples first, then those of other files.
pub(super) struct Found {
    pub(super) sample: Sample,
    pub(super) columns: Vec<String>,
    pub(super) vocabulary: Vec<String>,
    pub(super) store: Store,
    pub(super) training: Part,
    pub(super) validation: Option<Part>,
    pub(super) test: Option<Part>,
}

/// What the job file asks of it.
pub(super) struct Wanted<'a> {
    /// The validation and the test part.
    pub(super) held_out: [Option<&'a HeldOut>; 2],
    pub(super) normalize: bool,
    pub(super) loss: Option<Loss>,
    pub(super) seed: u64,
}

/// Which rows of a file are for what.
#[derive(Debug, Default)]
pub(super) struct Picked {
    pub(super) training: Vec<u32>,
    pub(super) validation: Vec<u32>,
    pub(super) test: Vec<u32>,
}

/// Rows in the file's order; which is which depends on the seed alone.
pub(super) fn pick(path: &Path, rows: usize, fractions: [f64; 2], seed: u64) -> Result<Picked, DataError> {
    let source = Source { shown: path.to_owned(), path: path.to_owned() };
    let total = source.row_number(rows)?;
    let [validation, test] = fractions.map(|fraction| (rows as f64 * fraction).round() as u64);
    for (name, fraction, count) in [("validation", fractions[0], validation), ("test", fractions[1], test)] {
        if fraction > 0.0 && (count == 0 || validation + test >= rows as u64) {
            let side = if count == 0 { "held-out" } else { "training" };
            return Err(source
                .fail(format!("`data.{name}` is {fraction} of {rows} rows, which leaves no {side} row")));
        }
    }
    let order = Permutation::new(rows as u64, seed, Stream::Split);
    let mut role = vec![0u8; rows];
    for place in 0..validation + test {
        role[order.at(place) as usize] = if place < validation { 1 } else { 2 };
    }
    let of = |wanted: u8| (0..total).filter(|&row| role[row as usize] == wanted).collect();
    Ok(Picked { training: of(0), validation: of(1), test: of(2) })
}

impl Found {
    /// Splits, numbers the classes and normalises.
    pub(super) fn assemble(self, wanted: &Wanted<'_>) -> Result<Dataset, DataError> {
        let Found { sample, columns, vocabulary, store, training: first, validation, test } = self;
        let fraction = |held_out: Option<&HeldOut>| match held_out {
            Some(HeldOut::Fraction(fraction)) => *fraction,
            _ => 0.0,
        };
        let rows = first.targets.len();
        let fractions = wanted.held_out.map(fraction);
        let mut picked = pick(&first.source.shown, rows, fractions, wanted.seed)?;
        let loss = wanted.loss.unwrap_or_else(|| target::default_loss(&first.targets));
        let mut labelled = Labelled::default();
        let held_out = [&picked.validation[..], &picked.test[..]].concat();
        labelled.add(&first, loss, &picked.training, &held_out)?;
        let mut start = rows;
        for (part, into) in [(&validation, &mut picked.validation), (&test, &mut picked.test)] {
            if let Some(part) = part {
                let end = first.source.row_number(start + part.targets.len())?;
                labelled.add(part, loss, &[], &(0..part.targets.len() as u32).collect::<Vec<_>>())?;
                *into = (start as u32..end).collect();
                start = end as usize;
            }
        }
        let classes: Vec<String> = labelled.numbered.keys().map(ToString::to_string).collect();
        if loss == Loss::CrossEntropy && classes.len() < 2 {
            return Err(first.source.fail(one_class(&first.places, &classes)));
        }
        let mut data = Dataset {
            path: first.source.shown,
            sample,
            columns,
            targets: match loss {
                Loss::CrossEntropy => Targets::Classes(labelled.classes),
                Loss::Mse | Loss::Mae | Loss::Bce => Targets::Values(labelled.values),
            },
            classes,
            vocabulary,
            training: picked.training,
            validation: picked.validation,
            test: picked.test,
            loss,
            scaling: Vec::new(),
            store,
        };
        if wanted.normalize {
            normalize(&mut data)?;
        }
        Ok(data)
    }
}

fn one_class(places: &Places, classes: &[String]) -> String {
    let class = classes.first().map_or("", String::as_str);
    let targets = match places {
        Places::Bytes(_, column) | Places::Rows(column) => format!("the column `{column}` has"),
        Places::Entries => "the targets have".to_owned(),
        Places::Files(_) => "the folder has".to_owned(),
    };
    format!("{targets} only the class `{class}`; there is nothing to tell apart")
}

fn normalize(data: &mut Dataset) -> Result<(), DataError> {
    let parts = match data.sample {
        Sample::Features(width) => width,
        Sample::Image([channels, ..]) => channels,
        Sample::Tokens { .. } | Sample::Text { .. } => return Ok(()),
    };
    let width = data.sample.width().unwrap_or(parts);
    data.scaling = scaling::fit(&data.store, width, parts, &data.training)?;
    if let Some(values) = data.store.values_mut() {
        scaling::scale(values, width, &data.scaling);
    }
    Ok(())
}

/// Targets of one file or of several, under the classes of the first one's training rows.
#[derive(Default)]
struct Labelled {
    numbered: BTreeMap<Class, u32>,
    classes: Vec<u32>,
    values: Vec<f32>,
}

impl Labelled {
    fn add(&mut self, part: &Part, loss: Loss, training: &[u32], held_out: &[u32]) -> Result<(), DataError> {
        let fail = |(row, problem): (usize, CellProblem)| part.source.fail_target(&part.places, row, problem);
        if loss != Loss::CrossEntropy {
            self.values.append(&mut target::values(&part.targets, loss).map_err(fail)?);
            return Ok(());
        }
        let first = self.numbered.is_empty();
        let text = match self.numbered.keys().next() {
            // Another file reads as its training file does.
            Some(class) => matches!(class, Class::Text(_)),
            None => target::is_text(&part.targets),
        };
        let found = target::classes(&part.targets, text).map_err(fail)?;
        if first {
            self.numbered = target::number_classes(&found, training);
        }
        for &row in held_out {
            let class = &found[row as usize];
            if !self.numbered.contains_key(class) {
                let problem = CellProblem::UnseenClass(shown(&class.to_string()));
                return Err(fail((row as usize, problem)));
            }
        }
        self.classes.extend(found.iter().map(|class| self.numbered[class]));
        Ok(())
    }
}
