//! Crafted components: a core module as text becomes a component of the interfaces in
//! `plugin-sdk/wit`. It can do what no compiler generates: tables that grow without end, an
//! allocator that returns invalid addresses, results with invalid pointers.

use std::path::Path;

use wit_component::{ComponentEncoder, StringEncoding};
use wit_parser::Resolve;

use crate::guests::sdk_interfaces;

/// The default metadata of a crafted component.
pub const METADATA: &str =
    r#"{"format":1,"name":"crafted","version":"0.0.1","hooks":["post-build"]}"#;

/// The address of the answer in the memory of the guest: `result<outcome, failure>` of the
/// post-build hook with the message `crafted`.
const ANSWER: u32 = 1024;

/// A builder of components.
#[derive(Debug, Clone)]
pub struct Crafted {
    world: String,
    packages: Vec<String>,
    memory: String,
    more: String,
    allocator: String,
    hook: String,
    answer: String,
    sections: Vec<(String, Vec<u8>)>,
}

/// Returns a builder of a harmless component, which answers every build with `crafted`.
pub fn crafted() -> Crafted {
    Crafted {
        world: "export hookrun:post-build/post-build@0.1.0;".to_owned(),
        packages: Vec::new(),
        memory: "2".to_owned(),
        more: String::new(),
        // The allocator never frees memory. The alignment of a word is enough for all values here.
        allocator: "(local $at i32) (local.set $at (global.get $top))
            (global.set $top (i32.and (i32.add (i32.add (global.get $top) (local.get 3)) (i32.const 7)) (i32.const -8)))
            (local.get $at)"
            .to_owned(),
        hook: format!("(i32.const {ANSWER})"),
        // Discriminant 0 (a result), the message at 2048 with 7 bytes, no details.
        answer: r"\00\00\00\00\00\00\00\00\00\08\00\00\07\00\00\00\00\00\00\00\00\00\00\00".to_owned(),
        sections: vec![("hookrun:metadata".to_owned(), METADATA.as_bytes().to_vec())],
    }
}

impl Crafted {
    /// Sets the type of the memory, such as `1 65536`.
    pub fn memory(self, pages: &str) -> Self {
        Self { memory: pages.to_owned(), ..self }
    }

    /// Adds to the core module: tables, functions, a start function.
    pub fn with(self, fields: &str) -> Self {
        Self { more: format!("{}\n{fields}", self.more), ..self }
    }

    /// Sets the body of the allocator that the host calls for arguments: `(param i32 i32 i32 i32)
    /// (result i32)`.
    pub fn allocator(self, body: &str) -> Self {
        Self { allocator: body.to_owned(), ..self }
    }

    /// Sets the body of the hook, which returns the address of the answer.
    pub fn hook(self, body: &str) -> Self {
        Self { hook: body.to_owned(), ..self }
    }

    /// Sets the bytes of the answer, as a string of the text format.
    pub fn answer(self, bytes: &str) -> Self {
        Self { answer: bytes.to_owned(), ..self }
    }

    /// Sets the message of the answer, at most 255 bytes without quotation marks.
    pub fn says(self, text: &str) -> Self {
        let length = u8::try_from(text.len()).unwrap();
        self.with(&format!("(data (i32.const 2304) \"{text}\")")).answer(&format!(
            r"\00\00\00\00\00\00\00\00\00\09\00\00\{length:02x}\00\00\00\00\00\00\00\00\00\00\00"
        ))
    }

    /// Replaces the items of the world, which has the post-build hook by default.
    pub fn world(self, items: &str) -> Self {
        Self { world: items.to_owned(), ..self }
    }

    /// Adds a WIT package, for imports that no host has.
    pub fn package(mut self, text: &str) -> Self {
        self.packages.push(text.to_owned());
        self
    }

    /// Sets the metadata.
    pub fn metadata(mut self, text: impl Into<Vec<u8>>) -> Self {
        self.sections.retain(|(name, _)| name != "hookrun:metadata");
        self.section("hookrun:metadata", text)
    }

    /// Removes the metadata.
    pub fn without_metadata(mut self) -> Self {
        self.sections.clear();
        self
    }

    /// Adds a custom section.
    pub fn section(mut self, name: &str, content: impl Into<Vec<u8>>) -> Self {
        self.sections.push((name.to_owned(), content.into()));
        self
    }

