//! zstd as a sequence of independent frames, each of [`FRAME`] uncompressed bytes (the last has the
//! rest) with its content size and a checksum.
//!
//! The bytes depend only on the input, the level and the version of the library: a frame is always
//! compressed as a whole by one thread. Frames of one NAR may be compressed at the same time, and
//! are written in order. Readers may decompress them in parallel, too.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::JoinHandle;

/// The number of uncompressed bytes of one frame.
pub(super) const FRAME: usize = 8 << 20;
/// The maximum number of frames of one NAR that are compressed at the same time.
const MAX_THREADS: usize = 4;

/// The number of threads of this process that compress frames now. There are at most as many as
/// processors. If there are, a NAR compresses its next frame itself.
static COMPRESSING: AtomicUsize = AtomicUsize::new(0);

/// Compresses what is written to it, and passes the frames to `out`.
pub(super) struct Frames<W> {
    out: W,
    level: i32,
    /// The contents of the next frame.
    frame: Vec<u8>,
    /// Frames that are not written yet, in order.
    pending: VecDeque<Pending>,
    /// The maximum length of `pending`.
    parallel: usize,
    idle: Vec<Compressor>,
    is_empty: bool,
}

/// A compressor with the buffer of the frame that it has compressed.
struct Compressor {
    inner: zstd::bulk::Compressor<'static>,
    buffer: Vec<u8>,
}

type Compressed = io::Result<(Vec<u8>, Compressor)>;

enum Pending {
    Running(JoinHandle<Compressed>),
    Done(Vec<u8>),
}

impl<W: Write> Frames<W> {
    /// Compresses about `size` bytes.
    pub(super) fn new(out: W, level: i32, size: u64) -> Self {
        let frames = usize::try_from(size.div_ceil(FRAME as u64)).unwrap_or(usize::MAX);
        // The last frame is compressed when the caller has nothing else to do.
        let parallel = if frames > 1 { frames.min(threads()) } else { 0 };
        let frame = Vec::with_capacity(usize::try_from(size).map_or(FRAME, |size| size.min(FRAME)));
        let pending = VecDeque::new();
        Self { out, level, frame, pending, parallel, idle: Vec::new(), is_empty: true }
    }

    /// Writes the remaining frames, and returns the writer.
    pub(super) fn finish(mut self) -> io::Result<W> {
        if !self.frame.is_empty() || self.is_empty {
            self.end_frame()?;
        }
        while self.write_first()? {}
        Ok(self.out)
    }

    fn end_frame(&mut self) -> io::Result<()> {
        self.is_empty = false;
        let mut compressor = match self.idle.pop() {
            Some(compressor) => compressor,
            None => Compressor::new(self.level)?,
        };
        std::mem::swap(&mut compressor.buffer, &mut self.frame);
        self.frame.clear();
        if self.parallel == 0 {
            let (compressed, compressor) = compressor.compress()?;
            self.idle.push(compressor);
            return self.out.write_all(&compressed);
        }
        // Frames that are ready, and one more if there is no room.
        while matches!(self.pending.front(), Some(first) if first.is_done())
            || self.pending.len() >= self.parallel
        {
            self.write_first()?;
        }
        let Some(slot) = Slot::take() else {
            let (compressed, compressor) = compressor.compress()?;
            self.idle.push(compressor);
            self.pending.push_back(Pending::Done(compressed));
            return Ok(());
        };
        let running = std::thread::Builder::new().name("compress".to_owned()).spawn(move || {
            let compressed = compressor.compress();
            drop(slot);
            compressed
        })?;
        self.pending.push_back(Pending::Running(running));
        Ok(())
    }

    /// Writes the first pending frame. Returns false if there is none.
    fn write_first(&mut self) -> io::Result<bool> {
        let compressed = match self.pending.pop_front() {
            None => return Ok(false),
            Some(Pending::Done(compressed)) => compressed,
            Some(Pending::Running(running)) => {
                let panicked = |_| io::Error::other("a compressing thread panicked");
                let (compressed, compressor) = running.join().map_err(panicked)??;
                self.idle.push(compressor);
                compressed
            }
        };
        self.out.write_all(&compressed)?;
        Ok(true)
    }
}

impl<W: Write> Write for Frames<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let room = FRAME.saturating_sub(self.frame.len());
        let (now, _) = bytes.split_at(bytes.len().min(room));
        self.frame.extend_from_slice(now);
        if self.frame.len() >= FRAME {
            self.end_frame()?;
        }
        Ok(now.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        // A frame is not ended early: the bytes would depend on the calls.
        Ok(())
    }
}

