//! TCP between any processes: connections for data and one for control between every two ranks.

mod collectives;
mod exchange;
mod fault;
mod frame;
mod link;
pub(crate) mod mesh;
mod shards;
mod small;

pub(crate) use collectives::{Tcp, Team, is_small};
pub(crate) use exchange::Running;
pub(crate) use fault::{Clash, TcpFault};
pub(crate) use small::Small;
