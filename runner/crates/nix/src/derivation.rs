//! Reads a derivation from its `.drv` file: its outputs and its builder. Hooks need it for what Nix
//! does not pass to them (Nix 2.8.0 passes an empty `OUT_PATHS`), and plugins read derivations
//! through `nix-store.derivation`.
//!
//! The file is text in ATerm form, parsed by the `nix-derivation` crate. It is read completely, so
//! its size is limited. It is untrusted input, because every user may write derivations. This
//! module uses neither Nix nor its database.

use std::io::Read as _;
use std::path::{Path, PathBuf};

use nix_derivation::{Output, StoreDir, StorePath};
use rustix::fs::{Mode, OFlags};

use crate::event::NixDirs;

/// The largest `.drv` file that is read. The largest of Nixpkgs have some hundred KiB; Nix itself
/// has no limit.
pub const MAX_SIZE: u64 = 32 << 20;

/// The largest `.drv` file that a hook reads. In memory a derivation takes up to fourteen times its
/// size, and any user can write one. The worker reads larger ones.
pub const MAX_SIZE_IN_HOOK: u64 = 2 << 20;

/// The contents of a `.drv` file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Derivation {
    /// The full store path of the `.drv` file.
    pub path: String,
    /// The name, which is that of the store path without `.drv`.
    pub name: String,
    /// The system, such as `x86_64-linux`, or `builtin`.
    pub system: String,
    /// The program that builds the derivation.
    pub builder: String,
    /// The outputs, sorted by name.
    pub outputs: Vec<DerivationOutput>,
    /// The environment by name, with `__json` for structured attributes. Variables whose values are
    /// not UTF-8 are left out.
    pub env: Vec<(String, String)>,
}

/// One output of a derivation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DerivationOutput {
    /// The name, such as `out` or `dev`.
    pub name: String,
    /// The full store path; none if it is known only after the build (floating content-addressed,
    /// impure and deferred outputs). [`super::database::Database::outputs`] may know it then.
    pub path: Option<String>,
    /// The part of the output's store path after the hash, such as `hello-2.12-dev`.
    pub path_name: String,
}

/// The reason why a derivation could not be read.
#[derive(Debug, thiserror::Error)]
pub enum DerivationError {
    /// The path is not `<store dir>/<hash>-<name>.drv`.
    #[error("`{}` is not a derivation ({reason}); a derivation's path is <store directory>/<hash>-<name>.drv", path.display())]
    Path {
        /// The given path.
        path: PathBuf,
        /// The problem with it.
        reason: String,
    },
    /// The file cannot be read.
    #[error("derivation {} cannot be read ({error}){}", path.display(), hint(error))]
    Read {
        /// The `.drv` file.
        path: PathBuf,
        /// The error of the system.
        #[source]
        error: std::io::Error,
    },
    /// The file is larger than the caller allows.
    #[error("derivation {} has more than {} MiB, which is the limit here", path.display(), most >> 20)]
    TooLarge {
        /// The `.drv` file.
        path: PathBuf,
        /// The limit in bytes.
        most: u64,
    },
    /// The text is not a derivation.
    #[error("derivation {} cannot be parsed ({error}); check it with `nix-store --verify-path {}`", path.display(), path.display())]
    Parse {
        /// The `.drv` file.
        path: PathBuf,
        /// The error of the parser.
        #[source]
        error: nix_derivation::Error,
    },
}

impl Derivation {
    /// Reads the derivation at `path`, a full store path. The store directory is the parent of
    /// `path`.
    ///
    /// # Errors
    /// `path` is not the path of a derivation, or the file cannot be read, is larger than
    /// [`MAX_SIZE`], or cannot be parsed.
    pub fn read(path: &Path) -> Result<Self, DerivationError> {
        Self::read_file(path, path, MAX_SIZE)
    }

