//! The number of bytes that a value of the interfaces takes when it is passed between guest and
//! host.

use wasmtime::component::Resource;

/// The size of a value in a call: the bytes of its strings and lists without its fixed part.
pub trait WireSize {
    fn wire_size(&self) -> u64;
}

macro_rules! free {
    ($($ty:ty),+) => { $(impl WireSize for $ty { fn wire_size(&self) -> u64 { 0 } })+ };
}
free!((), bool, u32, u64, i32);

impl WireSize for u8 {
    fn wire_size(&self) -> u64 {
        1
    }
}

impl WireSize for String {
    fn wire_size(&self) -> u64 {
        self.len() as u64
    }
}

impl<T: WireSize> WireSize for Option<T> {
    fn wire_size(&self) -> u64 {
        self.as_ref().map_or(0, WireSize::wire_size)
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
}

impl<A: WireSize, B: WireSize> WireSize for (A, B) {
    fn wire_size(&self) -> u64 {
        self.0.wire_size() + self.1.wire_size()
    }
}

impl<T: 'static> WireSize for Resource<T> {
    fn wire_size(&self) -> u64 {
        0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
