//! What can go wrong, raised to HTTP: the status of gRPC as JSON, in the form of AIP-193.
//!
//! `{"error": {"code": 404, "status": "NOT_FOUND", "message": "…", "details": […]}}`

use super::document;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};
use tonic::{Code, Status};
use tonic_types::StatusExt;

/// A status on its way to an HTTP client.
#[derive(Debug)]
pub(super) struct Problem(Status);

impl From<Status> for Problem {
    fn from(status: Status) -> Self {
        Problem(status)
    }
}

impl From<phalanx_runtime::Error> for Problem {
    fn from(error: phalanx_runtime::Error) -> Self {
        Problem(crate::status::of(&error))
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let mut response = document(&described(&self.0));
        *response.status_mut() = code(&self.0);
        response
    }
}

/// The status as a document.
pub(super) fn described(status: &Status) -> Value {
    json!({
        "error": {
            "code": code(status).as_u16(),
            "status": name(status.code()),
            "message": status.message(),
            "details": details(status),
        }
    })
}

/// An answer that no method gave: what was asked did not get that far.
pub(super) fn refuse(code: StatusCode, name: &'static str, message: &str) -> Response {
    let error = json!({ "code": code.as_u16(), "status": name, "message": message, "details": [] });
    let mut response = document(&json!({ "error": error }));
    *response.status_mut() = code;
    if code == StatusCode::UNAUTHORIZED {
        response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    }
    response
}

/// As google.rpc.Code says it, but for a full disk: 429 would say that the caller asks too often.
fn code(status: &Status) -> StatusCode {
    match status.code() {
        Code::Ok => StatusCode::OK,
        Code::InvalidArgument | Code::FailedPrecondition | Code::OutOfRange => StatusCode::BAD_REQUEST,
        Code::NotFound => StatusCode::NOT_FOUND,
        Code::AlreadyExists | Code::Aborted => StatusCode::CONFLICT,
        Code::PermissionDenied => StatusCode::FORBIDDEN,
        Code::Unauthenticated => StatusCode::UNAUTHORIZED,
        Code::ResourceExhausted => StatusCode::INSUFFICIENT_STORAGE,
        Code::Unimplemented => StatusCode::NOT_IMPLEMENTED,
        Code::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
        Code::DeadlineExceeded => StatusCode::GATEWAY_TIMEOUT,
        Code::Cancelled | Code::Unknown | Code::Internal | Code::DataLoss => {
            StatusCode::INTERNAL_SERVER_ERROR
        }
    }
}

fn name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "CANCELLED",
        Code::Unknown => "UNKNOWN",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::NotFound => "NOT_FOUND",
        Code::AlreadyExists => "ALREADY_EXISTS",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Aborted => "ABORTED",
        Code::OutOfRange => "OUT_OF_RANGE",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Internal => "INTERNAL",
        Code::Unavailable => "UNAVAILABLE",
        Code::DataLoss => "DATA_LOSS",
        Code::Unauthenticated => "UNAUTHENTICATED",
    }
}

/// The details that our statuses have (see `status`).
fn details(status: &Status) -> Vec<Value> {
    let kind = |name: &str| format!("type.googleapis.com/google.rpc.{name}");
    let details = status.get_error_details();
    let info = details.error_info().map(|info| {
        json!({
            "@type": kind("ErrorInfo"), "reason": info.reason, "domain": info.domain, "metadata": info.metadata,
        })
    });
    let request = details.bad_request().map(|request| {
        let violations = request.field_violations.iter();
        let violations = violations.map(|at| json!({ "field": at.field, "description": at.description }));
        json!({ "@type": kind("BadRequest"), "field_violations": violations.collect::<Vec<_>>() })
    });
    let precondition = details.precondition_failure().map(|failure| {
        let violations = failure.violations.iter();
        let violations = violations
            .map(|at| json!({ "type": at.r#type, "subject": at.subject, "description": at.description }));
        json!({ "@type": kind("PreconditionFailure"), "violations": violations.collect::<Vec<_>>() })
    });
    let resource = details.resource_info().map(|info| {
        json!({
            "@type": kind("ResourceInfo"),
            "resource_type": info.resource_type,
            "resource_name": info.resource_name,
            "owner": info.owner,
            "description": info.description,
        })
    });
    [info, request, precondition, resource].into_iter().flatten().collect()
}
