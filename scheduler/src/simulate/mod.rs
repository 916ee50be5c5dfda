//! The production scheduler over a scenario, on a virtual clock.

mod chart;
mod engine;
mod outcome;
mod statistics;

pub use chart::{gantt, svg};
pub use engine::{Clock, simulate};
pub use outcome::{Attempt, JobOutcome, Outcome, PlacedRank, Summary, Told};

#[cfg(test)]
mod seeded;
#[cfg(test)]
mod tests;
