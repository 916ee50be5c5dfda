//! SIGTERM as a wish to stop after the step under way.

use crate::Error;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// A flag that SIGTERM raises, for as long as this lives.
pub(crate) struct Terminated {
    flag: Arc<AtomicBool>,
    handler: signal_hook::SigId,
}

impl Terminated {
    pub(crate) fn on_sigterm() -> Result<Terminated, Error> {
        let flag = Arc::new(AtomicBool::new(false));
        let handler = signal_hook::flag::register(signal_hook::consts::SIGTERM, flag.clone())
            .map_err(Error::io("install a handler for", "SIGTERM"))?;
        Ok(Terminated { flag, handler })
    }

    pub(crate) fn is_raised(&self) -> bool {
        self.flag.load(Ordering::Relaxed)
    }
}

impl Drop for Terminated {
    fn drop(&mut self) {
        signal_hook::low_level::unregister(self.handler);
    }
}
