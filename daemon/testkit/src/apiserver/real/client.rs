//! Requests to an API server: any method, any path, JSON in and out; whatever the answer, the test judges it.

use std::fs;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use serde_json::Value;
use tokio_rustls::rustls::crypto::ring;
use ureq::tls::{PemItem, RootCerts, TlsConfig, TlsProvider, parse_pem};

use super::ApiServer;

/// How long an answer may take. A request that hangs is a finding, too, but not one to wait for.
const PATIENCE: Duration = Duration::from_secs(10);

/// Somebody who talks to the API server from its own machine, so that no packet of his is on the underlay.
#[derive(Debug)]
pub struct Client<'a> {
    api: &'a ApiServer,
    token: String,
    /// More headers of each request: whom it impersonates.
    headers: Vec<(String, String)>,
}

/// The ways to change an object that Kubernetes has.
#[derive(Debug, Clone, Copy)]
pub enum Patch<'a> {
    /// RFC 7386: what is null goes.
    Merge,
    /// Kubernetes' own, which knows what a list's items are told apart by.
    Strategic,
    /// RFC 6902: a list of operations.
    Json,
    /// Server-side apply, as this field manager; conflicts are errors.
    Apply(&'a str),
}

/// What the server answered.
#[derive(Debug, Clone)]
pub struct Response {
    /// The status code.
    pub status: u16,
    /// The body, as it came.
    pub text: String,
    /// The body as JSON; null where it is none.
    pub json: Value,
    what: String,
}

impl Response {
    /// The body, if the request succeeded; else an error with the server's words.
    pub fn ok(self) -> Result<Value> {
        let Self { status, text, json, what } = self;
        let words = json["message"].as_str().unwrap_or(&text);
        ensure!((200..300).contains(&status), "{what}: HTTP {status}: {words}");
        Ok(json)
    }
}

impl<'a> Client<'a> {
    pub(super) fn new(api: &'a ApiServer, token: &str) -> Self {
        Self { api, token: token.to_owned(), headers: Vec::new() }
    }

    /// Another client, who acts as somebody else: as the `userInfo` of an admission request says it. Of an extra
    /// without values the server hears nothing.
    pub fn impersonating(&self, user: &Value) -> Self {
        let list = |values: &Value| -> Vec<String> {
            values.as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect()
        };
        let mut headers = Vec::new();
        headers
            .extend(user["username"].as_str().map(|name| ("impersonate-user".to_owned(), name.to_owned())));
        headers
            .extend(list(&user["groups"]).into_iter().map(|group| ("impersonate-group".to_owned(), group)));
        for (key, values) in user["extra"].as_object().into_iter().flatten() {
            let name = format!("impersonate-extra-{}", key.replace('/', "%2F"));
            headers.extend(list(values).into_iter().map(|value| (name.clone(), value)));
        }
        Self { api: self.api, token: self.token.clone(), headers }
    }

    /// `GET path`.
    pub fn get(&self, path: &str) -> Result<Response> {
        self.request("GET", path, None)
    }

    /// `POST path`: creates an object in a collection.
    pub fn create(&self, path: &str, object: &Value) -> Result<Response> {
        self.request("POST", path, Some(("application/json", object)))
    }

    /// `PUT path`: replaces an object.
    pub fn replace(&self, path: &str, object: &Value) -> Result<Response> {
        self.request("PUT", path, Some(("application/json", object)))
    }

    /// `PATCH path`.
    pub fn patch(&self, path: &str, kind: Patch<'_>, patch: &Value) -> Result<Response> {
        let joint = if path.contains('?') { '&' } else { '?' };
        match kind {
            Patch::Merge => self.request("PATCH", path, Some(("application/merge-patch+json", patch))),
            Patch::Strategic => {
                self.request("PATCH", path, Some(("application/strategic-merge-patch+json", patch)))
            }
            Patch::Json => self.request("PATCH", path, Some(("application/json-patch+json", patch))),
            // JSON is YAML.
            Patch::Apply(manager) => self.request(
                "PATCH",
                &format!("{path}{joint}fieldManager={manager}"),
                Some(("application/apply-patch+yaml", patch)),
            ),
        }
    }

    /// `DELETE path`.
    pub fn delete(&self, path: &str) -> Result<Response> {
        self.request("DELETE", path, None)
    }

    /// Any request, with a body of the given type. An answer of whatever status is no error; no answer is.
    pub fn request(&self, method: &str, path: &str, body: Option<(&str, &Value)>) -> Result<Response> {
        let what = format!("{method} {path}");
        let agent = self.agent()?;
        let (content_type, body) =
            body.map_or((None, String::new()), |(kind, body)| (Some(kind), body.to_string()));
        let mut request = ureq::http::Request::builder()
            .method(method)
            .uri(format!("{}{path}", self.api.url()))
            .header("authorization", format!("Bearer {}", self.token))
            .header("accept", "application/json");
        for (name, value) in &self.headers {
            request = request.header(name, value);
        }
        if let Some(kind) = content_type {
            request = request.header("content-type", kind);
        }
        let request = request.body(body).with_context(|| what.clone())?;
        let send = || {
            let mut response = agent.run(request)?;
            let status = response.status().as_u16();
            anyhow::Ok((status, response.body_mut().read_to_string()?))
        };
        let (status, text) = self.api.machine().run(send)?.with_context(|| what.clone())?;
        let json = serde_json::from_str(&text).unwrap_or(Value::Null);
        Ok(Response { status, text, json, what })
    }

    fn agent(&self) -> Result<ureq::Agent> {
        let path = self.api.ca_path();
        let pem = fs::read(&path).with_context(|| format!("reading {}", path.display()))?;
        let ca = parse_pem(&pem)
            .find_map(|item| match item {
                Ok(PemItem::Certificate(certificate)) => Some(certificate),
                _ => None,
            })
            .ok_or_else(|| anyhow!("{} holds no certificate", path.display()))?;
        let tls = TlsConfig::builder()
            .provider(TlsProvider::Rustls)
            .root_certs(RootCerts::new_with_certs(&[ca]))
            .unversioned_rustls_crypto_provider(Arc::new(ring::default_provider()))
            .build();
        let agent = ureq::Agent::config_builder()
            .tls_config(tls)
            .timeout_global(Some(PATIENCE))
            .http_status_as_error(false)
            .allow_non_standard_methods(true)
            .build();
        Ok(agent.into())
    }
}
