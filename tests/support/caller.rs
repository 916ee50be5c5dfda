//! The way to a service's gRPC: a connection, and the token on every request.
#![allow(dead_code)]

use tonic::Request;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::{Channel, Endpoint};

#[derive(Clone)]
pub(crate) struct Caller {
    pub(crate) channel: Channel,
    token: MetadataValue<Ascii>,
}

impl Caller {
    /// To an address `HOST:PORT`.
    pub(crate) async fn to(address: &str, token: &str) -> Caller {
        let endpoint = Endpoint::from_shared(format!("http://{address}")).unwrap();
        let channel = endpoint.tcp_nodelay(true).connect().await.unwrap();
        Caller { channel, token: format!("Bearer {token}").parse().unwrap() }
    }

    pub(crate) fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        request.metadata_mut().insert("authorization", self.token.clone());
        request
    }
}
