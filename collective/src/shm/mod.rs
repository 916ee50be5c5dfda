//! Shared memory between the ranks of one host.

mod collectives;
mod group;
mod handoff;
mod messages;
mod segment;
mod staging;
mod word;

pub(crate) use group::{Running, Shm, ShmFault};
pub(crate) use handoff::{Offer, fetch};
pub(crate) use segment::{Layout, Segment};