    /// Reads the derivation at `path`, a full store path in the store of `dirs`, which may have
    /// another root. `most` is [`MAX_SIZE`] or [`MAX_SIZE_IN_HOOK`].
    ///
    /// # Errors
    /// As for [`Derivation::read`], or the file is larger than `most`.
    pub fn read_in(dirs: &NixDirs, path: &str, most: u64) -> Result<Self, DerivationError> {
        Self::read_file(Path::new(path), &dirs.real_path(path), most)
    }

    fn read_file(path: &Path, file: &Path, most: u64) -> Result<Self, DerivationError> {
        let (store_dir, store_path) = split(path)?;
        let read = |error: std::io::Error| DerivationError::Read { path: path.to_owned(), error };
        // Store paths of derivations are regular files. NOFOLLOW and NONBLOCK make sure that a link
        // is not followed and a FIFO does not block the hook.
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
        let file =
            rustix::fs::open(file, flags, Mode::empty()).map_err(|error| read(error.into()))?;
        let file = std::fs::File::from(file);
        // One read gets the contents, and a second one finds the end.
        let size = file.metadata().map_err(read)?.len().min(most);
        let mut bytes = Vec::with_capacity(usize::try_from(size).unwrap_or(0) + 1);
        file.take(most + 1).read_to_end(&mut bytes).map_err(read)?;
        if bytes.len() as u64 > most {
            return Err(DerivationError::TooLarge { path: path.to_owned(), most });
        }
        parse(path, &store_dir, &store_path, &bytes)
    }

    /// Parses the text of the derivation whose full store path is `path`.
    ///
    /// # Errors
    /// Returns the errors of [`Derivation::read`].
    pub fn parse(path: &Path, bytes: &[u8]) -> Result<Self, DerivationError> {
        let (store_dir, store_path) = split(path)?;
        parse(path, &store_dir, &store_path, bytes)
    }

    /// Returns the path of the output called `name`, if it is known before the build.
    pub fn output_path(&self, name: &str) -> Option<&str> {
        self.outputs.iter().find(|output| output.name == name)?.path.as_deref()
    }
}

/// Returns a hint for the message about a failed read.
fn hint(error: &std::io::Error) -> &'static str {
    if error.kind() == std::io::ErrorKind::NotFound {
        "; it was garbage-collected, or it is in another store: see `NIX_STORE_DIR`"
    } else {
        "; a derivation is a regular file that all users may read"
    }
}

/// Splits `path` into the store directory and the store path.
fn split(path: &Path) -> Result<(StoreDir, StorePath), DerivationError> {
    let wrong = |reason: String| DerivationError::Path { path: path.to_owned(), reason };
    let text = path.to_str().ok_or_else(|| wrong("it is not UTF-8".into()))?;
    let (dir, base) = text.rsplit_once('/').ok_or_else(|| wrong("it is not absolute".into()))?;
    let store_dir = StoreDir::new(if dir.is_empty() { "/" } else { dir })
        .map_err(|error| wrong(error.to_string()))?;
    let store_path =
        StorePath::from_basename(base.as_bytes()).map_err(|error| wrong(error.to_string()))?;
    if !store_path.is_derivation() {
        return Err(wrong("its name does not end in .drv".into()));
    }
    Ok((store_dir, store_path))
}

