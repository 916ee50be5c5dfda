//! Keys and other events of the terminal, read by a thread: the terminal can only be waited for.

use crate::failure::Failure;
use ratatui::crossterm::event::{self, Event};
use std::io;
use std::time::Duration;
use tokio::sync::mpsc;

/// Events that wait to be heard.
const WAITING: usize = 64;
/// The thread notices within this that nobody listens any more.
const LOOK: Duration = Duration::from_millis(100);

/// The events, for as long as it lives.
pub(super) struct Keys(mpsc::Receiver<io::Result<Event>>);

impl Keys {
    /// Listens from now on.
    pub(super) fn listen() -> Keys {
        let (sender, receiver) = mpsc::channel(WAITING);
        // Cancel: it ends by itself once the receiver is gone. Error: it is the last thing sent.
        std::thread::spawn(move || {
            while !sender.is_closed() {
                let event = match event::poll(LOOK) {
                    Ok(false) => continue,
                    Ok(true) => event::read(),
                    Err(error) => Err(error),
                };
                let failed = event.is_err();
                if sender.blocking_send(event).is_err() || failed {
                    return;
                }
            }
        });
        Keys(receiver)
    }

    /// The next event.
    pub(super) async fn next(&mut self) -> Result<Event, Failure> {
        match self.0.recv().await {
            Some(event) => Ok(event?),
            None => Err(Failure::failed("the terminal is gone")),
        }
    }
}
