//! Refusals, in the words of a real API server: a `Status` object with the reason that clients match on.

use serde_json::{Value, json};

/// A request that was not fulfilled.
#[derive(Debug, Clone)]
pub(super) struct Refusal {
    /// The HTTP status, repeated in the body.
    pub code: u16,
    /// Seconds for the header `Retry-After`, repeated in the body.
    pub retry_after: Option<u32>,
    reason: &'static str,
    message: String,
    details: Value,
}

impl Refusal {
    fn new(code: u16, reason: &'static str, message: String) -> Self {
        Self { code, retry_after: None, reason, message, details: Value::Null }
    }

    /// What a fault on demand answers.
    pub fn fault(code: u16, retry_after: Option<u32>) -> Self {
        let (reason, message) = match code {
            401 => ("Unauthorized", "Unauthorized"),
            403 => ("Forbidden", "nodes is forbidden: by order of the test"),
            429 => (
                "TooManyRequests",
                "the server has received too many requests and has asked us to try again later",
            ),
            500 => ("InternalError", "Internal error occurred: by order of the test"),
            503 => ("ServiceUnavailable", "the server is currently unable to handle the request"),
            504 => ("Timeout", "the server was unable to return a response in the time allotted"),
            _ => ("Unknown", "by order of the test"),
        };
        let mut refusal = Self::new(code, reason, message.to_owned());
        if let Some(seconds) = retry_after {
            refusal.retry_after = Some(seconds);
            refusal.details = json!({ "retryAfterSeconds": seconds });
        }
        refusal
    }

    pub fn unauthorized() -> Self {
        Self::new(401, "Unauthorized", "Unauthorized".to_owned())
    }

    pub fn forbidden(what: &str) -> Self {
        Self::new(403, "Forbidden", format!("nodes is forbidden: {what}"))
    }

    pub fn bad_request(message: impl Into<String>) -> Self {
        Self::new(400, "BadRequest", message.into())
    }

    pub fn no_such_path() -> Self {
        Self::new(404, "NotFound", "the server could not find the requested resource".to_owned())
    }

    pub fn not_found(name: &str) -> Self {
        let mut refusal = Self::new(404, "NotFound", format!("nodes \"{name}\" not found"));
        refusal.details = json!({ "name": name, "kind": "nodes" });
        refusal
    }

    pub fn method_not_allowed() -> Self {
        let message = "the server does not allow this method on the requested resource";
        Self::new(405, "MethodNotAllowed", message.to_owned())
    }

    pub fn not_acceptable() -> Self {
        let message = "only the following media types are accepted: application/json, \
                       application/json;as=PartialObjectMetadata[List];g=meta.k8s.io;v=v1";
        Self::new(406, "NotAcceptable", message.to_owned())
    }

    /// The object is not the one, or not the version, that the writer meant.
    pub fn conflict(name: &str, why: &str) -> Self {
        let message = format!("Operation cannot be fulfilled on nodes \"{name}\": {why}");
        let mut refusal = Self::new(409, "Conflict", message);
        refusal.details = json!({ "name": name, "kind": "nodes" });
        refusal
    }

    /// A server-side apply touches what others own: (manager as Kubernetes prints it, path of the field).
    pub fn apply_conflict(conflicts: &[(String, String)]) -> Self {
        let message = match conflicts {
            [(manager, field)] => format!("Apply failed with 1 conflict: conflict with {manager}: {field}"),
            _ => {
                let lines: Vec<String> = conflicts
                    .iter()
                    .map(|(manager, field)| format!("conflict with {manager}: {field}"))
                    .collect();
                format!("Apply failed with {} conflicts: {}", conflicts.len(), lines.join("\n"))
            }
        };
        let causes: Vec<Value> = conflicts
            .iter()
            .map(|(manager, field)| {
                json!({ "reason": "FieldManagerConflict", "message": format!("conflict with {manager}"), "field": field })
            })
            .collect();
        let mut refusal = Self::new(409, "Conflict", message);
        refusal.details = json!({ "causes": causes });
        refusal
    }

    /// The kept history begins after `asked`.
    pub fn expired(asked: u64, oldest: u64) -> Self {
        Self::new(410, "Expired", format!("too old resource version: {asked} ({oldest})"))
    }

    /// The snapshot that a `continue` belongs to is gone.
    pub fn continue_expired() -> Self {
        let message = "The provided continue parameter is too old to display a consistent list result. \
                       You can start a new list without the continue parameter.";
        Self::new(410, "Expired", message.to_owned())
    }

    pub fn unsupported_media_type(given: &str) -> Self {
        let message = format!(
            "the body of the request was in an unknown format ({given:?}) - accepted media types include: \
             application/json-patch+json, application/merge-patch+json, \
             application/strategic-merge-patch+json, application/apply-patch+yaml"
        );
        Self::new(415, "UnsupportedMediaType", message)
    }

    pub fn invalid(name: &str, field: &str, why: &str) -> Self {
        let mut refusal = Self::new(422, "Invalid", format!("Node \"{name}\" is invalid: {field}: {why}"));
        let cause = json!({ "reason": "FieldValueInvalid", "message": why, "field": field });
        refusal.details = json!({ "name": name, "kind": "Node", "causes": [cause] });
        refusal
    }

    /// Nothing that a real server would say: the fake does not do this, and says so rather than guess.
    pub fn beyond_the_fake(what: &str) -> Self {
        Self::new(501, "NotImplemented", format!("the fake API server does not do this: {what}"))
    }

    pub fn too_large_resource_version(asked: u64, current: u64) -> Self {
        let message = format!("Timeout: Too large resource version: {asked}, current: {current}");
        let mut refusal = Self::new(504, "Timeout", message);
        let cause = json!({ "reason": "ResourceVersionTooLarge", "message": "Too large resource version" });
        refusal.details = json!({ "causes": [cause], "retryAfterSeconds": 1 });
        refusal.retry_after = Some(1);
        refusal
    }

    /// The `Status` object: a response's body, or the object of an `ERROR` event.
    pub fn to_json(&self) -> Value {
        let mut status = json!({
            "kind": "Status", "apiVersion": "v1", "metadata": {},
            "status": "Failure", "message": self.message, "reason": self.reason, "code": self.code,
        });
        if !self.details.is_null() {
            status["details"] = self.details.clone();
        }
        status
    }
}
