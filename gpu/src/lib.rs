//! The devices: what GPUs this machine has, how they are linked, how busy they are, and how a rank is shown its own.
//!
//! The driver is loaded at run time: a machine without one has no GPUs and no error, and [`Inventory::note`] says why.
//! Architecture invariant: nothing here links against a vendor's library, and no driver, however broken or slow, makes
//! a caller panic or wait longer than [`ANSWER_TIMEOUT`].
#![cfg_attr(test, allow(clippy::unwrap_used))]

mod declared;
mod driver;
mod libraries;
mod probe;

pub use declared::{declared, visible_devices};
pub use driver::{ANSWER_TIMEOUT, Driver, DriverError, Usage, inventory, usage};
pub use libraries::{cuda_driver, libtorch, load_libtorch_cuda, nccl};
pub use phalanx_core::{Link, Links};
pub use probe::Inventory;
