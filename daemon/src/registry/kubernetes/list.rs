//! Lists of Kubernetes objects, read as they arrive: of each item only what its type keeps is ever held.

use std::io::{BufReader, Read};

use anyhow::Context as _;
use serde::Deserialize;
use serde::de::DeserializeOwned;

/// The answer to a list.
pub struct Page<T> {
    /// The objects, reduced to what is kept of them.
    pub items: Vec<T>,
    /// The version of the list as a whole.
    pub version: String,
    /// How to ask for the rest; empty at the end.
    pub rest: String,
}

/// Reads a list as it arrives.
pub fn read_list<T: DeserializeOwned>(reader: impl Read) -> anyhow::Result<Page<T>> {
    let list: List<T> = serde_json::from_reader(BufReader::with_capacity(64 << 10, reader))
        .context("the list breaks off, or is no list of Nodes")?;
    let ListMetadata { resource_version, r#continue } = list.metadata;
    Ok(Page { items: list.items.unwrap_or_default(), version: resource_version, rest: r#continue })
}

#[derive(Deserialize)]
struct List<T> {
    metadata: ListMetadata,
    items: Option<Vec<T>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ListMetadata {
    #[serde(default)]
    resource_version: String,
    #[serde(default)]
    r#continue: String,
}

#[cfg(test)]
mod tests {
    use super::*;
    use warren_api::node::Partial;

    fn read(text: &str) -> anyhow::Result<Page<String>> {
        let Page { items, version, rest } = read_list::<Partial>(text.as_bytes())?;
        Ok(Page { items: items.into_iter().map(|partial| partial.metadata.name).collect(), version, rest })
    }

    #[test]
    fn a_list_is_read_item_by_item() {
        let page = read(
            r#"{"kind": "NodeList", "metadata": {"resourceVersion": "7", "continue": "x", "other": 1},
                "items": [{"metadata": {"name": "a"}, "spec": {}}, {"metadata": {"name": "b"}}]}"#,
        )
        .unwrap();
        assert_eq!(
            (page.items, page.version, page.rest),
            (vec!["a".into(), "b".into()], "7".into(), "x".into())
        );
        assert!(read(r#"{"metadata": {}, "items": null}"#).unwrap().items.is_empty());
    }

    #[test]
    fn half_a_list_is_none() {
        for text in ["", "{", r#"{"items": [{"metadata": {"name": "a"}}"#, r#"{"items": [7]}"#, "[]"] {
            assert!(read(text).is_err(), "{text}");
        }
    }
}
