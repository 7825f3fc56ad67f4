//! Tokens of ServiceAccounts, from the API that kubelets ask for them (TokenRequest).

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::ApiServer;

impl ApiServer {
    /// A token of a ServiceAccount for an hour. With `pod`, it is bound to that Pod: it ends with it, and
    /// servers from 1.30 on tell admission policies the Pod's node.
    pub fn service_account_token(&self, namespace: &str, name: &str, pod: Option<&Value>) -> Result<String> {
        let mut spec = json!({"expirationSeconds": 3600});
        if let Some(pod) = pod {
            let metadata = &pod["metadata"];
            spec["boundObjectRef"] = json!({
                "apiVersion": "v1", "kind": "Pod", "name": metadata["name"], "uid": metadata["uid"],
            });
        }
        let path = format!("/api/v1/namespaces/{namespace}/serviceaccounts/{name}/token");
        let request = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": spec});
        let answer = self.client().create(&path, &request)?.ok()?;
        Ok(answer["status"]["token"].as_str().context("a TokenRequest without token")?.to_owned())
    }
}
