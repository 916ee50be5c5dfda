//! `[train] data`: what a model learns from.

use super::kind;
use crate::spec::reader::{Table, as_number};
use serde::{Deserialize, Serialize};
use toml::de::DeValue;

/// Where samples come from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum DataSpec {
    /// A file of comma-separated values with a header.
    Csv(TableData),
    /// A Parquet file.
    Parquet(TableData),
    /// An Arrow IPC file or stream.
    Arrow(TableData),
    /// A text, whose next token is to be predicted.
    Text(TextData),
    /// Images: a folder with a folder of files for each class, or a file of the IDX or NumPy format.
    Images(ArrayData),
    /// A NumPy array (`.npy`), a sample a row.
    Npy(ArrayData),
    /// Two tensors of a safetensors file.
    Safetensors(ArrayData),
    /// None of these: the caller of the trainer brings it.
    Custom,
}

/// A table: features in columns, and one column to predict.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TableData {
    /// The file, relative to the job file's folder.
    pub path: String,
    /// The column to predict.
    pub target: String,
    /// What the model is judged on during training.
    pub validation: Option<HeldOut>,
    /// What it is judged on at the end.
    #[serde(default)]
    pub test: Option<HeldOut>,
    /// Whether features are scaled to mean 0 and variance 1 of the training part.
    pub normalize: bool,
    /// Channels, height and width, where a row of features is an image.
    #[serde(default)]
    pub shape: Option<[u32; 3]>,
    /// The one column that is read, as text.
    #[serde(default)]
    pub text: Option<TextColumn>,
    /// Features beyond so many bytes stay on disk.
    #[serde(default)]
    pub memory_bytes: Option<u64>,
}

/// A column of text.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TextColumn {
    /// Its name.
    pub column: String,
    /// What it is cut into.
    pub tokenizer: Tokenizer,
    /// Tokens of a text that count; what comes after them is left out.
    pub context: u32,
}

/// A text.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TextData {
    /// The file, relative to the job file's folder.
    pub path: String,
    /// What the model is judged on during training; a fraction is the end of the text.
    pub validation: Option<HeldOut>,
    /// What it is judged on at the end.
    pub test: Option<HeldOut>,
    /// What the text is cut into.
    pub tokenizer: Tokenizer,
    /// Tokens of a sample.
    pub context: u32,
    /// Tokens from the start of one training sample to that of the next.
    pub stride: u32,
}

/// Arrays: one of samples, one of targets.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ArrayData {
    /// The file or folder, relative to the job file's folder.
    pub path: String,
    /// The file of the targets (`images`, `npy`) or the name of their tensor (`safetensors`); none for folders of images.
    pub target: Option<String>,
    /// The name of the samples' tensor in a safetensors file.
    pub features: Option<String>,
    /// What the model is judged on during training.
    pub validation: Option<HeldOut>,
    /// What it is judged on at the end.
    pub test: Option<HeldOut>,
    /// Whether values are scaled to mean 0 and variance 1 of the training part, channel by channel for images.
    pub normalize: bool,
}

/// What a text is cut into.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Tokenizer {
    /// Its characters.
    Char,
    /// Its bytes in UTF-8.
    Byte,
    /// Pieces learnt from the training part: byte pairs merged until there are so many (Sennrich et al. 2016).
    Bpe(u32),
}

/// Samples that do not train.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum HeldOut {
    /// Another file of the same form.
    File(String),
    /// Another file, and the one of its targets.
    Files {
        /// The samples.
        path: String,
        /// Their targets.
        target: String,
    },
    /// This share of the samples, picked by the seed.
    Fraction(f64),
}

impl DataSpec {
    /// The samples held out for judging during training and at the end.
    pub fn held_out(&self) -> [Option<&HeldOut>; 2] {
        let (validation, test) = match self {
            DataSpec::Custom => return [None, None],
            DataSpec::Csv(data) | DataSpec::Parquet(data) | DataSpec::Arrow(data) => {
                (&data.validation, &data.test)
            }
            DataSpec::Text(data) => (&data.validation, &data.test),
            DataSpec::Images(data) | DataSpec::Npy(data) | DataSpec::Safetensors(data) => {
                (&data.validation, &data.test)
            }
        };
        [validation.as_ref(), test.as_ref()]
    }
}

