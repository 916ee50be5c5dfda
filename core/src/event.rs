//! What happened, as the service remembers it: who did what to what, and what became of it.

use crate::time::Time;

/// The actor of what the service does by itself.
pub const SERVICE: &str = "service";
/// The actor of what an agent says.
pub const AGENT: &str = "agent";

/// Something that happened, before it has its number.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewEvent {
    /// Who did it.
    pub actor: String,
    /// What was done, such as `job.submit` or `node.lost`.
    pub action: String,
    /// To what: an id or a name.
    pub target: String,
    /// More, for people; never the value of a secret.
    pub text: String,
}

impl NewEvent {
    /// An event of its parts.
    pub fn new(actor: &str, action: &str, target: impl ToString, text: impl Into<String>) -> NewEvent {
        NewEvent {
            actor: actor.to_owned(),
            action: action.to_owned(),
            target: target.to_string(),
            text: text.into(),
        }
    }
}

/// Something that happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// Counts all events of the service.
    pub seq: u64,
    /// When it was.
    pub time: Time,
    /// What it was.
    pub what: NewEvent,
}
