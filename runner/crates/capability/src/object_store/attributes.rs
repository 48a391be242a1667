//! How an object is stored besides its bytes: headers, storage class and tags.

use ::object_store::{Attribute, Attributes, PutMode, PutMultipartOptions, PutOptions, TagSet};

use super::open::{Keeps, Open};
use crate::CapabilityError;

/// S3 takes 10 tags for each object; Azure does, too.
const MAX_TAGS: usize = 10;
/// S3's limit for the key of a tag, in characters.
const MAX_TAG_KEY: usize = 128;
/// S3's limit for the value of a tag, in characters.
const MAX_TAG_VALUE: usize = 256;

/// How an object is stored. What is not set here is as the settings of the store say. A store that
/// cannot keep something ignores it: a directory keeps nothing, a plain HTTP server keeps no
/// storage class, and only S3 and Azure keep tags.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ObjectAttributes {
    pub content_type: Option<String>,
    pub cache_control: Option<String>,
    pub content_encoding: Option<String>,
    pub storage_class: Option<String>,
    /// The tags, instead of those in the settings of the store.
    pub tags: Vec<(String, String)>,
}

impl ObjectAttributes {
    /// Only a content type.
    pub fn content_type(content_type: impl Into<String>) -> Self {
        Self { content_type: Some(content_type.into()), ..Self::default() }
    }

    /// Checks what becomes a header.
    ///
    /// # Errors
    /// `invalid`, with the name and the value.
    pub fn check(&self) -> Result<(), CapabilityError> {
        let Self { content_type, cache_control, content_encoding, storage_class, tags } = self;
        for (what, value, example) in [
            ("content type", content_type, "text/plain"),
            ("cache control", cache_control, "max-age=3600"),
            ("content encoding", content_encoding, "zstd"),
            ("storage class", storage_class, "STANDARD_IA"),
        ] {
            let Some(value) = value else { continue };
            if value.is_empty() || !value.bytes().all(|byte| matches!(byte, b' '..=b'~')) {
                let shown = value.escape_debug();
                return Err(CapabilityError::invalid(format!(
                    "`{shown}` is not a {what}; write for example `{example}`"
                )));
            }
        }
        let wrong = |(key, value): &&(String, String)| {
            key.is_empty()
                || key.chars().count() > MAX_TAG_KEY
                || value.chars().count() > MAX_TAG_VALUE
        };
        if let Some((key, value)) = tags.iter().find(wrong) {
            return Err(CapabilityError::invalid(format!(
                "the tag `{}` = `{}` is too long or has no name; at most {MAX_TAG_KEY} and {MAX_TAG_VALUE} characters are allowed",
                key.escape_debug(),
                value.escape_debug()
            )));
        }
        if tags.len() > MAX_TAGS {
            let count = tags.len();
            return Err(CapabilityError::invalid(format!(
                "{count} tags; an object may have at most {MAX_TAGS}"
            )));
        }
        Ok(())
    }

    /// These, and the rest from `defaults`.
    pub(super) fn or(&self, defaults: &Self) -> Self {
        let either = |this: &Option<String>, other: &Option<String>| this.clone().or(other.clone());
        Self {
            content_type: either(&self.content_type, &defaults.content_type),
            cache_control: either(&self.cache_control, &defaults.cache_control),
            content_encoding: either(&self.content_encoding, &defaults.content_encoding),
            storage_class: either(&self.storage_class, &defaults.storage_class),
            tags: if self.tags.is_empty() { defaults.tags.clone() } else { self.tags.clone() },
        }
    }

    /// The headers, for a store that keeps them.
    pub(super) fn headers(&self, keeps: Keeps) -> Attributes {
        let Self { content_type, cache_control, content_encoding, storage_class, tags: _ } = self;
        let storage_class = storage_class.as_ref().filter(|_| keeps == Keeps::Everything);
        [
            (Attribute::ContentType, content_type.as_ref()),
            (Attribute::CacheControl, cache_control.as_ref()),
            (Attribute::ContentEncoding, content_encoding.as_ref()),
            (Attribute::StorageClass, storage_class),
        ]
        .into_iter()
        .filter_map(|(name, value)| Some((name, value?.clone())))
        .filter(|_| keeps != Keeps::Nothing)
        .collect()
    }

    fn tags(&self, keeps: Keeps) -> TagSet {
        let mut set = TagSet::default();
        for (key, value) in self.tags.iter().filter(|_| keeps == Keeps::Everything) {
            set.push(key, value);
        }
        set
    }

    pub(super) fn put_options(&self, open: &Open, mode: PutMode) -> PutOptions {
        let all = self.or(&open.defaults);
        PutOptions {
            mode,
            attributes: all.headers(open.keeps),
            tags: all.tags(open.keeps),
            ..PutOptions::default()
        }
    }

    pub(super) fn multipart_options(&self, open: &Open) -> PutMultipartOptions {
        let all = self.or(&open.defaults);
        PutMultipartOptions {
            attributes: all.headers(open.keeps),
            tags: all.tags(open.keeps),
            ..PutMultipartOptions::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_a_header_is_named() {
        let good = ObjectAttributes {
            cache_control: Some("max-age=60".to_owned()),
            tags: vec![("class".to_owned(), "debug".to_owned())],
            ..ObjectAttributes::content_type("text/plain")
        };
        assert_eq!(good.check(), Ok(()));
        let tag = |key: &str| vec![(key.to_owned(), String::new())];
        let errors: Vec<String> = [
            ObjectAttributes::content_type(""),
            ObjectAttributes { content_encoding: Some("a\nb".to_owned()), ..good.clone() },
            ObjectAttributes { tags: tag(""), ..good.clone() },
            ObjectAttributes { tags: vec![("k".to_owned(), String::new()); 11], ..good.clone() },
        ]
        .iter()
        .map(|attributes| attributes.check().unwrap_err().message)
        .collect();
        insta::assert_snapshot!(errors.join("\n"), @r"
        `` is not a content type; write for example `text/plain`
        `a\nb` is not a content encoding; write for example `zstd`
        the tag `` = `` is too long or has no name; at most 128 and 256 characters are allowed
        11 tags; an object may have at most 10
        ");
    }

    #[test]
    fn a_store_ignores_what_it_cannot_keep() {
        let all = ObjectAttributes {
            storage_class: Some("STANDARD_IA".to_owned()),
            tags: vec![("class".to_owned(), "debug".to_owned())],
            ..ObjectAttributes::content_type("text/plain")
        };
        let kept = |keeps| (all.headers(keeps).len(), all.tags(keeps).encoded().len());
        assert_eq!(kept(Keeps::Nothing), (0, 0));
        assert_eq!(kept(Keeps::Headers), (1, 0));
        assert_eq!(kept(Keeps::Everything), (2, "class=debug".len()));
    }
}
