//! What can go wrong, raised to gRPC with the details of AIP-193. The one file in which a status is made.

use phalanx_core::diagnostic::Problem;
use phalanx_core::{JobId, SweepId};
use phalanx_runtime::Error;
use phalanx_runtime::service::StudyError;
use phalanx_runtime::store::StoreError;
use std::collections::HashMap;
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, FieldViolation, StatusExt};

/// Whose reasons these are.
const DOMAIN: &str = "phalanx";
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
        Error::InvalidFile { problems, text } => {
            let message = problems.render("job.toml", text);
            let violations: Vec<_> = problems.0.iter().map(|problem| violation(problem, text)).collect();
            let mut details = details("INVALID_FILE");
            details.set_bad_request(violations);
            Status::with_error_details(Code::InvalidArgument, message.trim_end(), details)
        }
        Error::InvalidQueues { problems, text } => {
            let rendered = problems.render("the change of queues", text);
            let violations: Vec<_> = problems.0.iter().map(|problem| violation(problem, text)).collect();
            let mut details = details("INVALID_QUEUES");
            details.set_bad_request(violations);
            Status::with_error_details(Code::InvalidArgument, rendered.trim_end(), details)
        }
        Error::UnknownSweep(id) => unknown("UNKNOWN_SWEEP", SWEEP, &id.to_string(), &message),
        Error::UnknownTrial(id) => unknown("UNKNOWN_TRIAL", TRIAL, &id.to_string(), &message),
        Error::TrialWithoutJob(id) => precondition("NO_JOB", &id.to_string(), &message),
        Error::SweepState { sweep, .. } => precondition("WRONG_STATE", &sweep.to_string(), &message),
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
            details.add_precondition_failure_violation(reason.code.as_str(), "gang", &reason.text);
            Status::with_error_details(Code::FailedPrecondition, &message, details)
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
        Error::UnknownGroup(name) => {
            let mut details = details("UNKNOWN_PLACEMENT_GROUP");
            details.set_resource_info(GROUP, name.to_string(), "", &message);
            Status::with_error_details(Code::NotFound, &message, details)
        }
        Error::GroupExists(name) => {
            let mut details = details("PLACEMENT_GROUP_EXISTS");
            details.set_resource_info(GROUP, name.to_string(), "", &message);
            Status::with_error_details(Code::AlreadyExists, &message, details)
        }
        Error::Conflict { request_id } => {
            let mut details = details("REQUEST_ID_REUSED");
            details.set_resource_info("request_id", request_id, "", &message);
            Status::with_error_details(Code::AlreadyExists, &message, details)
        }
        Error::RequestIdTooLong { .. } => bad_field("request_id", &message),
        Error::ReadOnly { .. } => precondition("NO_SERVICE", "service", &message),
        Error::Unavailable => unavailable(),
        Error::Store(StoreError::Full { .. }) => {
            let details = details("NO_SPACE");
            Status::with_error_details(Code::ResourceExhausted, &message, details)
        }
        Error::Store(_) => Status::with_error_details(Code::Internal, &message, details("STORE")),
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
    details.add_bad_request_violation(field, message);
    Status::with_error_details(Code::InvalidArgument, message, details)
}

/// The service is going down or has gone.
pub(crate) fn unavailable() -> Status {
    let message = Error::Unavailable.to_string();
    Status::with_error_details(Code::Unavailable, message, details("SHUTTING_DOWN"))
}

/// No token, or a wrong one; which of them is not said.
pub(crate) fn unauthenticated() -> Status {
    let message = "a valid token is required: send `authorization: Bearer TOKEN` with the token of the service's data folder";
    Status::with_error_details(Code::Unauthenticated, message, details("TOKEN"))
}

fn not_found(name: &str, message: &str) -> Status {
    unknown("UNKNOWN_JOB", JOB, name, message)
}

fn unknown(reason: &str, kind: &str, name: &str, message: &str) -> Status {
    let mut details = details(reason);
    details.set_resource_info(kind, name, "", message);
    Status::with_error_details(Code::NotFound, message, details)
}

/// The token could not be made anew.
pub(crate) fn token(error: &crate::TokenError) -> Status {
    Status::with_error_details(Code::Internal, error.to_string(), details("TOKEN_FILE"))
}

/// What only the service behind a network has.
pub(crate) fn no_service() -> Status {
    precondition("NO_SERVICE", "service", "no service runs here; start one with `phalanx up`")
}

fn precondition(reason: &str, subject: &str, message: &str) -> Status {
    let mut details = details(reason);
    details.add_precondition_failure_violation(reason, subject, message);
    Status::with_error_details(Code::FailedPrecondition, message, details)
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
    FieldViolation::new(field, format!("{}{help}", problem.message))
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
}
