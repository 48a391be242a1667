//! How many bytes a value of the interfaces takes on its way over the border.

use wasmtime::component::Resource;

/// What crosses the border counts: bytes of the strings and lists in a value, without its fixed
/// part.
pub trait Crossing {
    /// The count.
    fn crossing(&self) -> u64;
}

macro_rules! free {
    ($($ty:ty),+) => { $(impl Crossing for $ty { fn crossing(&self) -> u64 { 0 } })+ };
}
free!((), bool, u32, u64, i32);

impl Crossing for u8 {
    fn crossing(&self) -> u64 {
        1
    }
}

impl Crossing for String {
    fn crossing(&self) -> u64 {
        self.len() as u64
    }
}

impl<T: Crossing> Crossing for Option<T> {
    fn crossing(&self) -> u64 {
        self.as_ref().map_or(0, Crossing::crossing)
    }
}

/// A list costs a word for each element beside the elements, so that a million empty strings are
/// not free.
impl<T: Crossing> Crossing for Vec<T> {
    fn crossing(&self) -> u64 {
        if size_of::<T>() <= 1 {
            return self.len() as u64;
        }
        8 * self.len() as u64 + self.iter().map(Crossing::crossing).sum::<u64>()
    }
}

impl<A: Crossing, B: Crossing> Crossing for (A, B) {
    fn crossing(&self) -> u64 {
        self.0.crossing() + self.1.crossing()
    }
}

impl<T: 'static> Crossing for Resource<T> {
    fn crossing(&self) -> u64 {
        0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_nothing_are_not_free() {
        assert_eq!(vec![String::new(); 1000].crossing(), 8000);
        assert_eq!(vec![0_u8; 1000].crossing(), 1000);
        assert_eq!(
            (Some("abc".to_owned()), vec![(String::new(), "de".to_owned())]).crossing(),
            3 + 8 + 2
        );
    }
}
