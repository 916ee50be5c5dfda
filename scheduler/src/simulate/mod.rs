//! The production scheduler over a scenario, on a virtual clock.

mod engine;
mod outcome;
mod statistics;

pub use engine::{Clock, simulate};
pub use outcome::{Attempt, JobOutcome, Outcome, PlacedRank, Summary, Told};

#[cfg(test)]
mod tests;
