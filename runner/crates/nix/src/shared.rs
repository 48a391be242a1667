//! A value with many holders. One more costs no memory: there may be thousands of machines, each is
//! named in many places, and Nix stands still while a builder is chosen.

use std::borrow::Borrow;
use std::fmt;
use std::ops::Deref;
use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A `T` that several hold. It is written and compared as the `T` is.
#[derive(PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Shared<T: ?Sized>(Arc<T>);

/// Text that several hold, such as a store URI.
pub type Text = Shared<str>;
/// Words that several hold, such as the features of a machine.
pub type Words = Shared<[String]>;

impl<T: ?Sized> Clone for Shared<T> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<T: ?Sized> Deref for Shared<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0
    }
}

impl<T: ?Sized> Borrow<T> for Shared<T> {
    fn borrow(&self) -> &T {
        self
    }
}

impl<T: ?Sized> Default for Shared<T>
where
    Arc<T>: Default,
{
    fn default() -> Self {
        Self(Arc::default())
    }
}

impl<T: ?Sized + fmt::Debug> fmt::Debug for Shared<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
}

impl<T: ?Sized + fmt::Display> fmt::Display for Shared<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
}

impl From<&str> for Text {
    fn from(text: &str) -> Self {
        Self(text.into())
    }
}

impl From<String> for Text {
    fn from(text: String) -> Self {
        Self(text.into())
    }
}

impl Words {
    /// Returns whether it is empty.
    pub fn is_empty(&self) -> bool {
        (**self).is_empty()
    }
}

impl Text {
    /// The text.
    pub fn as_str(&self) -> &str {
        self
    }
}

impl<T: AsRef<str>> PartialEq<T> for Text {
    fn eq(&self, text: &T) -> bool {
        **self == *text.as_ref()
    }
}

impl<T> FromIterator<T> for Shared<[T]> {
    fn from_iter<I: IntoIterator<Item = T>>(items: I) -> Self {
        Self(items.into_iter().collect())
    }
}

impl<T: ?Sized + Serialize> Serialize for Shared<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        (**self).serialize(serializer)
    }
}

impl<'de, T: ?Sized> Deserialize<'de> for Shared<T>
where
    Box<T>: Deserialize<'de>,
{
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(Self(Box::<T>::deserialize(deserializer)?.into()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_written_and_read_as_what_it_holds() {
        let (uri, words) = (Text::from("ssh://m"), Words::from_iter(["kvm".to_owned()]));
        let text = serde_json::to_string(&(&uri, &words)).unwrap();
        assert_eq!(text, r#"["ssh://m",["kvm"]]"#);
        assert_eq!(serde_json::from_str::<(Text, Words)>(&text).unwrap(), (uri.clone(), words));
        assert_eq!(format!("{uri} {uri:?}"), "ssh://m \"ssh://m\"");
        assert!(std::ptr::eq(&raw const *uri.clone(), &raw const *uri));
    }
}
