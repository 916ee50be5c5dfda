//! What can go wrong, raised to gRPC with the details of AIP-193. The one file in which a status is made.

use phalanx_core::diagnostic::{Problem, Problems};
use phalanx_core::{JobId, SweepId};
use phalanx_runtime::Error;
use phalanx_runtime::service::StudyError;
use phalanx_runtime::store::StoreError;
use std::collections::HashMap;
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, FieldViolation, StatusExt};

/// Whose reasons these are.
const DOMAIN: &str = "phalanx";
/// Bytes of a message as headers carry it, and of a text among the details: common clients take no more than
/// 8 KiB of headers, in which the message travels twice, and a caller's own text may be a part of it.
const MESSAGE_BYTES: usize = 2 << 10;
const DETAIL_BYTES: usize = 1 << 10;
/// The name of the job's resource type.
const JOB: &str = "phalanx.v1.Job";
/// The names of the sweep's and the trial's resource types.
const SWEEP: &str = "phalanx.v1.Sweep";
const TRIAL: &str = "phalanx.v1.Trial";
/// The name of the artifact's resource type.
const ARTIFACT: &str = "phalanx.v1.Artifact";
/// The name of the node's resource type.
const NODE: &str = "phalanx.v1.Node";
/// The name of the secret's resource type.
const SECRET: &str = "phalanx.v1.Secret";
/// The name of the placement group's resource type.
const GROUP: &str = "phalanx.v1.PlacementGroup";

/// The status for what the service said.
pub(crate) fn of(error: &Error) -> Status {
    let message = error.to_string();
    match error {
        Error::UnknownJob(id) => not_found(&id.to_string(), &message),
        Error::InvalidFile { problems, text } => invalid("INVALID_FILE", "job.toml", problems, text),
        Error::InvalidQueues { problems, text } => {
            invalid("INVALID_QUEUES", "the change of queues", problems, text)
        }
        Error::UnknownSweep(id) => unknown("UNKNOWN_SWEEP", SWEEP, &id.to_string(), &message),
        Error::UnknownTrial(id) => unknown("UNKNOWN_TRIAL", TRIAL, &id.to_string(), &message),
        Error::TrialWithoutJob(id) => precondition("NO_JOB", &id.to_string(), &message),
        Error::SweepState { sweep, .. } => precondition("WRONG_STATE", &sweep.to_string(), &message),
        Error::LearnFrom { sweep, .. } => precondition("LEARN_FROM", &sweep.to_string(), &message),
        Error::NotExternal(sweep) => precondition("NOT_EXTERNAL", &sweep.to_string(), &message),
        Error::ManyObjectives(sweep) => precondition("SEVERAL_OBJECTIVES", &sweep.to_string(), &message),
        Error::Study(StudyError::UnknownTrial(number)) => {
            unknown("UNKNOWN_TRIAL", TRIAL, &number.to_string(), &message)
        }
        Error::Study(StudyError::Told(number)) => precondition("TOLD", &number.to_string(), &message),
        Error::Study(_) => bad_field("trial", &message),
        Error::Misfit(_) => precondition("MISFIT", "configuration", &message),
        Error::Infeasible(reason) => {
            let mut details = details("INFEASIBLE");
            details.add_precondition_failure_violation(
                reason.code.as_str(),
                "gang",
                clipped(&reason.text, DETAIL_BYTES),
            );
            raised(Code::FailedPrecondition, &message, details)
        }
        Error::UnknownQueue { queue, .. } => precondition("UNKNOWN_QUEUE", queue, &message),
        Error::UnknownSecret(secret) => precondition("UNKNOWN_SECRET", secret, &message),
        Error::WrongState { job, .. } => precondition("WRONG_STATE", &job.to_string(), &message),
        Error::UnknownArtifact { artifact, .. } => unknown("UNKNOWN_ARTIFACT", ARTIFACT, artifact, &message),
        Error::Secret(_) => bad_field("secret", &message),
        Error::TooManySecrets => precondition("TOO_MANY_SECRETS", "secrets", &message),
        Error::SecretInUse { secret, .. } => precondition("SECRET_IN_USE", secret, &message),
        Error::NoSecret(secret) => unknown("UNKNOWN_SECRET", SECRET, secret, &message),
        Error::UnknownNode(node) => unknown("UNKNOWN_NODE", NODE, node, &message),
        Error::UnknownGroup(name) => unknown("UNKNOWN_PLACEMENT_GROUP", GROUP, &name.to_string(), &message),
        Error::GroupExists(name) => exists("PLACEMENT_GROUP_EXISTS", GROUP, &name.to_string(), &message),
        Error::Conflict { request_id } => exists("REQUEST_ID_REUSED", "request_id", request_id, &message),
        Error::RequestIdTooLong { .. } => bad_field("request_id", &message),
        Error::ReadOnly { .. } => precondition("NO_SERVICE", "service", &message),
        Error::Unavailable => unavailable(),
        Error::Store(StoreError::Full { .. }) => {
            let details = details("NO_SPACE");
            raised(Code::ResourceExhausted, &message, details)
        }
        Error::Store(_) => raised(Code::Internal, &message, details("STORE")),
    }
}

