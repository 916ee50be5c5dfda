//! Nodes as the loop shows and drains them.

use super::control::Control;
use super::{DeviceStatus, NodeStatus};
use crate::error::Error;
use crate::store::Write;
use phalanx_core::{NewEvent, NodeName};
use std::collections::BTreeMap;

impl Control {
    /// Drains a node once that is committed; where it fails it has not happened.
    pub(super) async fn drain(&mut self, node: &str, drain: bool, actor: &str) -> Result<(), Error> {
        let (record, before) = self.controller.drain(node, drain)?;
        let action = if drain { "node.drain" } else { "node.undrain" };
        let event = NewEvent::new(actor, action, &record.name, "");
        let writes = [Write::Node { record }, Write::Event(event)];
        let committed = self.shared.state.commit(&writes).await;
        if committed.is_err() {
            self.controller.drain(node, before)?;
        }
        self.shared.notifier.notify_states();
        committed.map(drop).map_err(Error::Store)
    }

    pub(super) fn node_status(&self) -> Vec<NodeStatus> {
        let views = self.controller.cluster().nodes();
        let states: BTreeMap<&NodeName, _> =
            self.controller.nodes().map(|node| (&node.record.name, node.state())).collect();
        let status = views.filter_map(|view| {
            let device_use = self.device_use.get(view.name);
            let used =
                |at: usize| device_use.and_then(|devices| devices.get(at)).copied().unwrap_or_default();
            let devices = view.devices.iter().enumerate().map(|(at, device)| DeviceStatus {
                device: device.device.clone(),
                free_shares: if device.quarantined { 0 } else { device.free },
                memory_used_bytes: used(at).0,
                utilization: used(at).1,
            });
            Some(NodeStatus {
                name: view.name.clone(),
                state: *states.get(view.name)?,
                capacity: view.capacity.clone(),
                cpus_free: view.cpus_free,
                memory_free_bytes: view.memory_free_bytes,
                custom_free: view.custom_free.clone(),
                devices: devices.collect(),
            })
        });
        status.collect()
    }
}
