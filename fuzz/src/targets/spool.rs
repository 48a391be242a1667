//! Names in the spool, into which every user may put files.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use hookrun_nix::dirs::Dirs;
use hookrun_queue::spool::Reader;
use hookrun_queue::trust::Trust;

/// Names of one input; each is a file to write.
const MOST: usize = 32;

pub(crate) fn run(data: &[u8]) {
    let directory = tempfile::Builder::new().tempdir_in(place()).unwrap();
    let state = directory.path().to_owned();
    let dirs = Dirs { config: state.join("hookrun.toml"), state };
    std::fs::create_dir(dirs.spool()).unwrap();
    let names = data.split(|byte| *byte == b'\n' || *byte == 0 || *byte == b'/');
    let mut put = 0;
    for name in names.filter(|name| !name.is_empty()).take(MOST) {
        let path = dirs.spool().join(OsStr::from_bytes(name));
        // A name that is too long, or that means a directory, is not a file name.
        if !path.exists() && std::fs::write(path, name).is_ok() {
            put += usize::from(!name.starts_with(b"."));
        }
    }
    let mut reader = Reader::new(&dirs, Trust::from_env());
    let mut rejected = 0;
    for _ in 0..=MOST {
        let scan = reader.scan(MOST);
        assert!(scan.events.is_empty(), "no file is an event");
        rejected += scan.rejected.len();
        if !reader.has_more() {
            break;
        }
    }
    assert_eq!(rejected, put, "each file is set aside once");
    let kept = std::fs::read_dir(dirs.rejected()).into_iter().flatten().flatten();
    let kept = kept.filter(|entry| !entry.file_name().as_bytes().ends_with(b".reason"));
    assert_eq!(kept.count(), put, "and none takes another's place");
}

/// Memory, where there is a file system in it.
fn place() -> &'static Path {
    let memory = Path::new("/dev/shm");
    if memory.is_dir() { memory } else { Path::new("/tmp") }
}