    /// Returns the component.
    pub fn build(&self) -> Vec<u8> {
        let Self { world, packages, memory, more, allocator, hook, answer, sections } = self;
        let mut resolve = Resolve::default();
        for (path, text) in sdk_interfaces() {
            // An added package replaces that of the SDK.
            let name = text
                .lines()
                .find_map(|line| line.strip_prefix("package "))
                .unwrap_or_default()
                .to_owned();
            if !packages.iter().any(|own| own.contains(&format!("package {name}"))) {
                resolve.push_str(path, &text).unwrap();
            }
        }
        for (number, text) in packages.iter().enumerate() {
            resolve.push_str(format!("own-{number}.wit"), text).unwrap();
        }
        let text = format!("package test:crafted;\nworld crafted {{ {world} }}");
        let package = resolve.push_str("crafted.wit", &text).unwrap();
        let world = resolve.select_world(&[package], Some("crafted")).unwrap();
        // 16 words: `event` without its record, since 16 is the most that goes flat (the canonical
        // ABI's `MAX_FLAT_PARAMS`).
        let event =
            "(param i32 i32 i64 i32 i32 i32 i32 i32 i32 i32 i32 i32 i32 i32 i32 i32) (result i32)";
        let export = if self.world.contains("export hookrun:post-build/post-build")
            && !self.has_own("hookrun:post-build")
        {
            format!("(func (export \"hookrun:post-build/post-build@0.1.0#handle\") {event} {hook})")
        } else {
            String::new()
        };
        let module = format!(
            "(module
               {more}
               (memory (export \"memory\") {memory})
               (global $top (mut i32) (i32.const 4096))
               (data (i32.const {ANSWER}) \"{answer}\")
               (data (i32.const 2048) \"crafted\")
               (func (export \"cabi_realloc\") (param i32 i32 i32 i32) (result i32) {allocator})
               {export})"
        );
        let mut module =
            wat::parse_str(&module).unwrap_or_else(|error| panic!("{error}\n{module}"));
        wit_component::embed_component_metadata(&mut module, &resolve, world, StringEncoding::UTF8)
            .unwrap();
        let mut component = ComponentEncoder::default().module(&module).unwrap().encode().unwrap();
        for (name, content) in sections {
            component.extend(custom_section(name, content));
        }
        component
    }

    fn has_own(&self, package: &str) -> bool {
        self.packages.iter().any(|own| own.contains(&format!("package {package}@")))
    }
}

/// Returns a custom section of the binary format: id 0, length, name, content.
pub fn custom_section(name: &str, content: &[u8]) -> Vec<u8> {
    let mut inner = leb128(name.len());
    inner.extend_from_slice(name.as_bytes());
    inner.extend_from_slice(content);
    let mut section = vec![0];
    section.extend(leb128(inner.len()));
    section.extend(inner);
    section
}

/// Returns a component with another core module that is not used and takes seconds to compile.
pub fn slow_to_compile(component: &[u8]) -> Vec<u8> {
    const FUNCTIONS: usize = 2000;
    const STEPS: usize = 400;
    // local.get 0, local.get 1, i64.mul, local.get 0, i32.wrap_i64, i64.load, i64.add, local.set 0
    const STEP: &[u8] = &[0x20, 0, 0x20, 1, 0x7e, 0x20, 0, 0xa7, 0x29, 3, 0, 0x7c, 0x21, 0];
    let section = |id: u8, content: &[u8]| -> Vec<u8> {
        [&[id], leb128(content.len()).as_slice(), content].concat()
    };
    let vector = |item: &[u8]| [leb128(FUNCTIONS), item.repeat(FUNCTIONS)].concat();
    // No further locals, the steps, local.get 0, end.
    let body = [&[0], STEP.repeat(STEPS).as_slice(), &[0x20, 0, 0x0b]].concat();
    let module = [
        b"\0asm\x01\0\0\0".to_vec(),
        // One type: (func (param i64 i64) (result i64)).
        section(1, &[1, 0x60, 2, 0x7e, 0x7e, 1, 0x7e]),
        section(3, &vector(&[0])),
        // One memory of one page.
        section(5, &[1, 0, 1]),
        section(10, &vector(&[leb128(body.len()), body].concat())),
    ]
    .concat();
    // A section of a component with a core module has the number 1.
    [component, &section(1, &module)].concat()
}

/// Returns a component with this many additional imports of 100 bytes each.
pub fn importing(count: usize, component: &[u8]) -> Vec<u8> {
    let section = |id: u8, content: &[u8]| -> Vec<u8> {
        [&[id], leb128(content.len()).as_slice(), content].concat()
    };
    let import = |number: usize| -> Vec<u8> {
        let name = format!("a:b/c{number:094}");
        // An instance of type 0.
        [&[0], leb128(name.len()).as_slice(), name.as_bytes(), &[5, 0]].concat()
    };
    let imports: Vec<u8> = (0..count).flat_map(import).collect();
    // The type of an instance without exports.
    let types = section(7, &[1, 0x42, 0]);
    [component, &types, &section(10, &[leb128(count), imports].concat())].concat()
}

/// Encodes an unsigned number in LEB128.
fn leb128(mut number: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    loop {
        let low = u8::try_from(number & 0x7f).unwrap_or_default();
        number >>= 7;
        if number == 0 {
            bytes.push(low);
            return bytes;
        }
        bytes.push(low | 0x80);
    }
}

/// Returns components that are nested this deep: the header of a component, and in it a section (id
/// 4) with a component.
pub fn nested(depth: usize) -> Vec<u8> {
    const HEADER: &[u8] = b"\0asm\x0d\0\x01\0";
    (0..depth).fold(HEADER.to_vec(), |inner, _| {
        let mut outer = HEADER.to_vec();
        outer.push(4);
        outer.extend(leb128(inner.len()));
        outer.extend(inner);
        outer
    })
}

/// Returns the component at `path` with another byte after the mark of its constructor
/// (`tests/guests/hostile/src/startup.rs`).
pub fn patched(path: &Path, choice: u8) -> Vec<u8> {
    const MARK: &[u8] = b"hostile-start: ";
    let mut bytes = std::fs::read(path).unwrap();
    let places: Vec<usize> = bytes
        .windows(MARK.len())
        .enumerate()
        .filter(|(_, window)| *window == MARK)
        .map(|(place, _)| place)
        .collect();
    let [place] = places.as_slice() else {
        panic!("{} has {} marks", path.display(), places.len())
    };
    *bytes.get_mut(place + MARK.len()).unwrap() = choice;
    bytes
}
