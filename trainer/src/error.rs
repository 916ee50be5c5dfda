//! What can go wrong in a rank.

use crate::data::DataError;
use std::io;
use std::path::PathBuf;

/// Why a rank ends without having trained to the end. Messages say what to do next.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The specification cannot be read.
    #[error("cannot read the specification {}: {reason}", path.display())]
    Spec {
        /// The file.
        path: PathBuf,
        /// What the reader or the parser said.
        reason: String,
    },
    /// A variable of the environment contract is missing or makes no sense.
    #[error("the environment variable {name} is {value:?}; it must be {wanted}")]
    Environment {
        /// The variable.
        name: &'static str,
        /// What it is, if it is set.
        value: Option<String>,
        /// What was expected.
        wanted: &'static str,
    },
    /// The data cannot be learnt from.
    #[error(transparent)]
    Data(#[from] DataError),
    /// The configuration asks for something impossible with this data or gang.
    #[error("{0}")]
    Configuration(String),
    /// The model, or the framework behind it, failed.
    #[error("the model failed: {0}")]
    Model(String),
    /// The loss left the numbers.
    #[error(
        "the loss is {loss} at step {step}; {last_checkpoint}; lower `optimizer.lr`, set `clip`, or look for outliers in the data"
    )]
    Diverged {
        /// NaN or an infinity.
        loss: f64,
        /// The step, from 1.
        step: u64,
        /// What is left to go on from.
        last_checkpoint: String,
    },
    /// The checkpoint to restore is damaged or belongs to something else.
    #[error("checkpoint {}: {reason}", path.display())]
    Checkpoint {
        /// The folder.
        path: PathBuf,
        /// What is wrong and what to do.
        reason: String,
    },
    /// The other ranks, or the way to them, failed.
    #[error("rank {rank}: {source}")]
    Collective {
        /// This rank.
        rank: u32,
        /// What the collective said.
        source: phalanx_collective::Error,
    },
    /// The agent does not answer.
    #[error("the agent's socket {} {reason}; the agent of this node has gone or is stuck", path.display())]
    Agent {
        /// `$PHALANX_SOCKET`.
        path: PathBuf,
        /// What happened.
        reason: String,
    },
    /// A file of this rank's own cannot be written.
    #[error("cannot {what} {}: {source}", path.display())]
    Io {
        /// What was tried.
        what: &'static str,
        /// On which file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

impl Error {
    pub(crate) fn io(what: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Error {
        let path = path.into();
        move |source| Error::Io { what, path, source }
    }
}
