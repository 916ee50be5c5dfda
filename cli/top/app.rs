//! What `top` knows and what keys do to it: no terminal, no service.

use super::curve::Curve;
use super::snapshot::Snapshot;
use crate::change::Change;
use phalanx_api::v1 as pb;
use ratatui::crossterm::event::{Event, KeyCode, KeyEvent, KeyEventKind, KeyModifiers};
use std::collections::VecDeque;

/// Looks that the curves of the cluster go back.
const HISTORY: usize = 512;
/// Rows that a page key moves by.
const PAGE: isize = 10;

/// What the main table shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pane {
    /// Jobs.
    Jobs,
    /// Sweeps.
    Sweeps,
    /// Devices of all nodes.
    Devices,
}

/// What is to be done after an event.
#[derive(Debug)]
pub(super) enum Wish {
    /// Draw again.
    Nothing,
    /// Look at the service.
    Look,
    /// Leave.
    Leave,
    /// Ask the service for a change of a job.
    Change(Change, String),
}

/// How busy the cluster was at past looks.
#[derive(Debug, Default)]
pub(super) struct History {
    /// Part of the CPUs that was held.
    pub(super) cpus: VecDeque<f64>,
    /// Part of the devices that was held.
    pub(super) gpus: VecDeque<f64>,
    /// Jobs that waited.
    pub(super) waiting: VecDeque<f64>,
}

/// The state of the screen.
pub(super) struct App {
    /// The latest look.
    pub(super) snapshot: Snapshot,
    /// Looks before it.
    pub(super) history: History,
    /// What the main table shows.
    pub(super) pane: Pane,
    /// Colours may be used.
    pub(super) color: bool,
    /// The curve of the selected job.
    pub(super) curve: Option<Curve>,
    /// Something to say, until the next key.
    pub(super) message: String,
    /// Why the service cannot be seen now.
    pub(super) trouble: Option<String>,
    /// A cancel that waits for a yes.
    pub(super) asking: Option<String>,
    /// Jobs that are over are shown, too.
    all: bool,
    /// The selected job, wherever it is in the table by now.
    selected: Option<String>,
}

impl App {
    /// At its first look.
    pub(super) fn new(snapshot: Snapshot, color: bool) -> App {
        let mut app = App {
            snapshot: Snapshot::default(),
            history: History::default(),
            pane: Pane::Jobs,
            color,
            curve: None,
            message: String::new(),
            trouble: None,
            asking: None,
            all: false,
            selected: None,
        };
        app.take(snapshot, None);
        app
    }

    /// Takes in how things are now.
    pub(super) fn take(&mut self, snapshot: Snapshot, curve: Option<Curve>) {
        let part = |(held, total): (f64, f64)| if total > 0.0 { held / total } else { 0.0 };
        let history = &mut self.history;
        for (past, now) in [
            (&mut history.cpus, part(snapshot.cpus())),
            (&mut history.gpus, part(snapshot.gpus())),
            (&mut history.waiting, snapshot.waiting() as f64),
        ] {
            if past.len() == HISTORY {
                past.pop_front();
            }
            past.push_back(now);
        }
        self.snapshot = snapshot;
        self.curve = curve;
        self.trouble = None;
        if self.selected_row().is_none() {
            self.selected = self.snapshot.jobs.first().map(|job| job.id.clone());
        }
    }

    /// The service could not be seen.
    pub(super) fn away(&mut self, why: String) {
        self.trouble = Some(why);
    }

    /// Says something.
    pub(super) fn tell(&mut self, message: String) {
        self.message = message;
    }

    /// Whether jobs that are over are to be shown.
    pub(super) fn shows_all(&self) -> bool {
        self.all
    }

    /// The id of the selected job.
    pub(super) fn selected_job(&self) -> Option<&str> {
        self.selected.as_deref()
    }

    /// Where the selected job is in the table.
    pub(super) fn selected_row(&self) -> Option<usize> {
        let id = self.selected.as_deref()?;
        self.snapshot.jobs.iter().position(|job| job.id == id)
    }

    /// What an event of the terminal asks for.
    pub(super) fn event(&mut self, event: Event) -> Wish {
        match event {
            Event::Key(key) if key.kind != KeyEventKind::Release => self.key(key),
            // A new size: drawn again.
            _ => Wish::Nothing,
        }
    }

    fn key(&mut self, key: KeyEvent) -> Wish {
        self.message.clear();
        if let Some(id) = self.asking.take() {
            return match key.code {
                KeyCode::Char('y' | 'Y') => Wish::Change(Change::Cancel, id),
                _ => Wish::Nothing,
            };
        }
        match key.code {
            KeyCode::Char('c') if key.modifiers.contains(KeyModifiers::CONTROL) => return Wish::Leave,
            KeyCode::Char('q') | KeyCode::Esc => return Wish::Leave,
            KeyCode::Up | KeyCode::Char('k') => return self.move_by(-1),
            KeyCode::Down | KeyCode::Char('j') => return self.move_by(1),
            KeyCode::PageUp => return self.move_by(-PAGE),
            KeyCode::PageDown => return self.move_by(PAGE),
            KeyCode::Home | KeyCode::Char('g') => return self.move_by(isize::MIN),
            KeyCode::End | KeyCode::Char('G') => return self.move_by(isize::MAX),
            KeyCode::Tab => {
                self.pane = match self.pane {
                    Pane::Jobs => Pane::Sweeps,
                    Pane::Sweeps => Pane::Devices,
                    Pane::Devices => Pane::Jobs,
                }
            }
            KeyCode::Char('a') => {
                self.all = !self.all;
                return Wish::Look;
            }
            KeyCode::Char('c') => self.asking = self.changeable().map(|job| job.id.clone()),
            KeyCode::Char('p') => return self.pause_or_resume(),
            _ => {}
        }
        Wish::Nothing
    }

    /// The selected job, where something can still be done about it.
    fn changeable(&mut self) -> Option<&pb::Job> {
        let job = self.snapshot.jobs.get(self.selected_row()?)?;
        if self.pane == Pane::Jobs && !job.is_terminal() {
            return Some(job);
        }
        self.message = "select a job that is not over".to_owned();
        None
    }

    fn pause_or_resume(&mut self) -> Wish {
        let Some(job) = self.changeable() else { return Wish::Nothing };
        let change = match job.state() {
            pb::job::State::Paused => Change::Resume,
            _ => Change::Pause,
        };
        Wish::Change(change, job.id.clone())
    }

    fn move_by(&mut self, rows: isize) -> Wish {
        let last = self.snapshot.jobs.len().saturating_sub(1);
        let row = self.selected_row().unwrap_or(0).saturating_add_signed(rows).min(last);
        let before = self.selected.take();
        self.selected = self.snapshot.jobs.get(row).map(|job| job.id.clone());
        if self.selected == before {
            return Wish::Nothing;
        }
        // Its curve is another one.
        self.curve = None;
        Wish::Look
    }
}