impl Pending {
    fn is_done(&self) -> bool {
        match self {
            Self::Done(_) => true,
            Self::Running(running) => running.is_finished(),
        }
    }
}

impl Compressor {
    fn new(level: i32) -> io::Result<Self> {
        let mut inner = zstd::bulk::Compressor::new(level)?;
        inner.include_contentsize(true)?;
        inner.include_checksum(true)?;
        Ok(Self { inner, buffer: Vec::new() })
    }

    /// Compresses the buffer.
    fn compress(mut self) -> Compressed {
        let mut compressed = self.inner.compress(&self.buffer)?;
        // It was allocated for the largest possible result.
        compressed.shrink_to_fit();
        self.buffer.clear();
        Ok((compressed, self))
    }
}

/// The right to use one more thread, until it is dropped.
struct Slot;

impl Slot {
    fn take() -> Option<Self> {
        let more = |count: usize| (count < processors()).then_some(count + 1);
        COMPRESSING.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).ok().map(|_| Self)
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        COMPRESSING.fetch_sub(1, Ordering::Relaxed);
    }
}

fn processors() -> usize {
    static PROCESSORS: OnceLock<usize> = OnceLock::new();
    *PROCESSORS
        .get_or_init(|| std::thread::available_parallelism().map_or(1, std::num::NonZero::get))
}

fn threads() -> usize {
    processors().min(MAX_THREADS)
}

/// Returns the approximate maximum memory for compressing `size` bytes.
pub(super) fn memory(level: i32, size: u64) -> u64 {
    let frames = size.div_ceil(FRAME as u64).clamp(1, threads() as u64);
    let frame = size.min(FRAME as u64);
    // The contents and the result of each, and the contents of the next one.
    frames * (2 * frame + context(level)) + frame
}

/// Returns the maximum size of the tables of a compressor. A test measures it.
fn context(level: i32) -> u64 {
    let mib = match level {
        ..=4 => 8,
        5..=12 => 56,
        _ => 104,
    };
    mib << 20
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(length: usize) -> Vec<u8> {
        let mut state = 1_u32;
        std::iter::repeat_with(|| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            b"etaoin shrdlu\n"[usize::try_from(state >> 28).unwrap() % 14]
        })
        .take(length)
        .collect()
    }

    fn compress(bytes: &[u8], piece: usize, parallel: usize) -> Vec<u8> {
        let mut frames = Frames::new(Vec::new(), 1, bytes.len() as u64);
        frames.parallel = parallel;
        for piece in bytes.chunks(piece) {
            frames.write_all(piece).unwrap();
        }
        frames.finish().unwrap()
    }

    #[test]
    fn bytes_do_not_depend_on_threads_or_on_the_size_of_writes() {
        let bytes = sample(3 * FRAME + 12_345);
        let expected: Vec<u8> = bytes
            .chunks(FRAME)
            .flat_map(|frame| {
                Compressor { buffer: frame.to_vec(), ..Compressor::new(1).unwrap() }
                    .compress()
                    .unwrap()
                    .0
            })
            .collect();
        for (piece, parallel) in [(bytes.len(), 0), (100_003, 1), (FRAME, 2), (1 << 20, 9)] {
            assert!(compress(&bytes, piece, parallel) == expected, "{piece} {parallel}");
        }
        let busy: Vec<Slot> = std::iter::from_fn(Slot::take).collect();
        assert!(compress(&bytes, 1 << 20, 4) == expected, "without a free processor");
        drop(busy);
    }

    #[test]
    fn each_frame_has_its_content_size() {
        let bytes = sample(FRAME + 5);
        let mut compressed = compress(&bytes, 1 << 20, 2);
        let mut sizes = Vec::new();
        while !compressed.is_empty() {
            let length = zstd::zstd_safe::find_frame_compressed_size(&compressed).unwrap();
            sizes.push(zstd::zstd_safe::get_frame_content_size(&compressed).unwrap().unwrap());
            compressed.drain(..length);
        }
        assert_eq!(sizes, [FRAME as u64, 5]);
        let empty = compress(b"", 1, 0);
        assert_eq!(zstd::zstd_safe::get_frame_content_size(&empty).unwrap(), Some(0));
    }

    #[test]
    fn compressors_need_no_more_memory_than_is_reserved() {
        let bytes = vec![7; FRAME];
        for level in [1, 3, 4, 5, 9, 12, 13, 16, 19] {
            let mut context_of = zstd::zstd_safe::CCtx::create();
            let mut out = Vec::with_capacity(zstd::zstd_safe::compress_bound(FRAME));
            context_of.compress(&mut out, &bytes, level).unwrap();
            let size = context_of.sizeof() as u64;
            assert!(size <= context(level), "level {level}: {size}");
        }
    }
}
