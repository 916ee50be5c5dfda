//! The job a person names: a file, stdin, or a command line.

use crate::args::Global;
use crate::failure::Failure;
use phalanx_core::spec::SweepSpec;
use phalanx_core::spec::is_sweep;
use phalanx_core::{JobSpec, Problems, overrides};
use std::io::Read;
use std::path::{Path, PathBuf};

/// A job file as text, with all `--set` in it.
#[derive(Debug)]
pub(crate) struct JobFile {
    /// What it is called in messages.
    pub(crate) shown: String,
    /// The TOML.
    pub(crate) text: String,
    /// Relative paths start here.
    pub(crate) base_dir: PathBuf,
    /// The job's name where the text has none.
    pub(crate) default_name: String,
}

impl JobFile {
    /// Reads FILE (`-` is stdin) and applies `--set`.
    pub(crate) fn read(path: &Path, global: &Global) -> Result<JobFile, Failure> {
        let shown = path.display().to_string();
        let (text, base_dir, default_name) = if path == Path::new("-") {
            let mut text = String::new();
            let read = std::io::stdin().read_to_string(&mut text);
            read.map_err(|error| Failure::usage(format!("cannot read a job from stdin: {error}")))?;
            (text, current_dir()?, "job".to_owned())
        } else {
            let text = std::fs::read_to_string(path).map_err(|error| {
                Failure::usage(format!("cannot read {shown}: {error}; is the path right?"))
            })?;
            let folder =
                path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
            let base_dir = std::path::absolute(folder)?;
            let name =
                path.file_stem().map_or_else(|| "job".to_owned(), |stem| stem.to_string_lossy().into_owned());
            (text, base_dir, name)
        };
        let file = JobFile { shown, text, base_dir, default_name };
        file.with_settings(&global.set)
    }

    /// A command as a job: nothing in it is substituted.
    pub(crate) fn of_command(command: &[String], global: &Global) -> Result<JobFile, Failure> {
        let words: toml_edit::Array = command.iter().map(String::as_str).collect();
        let mut document = toml_edit::DocumentMut::new();
        document["version"] = toml_edit::value(1);
        document["program"] = toml_edit::table();
        document["program"]["command"] = toml_edit::value(words);
        let program = command.first().map(Path::new).and_then(Path::file_name);
        let file = JobFile {
            shown: "the command".to_owned(),
            text: document.to_string(),
            base_dir: current_dir()?,
            default_name: program
                .map_or_else(|| "job".to_owned(), |name| name.to_string_lossy().into_owned()),
        };
        file.with_settings(&global.set)
    }

    /// A text that stands for a file.
    pub(crate) fn of_text(shown: &str, text: String, global: &Global) -> Result<JobFile, Failure> {
        let shown = shown.to_owned();
        let file = JobFile { shown, text, base_dir: current_dir()?, default_name: String::new() };
        file.with_settings(&global.set)
    }

    fn with_settings(mut self, settings: &[String]) -> Result<JobFile, Failure> {
        self.text = overrides::apply(&self.text, settings).map_err(|problems| self.refused(&problems))?;
        Ok(self)
    }

    /// Reads it as a job, or says every problem.
    pub(crate) fn parse(&self) -> Result<JobSpec, Failure> {
        self.problems_of_job().map_err(|problems| self.refused(&problems))
    }

    /// Reads it as a job.
    pub(crate) fn problems_of_job(&self) -> Result<JobSpec, Problems> {
        JobSpec::parse(&self.text, &self.default_name)
    }

    /// Whether it is a sweep; one that cannot be read is not.
    pub(crate) fn is_sweep(&self) -> bool {
        is_sweep(&self.text)
    }

    /// Reads it as a sweep.
    pub(crate) fn problems_of_sweep(&self) -> Result<SweepSpec, Problems> {
        SweepSpec::parse(&self.text, &self.default_name)
    }

    /// Reads it as a sweep that can be run, or says every problem.
    pub(crate) fn parse_sweep(&self) -> Result<SweepSpec, Failure> {
        SweepSpec::parse_runnable(&self.text, &self.default_name).map_err(|problems| self.refused(&problems))
    }

    /// The report of its problems.
    pub(crate) fn refused(&self, problems: &Problems) -> Failure {
        Failure::usage(problems.render(&self.shown, &self.text))
    }
}

fn current_dir() -> Result<PathBuf, Failure> {
    std::env::current_dir()
        .map_err(|error| Failure::failed(format!("cannot tell the current folder: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use phalanx_core::spec::Work;

    #[test]
    fn a_command_is_passed_on_as_it_was_typed() {
        let words = ["/bin/sh", "-c", "echo \"{lr}\" '$X' {{ \\n ä\n"].map(str::to_owned);
        let file = JobFile::of_command(&words, &Global::default()).unwrap();
        let spec = file.parse().unwrap();
        assert_eq!(spec.name, "sh");
        let Work::Program(program) = spec.work else { panic!("not a program") };
        assert_eq!(program.command, words);
    }

    #[test]
    fn settings_reach_a_command_too_and_unknown_keys_are_told() {
        let words = ["true".to_owned()];
        let global = Global { set: vec!["gang.workers=3".to_owned()], ..Global::default() };
        assert_eq!(JobFile::of_command(&words, &global).unwrap().parse().unwrap().gang.workers.max, 3);
        let global = Global { set: vec!["gang.wrokers=3".to_owned()], ..Global::default() };
        let failure = JobFile::of_command(&words, &global).unwrap().parse().unwrap_err();
        assert_eq!(failure.code, crate::failure::USAGE);
        assert!(failure.message.contains("did you mean `workers`"), "{failure}");
    }
}
