//! A library that is preloaded into hookrun. It kills the process before or after a chosen call,
//! such as `fsync` or `rename`, or shifts its clock. Each test compiles it with the C compiler.

use std::path::{Path, PathBuf};
use std::process::Command;

use hookrun_queue::spawn::PROGRAM;

use super::{Ran, Scene};

const SOURCE: &str = include_str!("boundary.c");

/// The preloaded library.
#[derive(Debug, Clone)]
pub struct Boundary {
    library: PathBuf,
}

/// Where to kill a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Point {
    /// The number of the boundary, 1 for the first of the process.
    pub number: usize,
    /// Whether to kill the process after the boundary, not before it.
    pub after: bool,
}

impl Boundary {
    /// Compiles the library into the directory of the scene. From now on the hooks of the scene are
    /// `hookrun`, since nothing can be preloaded into the static `hookrun-hook`.
    ///
    /// # Panics
    /// If there is no C compiler.
    #[track_caller]
    pub fn compile(scene: &Scene) -> Self {
        for link in ["hookrun-post-build", "hookrun-diff"] {
            let link = scene.path("bin").join(link);
            std::fs::remove_file(&link).unwrap();
            std::os::unix::fs::symlink(PROGRAM, link).unwrap();
        }
        let directory = scene.dir();
        let (source, library) = (directory.join("boundary.c"), directory.join("boundary.so"));
        std::fs::write(&source, SOURCE).unwrap();
        let mut compiler = Command::new("cc");
        compiler
            .args(["-shared", "-fPIC", "-O1", "-Wall", "-Werror", "-o"])
            .arg(&library)
            .arg(&source)
            .arg("-ldl");
        Ran::of(&mut compiler).expect_success();
        Self { library }
    }

    /// Lets `command` be killed at a point.
    pub fn kill<'a>(&self, command: &'a mut Command, point: Point) -> &'a mut Command {
        command.env("LD_PRELOAD", &self.library).env("BOUNDARY_KILL", point.number.to_string());
        if point.after {
            command.env("BOUNDARY_AFTER", "1");
        }
        command
    }

    /// Writes the boundaries of `command` to a file, for [`Boundary::seen`].
    pub fn log<'a>(&self, command: &'a mut Command, file: &Path) -> &'a mut Command {
        command.env("LD_PRELOAD", &self.library).env("BOUNDARY_LOG", file)
    }

    /// Returns the boundaries of a log, in order.
    pub fn seen(file: &Path) -> Vec<String> {
        std::fs::read_to_string(file).unwrap_or_default().lines().map(str::to_owned).collect()
    }

    /// Lets `command` hang for a minute when it renames a file into `directory`.
    pub fn hang<'a>(&self, command: &'a mut Command, directory: &Path) -> &'a mut Command {
        command.env("LD_PRELOAD", &self.library).env("RENAME_HANGS", directory)
    }

    /// Shifts the clock of `command`.
    pub fn shift_clock<'a>(&self, command: &'a mut Command, seconds: i64) -> &'a mut Command {
        command.env("LD_PRELOAD", &self.library).env("CLOCK_SHIFT", seconds.to_string())
    }
}
