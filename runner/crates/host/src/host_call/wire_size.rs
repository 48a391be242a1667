//! Values of the interfaces on their way between guest and host: the number of bytes that they
//! take, and their text in the WebAssembly Value Encoding (WAVE) for the record of a test.

use std::fmt::Write as _;

use wasmtime::component::Resource;

use hookrun_capability::CapabilityError;

/// The size of a value in a call: the bytes of its strings and lists without its fixed part.
pub trait WireSize {
    fn wire_size(&self) -> u64;

    /// Appends the value as WAVE text. Only tests ask for it.
    fn wave(&self, text: &mut String) {
        // A record whose fields no test has needed yet.
        text.push_str("{...}");
    }

    /// Puts something else in its place that the interface allows, for a scripted fault.
    fn garble(&mut self) {}
}

macro_rules! free {
    ($($ty:ty),+) => {$(
        impl WireSize for $ty {
            fn wire_size(&self) -> u64 {
                0
            }

            fn wave(&self, text: &mut String) {
                let _infallible = write!(text, "{self}");
            }
        }
    )+};
}
free!(bool, u32, u64, i32);

impl WireSize for () {
    fn wire_size(&self) -> u64 {
        0
    }

    fn wave(&self, _text: &mut String) {}
}

impl WireSize for u8 {
    fn wire_size(&self) -> u64 {
        1
    }

    fn wave(&self, text: &mut String) {
        let _infallible = write!(text, "{self}");
    }

    fn garble(&mut self) {
        *self = !*self;
    }
}

impl WireSize for String {
    fn wire_size(&self) -> u64 {
        self.len() as u64
    }

    fn wave(&self, text: &mut String) {
        text.push('"');
        for character in self.chars() {
            match character {
                '"' | '\\' => text.extend(['\\', character]),
                '\n' => text.push_str("\\n"),
                '\r' => text.push_str("\\r"),
                '\t' => text.push_str("\\t"),
                _ if character.is_control() => {
                    let _infallible = write!(text, "\\u{{{:x}}}", u32::from(character));
                }
                _ => text.push(character),
            }
        }
        text.push('"');
    }

    fn garble(&mut self) {
        "garbage".clone_into(self);
    }
}

/// Writes a record: the names of its fields and their values.
pub(super) fn wave_record(text: &mut String, fields: &[(&str, &dyn WireSize)]) {
    wave_items(text, ('{', '}'), fields, |text, (name, value)| {
        text.push_str(name);
        text.push_str(": ");
        value.wave(text);
    });
}

/// Writes the arguments of a function.
pub(super) fn wave_arguments(values: &[&dyn WireSize]) -> String {
    let mut text = String::new();
    wave_items(&mut text, ('(', ')'), values, |text, value| value.wave(text));
    text
}

/// Writes the result of a function.
pub(super) fn wave_result<T: WireSize>(result: &Result<T, CapabilityError>) -> String {
    let mut text = String::new();
    match result {
        Ok(value) => {
            text.push_str("ok(");
            value.wave(&mut text);
        }
        Err(CapabilityError { kind, message, .. }) => {
            text.push_str("err(");
            let kind = kind.as_str().to_owned();
            wave_record(&mut text, &[("kind", &kind), ("message", message)]);
        }
    }
    text.push(')');
    text.replace("ok()", "ok")
}

fn wave_items<T>(
    text: &mut String,
    (open, close): (char, char),
    items: &[T],
    write: impl Fn(&mut String, &T),
) {
    text.push(open);
    for (number, item) in items.iter().enumerate() {
        if number > 0 {
            text.push_str(", ");
        }
        write(text, item);
    }
    text.push(close);
}

impl<T: WireSize> WireSize for Option<T> {
    fn wire_size(&self) -> u64 {
        self.as_ref().map_or(0, WireSize::wire_size)
    }

    fn wave(&self, text: &mut String) {
        match self {
            Some(value) => {
                text.push_str("some(");
                value.wave(text);
                text.push(')');
            }
            None => text.push_str("none"),
        }
    }

    fn garble(&mut self) {
        if let Some(value) = self {
            value.garble();
        }
    }
}

/// A list also takes one word for each element, so that a million empty strings have a cost.
impl<T: WireSize> WireSize for Vec<T> {
    fn wire_size(&self) -> u64 {
        if size_of::<T>() <= 1 {
            return self.len() as u64;
        }
        8 * self.len() as u64 + self.iter().map(WireSize::wire_size).sum::<u64>()
    }

    fn wave(&self, text: &mut String) {
        wave_items(text, ('[', ']'), self, |text, value| value.wave(text));
    }

    fn garble(&mut self) {
        self.iter_mut().for_each(WireSize::garble);
    }
}

impl<A: WireSize, B: WireSize> WireSize for (A, B) {
    fn wire_size(&self) -> u64 {
        self.0.wire_size() + self.1.wire_size()
    }

    fn wave(&self, text: &mut String) {
        text.push_str(&wave_arguments(&[&self.0, &self.1]));
    }
}

impl<T: 'static> WireSize for Resource<T> {
    fn wire_size(&self) -> u64 {
        0
    }

    /// WAVE has no text for a handle; a string stands for it.
    fn wave(&self, text: &mut String) {
        text.push_str("\"(handle)\"");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_have_a_text_that_wave_reads() {
        let wave = |value: &dyn WireSize| wave_arguments(&[value]);
        let text = "a \"b\" \\ \n\u{1}é".to_owned();
        insta::assert_snapshot!(wave(&text), @r#"("a \"b\" \\ \n\u{1}é")"#);
        insta::assert_snapshot!(wave(&Some(vec![1_u8, 2])), @"(some([1, 2]))");
        insta::assert_snapshot!(wave(&vec![(text, true)]), @r#"([("a \"b\" \\ \n\u{1}é", true)])"#);
        let error: Result<(), _> = Err(CapabilityError::denied("no"));
        insta::assert_snapshot!(wave_result(&error), @r#"err({kind: "denied", message: "no"})"#);
        insta::assert_snapshot!(wave_result(&Ok(())), @"ok");
        for text in [wave_result(&error), wave_result(&Ok(Some("x".to_owned()))), wave(&7_u64)] {
            wasm_wave::untyped::UntypedValue::parse(&text).unwrap();
        }
        let mut garbled = Some("{}".to_owned());
        garbled.garble();
        assert_eq!(garbled.as_deref(), Some("garbage"));
    }

    #[test]
    fn a_list_of_empty_values_has_a_size() {
        assert_eq!(vec![String::new(); 1000].wire_size(), 8000);
        assert_eq!(vec![0_u8; 1000].wire_size(), 1000);
        assert_eq!(
            (Some("abc".to_owned()), vec![(String::new(), "de".to_owned())]).wire_size(),
            3 + 8 + 2
        );
    }
}
