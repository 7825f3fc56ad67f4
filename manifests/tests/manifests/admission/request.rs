//! Requests as the API server presents them to admission: who, what, the object before and after.

use serde_json::{Value, json};

/// Somebody who sends requests.
#[derive(Clone)]
pub struct User {
    name: String,
    extra: Value,
    /// `group=G resource=R verb=V`, for one object with `name=N` after the resource.
    permissions: Vec<String>,
}

impl User {
    /// Somebody who may read.
    pub fn new(name: &str) -> Self {
        Self { name: name.to_owned(), extra: Value::Null, permissions: vec![] }
    }

    /// A daemon, whose token is bound to a pod on a node.
    pub fn daemon(node: &str) -> Self {
        let mut user = Self::new("system:serviceaccount:warren-system:warrend");
        user.extra = json!({
            "authentication.kubernetes.io/credential-id": ["JTI=6a1c2a3b"],
            "authentication.kubernetes.io/node-name": [node],
            "authentication.kubernetes.io/node-uid": ["1f5d3c52-6f0e-4a3b-9a53-0d6c1c5a8a10"],
            "authentication.kubernetes.io/pod-name": ["warren-x7k2p"],
        });
        user
    }

    /// Under another name.
    pub fn called(mut self, name: &str) -> Self {
        self.name = name.to_owned();
        self
    }

    /// With other words of the token's.
    pub fn extra(mut self, extra: Value) -> Self {
        self.extra = extra;
        self
    }

    /// Bound to a role with this permission.
    pub fn may_do(mut self, permission: &str) -> Self {
        self.permissions.push(permission.to_owned());
        self
    }

    /// Bound to the ClusterRole warren-operator.
    pub fn operator(self) -> Self {
        self.may_do("group=warren.internal resource=requests verb=set")
            .may_do("group= resource=nodes verb=patch")
    }

    /// What RBAC allows besides reading, as [`User::may_do`] was told it.
    pub fn permissions(&self) -> &[String] {
        &self.permissions
    }

    /// Whether RBAC would allow what is asked, a list of `group=`, `resource=`, `name=` and `verb=`.
    pub fn may(&self, asked: &[String]) -> bool {
        let of_all =
            || asked.iter().filter(|word| !word.starts_with("name=")).cloned().collect::<Vec<_>>().join(" ");
        self.permissions().iter().any(|granted| *granted == asked.join(" ") || *granted == of_all())
    }
}

/// A request to change a Node.
#[derive(Clone)]
pub struct Request {
    pub user: User,
    pub operation: &'static str,
    subresource: &'static str,
    pub old_object: Value,
    pub object: Value,
}

impl Request {
    /// `user` makes of `old` what `change` makes of it; patches are updates, too.
    pub fn update(user: User, old: &Value, change: impl FnOnce(&mut Value)) -> Self {
        let mut object = old.clone();
        change(&mut object);
        // What the API server changes by itself with any write.
        object["metadata"]["resourceVersion"] = json!("4712");
        object["metadata"]["managedFields"] = json!([{ "manager": "somebody", "operation": "Apply" }]);
        Self { user, operation: "UPDATE", subresource: "", old_object: old.clone(), object }
    }

    /// The same, of the subresource `status`.
    pub fn update_status(user: User, old: &Value, change: impl FnOnce(&mut Value)) -> Self {
        Self { subresource: "status", ..Self::update(user, old, change) }
    }

    /// `user` creates a Node.
    pub fn create(user: User, object: &Value) -> Self {
        let object = object.clone();
        Self { user, operation: "CREATE", subresource: "", old_object: Value::Null, object }
    }

    /// `user` deletes a Node.
    pub fn delete(user: User, old: &Value) -> Self {
        let old_object = old.clone();
        Self { user, operation: "DELETE", subresource: "", old_object, object: Value::Null }
    }

    /// As rules name it.
    pub fn resource(&self) -> String {
        if self.subresource.is_empty() { "nodes".to_owned() } else { format!("nodes/{}", self.subresource) }
    }

    /// The variable `request`.
    pub fn variable(&self) -> Value {
        let named = if self.old_object.is_null() { &self.object } else { &self.old_object };
        let mut user_info = json!({ "username": self.user.name, "groups": ["system:authenticated"] });
        // An empty map is left out, as the API server does.
        if !self.user.extra.is_null() {
            user_info["extra"] = self.user.extra.clone();
        }
        json!({
            "operation": self.operation,
            "name": named["metadata"]["name"],
            "resource": { "group": "", "version": "v1", "resource": "nodes" },
            "subResource": self.subresource,
            "userInfo": user_info,
        })
    }
}
