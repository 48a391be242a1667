//! Generates traces that resemble package builds: durations with a heavy tail, a few derivations
//! that most others need, and neighbours that need each other. The same seed gives the same trace
//! on every machine of one kind, independent of library versions.

use super::trace::{Header, Trace, TraceDerivation, TraceMachine};

/// Parameters of the log-normal durations, which are cut to [`WORK`]. The median is 20 s and the
/// mean 72 s: most derivations of Nixpkgs are quick, and a few take an hour.
const WORK_MU: f64 = 3.0;
const WORK_SIGMA: f64 = 1.6;
const WORK: (f64, f64) = (1.0, 3600.0);
/// Parameters of the log-normal sizes of outputs in MB, which are at most [`MAX_OUT_MB`].
const OUT_MU: f64 = 1.6;
const OUT_SIGMA: f64 = 1.5;
const MAX_OUT_MB: f64 = 2000.0;
/// Share of package names that were built before, and the error of their known durations.
const HISTORY_KNOWN: f64 = 0.85;
const HISTORY_SIGMA: f64 = 0.35;
/// The mean of the exponential number of dependencies besides the first.
const MORE_DEPENDENCIES: f64 = 2.5;
/// The share of dependencies that are among the first [`CORE`] of all ids (compilers, shells, ...).
const AMONG_CORE: f64 = 0.35;
const CORE: f64 = 0.01;
/// The share of dependencies that are neighbours, at an exponential distance with the mean [`NEAR`]
/// of all ids.
const AMONG_NEIGHBOURS: f64 = 0.40;
const NEAR: f64 = 0.08;
/// The number of machines of the larger fleet.
const FIFTY: u32 = 50;
/// The speeds of its machines, all with the same probability.
const SPEEDS: [f64; 4] = [1.0, 1.0, 2.0, 4.0];

/// Machines for a generated trace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fleet {
    /// Four machines with 18 slots, the fastest four times as fast as the slowest.
    Four,
    /// Fifty machines with 2 to 8 slots.
    Fifty,
}

impl Fleet {
    /// All variants.
    pub const ALL: [Self; 2] = [Self::Four, Self::Fifty];

    /// Returns its name in the header and on the command line.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Four => "four",
            Self::Fifty => "fifty",
        }
    }

    fn machines(self, random: &mut Random) -> Vec<TraceMachine> {
        let machine = |(index, (speed, slots)): (usize, (f64, u32))| TraceMachine {
            name: format!("m{index}"),
            slots,
            speed_factor: speed,
            speed,
            mb_per_s: super::trace::DEFAULT_MB_PER_S,
            systems: Vec::new(),
            features: Vec::new(),
            mandatory_features: Vec::new(),
        };
        match self {
            Self::Four => [(1.0, 2), (1.0, 4), (2.0, 4), (4.0, 8)]
                .into_iter()
                .enumerate()
                .map(machine)
                .collect(),
            Self::Fifty => (0..FIFTY)
                .map(|_| {
                    let speed = SPEEDS.get(random.below(SPEEDS.len())).copied().unwrap_or(1.0);
                    (speed, 2 + u32::try_from(random.below(7)).unwrap_or(0))
                })
                .enumerate()
                .map(machine)
                .collect(),
        }
    }
}

/// Generates a trace of `nodes` derivations on `fleet`.
pub fn generate(seed: u64, nodes: usize, fleet: Fleet) -> Trace {
    let mut random = Random(seed);
    let machines = fleet.machines(&mut random);
    let derivations = (0..nodes).map(|id| derivation(id, nodes, &mut random)).collect();
    let header = Header {
        seed: Some(seed),
        nodes: Some(nodes),
        fleet: Some(fleet.as_str().to_owned()),
        ..Header::default()
    };
    Trace { header, machines, derivations }
}

