//! A client of the `Sweeps` service that runs the trials of external sweeps.
#![allow(dead_code)]

#[path = "caller.rs"]
mod caller;

use super::support::Service;
use caller::Caller;
use phalanx_api::v1 as pb;
use phalanx_api::v1::sweeps_client::SweepsClient;
use tonic::transport::Channel;
use tonic::{Request, Status, Streaming};

pub(crate) struct Sweeper {
    pub(crate) sweeps: SweepsClient<Channel>,
    caller: Caller,
}

impl Sweeper {
    pub(crate) async fn to(service: &Service) -> Sweeper {
        let caller = Caller::to(&service.grpc, &service.token()).await;
        Sweeper { sweeps: SweepsClient::new(caller.channel.clone()), caller }
    }

    pub(crate) fn request<T>(&self, message: T) -> Request<T> {
        self.caller.request(message)
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
        self.tell_all(pb::TellRequest { id, number, values, state, ..Default::default() }).await
    }

    pub(crate) async fn tell_all(&mut self, told: pb::TellRequest) -> Result<pb::TellResponse, Status> {
        let request = self.request(told);
        self.sweeps.tell(request).await.map(tonic::Response::into_inner)
    }

    pub(crate) async fn watch(&mut self, id: &str, after_seq: u64) -> Streaming<pb::WatchSweepResponse> {
        let request = self.request(pb::WatchSweepRequest { id: id.to_owned(), after_seq });
        self.sweeps.watch(request).await.unwrap().into_inner()
    }
}
