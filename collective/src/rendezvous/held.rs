//! A port that is kept until ranks meet at it.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::{AsRawFd, OwnedFd};

use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrIn, bind, getsockname, setsockopt, socket, sockopt,
};

use crate::error::{Error, Result};

/// A free port of this host, for [`Config::master_port`](crate::Config::master_port) of a group that this rank may have to
/// host: while it is held the system gives it to nobody who asks for any, and rank 0 may listen at it by its number.
#[derive(Debug)]
pub struct HeldPort {
    /// Bound and not listened on.
    _socket: OwnedFd,
    number: u16,
}

impl HeldPort {
    /// # Errors
    /// [`Error::System`] where there is no port to be had.
    pub fn new() -> Result<HeldPort> {
        let fail = |error: nix::Error| Error::system("holding a port", error);
        let any = SockaddrIn::from(SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 0));
        let held =
            socket(AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_CLOEXEC, None).map_err(fail)?;
        setsockopt(&held, sockopt::ReuseAddr, &true).map_err(fail)?;
        bind(held.as_raw_fd(), &any).map_err(fail)?;
        let bound: SockaddrIn = getsockname(held.as_raw_fd()).map_err(fail)?;
        Ok(HeldPort { _socket: held, number: bound.port() })
    }

    /// The port.
    pub fn number(&self) -> u16 {
        self.number
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_held_port_can_be_listened_at_by_its_number_alone() {
        let held: Vec<HeldPort> = (0..32).map(|_| HeldPort::new().unwrap()).collect();
        let numbers: std::collections::BTreeSet<u16> = held.iter().map(HeldPort::number).collect();
        assert_eq!(numbers.len(), 32);
        for host in ["127.0.0.1", "0.0.0.0"] {
            std::net::TcpListener::bind((host, held[0].number())).unwrap();
        }
    }
}
