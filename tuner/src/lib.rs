//! The search: parameter spaces, samplers, early stopping and the study that joins them.
//!
//! Architecture invariant: this crate is pure. It reads no clock, no file and no global randomness; a suggestion is a
//! function of (seed, trial number, the log before it), a decision of the log alone. A [`Study`] is the only way in:
//! what it answers it also writes down as [`Record`]s, and the records rebuild it.
#![cfg_attr(test, allow(clippy::unwrap_used))]

mod error;
pub mod log;
pub mod protocol;
mod random;
pub mod replay;
pub mod sampler;
pub mod space;
pub mod stopping;
mod study;
mod trial;

pub use error::Error;
pub use space::{Point, Space};
pub use study::{Ask, Handed, Identity, Record, Study};
pub use trial::{Decision, Origin, Outcome, Trial, TrialState};
