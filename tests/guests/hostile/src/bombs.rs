//! Endless use of time, stack and memory.

use std::hint::black_box;
use std::time::Duration;

use hookrun_sdk::{Failure, Outcome};

const MIB: usize = 1 << 20;

pub(crate) fn endless() -> ! {
    loop {
        black_box(0);
    }
}

/// Waits for a clock in one call of `wasi:io/poll`.
pub(crate) fn sleep() -> Result<Outcome, Failure> {
    std::thread::sleep(Duration::from_hours(1));
    crate::escaped("slept for an hour")
}

#[expect(clippy::panic, reason = "that is the attack")]
pub(crate) fn trap() -> ! {
    panic!("told to trap")
}

#[expect(unconditional_recursion, reason = "that is the attack")]
pub(crate) fn deeper(level: u64) -> u64 {
    black_box(deeper(black_box(level + 1))) + 1
}

pub(crate) fn memory() -> ! {
    let mut held = Vec::new();
    loop {
        held.push(black_box(vec![1_u8; MIB]));
    }
}

pub(crate) fn one_allocation() -> Result<Outcome, Failure> {
    let mut all: Vec<u8> = Vec::new();
    // Just under the 2 GiB that an allocation of Rust can have on a machine of 32 bits.
    match all.try_reserve_exact(2047 * MIB) {
        Ok(()) => crate::escaped(format!("allocated {} bytes", black_box(all).capacity())),
        Err(error) => Err(Failure::permanent(format!("the allocator says no: {error}"))),
    }
}

pub(crate) fn strings() -> ! {
    let mut text = "bomb".to_owned();
    loop {
        text.push_str(&black_box(text.clone()));
    }
}