pub(super) fn read(table: Table<'_>) -> Option<DataSpec> {
    #[derive(Clone, Copy)]
    enum Kind {
        Csv,
        Parquet,
        Arrow,
        Text,
        Images,
        Npy,
        Safetensors,
    }
    let kinds = [
        ("csv", Kind::Csv),
        ("parquet", Kind::Parquet),
        ("arrow", Kind::Arrow),
        ("text", Kind::Text),
        ("images", Kind::Images),
        ("npy", Kind::Npy),
        ("safetensors", Kind::Safetensors),
    ];
    let kind = kind(&table, &kinds)?;
    table.require("path", "path = \"data.csv\"");
    let data = match kind {
        Kind::Csv => read_table(&table).map(DataSpec::Csv),
        Kind::Parquet => read_table(&table).map(DataSpec::Parquet),
        Kind::Arrow => read_table(&table).map(DataSpec::Arrow),
        Kind::Text => read_text(&table).map(DataSpec::Text),
        Kind::Images => read_array(&table).map(DataSpec::Images),
        Kind::Npy => {
            table.require("target", "target = \"labels.npy\"");
            read_array(&table).map(DataSpec::Npy)
        }
        Kind::Safetensors => {
            table.require("target", "target = \"labels\"");
            let features = table.text("features");
            read_array(&table).map(|data| DataSpec::Safetensors(ArrayData { features, ..data }))
        }
    };
    if let Some(data) = &data {
        check_shares(&table, data);
        check_files(&table, data);
    }
    table.finish();
    data
}

fn read_table(table: &Table<'_>) -> Option<TableData> {
    table.require("target", "target = \"label\"");
    let (path, target) = (table.text("path"), table.text("target"));
    let text = table.text("text").map(|column| TextColumn {
        column,
        tokenizer: read_tokenizer(table),
        context: read_context(table),
    });
    if text.is_none() {
        for key in ["tokenizer", "vocabulary", "context"] {
            if table.has(key) {
                let message = format!("`{}` says nothing without `data.text`", table.path_of(key));
                table.problem_with_help(table.span_of(key), message, "add `text = \"COLUMN\"`");
            }
        }
    }
    let data = TableData {
        validation: read_held_out(table, "validation"),
        test: read_held_out(table, "test"),
        normalize: table.boolean("normalize").unwrap_or(true),
        shape: read_shape(table),
        memory_bytes: table.bytes("memory"),
        text,
        path: path?,
        target: target?,
    };
    for key in ["shape", "normalize", "memory"] {
        if data.text.is_some() && table.has(key) {
            let message = format!("`{}` says nothing of a column of text", table.path_of(key));
            table.problem_with_help(table.span_of(key), message, "leave it out, or take `text` out");
        }
    }
    Some(data)
}

fn read_shape(table: &Table<'_>) -> Option<[u32; 3]> {
    table.value("shape")?;
    let shape = table.integers("shape", 1..=65_536)?;
    match shape[..] {
        [channels, height, width] => Some([channels as u32, height as u32, width as u32]),
        _ => {
            let message = format!(
                "`{}` has {} numbers; it is channels, height and width",
                table.path_of("shape"),
                shape.len()
            );
            table.problem_with_help(table.span_of("shape"), message, "such as `shape = [1, 28, 28]`");
            None
        }
    }
}

fn read_context(table: &Table<'_>) -> u32 {
    table.integer("context", 1..=65_536).unwrap_or(128) as u32
}

