//! TCP between any processes: a connection for data and one for control between every two ranks.

mod collectives;
mod exchange;
mod fault;
mod frame;
mod link;
pub(crate) mod mesh;
mod shards;
mod small;

pub(crate) use collectives::Tcp;
