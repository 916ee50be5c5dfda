//! The search: parameter spaces, samplers, early stopping and the study that joins them.
//!
//! Architecture invariant: this crate is pure. It reads no clock, no file and no global randomness; a suggestion is a
//! function of (seed, trial number, the log before it), a decision of the log alone. A [`Study`] is the only way in:
//! what it answers it also writes down as [`Record`]s, and the records rebuild it.
#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod budget;
mod error;
pub mod importance;
pub mod log;
pub mod pareto;
pub mod protocol;
mod random;
mod record;
pub mod replay;
mod results;
pub mod sampler;
pub mod space;
pub mod stopping;
mod study;
mod trial;

pub use error::Error;
pub use record::{Identity, Known, Record};
pub use space::{Point, Space};
pub use study::{Ask, Counts, Handed, Study};
pub use trial::{Decision, Lineage, Origin, Outcome, Trial, TrialState};
