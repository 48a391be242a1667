//! A small invented store for `hookrun test`: a library from a public cache (with a well-formed
//! signature of that cache), a locally built library, and a program with two outputs. Its NARs are
//! real, so that their hashes can be checked.

use std::collections::BTreeMap;

use nix_archive::nar::Encoder;

use super::{Backend, Budget, DirectoryEntry, TakeInfo, tree};
use crate::CapabilityError;
use hookrun_nix::database::PathInfo;
use hookrun_nix::derivation::{Derivation, DerivationOutput};
use hookrun_nix::event::Output;
use hookrun_nix::nar::{self, Source};

/// The store directory of the sample, independent of the Nix on the machine.
pub const STORE_DIR: &str = "/nix/store";

const DRV: &str = "/nix/store/2c3k0d1bfkvzvmr9b4xv0yqsxl1a6z4w-greet-2.12.drv";
const OUT: &str = "/nix/store/7yqz1aw5s3jr0vkxg2h9w4l6dqm8nfbc-greet-2.12";
const DEV: &str = "/nix/store/9kd0nwv3q8x1c5hrb7y2jfz6a4lgsmpi-greet-2.12-dev";
const LIBRARY: &str = "/nix/store/4m6s9xq2hvw0ga1zy8cdrk3bpnj5l7fi-libgreet-1.2";
const LIBC: &str = "/nix/store/1wl5hz9gsa3v7r0ncqxy8k2bdmj6fp4i-glibc-2.40-66";

/// A well-formed signature that is not valid.
const PUBLIC_SIGNATURE: &str = "cache.nixos.org-1:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA==";

/// 2025-01-01T00:00:00Z.
const REGISTERED: u64 = 1_735_689_600;

/// The invented store.
#[derive(Debug)]
pub struct Sample {
    paths: BTreeMap<&'static str, Valid>,
}

