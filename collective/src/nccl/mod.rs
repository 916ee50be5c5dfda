//! Collectives between GPUs through NCCL, which is loaded at run time.
//!
//! [`Communicator::on_device`](crate::Communicator::on_device) is the way in for training; [`Library`] and [`Comm`] are NCCL
//! itself with every failure an [`Error`](crate::Error), for programs that have streams and memory of their own.

mod comm;
mod device;
mod group;
mod library;

pub use comm::{Comm, Patience, Span, Step};
pub use device::{DeviceBuffer, DeviceMemory, device_count};
pub use library::{Library, UNIQUE_ID_BYTES, UniqueId};

pub(crate) use device::Device;
pub(crate) use group::{Nccl, Prepared};
