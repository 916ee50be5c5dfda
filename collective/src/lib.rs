//! Collectives: allreduce and its kin over shared memory, TCP, both, and NCCL.
//!
//! Ranks meet with [`Communicator::connect`] (or [`Communicator::solo`] for a world of one, which costs nothing), then
//! call the same operations in the same order. On one host the data moves through shared memory, between hosts over TCP, and between GPUs
//! through NCCL, which is loaded at run time ([`Communicator::on_device`]).
//!
//! ```
//! use phalanx_collective::{Communicator, Config, ReduceOp};
//!
//! # fn main() -> Result<(), phalanx_collective::Error> {
//! let mut comm = Communicator::connect(Config::new(0, 1))?;
//! let mut gradients = comm.arena_alloc::<f32>(1024)?;
//! gradients.fill(1.0);
//! comm.allreduce(&mut gradients, ReduceOp::Mean)?;
//! assert_eq!(gradients[0], 1.0);
//! # Ok(())
//! # }
//! ```
//!
//! # What is promised
//!
//! - **The same bits everywhere.** A reduction folds along a fixed balanced binary tree over rank order,
//!   `((r0 + r1) + (r2 + r3))`, left-complete when the world is not a power of two (`(r0 + r1) + r2`). Results are equal
//!   bit for bit on every rank, in every run and on every transport but NCCL, which has an order of its own. Ranks that each fold an aligned power-of-two block of
//!   logical shards in the same tree before they reduce get identical sums for worlds 1, 2 and 4.
//! - **Death is an error, not a hang.** A lost peer, an abort or a passed deadline poisons the group: every waiting rank
//!   returns an error, and so does every later operation. After an error the contents of the buffers of that operation are
//!   unspecified, and a slow peer may still write to this communicator's [`ArenaBuffer`]s.
//! - **Mixed-up operations fail loudly** on every rank, naming both sides ([`Error::Mismatch`]). NCCL compares nothing: there
//!   they end at the deadline.
//! - **The last operations outlive a rank** in its flight recorder ([`Config::flight_dir`], [`phalanx_core::flight`]).
//!
//! Architecture invariant: this crate knows ranks and bytes, never jobs, files or models.

// Shared memory, futexes and descriptors passed between processes cannot be had without it.
#![allow(unsafe_code)]
#![warn(clippy::undocumented_unsafe_blocks)]
#![cfg_attr(test, allow(clippy::unwrap_used))]

mod arena;
mod backend;
pub mod bench;
mod communicator;
mod config;
mod convert;
mod element;
mod error;
mod fault;
mod hosts;
mod memory;
pub mod nccl;
mod on_device;
mod queue;
mod recorder;
mod reduce;
mod rendezvous;
mod shm;
mod tcp;
mod watch;

pub use arena::ArenaBuffer;
pub use communicator::{AbortHandle, Communicator};
pub use config::{
    Config, DEFAULT_OP_TIMEOUT, DEFAULT_RENDEZVOUS_TIMEOUT, MAX_STREAMS, MAX_WORLD, TransportChoice,
    WIRE_STREAMS, Wire,
};
pub use element::{DType, Element, Number, ReduceOp, shard_range};
pub use error::{AbortReason, Error, Op, Result, Signature};
pub use nccl::DeviceMemory;
pub use on_device::OnDevice;
pub use queue::Pending;
pub use recorder::{FLIGHT_OPS, OpRecord, OpState, RankRecord, RankState};
pub use rendezvous::HeldPort;

/// The transport that a communicator ended up with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Transport {
    /// A world of one: nothing moves.
    Solo,
    /// Shared memory between processes (or threads) of one host.
    Shm,
    /// TCP between any processes.
    Tcp,
    /// Shared memory on each host and TCP between them.
    Hosts,
    /// NCCL between GPUs, and one of the above for host memory.
    Nccl,
}