/// Reads a job's id; what is none is an unknown job's, because ids are nothing a caller makes up.
pub(crate) fn job_id(text: &str) -> Result<JobId, Status> {
    text.parse().map_err(|error: phalanx_core::id::IdError| not_found(text, &error.to_string()))
}

/// Reads a sweep's id, likewise.
pub(crate) fn sweep_id(text: &str) -> Result<SweepId, Status> {
    let unread = |error: phalanx_core::id::IdError| unknown("UNKNOWN_SWEEP", SWEEP, text, &error.to_string());
    text.parse().map_err(unread)
}

/// A field of the request that means nothing.
pub(crate) fn bad_field(field: &str, message: &str) -> Status {
    let mut details = details("INVALID_FIELD");
    details.add_bad_request_violation(clipped(field, DETAIL_BYTES), clipped(message, DETAIL_BYTES));
    raised(Code::InvalidArgument, message, details)
}

/// The service is going down or has gone.
pub(crate) fn unavailable() -> Status {
    let message = Error::Unavailable.to_string();
    raised(Code::Unavailable, message, details("SHUTTING_DOWN"))
}

/// No token, or a wrong one; which of them is not said.
pub(crate) fn unauthenticated() -> Status {
    let message = "a valid token is required: send `authorization: Bearer TOKEN` with the token of the service's data folder";
    raised(Code::Unauthenticated, message, details("TOKEN"))
}

fn not_found(name: &str, message: &str) -> Status {
    unknown("UNKNOWN_JOB", JOB, name, message)
}

fn unknown(reason: &str, kind: &str, name: &str, message: &str) -> Status {
    raised(Code::NotFound, message, of_resource(reason, kind, name, message))
}

fn exists(reason: &str, kind: &str, name: &str, message: &str) -> Status {
    raised(Code::AlreadyExists, message, of_resource(reason, kind, name, message))
}

fn of_resource(reason: &str, kind: &str, name: &str, message: &str) -> ErrorDetails {
    let mut details = details(reason);
    details.set_resource_info(kind, clipped(name, DETAIL_BYTES), "", clipped(message, DETAIL_BYTES));
    details
}

/// A file that does not read: every place in the message, as many as fit in the details.
fn invalid(reason: &str, file: &str, problems: &Problems, text: &str) -> Status {
    let mut bytes = 0;
    let violations = problems.0.iter().map(|problem| violation(problem, text)).take_while(|violation| {
        let first = bytes == 0;
        bytes += violation.field.len() + violation.description.len();
        first || bytes <= 2 * DETAIL_BYTES
    });
    let mut details = details(reason);
    details.set_bad_request(violations.collect::<Vec<_>>());
    raised(Code::InvalidArgument, problems.render(file, text).trim_end(), details)
}

/// The token could not be made anew.
pub(crate) fn token(error: &crate::TokenError) -> Status {
    raised(Code::Internal, error.to_string(), details("TOKEN_FILE"))
}

/// What only the service behind a network has.
pub(crate) fn no_service() -> Status {
    precondition("NO_SERVICE", "service", "no service runs here; start one with `phalanx up`")
}

fn precondition(reason: &str, subject: &str, message: &str) -> Status {
    let mut details = details(reason);
    let (subject, text) = (clipped(subject, DETAIL_BYTES), clipped(message, DETAIL_BYTES));
    details.add_precondition_failure_violation(reason, subject, text);
    raised(Code::FailedPrecondition, message, details)
}

fn details(reason: &str) -> ErrorDetails {
    ErrorDetails::with_error_info(reason, DOMAIN, HashMap::new())
}

/// A problem of the file, with its place as `toml:LINE:COLUMN`.
fn violation(problem: &Problem, text: &str) -> FieldViolation {
    let field = match problem.place(text) {
        Some((line, column)) => format!("toml:{line}:{column}"),
        None => "toml".to_owned(),
    };
    let help = problem.help.as_ref().map(|help| format!(" ({help})")).unwrap_or_default();
    FieldViolation::new(field, clipped(&format!("{}{help}", problem.message), DETAIL_BYTES))
}

