//! A client of the `Sweeps` service that runs the trials of external sweeps.
#![allow(dead_code)]

use super::support::Service;
use phalanx_api::v1 as pb;
use phalanx_api::v1::sweeps_client::SweepsClient;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Status, Streaming};

pub(crate) struct Sweeper {
    pub(crate) sweeps: SweepsClient<Channel>,
    token: MetadataValue<Ascii>,
}

impl Sweeper {
    pub(crate) async fn to(service: &Service) -> Sweeper {
        let endpoint = Endpoint::from_shared(format!("http://{}", service.grpc)).unwrap();
        Sweeper {
            sweeps: SweepsClient::new(endpoint.connect().await.unwrap()),
            token: format!("Bearer {}", service.token()).parse().unwrap(),
        }
    }

    pub(crate) fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        request.metadata_mut().insert("authorization", self.token.clone());
        request
    }

    /// Makes an external sweep of a file.
    pub(crate) async fn create(&mut self, toml: &str) -> String {
        let request = pb::CreateSweepRequest {
            toml: toml.to_owned(),
            external: true,
            ..pb::CreateSweepRequest::default()
        };
        let request = self.request(request);
        self.sweeps.create(request).await.unwrap().into_inner().id
    }

    /// Asks for a trial; an empty name is none.
    pub(crate) async fn ask(&mut self, id: &str, name: &str) -> Result<pb::AskResponse, Status> {
        let request = self.request(pb::AskRequest { id: id.to_owned(), request_id: name.to_owned() });
        self.sweeps.ask(request).await.map(tonic::Response::into_inner)
    }

    /// A new trial.
    pub(crate) async fn trial(&mut self, id: &str) -> pb::Trial {
        self.ask(id, "").await.unwrap().trial.unwrap()
    }

    pub(crate) async fn report(
        &mut self,
        id: &str,
        number: u64,
        step: u64,
        value: f64,
    ) -> Result<pb::report_response::Decision, Status> {
        let request = self.request(pb::ReportRequest { id: id.to_owned(), number, step, value });
        self.sweeps.report(request).await.map(|answer| answer.into_inner().decision())
    }

    pub(crate) async fn tell(
        &mut self,
        id: &str,
        number: u64,
        values: &[f64],
        state: pb::trial::State,
    ) -> Result<pb::TellResponse, Status> {
        let (id, values, state) = (id.to_owned(), values.to_vec(), state as i32);
        let request = self.request(pb::TellRequest { id, number, values, state });
        self.sweeps.tell(request).await.map(tonic::Response::into_inner)
    }

    pub(crate) async fn watch(&mut self, id: &str, after_seq: u64) -> Streaming<pb::WatchSweepResponse> {
        let request = self.request(pb::WatchSweepRequest { id: id.to_owned(), after_seq });
        self.sweeps.watch(request).await.unwrap().into_inner()
    }
}