fn parse(
    path: &Path,
    store_dir: &StoreDir,
    store_path: &StorePath,
    bytes: &[u8],
) -> Result<Derivation, DerivationError> {
    let wrong = |error| DerivationError::Parse { path: path.to_owned(), error };
    let name = store_path.name().strip_suffix(".drv").unwrap_or_else(|| store_path.name());
    let parsed = nix_derivation::Derivation::from_aterm_bytes_in(bytes, name, store_dir.clone())
        .map_err(wrong)?;
    let outputs = parsed
        .outputs()
        .iter()
        .map(|(output, kind): (&String, &Output)| {
            Ok(DerivationOutput {
                name: output.clone(),
                path: kind
                    .path_in(store_dir, name, output)?
                    .map(|path| store_dir.render_path(&path)),
                path_name: nix_derivation::store_path::output_path_name(name, output)?,
            })
        })
        .collect::<Result<_, nix_derivation::Error>>()
        .map_err(wrong)?;
    let structured = parsed
        .structured_attrs()
        .and_then(|attrs| String::from_utf8(attrs.raw_json().to_vec()).ok())
        .map(|json| ("__json".to_owned(), json));
    let plain = parsed
        .environment()
        .iter()
        .filter_map(|(key, value)| Some((key.clone(), String::from_utf8(value.clone()).ok()?)));
    let mut env: Vec<_> = structured.into_iter().chain(plain).collect();
    env.sort();
    Ok(Derivation {
        path: store_dir.render_path(store_path),
        name: name.to_owned(),
        system: parsed.system().to_owned(),
        builder: parsed.builder().to_owned(),
        outputs,
        env,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    // Written by Nix 2.8.0 with NIX_STORE_DIR=/srv/exp/store, with unchanged hashes.
    const TWO_OUTPUTS: &str = r#"Derive([("dev","/srv/exp/store/cvar8nqq71gb8af77ichz56mh6f9hd65-b-1.0-dev","",""),("out","/srv/exp/store/h7vfijp7wiaxzqw9rx3rhqqv1h7vf29d-b-1.0","","")],[("/srv/exp/store/ycphy79j1z9kwi7v5rwqz1xz32rp0h5d-a-1.0.drv",["out"])],[],"x86_64-linux","/bin/sh",["-c","echo $a > $out; echo $out $dev > $dev"],[("builder","/bin/sh"),("name","b-1.0"),("system","x86_64-linux")])"#;
    const FLOATING: &str = r#"Derive([("out","","r:sha256","")],[],[],"x86_64-linux","/bin/sh",[],[("__json","{\"x\":[1,2]}"),("out","/1rz4g4znpzjwh1xymhjpm42vipw92pr73vdgl6xs1hycac8kf2n9")])"#;
    const FIXED: &str = r#"Derive([("out","/nix/store/r8bawbzz3s5g1hdxgg8i9pliy92w9hg3-fo-1.0","sha256","87428fc522803d31065e7bce3cf03fe475096631e5e07bbd7a0fde60c4cf25c7")],[],[],"x86_64-linux","/bin/sh",[],[])"#;
    const DRV: &str = "/srv/exp/store/3gznakr0mcgnal5daqsbpbqb6yrl2hx0-b-1.0.drv";

    #[test]
    fn outputs_have_paths_in_the_store_directory_of_the_derivation() {
        let derivation = Derivation::parse(Path::new(DRV), TWO_OUTPUTS.as_bytes()).unwrap();
        assert_eq!(derivation.name, "b-1.0");
        assert_eq!(derivation.system, "x86_64-linux");
        assert_eq!(
            derivation.output_path("out"),
            Some("/srv/exp/store/h7vfijp7wiaxzqw9rx3rhqqv1h7vf29d-b-1.0")
        );
        assert_eq!(
            derivation.output_path("dev"),
            Some("/srv/exp/store/cvar8nqq71gb8af77ichz56mh6f9hd65-b-1.0-dev")
        );
        assert_eq!(derivation.outputs[0].path_name, "b-1.0-dev");
        assert_eq!(derivation.path, DRV);
    }

    #[test]
    fn floating_outputs_have_no_path_and_structured_attributes_are_kept() {
        let derivation = Derivation::parse(Path::new(DRV), FLOATING.as_bytes()).unwrap();
        assert_eq!(derivation.outputs[0].path, None);
        assert_eq!(derivation.env[0], ("__json".into(), "{\"x\":[1,2]}".into()));
    }

    #[test]
    fn fixed_outputs_have_the_path_that_their_hash_gives() {
        let path = Path::new("/nix/store/8x4mdfysilr65fdkbza8g3lljysjvmk0-fo-1.0.drv");
        let derivation = Derivation::parse(path, FIXED.as_bytes()).unwrap();
        let expected = StoreDir::default()
            .build_ca_path(
                "fo-1.0",
                &nix_derivation::CAHash::parse(
                    "fixed:sha256:1ir5rz261phggayppq7565k0jxg47zq3rkkvbq332gc04b2qyhl7",
                )
                .unwrap(),
                std::iter::empty::<&StorePath>(),
                false,
            )
            .unwrap();
        assert_eq!(derivation.output_path("out"), Some(expected.to_string().as_str()));
    }

    #[test]
    fn a_file_is_read_and_errors_name_the_problem() {
        let store = tempfile::tempdir().unwrap();
        let drv = store.path().join("3gznakr0mcgnal5daqsbpbqb6yrl2hx0-b-1.0.drv");
        std::fs::write(&drv, FLOATING).unwrap();
        assert_eq!(Derivation::read(&drv).unwrap().name, "b-1.0");
        std::fs::write(&drv, "Derive(").unwrap();
        let link = store.path().join("4gznakr0mcgnal5daqsbpbqb6yrl2hx0-b-1.0.drv");
        std::os::unix::fs::symlink(&drv, &link).unwrap();
        let errors: Vec<String> = [
            drv.as_path(),
            &link,
            &store.path().join("5gznakr0mcgnal5daqsbpbqb6yrl2hx0-b-1.0.drv"),
            &store.path().join("5gznakr0mcgnal5daqsbpbqb6yrl2hx0-b-1.0"),
            Path::new("3gznakr0mcgnal5daqsbpbqb6yrl2hx0-b-1.0.drv"),
            Path::new("/nix/store/e.drv"),
        ]
        .iter()
        .map(|path| {
            Derivation::read(path)
                .unwrap_err()
                .to_string()
                .replace(&store.path().display().to_string(), "/store")
        })
        .collect();
        insta::assert_snapshot!(errors.join("\n"), @r#"
        derivation /store/3gznakr0mcgnal5daqsbpbqb6yrl2hx0-b-1.0.drv cannot be parsed (ATerm parse error at byte 7: expected "["); check it with `nix-store --verify-path /store/3gznakr0mcgnal5daqsbpbqb6yrl2hx0-b-1.0.drv`
        derivation /store/4gznakr0mcgnal5daqsbpbqb6yrl2hx0-b-1.0.drv cannot be read (Too many levels of symbolic links (os error 40)); a derivation is a regular file that all users may read
        derivation /store/5gznakr0mcgnal5daqsbpbqb6yrl2hx0-b-1.0.drv cannot be read (No such file or directory (os error 2)); it was garbage-collected, or it is in another store: see `NIX_STORE_DIR`
        `/store/5gznakr0mcgnal5daqsbpbqb6yrl2hx0-b-1.0` is not a derivation (its name does not end in .drv); a derivation's path is <store directory>/<hash>-<name>.drv
        `3gznakr0mcgnal5daqsbpbqb6yrl2hx0-b-1.0.drv` is not a derivation (it is not absolute); a derivation's path is <store directory>/<hash>-<name>.drv
        `/nix/store/e.drv` is not a derivation (store path has no `-` separating digest from name); a derivation's path is <store directory>/<hash>-<name>.drv
        "#);
    }

    #[test]
    fn an_oversized_file_is_refused() {
        let store = tempfile::tempdir().unwrap();
        let drv = store.path().join("3gznakr0mcgnal5daqsbpbqb6yrl2hx0-b-1.0.drv");
        std::fs::File::create(&drv).unwrap().set_len(MAX_SIZE + 1).unwrap();
        assert!(matches!(Derivation::read(&drv), Err(DerivationError::TooLarge { .. })));
    }

    proptest::proptest! {
        /// Checks that any text, and any cut or changed derivation, results in a value or an error,
        /// never in a panic.
        #[test]
        fn any_text_is_parsed_or_refused(bytes: Vec<u8>, cut in 0..TWO_OUTPUTS.len(), byte: u8) {
            let _ = Derivation::parse(Path::new(DRV), &bytes);
            let mut changed = TWO_OUTPUTS.as_bytes().to_vec();
            let _ = Derivation::parse(Path::new(DRV), &changed[..cut]);
            changed[cut] = byte;
            let _ = Derivation::parse(Path::new(DRV), &changed);
        }
    }
}
