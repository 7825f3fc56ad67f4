//! Lists of Kubernetes objects, read as they arrive: of each item only what the caller keeps is ever held.

use std::fmt;
use std::io::{BufReader, Read};
use std::marker::PhantomData;

use anyhow::Context as _;
use serde::Deserialize;
use serde::de::{DeserializeOwned, DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

/// The answer to a list.
pub struct Page<T> {
    /// The objects, reduced to what is kept of them.
    pub items: Vec<T>,
    /// The version of the list as a whole.
    pub version: String,
    /// How to ask for the rest; empty at the end.
    pub rest: String,
}

/// Reads a list as it arrives; of each item only what `keep` makes of it is held.
pub fn read_list<T: DeserializeOwned, U>(
    reader: impl Read,
    keep: impl Fn(T) -> U,
) -> anyhow::Result<Page<U>> {
    let mut deserializer = serde_json::Deserializer::from_reader(BufReader::with_capacity(64 << 10, reader));
    let list = ListSeed { keep: &keep, item: PhantomData::<T> };
    list.deserialize(&mut deserializer).context("the list breaks off, or is no list of Nodes")
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct ListMetadata {
    resource_version: String,
    r#continue: String,
}

struct ListSeed<'k, T, F> {
    keep: &'k F,
    item: PhantomData<T>,
}

impl<'de, T: Deserialize<'de>, U, F: Fn(T) -> U> DeserializeSeed<'de> for ListSeed<'_, T, F> {
    type Value = Page<U>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de, T: Deserialize<'de>, U, F: Fn(T) -> U> Visitor<'de> for ListSeed<'_, T, F> {
    type Value = Page<U>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let (mut items, mut metadata) = (Vec::new(), ListMetadata::default());
        while let Some(name) = map.next_key::<String>()? {
            match name.as_str() {
                "metadata" => metadata = map.next_value()?,
                "items" => items = map.next_value_seed(ItemsSeed { keep: self.keep, item: self.item })?,
                _ => drop(map.next_value::<IgnoredAny>()?),
            }
        }
        Ok(Page { items, version: metadata.resource_version, rest: metadata.r#continue })
    }
}

struct ItemsSeed<'k, T, F> {
    keep: &'k F,
    item: PhantomData<T>,
}

impl<'de, T: Deserialize<'de>, U, F: Fn(T) -> U> DeserializeSeed<'de> for ItemsSeed<'_, T, F> {
    type Value = Vec<U>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de, T: Deserialize<'de>, U, F: Fn(T) -> U> Visitor<'de> for ItemsSeed<'_, T, F> {
    type Value = Vec<U>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the items of a list")
    }

    fn visit_unit<E>(self) -> Result<Self::Value, E> {
        Ok(Vec::new())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Self::Value, A::Error> {
        let mut kept = Vec::new();
        while let Some(item) = items.next_element()? {
            kept.push((self.keep)(item));
        }
        Ok(kept)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use warren_api::node::Partial;

    fn read(text: &str) -> anyhow::Result<Page<String>> {
        read_list(text.as_bytes(), |partial: Partial| partial.metadata.name)
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