#[derive(Debug)]
struct Valid {
    info: PathInfo,
    tree: Tree,
    nar: Vec<u8>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Tree {
    File { executable: bool, contents: Vec<u8> },
    Link(&'static str),
    Directory(BTreeMap<&'static str, Tree>),
}

impl Default for Sample {
    fn default() -> Self {
        Self::new()
    }
}

impl Sample {
    pub fn new() -> Self {
        let file =
            |text: &str| Tree::File { executable: false, contents: text.as_bytes().to_vec() };
        let program =
            |text: &str| Tree::File { executable: true, contents: text.as_bytes().to_vec() };
        let directory =
            |entries: Vec<(&'static str, Tree)>| Tree::Directory(entries.into_iter().collect());
        let trees = [
            (
                LIBC,
                vec![LIBC],
                directory(vec![(
                    "lib",
                    directory(vec![("libc.so.6", file(&"libc ".repeat(4096)))]),
                )]),
            ),
            (
                LIBRARY,
                vec![LIBC],
                directory(vec![(
                    "lib",
                    directory(vec![
                        ("libgreet.so", Tree::Link("libgreet.so.1")),
                        ("libgreet.so.1", program(&format!("runpath {LIBC}/lib"))),
                    ]),
                )]),
            ),
            (
                OUT,
                vec![LIBRARY, LIBC, OUT],
                directory(vec![
                    (
                        "bin",
                        directory(vec![(
                            "greet",
                            program(&format!("runpath {LIBRARY}/lib:{LIBC}/lib, prefix {OUT}")),
                        )]),
                    ),
                    ("share", directory(vec![("greet.txt", file("hello\n"))])),
                ]),
            ),
            (
                DEV,
                vec![OUT],
                directory(vec![
                    ("include", directory(vec![("greet.h", file("/* greet */\n"))])),
                    ("out", Tree::Link(OUT)),
                ]),
            ),
            (DRV, vec![], file("a derivation")),
        ];
        let paths = trees.into_iter().map(|(path, mut references, tree)| {
            references.sort_unstable();
            let nar = tree.nar();
            let (nar_hash, nar_size) = nar::hash(&nar);
            let info = PathInfo {
                path: path.to_owned(),
                nar_hash,
                nar_size,
                references: references.into_iter().map(str::to_owned).collect(),
                deriver: [OUT, DEV].contains(&path).then(|| DRV.to_owned()),
                signatures: if path == LIBC {
                    vec![PUBLIC_SIGNATURE.to_owned()]
                } else {
                    Vec::new()
                },
                ca: None,
                ultimate: path != LIBC,
                registration_time: REGISTERED,
            };
            (path, Valid { info, tree, nar })
        });
        Self { paths: paths.collect() }
    }

    /// Returns the derivation and the outputs of a sample event.
    pub fn built() -> (String, Vec<Output>) {
        let output =
            |name: &str, path: &str| Output { name: name.to_owned(), path: path.to_owned() };
        (DRV.to_owned(), vec![output("dev", DEV), output("out", OUT)])
    }

    fn find(&self, path: &str, relative: &str) -> Result<&Tree, CapabilityError> {
        let missing = || {
            CapabilityError::not_found(format!(
                "{path}/{relative} does not exist in the sample store"
            ))
        };
        let mut here = &self.paths.get(path).ok_or_else(missing)?.tree;
        for component in tree::components(relative)? {
            here = match here {
                Tree::Directory(entries) => entries.get(component).ok_or_else(missing)?,
                Tree::File { .. } | Tree::Link(_) => return Err(missing()),
            };
        }
        Ok(here)
    }
}

impl Tree {
    fn nar(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        // Writing these trees to memory cannot fail. An empty NAR would fail every later check.
        let encode = |bytes: &mut Vec<u8>| {
            let mut encoder = Encoder::new(bytes)?;
            self.encode(&mut encoder, None)?;
            encoder.finish().map(|_| ())
        };
        if encode(&mut bytes).is_err() {
            bytes.clear();
        }
        bytes
    }

    fn encode(
        &self,
        encoder: &mut Encoder<&mut Vec<u8>>,
        name: Option<&[u8]>,
    ) -> Result<(), nix_archive::nar::Error> {
        match self {
            Self::File { executable, contents } => encoder.regular(name, *executable, contents),
            Self::Link(target) => encoder.symlink(name, target.as_bytes()),
            Self::Directory(entries) => {
                encoder.start_directory(name)?;
                for (name, tree) in entries {
                    tree.encode(encoder, Some(name.as_bytes()))?;
                }
                encoder.end_directory()
            }
        }
    }

    fn entry(&self, name: &str) -> DirectoryEntry {
        let name = name.to_owned();
        match self {
            Self::File { executable, contents } => DirectoryEntry {
                name,
                kind: "regular",
                size: contents.len() as u64,
                executable: *executable,
                target: None,
            },
            Self::Link(target) => DirectoryEntry {
                name,
                kind: "symlink",
                size: 0,
                executable: false,
                target: Some((*target).to_owned()),
            },
            Self::Directory(_) => {
                DirectoryEntry { name, kind: "directory", size: 0, executable: false, target: None }
            }
        }
    }
}

impl Backend for Sample {
    fn each_info(&self, paths: &[String], take: &mut TakeInfo<'_>) -> Result<(), CapabilityError> {
        paths.iter().try_for_each(|path| {
            take(self.paths.get(path.as_str()).map(|valid| valid.info.clone()))
        })
    }

    fn closure(&self, paths: &[String]) -> Result<Vec<String>, CapabilityError> {
        // The invented graph, references first.
        let order = [DRV, LIBC, LIBRARY, OUT, DEV];
        let mut reached: Vec<&str> = paths.iter().map(String::as_str).collect();
        for path in order.iter().rev() {
            if reached.contains(path)
                && let Some(valid) = self.paths.get(path)
            {
                reached.extend(valid.info.references.iter().map(String::as_str));
            }
        }
        let within = order.iter().filter(|path| reached.contains(path));
        Ok(within
            .filter(|path| self.paths.contains_key(*path))
            .map(|path| (*path).to_owned())
            .collect())
    }

    fn derivation(&self, path: &str, _: &mut Budget) -> Result<Derivation, CapabilityError> {
        if path != DRV {
            return Err(CapabilityError::not_found(format!(
                "{path} does not exist in the sample store"
            )));
        }
        let output = |name: &str, path: &str, path_name: &str| DerivationOutput {
            name: name.to_owned(),
            path: Some(path.to_owned()),
            path_name: path_name.to_owned(),
        };
        Ok(Derivation {
            path: DRV.to_owned(),
            name: "greet-2.12".to_owned(),
            system: "x86_64-linux".to_owned(),
            builder: "/bin/sh".to_owned(),
            outputs: vec![output("dev", DEV, "greet-2.12-dev"), output("out", OUT, "greet-2.12")],
            env: vec![
                ("name".to_owned(), "greet-2.12".to_owned()),
                ("out".to_owned(), OUT.to_owned()),
            ],
        })
    }

    fn list_directory(
        &self,
        path: &str,
        relative: &str,
        _: &mut Budget,
    ) -> Result<Vec<DirectoryEntry>, CapabilityError> {
        match self.find(path, relative)? {
            Tree::Directory(entries) => {
                Ok(entries.iter().map(|(name, tree)| tree.entry(name)).collect())
            }
            Tree::File { .. } | Tree::Link(_) => {
                Err(CapabilityError::invalid(format!("{path}/{relative} is not a directory")))
            }
        }
    }

    fn read_file(
        &self,
        path: &str,
        relative: &str,
        offset: u64,
        length: u64,
    ) -> Result<Vec<u8>, CapabilityError> {
        let Tree::File { contents, .. } = self.find(path, relative)? else {
            return Err(CapabilityError::invalid(format!(
                "{path}/{relative} is not a regular file; list it instead"
            )));
        };
        let clamp = |n: u64| usize::try_from(n).unwrap_or(usize::MAX);
        Ok(contents.iter().skip(clamp(offset)).take(clamp(length)).copied().collect())
    }

    fn nar_source(&self, path: &str) -> Source {
        Source::Bytes(self.paths.get(path).map_or_else(Vec::new, |valid| valid.nar.clone()).into())
    }
}