fn read_text(table: &Table<'_>) -> Option<TextData> {
    let context = read_context(table);
    let stride = table.integer("stride", 1..=i64::from(u32::MAX)).map_or(context, |stride| stride as u32);
    if stride > context {
        let message = format!(
            "`{}` is {stride}, beyond the context of {context}, which leaves text out",
            table.path_of("stride")
        );
        table.problem_with_help(table.span_of("stride"), message, "make it at most the context");
    }
    Some(TextData {
        validation: read_held_out(table, "validation"),
        test: read_held_out(table, "test"),
        tokenizer: read_tokenizer(table),
        context,
        stride,
        path: table.text("path")?,
    })
}

fn read_array(table: &Table<'_>) -> Option<ArrayData> {
    Some(ArrayData {
        target: table.text("target"),
        features: None,
        validation: read_held_out(table, "validation"),
        test: read_held_out(table, "test"),
        normalize: table.boolean("normalize").unwrap_or(true),
        path: table.text("path")?,
    })
}

fn read_tokenizer(table: &Table<'_>) -> Tokenizer {
    #[derive(Clone, Copy, PartialEq)]
    enum Kind {
        Char,
        Byte,
        Bpe,
    }
    const DEFAULT_VOCABULARY: i64 = 1024;
    let kind = table.word("tokenizer", &[("char", Kind::Char), ("byte", Kind::Byte), ("bpe", Kind::Bpe)]);
    let vocabulary = table.integer("vocabulary", 257..=65_536);
    if vocabulary.is_some() && kind != Some(Kind::Bpe) {
        let message = format!("`{}` says nothing without `tokenizer = \"bpe\"`", table.path_of("vocabulary"));
        table.problem(table.span_of("vocabulary"), message);
    }
    match kind.unwrap_or(Kind::Char) {
        Kind::Char => Tokenizer::Char,
        Kind::Byte => Tokenizer::Byte,
        Kind::Bpe => Tokenizer::Bpe(vocabulary.unwrap_or(DEFAULT_VOCABULARY) as u32),
    }
}

fn read_held_out(table: &Table<'_>, key: &'static str) -> Option<HeldOut> {
    let value = table.value(key)?;
    match value.get_ref() {
        DeValue::String(path) => Some(HeldOut::File(path.to_string())),
        DeValue::Table(_) => {
            let files = table.table(key)?;
            files.require("path", "path = \"test-images\"");
            files.require("target", "target = \"test-labels\"");
            let (path, target) = (files.text("path"), files.text("target"));
            files.finish();
            Some(HeldOut::Files { path: path?, target: target? })
        }
        other if as_number(other) == Some(0.0) => None,
        _ => table
            .number(key, "a file or a fraction below 1", |f| (0.0..1.0).contains(&f))
            .map(HeldOut::Fraction),
    }
}

/// Fractions held out must leave something to train on.
fn check_shares(table: &Table<'_>, data: &DataSpec) {
    let share = |held_out: Option<&HeldOut>| match held_out {
        Some(HeldOut::Fraction(fraction)) => *fraction,
        _ => 0.0,
    };
    let [validation, test] = data.held_out();
    let held_out = share(validation) + share(test);
    if held_out >= 1.0 {
        let message =
            format!("`train.data` holds out {held_out} of the samples, which leaves nothing to train on");
        table.problem(table.span_of("test"), message);
    }
}

/// Files held out must be of the training file's form: two where samples and targets are apart, one where they are not.
fn check_files(table: &Table<'_>, data: &DataSpec) {
    let apart = match data {
        DataSpec::Npy(_) => true,
        DataSpec::Images(data) => data.target.is_some(),
        _ => false,
    };
    for (key, held_out) in ["validation", "test"].into_iter().zip(data.held_out()) {
        let (problem, help) = match held_out {
            Some(HeldOut::File(_)) if apart => {
                ("names samples and no targets", "write `{ path = \"…\", target = \"…\" }`")
            }
            Some(HeldOut::Files { .. }) if !apart => {
                ("names a file of targets, which this kind of data has inside", "name the one file alone")
            }
            _ => continue,
        };
        table.problem_with_help(table.span_of(key), format!("`{}` {problem}", table.path_of(key)), help);
    }
}
