//! What a site has set, and where it was said.

use super::DEFAULT_NODE_TIMEOUT;
use phalanx_core::quantity::{format_bytes, format_milli};
use phalanx_core::spec::{DEFAULT_QUEUE, Limits, QueueSpec, ServiceSpec};
use phalanx_scheduler::Policy;
use std::collections::BTreeMap;
use std::time::Duration;

/// The key of how long an agent may be silent.
const NODE_TIMEOUT: &str = "node_timeout";
/// Where a setting comes from that nobody has set.
const DEFAULT: &str = "default";
/// Where a queue comes from that was set over the API.
const API: &str = "API";

/// A configuration with the origin of what it sets.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Site {
    /// What it sets.
    pub spec: ServiceSpec,
    /// By the path of a key: `config.toml:7`, or the variable or the flag that it was said with.
    pub origins: BTreeMap<String, String>,
}

/// One setting in force.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Setting {
    /// Its path, such as `scheduling.max_bypass` or `queue.team.quota.gpus`.
    pub key: String,
    /// Its value as TOML has it.
    pub value: String,
    /// Where it was said.
    pub origin: String,
}

impl Site {
    /// How long an agent may be silent.
    pub fn node_timeout(&self) -> Duration {
        self.spec.node_timeout.unwrap_or(DEFAULT_NODE_TIMEOUT)
    }

    /// Stays with the one that the agents were told.
    pub(super) fn keep_node_timeout(&mut self, before: &Site) {
        self.spec.node_timeout = before.spec.node_timeout;
        match before.origins.get(NODE_TIMEOUT) {
            Some(origin) => drop(self.origins.insert(NODE_TIMEOUT.to_owned(), origin.clone())),
            None => drop(self.origins.remove(NODE_TIMEOUT)),
        }
    }

    /// All settings in force, with the queues that were set over the API.
    pub fn settings(&self, api: &[QueueSpec]) -> Vec<Setting> {
        let mut settings = vec![self.setting(NODE_TIMEOUT, in_time(self.node_timeout()))];
        let mut queues = BTreeMap::from([(DEFAULT_QUEUE, (QueueSpec::new(DEFAULT_QUEUE), false))]);
        queues.extend(self.spec.queues.iter().map(|queue| (queue.name.as_str(), (queue.clone(), false))));
        queues.extend(api.iter().map(|queue| (queue.name.as_str(), (queue.clone(), true))));
        for (queue, from_api) in queues.values() {
            for (key, value) in keys_of(queue) {
                let mut setting = self.setting(&key, value);
                if *from_api {
                    setting.origin = API.to_owned();
                }
                settings.push(setting);
            }
        }
        let policy = Policy::from(&self.spec.scheduling);
        let grace = self.spec.scheduling.grace;
        let grace = grace.map_or("\"the job's own\"".to_owned(), |grace| grace.as_secs_f64().to_string());
        settings.extend([
            self.setting("scheduling.grace_seconds", grace),
            self.setting("scheduling.max_bypass", policy.max_bypass.to_string()),
            self.setting("scheduling.resize_interval", in_time(policy.resize_interval)),
            self.setting("scheduling.share_half_life", in_time(policy.share_half_life)),
            self.setting("scheduling.las_threshold_seconds", policy.las_threshold_seconds.to_string()),
            self.setting("scheduling.las_preemptions", policy.las_preemptions.to_string()),
        ]);
        settings
    }

    /// A setting; one that is a part of an inline table stands where the table does.
    fn setting(&self, key: &str, value: String) -> Setting {
        let origin = self.origins.get(key).cloned().unwrap_or_else(|| DEFAULT.to_owned());
        Setting { key: key.to_owned(), value, origin }
    }
}

fn keys_of(queue: &QueueSpec) -> Vec<(String, String)> {
    let key = |name: &str| format!("queue.{}.{name}", queue.name);
    let mut keys = vec![
        (key("weight"), queue.weight.to_string()),
        (key("discipline"), format!("\"{}\"", queue.discipline())),
    ];
    for (name, limits) in [("guaranteed", &queue.guaranteed), ("quota", &queue.quota)] {
        keys.extend(limit_keys(limits).map(|(kind, value)| (key(&format!("{name}.{kind}")), value)));
    }
    keys
}

fn limit_keys(limits: &Limits) -> impl Iterator<Item = (String, String)> {
    limits.named().map(|(kind, amount)| match kind {
        "memory" => (kind.to_owned(), format!("\"{}\"", format_bytes(amount))),
        "cpus" | "gpus" => (kind.to_owned(), format_milli(amount)),
        custom => (format!("resources.{custom}"), format_milli(amount)),
    })
}

fn in_time(duration: Duration) -> String {
    format!("\"{}s\"", duration.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_setting_says_where_it_comes_from() {
        let text = "version = 1\n[[queue]]\nname = \"team\"\nquota = { gpus = 1.5, memory = \"1GiB\" }\n[scheduling]\nmax_bypass = 3\n";
        let spec = ServiceSpec::parse(text).unwrap();
        let origins = spec.lines.iter().map(|(key, line)| (key.clone(), format!("c:{line}"))).collect();
        let site = Site { spec, origins };
        let settings = site.settings(&[QueueSpec { weight: 3.0, ..QueueSpec::new("new") }]);
        let said: Vec<String> =
            settings.iter().map(|s| format!("{} = {} # {}", s.key, s.value, s.origin)).collect();
        for line in [
            "node_timeout = \"15s\" # default",
            "queue.default.weight = 1 # default",
            "queue.new.weight = 3 # API",
            "queue.team.quota.gpus = 1.5 # c:4",
            "queue.team.quota.memory = \"1GiB\" # c:4",
            "scheduling.max_bypass = 3 # c:6",
            "scheduling.share_half_life = \"86400s\" # default",
        ] {
            assert!(said.iter().any(|have| have == line), "{line} is not in {said:#?}");
        }
    }
}