/// The one place where a status is made.
fn raised(code: Code, message: impl AsRef<str>, details: ErrorDetails) -> Status {
    Status::with_error_details(code, clipped(message.as_ref(), MESSAGE_BYTES), details)
}

/// As much of a text as headers carry in so many bytes: each byte that they have no plain form for takes three.
fn clipped(text: &str, bytes: usize) -> String {
    let plain = |char: char| char.is_ascii_graphic() && !"\"#%<>`?{}".contains(char);
    let mut left = bytes;
    let end = text.char_indices().find(|&(_, char)| {
        let cost = if plain(char) { 1 } else { 3 * char.len_utf8() };
        left.checked_sub(cost).map(|rest| left = rest).is_none()
    });
    end.map_or_else(|| text.to_owned(), |(end, _)| format!("{}…", &text[..end]))
}

/// What the wire refused before any method saw it, such as bytes that are no message, with details like ours.
pub(crate) fn of_wire(status: &Status) -> Status {
    let message = status.message();
    match status.code() {
        Code::Unimplemented => {
            raised(Code::Unimplemented, unknown_method(message), details("UNKNOWN_METHOD"))
        }
        Code::OutOfRange | Code::ResourceExhausted => {
            raised(Code::ResourceExhausted, message, details("MESSAGE_TOO_LARGE"))
        }
        // The codec's word for a request that does not decode, or is not there at all.
        Code::Internal => {
            bad_field("message", &format!("the request is not the method's message: {message}"))
        }
        code => raised(code, message, details("WIRE")),
    }
}

fn unknown_method(message: &str) -> &str {
    if message.is_empty() { "no such method; reflection lists those that there are" } else { message }
}

#[cfg(test)]
mod tests {
    use super::*;
    use phalanx_core::{JobSpec, Reason};

    #[test]
    fn a_bad_file_names_every_place() {
        let text = "version = 1\n[gang]\nworkrs = 2\n";
        let problems = JobSpec::parse(text, "job").unwrap_err();
        let count = problems.0.len();
        let status = of(&Error::InvalidFile { problems, text: text.to_owned() });
        assert_eq!(status.code(), Code::InvalidArgument);
        let details = status.get_error_details();
        let violations = &details.bad_request().unwrap().field_violations;
        assert_eq!(violations.len(), count);
        assert!(violations.iter().any(|violation| violation.field == "toml:3:1"), "{violations:?}");
        assert!(status.message().contains("workrs"), "{}", status.message());
    }

    #[test]
    fn every_error_has_its_code_and_its_detail() {
        let infeasible =
            of(&Error::Infeasible(Reason::new("too_many_cpus", "asks for 9, the largest node has 2")));
        assert_eq!(infeasible.code(), Code::FailedPrecondition);
        assert!(infeasible.message().contains("largest node has 2"));
        assert!(infeasible.get_error_details().precondition_failure().is_some());
        let unknown = of(&Error::UnknownJob(JobId(7)));
        assert_eq!(unknown.code(), Code::NotFound);
        assert_eq!(unknown.get_error_details().resource_info().unwrap().resource_name, "j7");
        assert_eq!(job_id("../j1").unwrap_err().code(), Code::NotFound);
        assert_eq!(bad_field("page_size", "negative").code(), Code::InvalidArgument);
        assert!(unauthenticated().get_error_details().error_info().is_some());
    }

    #[test]
    fn no_status_outgrows_the_headers_it_travels_in() {
        let text = format!("version = 1\n{}", "\"ä%\\u0007\" = 1\n".repeat(50_000));
        let problems = JobSpec::parse(&text, "job").unwrap_err();
        let long = "ä".repeat(100_000);
        let name = || long.clone();
        for error in [
            Error::InvalidFile { problems, text },
            Error::UnknownSecret(name()),
            Error::NoSecret(name()),
            Error::UnknownNode(name()),
            Error::Conflict { request_id: name() },
        ] {
            let headers = of(&error).into_http::<()>().headers().clone();
            let bytes: usize = headers.iter().map(|(name, value)| name.as_str().len() + value.len()).sum();
            assert!(bytes < 8 << 10, "{bytes} bytes of headers");
        }
        let headers = job_id(&long).unwrap_err().into_http::<()>().headers().clone();
        assert!(headers.values().map(|value| value.len()).sum::<usize>() < 8 << 10);
        assert_eq!((clipped("aä", 4), clipped("aä", 7)), ("a…".into(), "aä".into()));
    }
}
