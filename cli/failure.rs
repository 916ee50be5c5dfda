//! Why a command ended without doing what it was asked, and the exit code that says so.

use phalanx_runtime::Error;
use phalanx_runtime::store::StoreError;
use phalanx_server::{TlsError, TokenError};
use std::fmt;
use std::io;
use tonic::{Code, Status};
use tonic_types::StatusExt;

/// Done.
pub(crate) const DONE: u8 = 0;
/// It failed.
pub(crate) const FAILED: u8 = 1;
/// Wrong usage or an invalid file.
pub(crate) const USAGE: u8 = 2;
/// It can never be placed.
pub(crate) const INFEASIBLE: u8 = 3;
/// The service's own trouble, from `run` and `wait`.
pub(crate) const TROUBLE: u8 = 125;
/// Interrupted.
pub(crate) const INTERRUPTED: u8 = 130;

/// The end of a command that did not do what it was asked.
#[derive(Debug)]
pub(crate) struct Failure {
    /// The exit code.
    pub(crate) code: u8,
    /// For people; empty where there is nothing to say.
    pub(crate) message: String,
    /// The service is away or could not do its part, through no fault of the request.
    trouble: bool,
}

impl Failure {
    /// A failure with a message.
    pub(crate) fn new(code: u8, message: impl Into<String>) -> Self {
        Failure { code, message: message.into(), trouble: false }
    }

    /// What was asked for makes no sense.
    pub(crate) fn usage(message: impl Into<String>) -> Self {
        Failure::new(USAGE, message)
    }

    /// It failed.
    pub(crate) fn failed(message: impl Into<String>) -> Self {
        Failure::new(FAILED, message)
    }

    /// The service is away, or this machine does not do its part.
    pub(crate) fn trouble(message: impl Into<String>) -> Self {
        Failure { trouble: true, ..Failure::failed(message) }
    }

    /// Nobody reads any more: nothing to say, and no error.
    pub(crate) fn quiet() -> Self {
        Failure::new(DONE, "")
    }

    /// `run` and `wait` tell the service's trouble from the job's own code 1.
    pub(crate) fn for_job(self) -> Self {
        if self.trouble { Failure { code: TROUBLE, ..self } } else { self }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl From<Status> for Failure {
    fn from(status: Status) -> Self {
        let message = status.message().to_owned();
        let reason = status.get_details_error_info().map(|info| info.reason).unwrap_or_default();
        match (status.code(), reason.as_str()) {
            (Code::FailedPrecondition, "INFEASIBLE") => Failure::new(INFEASIBLE, message),
            (Code::FailedPrecondition, "UNKNOWN_QUEUE" | "UNKNOWN_SECRET") | (Code::InvalidArgument, _) => {
                Failure::usage(message)
            }
            (Code::FailedPrecondition | Code::NotFound | Code::AlreadyExists, _) => Failure::failed(message),
            (Code::Unauthenticated, _) => {
                Failure::trouble(format!("the service refused the token: {message}"))
            }
            (Code::Unavailable, "") => {
                Failure::trouble(format!("the service is away ({message}); is it still up?"))
            }
            _ if message.contains("h2 protocol error") || message == "transport error" => {
                Failure::trouble(format!("{message}: a service that speaks TLS needs --ca-file"))
            }
            _ => Failure::trouble(message),
        }
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        match error {
            Error::InvalidFile { .. }
            | Error::UnknownQueue { .. }
            | Error::UnknownSecret(_)
            | Error::InvalidQueues { .. }
            | Error::Misfit(_) => Failure::usage(error.to_string()),
            Error::Infeasible(_) => Failure::new(INFEASIBLE, error.to_string()),
            Error::UnknownJob(_) | Error::WrongState { .. } | Error::Conflict { .. } => {
                Failure::failed(error.to_string())
            }
            _ => Failure::trouble(error.to_string()),
        }
    }
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        Failure::trouble(error.to_string())
    }
}

impl From<TokenError> for Failure {
    fn from(error: TokenError) -> Self {
        Failure::trouble(error.to_string())
    }
}

impl From<TlsError> for Failure {
    fn from(error: TlsError) -> Self {
        Failure::failed(error.to_string())
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::BrokenPipe => Failure::quiet(),
            _ => Failure::failed(error.to_string()),
        }
    }
}