fn derivation(id: usize, nodes: usize, random: &mut Random) -> TraceDerivation {
    let work_s = random.log_normal(WORK_MU, WORK_SIGMA).clamp(WORK.0, WORK.1);
    let out_mb = random.log_normal(OUT_MU, OUT_SIGMA).min(MAX_OUT_MB);
    let known = random.unit() < HISTORY_KNOWN;
    let history_s = work_s * random.log_normal(0.0, HISTORY_SIGMA);
    let mut deps: Vec<usize> = Vec::new();
    if id > 0 {
        let count = 1 + floor(random.exponential(MORE_DEPENDENCIES));
        for _ in 0..count {
            let kind = random.unit();
            let dep = if kind < AMONG_CORE {
                random.below(floor(CORE * count_of(nodes)).clamp(1, id))
            } else if kind < AMONG_CORE + AMONG_NEIGHBOURS {
                id.saturating_sub(1 + floor(random.exponential(NEAR * count_of(nodes))))
            } else {
                random.below(id)
            };
            deps.push(dep);
        }
        deps.sort_unstable();
        deps.dedup();
    }
    TraceDerivation {
        id,
        pname: format!("p{id:05}"),
        deps,
        work_s: rounded(work_s),
        out_mb: rounded(out_mb),
        history_s: known.then(|| rounded(history_s)),
        ..TraceDerivation::default()
    }
}

/// Rounds to thousandths, so that a written trace is the same as the one in memory.
fn rounded(value: f64) -> f64 {
    (value * 1000.0).round() / 1000.0
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "`as` saturates, and the numbers are small and not negative"
)]
fn floor(value: f64) -> usize {
    value as usize
}

#[expect(clippy::cast_precision_loss, reason = "a number of derivations is small")]
fn count_of(nodes: usize) -> f64 {
    nodes as f64
}

/// SplitMix64 (Steele, Lea, Flood: "Fast splittable pseudorandom number generators", 2014): a few
/// lines that never change, while the generator of a crate may change with its next version.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Returns a number in [0, 1) with 53 bits.
    #[expect(clippy::cast_precision_loss, reason = "53 bits are exact")]
    fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// Returns a number in 0..limit.
    fn below(&mut self, limit: usize) -> usize {
        floor(self.unit() * count_of(limit)).min(limit.saturating_sub(1))
    }

    fn exponential(&mut self, mean: f64) -> f64 {
        -mean * (1.0 - self.unit()).ln()
    }

    /// Returns a normally distributed number (Box-Muller transform).
    fn log_normal(&mut self, mu: f64, sigma: f64) -> f64 {
        let radius = (-2.0 * (1.0 - self.unit()).ln()).sqrt();
        let normal = radius * (std::f64::consts::TAU * self.unit()).cos();
        sigma.mul_add(normal, mu).exp()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_determines_the_trace() {
        let trace = generate(1, 500, Fleet::Four);
        assert_eq!(trace, generate(1, 500, Fleet::Four));
        assert_ne!(trace.derivations, generate(2, 500, Fleet::Four).derivations);
        let mut text = Vec::new();
        trace.write(&mut text).unwrap();
        assert_eq!(Trace::read(text.as_slice()).unwrap(), trace);
        insta::assert_snapshot!(
            String::from_utf8(text).unwrap().lines().take(12).collect::<Vec<_>>().join("\n")
        );
    }

    #[test]
    fn generated_traces_have_the_documented_shape() {
        let trace = generate(7, 5000, Fleet::Fifty);
        assert_eq!(trace.machines.len(), 50);
        assert!(
            trace.machines.iter().all(|m| (2..=8).contains(&m.slots) && SPEEDS.contains(&m.speed))
        );
        let known = trace.derivations.iter().filter(|d| d.history_s.is_some()).count();
        assert!((4100..4400).contains(&known), "{known} of 5000 with history");
        let mut work: Vec<f64> = trace.derivations.iter().map(|d| d.work_s).collect();
        work.sort_by(f64::total_cmp);
        assert!((18.0..22.0).contains(&work[2500]), "median {}", work[2500]);
        let edges: usize = trace.derivations.iter().map(|d| d.deps.len()).sum();
        assert!((12_000..16_000).contains(&edges), "{edges} dependencies");
    }
}
