//! Problems of a file, all reported at once, each with its line and a caret.

use crate::limits::PROBLEMS_TOLD;
use std::fmt::{self, Write as _};
use std::ops::Range;

/// Characters of a line that are shown before the place of a problem, and after it.
const SHOWN_CHARS: usize = 100;
/// The longest word that suggestions are looked for: comparing takes the product of the lengths.
const SUGGESTED_BYTES: usize = 64;

/// One thing that is wrong with a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// What is wrong: lowercase, without a full stop.
    pub message: String,
    /// Where, in bytes of the text; `None` where the whole file is meant.
    pub span: Option<Range<usize>>,
    /// What to do about it, printed behind the caret.
    pub help: Option<String>,
}

impl Problem {
    /// A problem at a place of the text.
    pub fn at(span: Range<usize>, message: impl Into<String>) -> Self {
        Problem { message: message.into(), span: Some(span), help: None }
    }

    /// A problem of the whole file.
    pub fn of_file(message: impl Into<String>) -> Self {
        Problem { message: message.into(), span: None, help: None }
    }

    /// The same with advice.
    pub fn help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self
    }

    /// Its line and column in the text, both from 1; `None` where the whole file is meant.
    pub fn place(&self, text: &str) -> Option<(usize, usize)> {
        let start = floor_boundary(text, self.span.as_ref()?.start);
        let line_start = text[..start].rfind('\n').map_or(0, |newline| newline + 1);
        let line = text[..line_start].matches('\n').count() + 1;
        Some((line, text[line_start..start].chars().count() + 1))
    }
}

/// Everything that is wrong with a file; as an error it is never empty.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Problems(pub Vec<Problem>);

impl Problems {
    /// One problem.
    pub fn one(problem: Problem) -> Self {
        Problems(vec![problem])
    }

    /// In the order of the text, and no more of them than people read.
    pub(crate) fn in_order(mut self) -> Self {
        self.0.sort_by_key(|problem| problem.span.as_ref().map_or(0, |span| span.start));
        if let Some(more) = self.0.len().checked_sub(PROBLEMS_TOLD).filter(|&more| more > 0) {
            self.0.truncate(PROBLEMS_TOLD);
            self.0.push(Problem::of_file(format!("and {more} problems more")));
        }
        self
    }

    /// `Ok(value)` if there is no problem.
    pub fn into_result<T>(mut self, value: Option<T>) -> Result<T, Problems> {
        self = self.in_order();
        match value {
            Some(value) if self.0.is_empty() => Ok(value),
            _ if self.0.is_empty() => {
                Err(Problems::one(Problem::of_file("the file cannot be read as a job")))
            }
            _ => Err(self),
        }
    }

    /// The report for people: per problem its message, place, source line and caret.
    pub fn render(&self, file: &str, text: &str) -> String {
        let mut out = String::new();
        for (index, problem) in self.0.iter().enumerate() {
            if index > 0 {
                out.push('\n');
            }
            render_problem(&mut out, problem, file, text);
        }
        out
    }
}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, problem) in self.0.iter().enumerate() {
            let separator = if index > 0 { "; " } else { "" };
            write!(f, "{separator}{}", problem.message)?;
            if let Some(help) = &problem.help {
                write!(f, " ({help})")?;
            }
        }
        Ok(())
    }
}

impl std::error::Error for Problems {}

