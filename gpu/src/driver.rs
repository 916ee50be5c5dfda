//! The driver behind a thread of its own.
//!
//! A driver whose device fell off the bus may keep a call for minutes, or for ever. Every call therefore runs on one
//! thread, and callers wait for the answer with a bound; a driver that missed it once is not asked again until it has
//! answered.
//!
//! Cancel: dropping the [`Driver`] lets the thread end after its current call. Error: each call's error is its answer.

use std::ffi::OsString;
use std::path::Path;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, SyncSender, TrySendError, channel, sync_channel};
use std::sync::{Mutex, OnceLock};
use std::time::Duration;

use nvml_wrapper::Nvml;
use nvml_wrapper::error::NvmlError;
use serde::Serialize;

use crate::probe::{Inventory, Probe};

/// Longest wait for the driver. `nvidia-smi` takes up to two seconds on an idle machine without persistence mode, as the
/// driver then initialises every device first.
pub const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// Where the driver's management library is, by soname: the first is there with every driver, the second with older
/// packages only.
const LIBRARIES: [&str; 2] = ["libnvidia-ml.so.1", "libnvidia-ml.so"];

/// Why the driver gave no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DriverError {
    /// There is no management library: no driver is installed, or this container has no access to it.
    #[error("no NVIDIA driver ({reason}); install one, or start the container with its GPUs (`--gpus all`)")]
    Absent {
        /// What the loader said.
        reason: String,
    },
    /// The library and the kernel's module are of different versions.
    #[error(
        "the NVIDIA library and the loaded kernel module differ in version; reboot, or reload the module"
    )]
    Mismatch,
    /// The library is there, the kernel's module is not.
    #[error("the NVIDIA kernel module is not loaded; run `modprobe nvidia` and look at `dmesg`")]
    NotLoaded,
    /// The driver answered a call with an error.
    #[error("the NVIDIA driver refused {call}: {reason}; look at `dmesg` and `nvidia-smi`")]
    Refused {
        /// What was asked.
        call: &'static str,
        /// What it said.
        reason: String,
    },
    /// The driver did not answer in time, or is still busy with a call that it did not answer in time.
    #[error("the NVIDIA driver has not answered for {} s; look at `dmesg` and `nvidia-smi`", .waited.as_secs_f64())]
    Silent {
        /// How long it was waited for.
        waited: Duration,
    },
    /// The thread that talks to the driver ended.
    #[error("the thread that talks to the NVIDIA driver has ended; restart the service")]
    Gone,
    /// No device has this index.
    #[error("this machine has no GPU {index}; `phalanx doctor` lists those it has")]
    NoDevice {
        /// The index asked for.
        index: u32,
    },
}

impl DriverError {
    /// What NVML said to `call`, in our words.
    pub(crate) fn refused(call: &'static str, error: NvmlError) -> Self {
        match error {
            NvmlError::LibRmVersionMismatch => DriverError::Mismatch,
            NvmlError::DriverNotLoaded => DriverError::NotLoaded,
            NvmlError::LibloadingError(error) => DriverError::Absent { reason: error.to_string() },
            error => DriverError::Refused { call, reason: error.to_string() },
        }
    }
}

/// How busy a device is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Usage {
    /// Memory that is taken, in bytes, by whomever; none where the driver cannot tell.
    pub memory_used_bytes: Option<u64>,
    /// Share of the last sample period in which a kernel ran, in percent; none where the driver cannot tell, as for MIG.
    pub utilization_percent: Option<u32>,
}

enum Request {
    Inventory(Sender<Inventory>),
    Usage(u32, Sender<Result<Usage, DriverError>>),
}

/// An open driver. Calls are safe from any thread and wait at most the bound it was opened with.
#[derive(Debug)]
pub struct Driver {
    /// Holds at most one request: with one waiting, the driver is behind, and more would only pile up.
    requests: SyncSender<Request>,
    timeout: Duration,
}

impl Driver {
    /// Loads the driver's library, `library` in its place if given, and waits at most [`ANSWER_TIMEOUT`] for it.
    ///
    /// # Errors
    /// Why there is no usable driver.
    pub fn open(library: Option<&Path>) -> Result<Self, DriverError> {
        Self::open_within(library, ANSWER_TIMEOUT)
    }

