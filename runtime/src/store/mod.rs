//! What the service remembers, in its data folder.
//!
//! Two databases with two promises. [`State`] holds what the service answered or decided: a commit is on the disk when it
//! returns. [`Records`] holds what ranks wrote and reported: much more data, safe from a kill of the service at any
//! point, while a power cut may take the last moments. [`DataLock`] keeps a second service away from both, and
//! [`Endpoint`] tells programs on the machine where the service is.

#[cfg(test)]
mod contract;
mod database;
mod endpoint;
mod error;
mod events;
mod lock;
mod records;
mod secrets;
mod state;
mod sweeps;
#[cfg(test)]
mod tests;

pub use database::Access;
pub use endpoint::Endpoint;
pub use error::StoreError;
pub use lock::{DataLock, Holder};
pub use records::{Latest, LogRow, NewLine, NewPoint, PointRow, RecordBatch, RecordLimits, Records};
pub use secrets::Secrets;
pub use state::{Loaded, State, Write};