fn render_problem(out: &mut String, problem: &Problem, file: &str, text: &str) {
    // Writing to a String cannot fail.
    let _ = writeln!(out, "error: {}", problem.message);
    let Some(span) = &problem.span else {
        let _ = writeln!(out, " --> {file}");
        if let Some(help) = &problem.help {
            let _ = writeln!(out, "  = {help}");
        }
        return;
    };
    let start = floor_boundary(text, span.start);
    let line_start = text[..start].rfind('\n').map_or(0, |newline| newline + 1);
    let line_end = text[start..].find('\n').map_or(text.len(), |newline| start + newline);
    let line_number = text[..line_start].matches('\n').count() + 1;
    let line = text[line_start..line_end].trim_end_matches('\r');
    let column = text[line_start..start].chars().count() + 1;
    let end = floor_boundary(text, span.end).clamp(start, line_end);
    let carets = text[start..end].chars().count().max(1);
    let gutter = " ".repeat(line_number.to_string().len());
    // Of a long line only what is around the place is shown.
    let before = text[line_start..start].char_indices().rev().nth(SHOWN_CHARS - 1).map_or(0, |(at, _)| at);
    let (cut, shown) = if before == 0 { ("", line) } else { ("…", line.get(before..).unwrap_or("")) };
    let shown: String = shown.chars().take(2 * SHOWN_CHARS).collect();
    let skipped = &text[line_start + before..start];
    let indent: String =
        cut.chars().chain(skipped.chars()).map(|c| if c == '\t' { '\t' } else { ' ' }).collect();
    let _ = writeln!(out, "{gutter}--> {file}:{line_number}:{column}");
    let _ = writeln!(out, "{gutter} |");
    let _ = writeln!(out, "{line_number} | {cut}{shown}");
    let help = problem.help.as_deref().map(|help| format!(" {help}")).unwrap_or_default();
    let _ = writeln!(out, "{gutter} | {indent}{}{help}", "^".repeat(carets.min(SHOWN_CHARS)));
}

/// The largest character boundary at or below `index`.
fn floor_boundary(text: &str, index: usize) -> usize {
    let mut index = index.min(text.len());
    while !text.is_char_boundary(index) {
        index -= 1;
    }
    index
}

/// ` did you mean ...?` for a word that is not among the known ones, or the list of them when it is short.
pub fn suggest(word: &str, known: &[&str]) -> Option<String> {
    let compared = if word.len() <= SUGGESTED_BYTES { known } else { &[] };
    let close =
        compared.iter().map(|&candidate| (strsim::damerau_levenshtein(word, candidate), candidate)).min();
    match close {
        Some((distance, candidate)) if distance <= 1 + word.len() / 3 => {
            Some(format!("did you mean `{candidate}`?"))
        }
        _ if known.is_empty() => None,
        _ => Some(format!("known here: {}", known.join(", "))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_caret_stands_under_the_word() {
        let text = "a = 1\n\tnäme = \"x\"\n";
        let start = text.find("\"x\"").unwrap();
        let problems = Problems::one(Problem::at(start..start + 3, "bad").help("use y"));
        let expected = "error: bad\n --> f.toml:2:9\n  |\n2 | \tnäme = \"x\"\n  | \t       ^^^ use y\n";
        assert_eq!(problems.render("f.toml", text), expected);
    }

    #[test]
    fn of_a_long_line_only_what_is_around_the_place_is_shown() {
        let text = format!("{}bad{}", "ä".repeat(100_000), "b".repeat(100_000));
        let start = text.find("bad").unwrap();
        let shown = Problems::one(Problem::at(start..text.len(), "no")).render("f.toml", &text);
        let lines: Vec<&str> = shown.lines().collect();
        assert_eq!(lines[1], " --> f.toml:1:100001");
        let at = lines[3].chars().position(|c| c == 'b').unwrap();
        assert_eq!(lines[4].chars().position(|c| c == '^'), Some(at));
        assert!(shown.chars().count() < 6 * SHOWN_CHARS, "{}", shown.len());
    }

    #[test]
    fn a_span_beyond_the_text_does_no_harm() {
        let problems = Problems::one(Problem::at(90..100, "bad"));
        assert!(problems.render("f.toml", "ä").contains("f.toml:1:2"));
    }

    #[test]
    fn of_very_many_problems_the_first_are_told() {
        let many = (0..PROBLEMS_TOLD + 50).rev().map(|at| Problem::at(at..at + 1, format!("bad {at}")));
        let told = Problems(many.collect()).into_result::<()>(None).unwrap_err();
        assert_eq!((told.0.len(), told.0[0].message.as_str()), (PROBLEMS_TOLD + 1, "bad 0"));
        assert!(told.to_string().ends_with("and 50 problems more"), "{told}");
    }

    #[test]
    fn suggestions_are_close_or_a_list() {
        assert_eq!(suggest("worker", &["workers", "cpus"]).as_deref(), Some("did you mean `workers`?"));
        assert_eq!(suggest("zzz", &["workers", "cpus"]).as_deref(), Some("known here: workers, cpus"));
    }
}