    /// As [`Driver::open`], with another bound for this and every later call.
    ///
    /// # Errors
    /// Why there is no usable driver.
    pub fn open_within(library: Option<&Path>, timeout: Duration) -> Result<Self, DriverError> {
        let libraries: Vec<OsString> = match library {
            Some(path) => vec![path.into()],
            None => LIBRARIES.iter().map(OsString::from).collect(),
        };
        let (opened, wait) = channel();
        let (requests, inbox) = sync_channel(1);
        std::thread::Builder::new()
            .name("gpu-driver".to_owned())
            .spawn(move || serve(&libraries, &opened, &inbox))
            .map_err(|error| DriverError::Refused { call: "a thread", reason: error.to_string() })?;
        let driver = Driver { requests, timeout };
        driver.answer(&wait)??;
        Ok(driver)
    }

    /// All devices, and how they are linked.
    ///
    /// # Errors
    /// [`DriverError::Silent`] or [`DriverError::Gone`]; a device that cannot be read is left out and noted.
    pub fn inventory(&self) -> Result<Inventory, DriverError> {
        self.ask(Request::Inventory)
    }

    /// How busy device `index` of the inventory is.
    ///
    /// # Errors
    /// [`DriverError::NoDevice`] for an index that the inventory does not have; else what the driver said.
    pub fn usage(&self, index: u32) -> Result<Usage, DriverError> {
        self.ask(|answer| Request::Usage(index, answer))?
    }

    fn ask<T>(&self, request: impl FnOnce(Sender<T>) -> Request) -> Result<T, DriverError> {
        let (answer, wait) = channel();
        match self.requests.try_send(request(answer)) {
            Ok(()) => self.answer(&wait),
            Err(TrySendError::Full(_)) => Err(DriverError::Silent { waited: self.timeout }),
            Err(TrySendError::Disconnected(_)) => Err(DriverError::Gone),
        }
    }

    fn answer<T>(&self, wait: &Receiver<T>) -> Result<T, DriverError> {
        wait.recv_timeout(self.timeout).map_err(|error| match error {
            RecvTimeoutError::Timeout => DriverError::Silent { waited: self.timeout },
            RecvTimeoutError::Disconnected => DriverError::Gone,
        })
    }
}

/// The thread's life: open, answer until every handle is gone.
fn serve(libraries: &[OsString], opened: &Sender<Result<(), DriverError>>, inbox: &Receiver<Request>) {
    let nvml = match load(libraries) {
        Ok(nvml) => nvml,
        Err(error) => return drop(opened.send(Err(error))),
    };
    // Who waited may have given up meanwhile; then the inbox is closed too and the loop below ends at once.
    let _ = opened.send(Ok(()));
    let probe = Probe::new(&nvml);
    while let Ok(request) = inbox.recv() {
        match request {
            Request::Inventory(answer) => drop(answer.send(probe.inventory())),
            Request::Usage(index, answer) => drop(answer.send(probe.usage(index))),
        }
    }
}

/// The first library that is there decides: the error of one that is there but broken says more than the absence of the
/// next.
fn load(libraries: &[OsString]) -> Result<Nvml, DriverError> {
    let mut absent = DriverError::Absent { reason: "no library to load".to_owned() };
    for (place, library) in libraries.iter().enumerate() {
        match Nvml::builder().lib_path(library).init() {
            Ok(nvml) => return Ok(nvml),
            Err(error) => match DriverError::refused("its start", error) {
                // The first name is the one a person would look for.
                error @ DriverError::Absent { .. } if place == 0 => absent = error,
                DriverError::Absent { .. } => {}
                error => return Err(error),
            },
        }
    }
    Err(absent)
}

/// The devices of this machine, from the driver's library or from `library` in its place. Never fails: without a usable
/// driver there are no devices, and [`Inventory::note`] says why.
pub fn inventory(library: Option<&Path>) -> Inventory {
    Driver::open(library)
        .and_then(|driver| driver.inventory())
        .unwrap_or_else(|error| Inventory { note: Some(error.to_string()), ..Inventory::default() })
}

/// How busy device `index` of this machine is; none without a driver or where it does not say. The driver is opened at
/// the first call and stays open, as opening it takes longer than asking it.
pub fn usage(index: u32) -> Option<Usage> {
    static DRIVER: OnceLock<Mutex<Option<Driver>>> = OnceLock::new();
    let driver = DRIVER.get_or_init(|| Mutex::new(Driver::open(None).ok()));
    // One at a time: a second caller waits its turn instead of taking a busy driver for a silent one.
    let driver = driver.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    driver.as_ref()?.usage(index).ok()
}
