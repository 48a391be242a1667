//! Changes to inputs, by a generator with a seed: the same seed makes the same inputs.

use rand::prelude::*;
use rand::rngs::StdRng;

/// Numbers at which things go wrong.
const NUMBERS: [u64; 10] = [
    0,
    1,
    0x7f,
    0x80,
    0xff,
    0xffff,
    0x7fff_ffff,
    0xffff_ffff,
    0x7fff_ffff_ffff_ffff,
    0xffff_ffff_ffff_ffff,
];
/// Longest input.
const MAX_LENGTH: usize = 64 << 10;
/// Most changes to one input.
const MAX_CHANGES: usize = 8;

/// Makes inputs out of a corpus.
#[derive(Debug)]
pub struct Mutator {
    random: StdRng,
    corpus: Vec<Vec<u8>>,
    dictionary: Vec<Vec<u8>>,
}

impl Mutator {
    /// From these seeds and words.
    pub fn new(seed: u64, corpus: Vec<Vec<u8>>, dictionary: &[&str]) -> Self {
        let dictionary = dictionary.iter().map(|word| word.as_bytes().to_vec()).collect();
        Self { random: StdRng::seed_from_u64(seed), corpus, dictionary }
    }

    /// The next input.
    pub fn input(&mut self) -> Vec<u8> {
        let mut input = self.corpus.choose(&mut self.random).cloned().unwrap_or_default();
        for _ in 0..self.random.random_range(1..=MAX_CHANGES) {
            self.change(&mut input);
        }
        input.truncate(MAX_LENGTH);
        input
    }

    /// A place in `input`, its end included.
    fn place(&mut self, input: &[u8]) -> usize {
        self.random.random_range(0..=input.len())
    }

    /// A part of `input`, perhaps empty.
    fn part(&mut self, input: &[u8]) -> std::ops::Range<usize> {
        let (a, b) = (self.place(input), self.place(input));
        a.min(b)..a.max(b)
    }

    fn change(&mut self, input: &mut Vec<u8>) {
        match self.random.random_range(0..9_u8) {
            // One bit.
            0 => {
                let (place, bit) = (self.place(input), self.random.random_range(0..8_u8));
                if let Some(byte) = input.get_mut(place) {
                    *byte ^= 1 << bit;
                }
            }
            // One byte.
            1 => {
                let (place, new) = (self.place(input), self.random.random());
                if let Some(byte) = input.get_mut(place) {
                    *byte = new;
                }
            }
            // A few bytes more.
            2 => {
                let place = self.place(input);
                let count = self.random.random_range(1..=8_usize);
                let new: Vec<u8> = (0..count).map(|_| self.random.random()).collect();
                drop(input.splice(place..place, new));
            }
            // A part less.
            3 => drop(input.drain(self.part(input))),
            // A part again.
            4 => {
                let again = input.get(self.part(input)).unwrap_or_default().to_vec();
                let place = self.place(input);
                drop(input.splice(place..place, again));
            }
            // A word.
            5 | 6 => {
                let word = self.dictionary.choose(&mut self.random).cloned().unwrap_or_default();
                let place = self.place(input);
                let end = if self.random.random() {
                    place
                } else {
                    (place + word.len()).min(input.len())
                };
                drop(input.splice(place..end, word));
            }
            // A number, in either order of bytes.
            7 => {
                let number = NUMBERS.choose(&mut self.random).copied().unwrap_or_default();
                let bytes =
                    if self.random.random() { number.to_le_bytes() } else { number.to_be_bytes() };
                let place = self.place(input);
                let width = self.random.random_range(1..=bytes.len());
                let new = bytes.get(..width).unwrap_or_default().to_vec();
                drop(input.splice(place..(place + width).min(input.len()), new));
            }
            // The end of another one.
            _ => {
                let other = self.corpus.choose(&mut self.random).cloned().unwrap_or_default();
                let place = self.place(input);
                let from = self.place(&other);
                input.truncate(place);
                input.extend_from_slice(other.get(from..).unwrap_or_default());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_makes_the_same_inputs() {
        let inputs = |seed| {
            let mut mutator =
                Mutator::new(seed, vec![b"hello".to_vec(), b"world".to_vec()], &["word"]);
            (0..100).map(|_| mutator.input()).collect::<Vec<_>>()
        };
        assert_eq!(inputs(1), inputs(1));
        assert_ne!(inputs(1), inputs(2));
    }

    #[test]
    fn without_a_corpus_there_are_inputs_too() {
        let mut mutator = Mutator::new(7, Vec::new(), &[]);
        assert!((0..100).any(|_| !mutator.input().is_empty()));
    }
}
