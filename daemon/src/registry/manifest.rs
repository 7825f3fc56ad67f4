//! Node manifests as text: YAML with one or several documents, each a Node or a List of Nodes, which is what
//! `kubectl get node -o yaml` prints for one and for several.

use saphyr_parser::{Event, Parser};
use serde_norway::{Deserializer, Mapping, Value};
use warren_api::Node;

use serde::Deserialize as _;

/// All Nodes of a text, or why it has none.
pub fn nodes(text: &str) -> Result<Vec<Node>, String> {
    let mut nodes = Vec::new();
    for document in documents(text)? {
        collect(document, &mut nodes)?;
    }
    if nodes.is_empty() { Err("holds no Node".to_owned()) } else { Ok(nodes) }
}

/// The text of one Node with some of its annotations set, some removed, and everything else kept, or `None` if
/// that is how it is already.
pub fn annotate(
    text: &str,
    node: &str,
    annotations: &[(&str, String)],
    remove: &[&str],
) -> Result<Option<String>, String> {
    let mut documents = documents(text)?;
    let [document] = &mut documents[..] else {
        return Err(format!(
            "holds {} documents: keep the Node {node:?} in a file of its own",
            documents.len()
        ));
    };
    let found = document.get("metadata").and_then(|m| m.get("name")).and_then(Value::as_str);
    if document.get("kind").and_then(Value::as_str) != Some("Node") || found != Some(node) {
        return Err(format!("is not the one Node {node:?}: keep it in a file of its own"));
    }
    let metadata = document.get_mut("metadata").and_then(Value::as_mapping_mut).ok_or("has no metadata")?;
    let entry = metadata.entry("annotations".into()).or_insert(Value::Null);
    if entry.is_null() {
        *entry = Value::Mapping(Mapping::new());
    }
    let present = entry.as_mapping_mut().ok_or("metadata.annotations is no mapping")?;
    let mut changed = false;
    for (name, value) in annotations {
        if present.get(*name).and_then(Value::as_str) != Some(value) {
            present.insert((*name).into(), value.as_str().into());
            changed = true;
        }
    }
    for name in remove {
        changed |= present.remove(*name).is_some();
    }
    changed.then(|| serde_norway::to_string(document).map_err(|error| error.to_string())).transpose()
}

/// Aliases are refused: no Node has them, and a few bytes of them expand to gigabytes.
fn documents(text: &str) -> Result<Vec<Value>, String> {
    for event in Parser::new_from_str(text) {
        match event {
            Ok((Event::Alias(_), span)) => {
                return Err(format!("has a YAML alias in line {}, which no Node needs", span.start.line()));
            }
            Ok(_) => {}
            Err(error) => return Err(format!("is no YAML: {error}")),
        }
    }
    let documents = Deserializer::from_str(text)
        .map(Value::deserialize)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| format!("is no YAML: {error}"))?;
    Ok(documents.into_iter().filter(|document| !document.is_null()).collect())
}

fn collect(document: Value, nodes: &mut Vec<Node>) -> Result<(), String> {
    match document.get("kind").and_then(Value::as_str) {
        Some("Node") => {
            let node = Node::deserialize(document).map_err(|error| format!("is no Node: {error}"))?;
            if node.metadata.name.is_empty() {
                return Err("holds a Node without a name".to_owned());
            }
            nodes.push(node);
            Ok(())
        }
        Some("List" | "NodeList") => {
            let items = document.get("items").and_then(Value::as_sequence).cloned().unwrap_or_default();
            items.into_iter().try_for_each(|item| collect(item, nodes))
        }
        Some(kind) => Err(format!("holds a {kind:?}, not a Node")),
        None => Err("holds a document without a kind".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const NODE: &str = "\
apiVersion: v1
kind: Node
metadata:
  name: node-1
  labels: {kubernetes.io/os: linux}
spec:
  podCIDR: 10.244.1.0/24
  podCIDRs: [10.244.1.0/24, 'fd00:1::/64']
  taints: [{key: a, effect: NoSchedule}]
status:
  capacity: {cpu: '2', memory: 16Gi}
  addresses: [{type: InternalIP, address: 192.0.2.1}, {type: Hostname, address: node-1}]
";

    #[test]
    fn one_node_several_documents_and_lists_are_read() {
        assert_eq!(nodes(NODE).unwrap()[0].internal_ips().collect::<Vec<_>>(), ["192.0.2.1"]);
        let two = format!("{NODE}---\n{}", NODE.replace("node-1", "node-2"));
        assert_eq!(nodes(&two).unwrap().len(), 2);
        let item = NODE.replace('\n', "\n  ");
        let list = format!("apiVersion: v1\nkind: List\nitems:\n- {item}");
        assert_eq!(nodes(&list).unwrap()[0].pod_cidrs(), ["10.244.1.0/24", "fd00:1::/64"]);
    }

    #[test]
    fn anything_else_says_what_it_is() {
        for (text, reason) in [
            ("", "no Node"),
            ("---\n---\n", "no Node"),
            ("kind: Pod\n", "\"Pod\""),
            ("a: b\n", "without a kind"),
            ("kind: Node\n", "metadata"),
            ("kind: Node\nmetadata: {name: ''}\n", "without a name"),
            ("kind: Node\nmetadata: [\n", "no YAML"),
            ("kind: Node\nmetadata: {name: &a b, uid: *a}\n", "alias in line 2"),
            ("kind: Node\nmetadata: {name: a}\nspec: {podCIDRs: 7}\n", "no Node"),
        ] {
            let error = nodes(text).unwrap_err();
            assert!(error.contains(reason), "{text:?}: {error}");
        }
    }

    #[test]
    fn annotating_keeps_everything_else_and_is_idempotent() {
        let wanted =
            [("warren.internal/epoch", "0".to_owned()), ("warren.internal/public-key", "k".to_owned())];
        let text = annotate(NODE, "node-1", &wanted, &[]).unwrap().unwrap();
        let (before, after) = (nodes(NODE).unwrap().remove(0), nodes(&text).unwrap().remove(0));
        assert_eq!(after.metadata.annotations["warren.internal/epoch"], "0");
        assert_eq!((after.spec, after.status), (before.spec, before.status));
        let value: Value = serde_norway::from_str(&text).unwrap();
        assert_eq!(value["status"]["capacity"]["memory"], "16Gi");
        assert_eq!(value["spec"]["taints"][0]["key"], "a");
        assert_eq!(annotate(&text, "node-1", &wanted, &[]).unwrap(), None);
        let less = annotate(&text, "node-1", &[], &["warren.internal/epoch"]).unwrap().unwrap();
        assert!(!nodes(&less).unwrap()[0].metadata.annotations.contains_key("warren.internal/epoch"));
    }

    #[test]
    fn a_file_that_is_not_this_nodes_alone_is_not_written() {
        let wanted = [("a", "b".to_owned())];
        assert!(annotate(&format!("{NODE}---\n{NODE}"), "node-1", &wanted, &[]).is_err());
        assert!(annotate(NODE, "node-2", &wanted, &[]).is_err());
    }

    proptest! {
        #[test]
        fn no_text_makes_the_reader_panic(text in "[a-zN:{}\\[\\]&*!\"'\\-\n 0-9]{0,200}") {
            let _ = nodes(&text);
            let _ = annotate(&text, "node-1", &[], &[]);
        }
    }
}
