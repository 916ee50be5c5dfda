//! A text whose next token is to be predicted, cut into samples of one length.

use super::batch::Sample;
use super::error::DataError;
use super::source::Source;
use super::store::Store;
use super::tokenizer::Vocabulary;
use super::{Dataset, Targets};
use phalanx_core::spec::{HeldOut, Loss, TextData};
use std::path::Path;

/// Reads the files that `data` names. A fraction held out is the end of the text.
pub(super) fn dataset(data: &TextData, base: &Path) -> Result<Dataset, DataError> {
    let source = Source::new(base, &data.path);
    let text = read(&source)?;
    let share = |held_out: &Option<HeldOut>| match held_out {
        Some(HeldOut::Fraction(fraction)) => *fraction,
        _ => 0.0,
    };
    let held_out = [&data.validation, &data.test];
    let middle = boundary(&text, 1.0 - share(&data.validation) - share(&data.test));
    let end = boundary(&text, 1.0 - share(&data.test));
    let other =
        |held_out: &Option<HeldOut>, rest: &str| match held_out {
            None => Ok(None),
            Some(HeldOut::Fraction(_)) => Ok(Some(rest.to_owned())),
            Some(HeldOut::File(path)) => read(&Source::new(base, path)).map(Some),
            Some(HeldOut::Files { path, .. }) => Err(Source::new(base, path)
                .fail("a text is its own target; name the file alone, without `target`")),
        };
    let parts = [
        Some(text[..middle].to_owned()),
        other(held_out[0], &text[middle..end])?,
        other(held_out[1], &text[end..])?,
    ];
    let vocabulary = Vocabulary::learn(
        data.tokenizer,
        parts.iter().take(1).flatten().map(String::as_str),
        parts.iter().flatten().map(String::as_str),
    );
    let context = data.context as usize;
    let (mut tokens, mut starts) = (Vec::new(), Vec::new());
    let mut rows: [Vec<u32>; 3] = Default::default();
    for (number, part) in parts.iter().enumerate() {
        let Some(part) = part else { continue };
        let first = tokens.len();
        vocabulary.encode(part, &mut tokens);
        let count = tokens.len() - first;
        let name = ["training", "validation", "test"][number];
        if count <= context {
            return Err(source.fail(format!(
                "the {name} part has {count} tokens, and a sample needs {}: `data.context` and the one that follows; make it smaller",
                context + 1
            )));
        }
        let stride = if number == 0 { data.stride as usize } else { context };
        let row = starts.len() as u32;
        let end = source.row_number(tokens.len())? as usize;
        starts.extend((first..end - context).step_by(stride).map(|start| start as u32));
        rows[number] = (row..starts.len() as u32).collect();
    }
    let sample = Sample::Text { vocabulary: vocabulary.len(), context };
    if vocabulary.len() < 2 {
        return Err(source.fail("the text has only one different token; there is nothing to tell apart"));
    }
    let vocabulary = vocabulary.into_names();
    let [training, validation, test] = rows;
    Ok(Dataset {
        path: source.shown,
        sample,
        columns: Vec::new(),
        targets: Targets::default(),
        classes: vocabulary.clone(),
        vocabulary,
        training,
        validation,
        test,
        loss: Loss::CrossEntropy,
        scaling: Vec::new(),
        store: Store::Windows { tokens, starts, context },
    })
}

fn read(source: &Source) -> Result<String, DataError> {
    let bytes = source.read()?;
    if bytes.is_empty() {
        return Err(source.fail("the file is empty"));
    }
    String::from_utf8(bytes).map_err(|error| {
        let at = error.utf8_error().valid_up_to();
        let line = 1 + error.as_bytes()[..at].iter().filter(|byte| **byte == b'\n').count() as u64;
        DataError::Line {
            path: source.shown.clone(),
            line,
            problem: "the text is not UTF-8; save the file as UTF-8".to_owned(),
        }
    })
}

/// The end of the first `share` of a text, between two characters.
fn boundary(text: &str, share: f64) -> usize {
    text.floor_char_boundary((text.len() as f64 * share).round() as usize)
}
