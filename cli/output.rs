//! Where what is said: results on stdout, words for people on stderr, colours and tables on a terminal only.

use crate::failure::Failure;
use serde_json::Value;
use std::io::{self, IsTerminal, Write};

/// How this invocation speaks.
#[derive(Clone, Debug)]
pub(crate) struct Output {
    /// One JSON document instead of words.
    pub(crate) json: bool,
    /// Nothing but results and errors.
    pub(crate) quiet: bool,
    /// Stdout is a terminal.
    pub(crate) stdout_is_terminal: bool,
    /// Stderr is a terminal.
    pub(crate) stderr_is_terminal: bool,
    color: bool,
}

impl Output {
    /// Looks at what is connected.
    pub(crate) fn new(json: bool, quiet: bool) -> Self {
        let no_color = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        let dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
        Output {
            json,
            quiet,
            stdout_is_terminal: io::stdout().is_terminal(),
            stderr_is_terminal: io::stderr().is_terminal(),
            color: !no_color && !dumb,
        }
    }

    /// The same, saying nothing to people.
    pub(crate) fn silent(&self) -> Output {
        Output { quiet: true, ..self.clone() }
    }

    /// Whether stdout takes colours.
    pub(crate) fn color(&self) -> bool {
        self.color && self.stdout_is_terminal
    }

    /// Whether stderr takes colours.
    pub(crate) fn stderr_color(&self) -> bool {
        self.color && self.stderr_is_terminal
    }

    /// Whether a live line may be drawn.
    pub(crate) fn live(&self) -> bool {
        self.stderr_is_terminal && !self.quiet
    }

    /// Words for people.
    pub(crate) fn say(&self, text: &str) {
        if !self.quiet {
            // Nobody there to hear it.
            let _ = writeln!(io::stderr(), "{text}");
        }
    }

    /// A result.
    pub(crate) fn line(&self, text: &str) -> Result<(), Failure> {
        let mut stdout = io::stdout().lock();
        writeln!(stdout, "{text}")?;
        Ok(stdout.flush()?)
    }

    /// The one document of `--json`.
    pub(crate) fn document(&self, document: &Value) -> Result<(), Failure> {
        self.line(&document.to_string())
    }

    /// Why the command did not do what it was asked.
    pub(crate) fn failure(&self, failure: &Failure) {
        let text = failure.message.trim_end();
        if text.is_empty() {
            return;
        }
        // Reports with carets begin with their own `error:`.
        let _ = match text.starts_with("error:") {
            true => writeln!(io::stderr(), "{text}"),
            false => writeln!(io::stderr(), "error: {text}"),
        };
    }
}
