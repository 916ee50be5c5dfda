//! Nodes, queues and the newest sweeps as pages see them, reckoned once for all who look.

use crate::convert;
use phalanx_api::json;
use phalanx_runtime::Error;
use phalanx_runtime::service::Handle;
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// How old what is shown may be: the use of devices changes without anybody saying so.
const AGE: Duration = Duration::from_secs(1);
/// Between two looks, however much changes.
const GAP: Duration = Duration::from_millis(100);
/// Sweeps that are shown; older ones are asked for.
const SWEEPS: u32 = 100;

/// A document, the same for everybody; empty before the first look.
pub(super) type Shown = Arc<str>;

/// What is shown, and who looks.
#[derive(Clone, Debug)]
pub(super) struct Board {
    handle: Handle,
    nodes: watch::Sender<Shown>,
    queues: watch::Sender<Shown>,
    sweeps: watch::Sender<Shown>,
}

impl Board {
    pub(super) fn new(handle: Handle) -> Board {
        let empty = || watch::channel(Shown::from("")).0;
        Board { handle, nodes: empty(), queues: empty(), sweeps: empty() }
    }

    /// All nodes, now and whenever they change.
    pub(super) async fn nodes(&self) -> Result<watch::Receiver<Shown>, Error> {
        let receiver = self.nodes.subscribe();
        self.look_at_nodes().await?;
        Ok(receiver)
    }

    /// All queues, now and whenever they change.
    pub(super) async fn queues(&self) -> Result<watch::Receiver<Shown>, Error> {
        let receiver = self.queues.subscribe();
        self.look_at_queues().await?;
        Ok(receiver)
    }

    /// The newest sweeps, now and whenever one of them changes.
    pub(super) async fn sweeps(&self) -> Result<watch::Receiver<Shown>, Error> {
        let receiver = self.sweeps.subscribe();
        self.look_at_sweeps().await?;
        Ok(receiver)
    }

    /// Looks again while anybody watches. Cancel: nothing is lost. Error: the service is going; so are those who watch.
    pub(super) async fn run(self, shutdown: CancellationToken) {
        let mut changes = self.handle.job_changes();
        loop {
            tokio::select! {
                _ = changes.changed() => {}
                () = tokio::time::sleep(AGE) => {}
                () = shutdown.cancelled() => return,
            }
            if self.nodes.receiver_count() > 0 {
                let _ = self.look_at_nodes().await;
            }
            if self.queues.receiver_count() > 0 {
                let _ = self.look_at_queues().await;
            }
            if self.sweeps.receiver_count() > 0 {
                let _ = self.look_at_sweeps().await;
            }
            tokio::time::sleep(GAP).await;
        }
    }

    async fn look_at_nodes(&self) -> Result<(), Error> {
        let nodes = self.handle.nodes().await?;
        let nodes: Vec<Value> = nodes.iter().map(|node| json::node(&convert::node(node))).collect();
        show(&self.nodes, &json!({ "nodes": nodes }));
        Ok(())
    }

    async fn look_at_queues(&self) -> Result<(), Error> {
        let queues = self.handle.queues().await?.into_iter();
        let queues: Vec<Value> = queues.map(|queue| json::queue(&convert::queue(queue))).collect();
        show(&self.queues, &json!({ "queues": queues }));
        Ok(())
    }

    async fn look_at_sweeps(&self) -> Result<(), Error> {
        let sweeps = self.handle.sweeps(None, SWEEPS).await?;
        let sweeps: Vec<Value> = sweeps.iter().map(|sweep| json::sweep(&sweep.into())).collect();
        show(&self.sweeps, &json!({ "sweeps": sweeps }));
        Ok(())
    }
}

fn show(to: &watch::Sender<Shown>, document: &Value) {
    let text = document.to_string();
    to.send_if_modified(|shown| {
        let changed = **shown != text;
        if changed {
            *shown = text.into();
        }
        changed
    });
}
