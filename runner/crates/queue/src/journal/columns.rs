//! Reads columns of the journal. Values are not checked: a damaged value is shown as far as
//! possible, and does not affect other rows.

use rusqlite::Row;
use rusqlite::types::ValueRef;

use hookrun_nix::event::Event;
use hookrun_nix::outcome::Class;

/// Returns a count or a time, which is never negative; 0 for a value that is not a number.
pub(super) fn count(row: &Row<'_>, column: usize) -> rusqlite::Result<u64> {
    Ok(time(row, column)?.unwrap_or(0))
}

pub(super) fn number(row: &Row<'_>, column: usize) -> rusqlite::Result<u32> {
    Ok(u32::try_from(count(row, column)?).unwrap_or(u32::MAX))
}

pub(super) fn time(row: &Row<'_>, column: usize) -> rusqlite::Result<Option<u64>> {
    Ok(match row.get_ref(column)? {
        ValueRef::Integer(value) => Some(u64::try_from(value).unwrap_or(0)),
        _ => None,
    })
}

/// Returns the bytes of a text; none for a value that is not text.
pub(super) fn bytes<'a>(row: &'a Row<'_>, column: usize) -> rusqlite::Result<&'a [u8]> {
    Ok(match row.get_ref(column)? {
        ValueRef::Text(bytes) | ValueRef::Blob(bytes) => bytes,
        _ => &[],
    })
}

/// Parses a class. A damaged one becomes unreadable.
pub(super) fn read_class(word: &str) -> Class {
    Class::from_word(word).unwrap_or(Class::Unreadable)
}

pub(super) fn text(row: &Row<'_>, column: usize) -> rusqlite::Result<String> {
    Ok(String::from_utf8_lossy(bytes(row, column)?).into_owned())
}

pub(super) fn optional_text(row: &Row<'_>, column: usize) -> rusqlite::Result<Option<String>> {
    Ok(match row.get_ref(column)? {
        ValueRef::Null => None,
        _ => Some(text(row, column)?),
    })
}

pub(super) fn json<T: serde::de::DeserializeOwned>(
    row: &Row<'_>,
    column: usize,
) -> rusqlite::Result<T> {
    serde_json::from_slice(bytes(row, column)?).map_err(|error| {
        rusqlite::Error::FromSqlConversionFailure(
            column,
            rusqlite::types::Type::Text,
            Box::new(error),
        )
    })
}

/// Returns the event in the JSON of column `body`, if it can be read and has the id of column `id`.
pub(super) fn event(row: &Row<'_>, body: usize, id: usize) -> Result<Event, String> {
    let event: Event = json(row, body).map_err(|error| error.to_string())?;
    let id = text(row, id).map_err(|error| error.to_string())?;
    if event.id == id { Ok(event) } else { Err(format!("it is that of {}", event.id)) }
}
