//! Zipfian numbers with exponent 0.99, after Gray et al., "Quickly Generating Billion-Record Synthetic
//! Databases" (SIGMOD 1994), which is what YCSB draws from.

use crate::random::Random;

const THETA: f64 = 0.99;
/// Terms of the zeta sum that are added up; the rest is an integral.
const TERMS: u64 = 10_000;

/// Ranks from 0 to below `count`, the lower the likelier.
#[derive(Clone, Debug)]
pub(crate) struct Zipf {
    count: f64,
    zeta: f64,
    eta: f64,
    half: f64,
}

/// The sum of i^-THETA for i from 1 to `count`, by the Euler-Maclaurin formula beyond the first terms.
fn zeta(count: u64) -> f64 {
    let power = |i: f64| i.powf(-THETA);
    let last = count.min(TERMS);
    let sum: f64 = (1..=last).map(|i| power(i as f64)).sum();
    if count == last {
        return sum;
    }
    let (from, to) = (last as f64, count as f64);
    let integral = (to.powf(1.0 - THETA) - from.powf(1.0 - THETA)) / (1.0 - THETA);
    sum + integral + (power(to) - power(from)) / 2.0
}

impl Zipf {
    /// For `count` ranks, at least one.
    pub(crate) fn new(count: u64) -> Zipf {
        let zeta_count = zeta(count);
        let half = 0.5_f64.powf(THETA);
        let eta =
            (1.0 - (2.0 / count as f64).powf(1.0 - THETA)) / (1.0 - (1.0 + half) / zeta_count);
        Zipf {
            count: count as f64,
            zeta: zeta_count,
            eta,
            half,
        }
    }

    pub(crate) fn draw(&self, random: &mut Random) -> u64 {
        let unit = random.unit();
        let scaled = unit * self.zeta;
        if scaled < 1.0 {
            return 0;
        }
        if scaled < 1.0 + self.half {
            return 1;
        }
        let rank = self.count * (self.eta * unit - self.eta + 1.0).powf(1.0 / (1.0 - THETA));
        (rank as u64).min(self.count as u64 - 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_zeta_sum_agrees_with_adding_it_up() {
        for count in [1, 2, 9_999, 10_000, 10_001, 1_000_000] {
            let sum: f64 = (1..=count).map(|i: u64| (i as f64).powf(-THETA)).sum();
            assert!((zeta(count) - sum).abs() < 1e-6, "{count}");
        }
    }

    #[test]
    fn ranks_come_as_often_as_their_zipfian_weight() {
        let (zipf, mut random) = (Zipf::new(1000), Random::new(1, 1));
        let mut counts = vec![0_u32; 1000];
        let draws = 1_000_000;
        for _ in 0..draws {
            counts[zipf.draw(&mut random) as usize] += 1;
        }
        for rank in [0, 1] {
            let expected = ((rank + 1) as f64).powf(-THETA) / zeta(1000) * f64::from(draws);
            let ratio = f64::from(counts[rank]) / expected;
            assert!((0.98..1.02).contains(&ratio), "rank {rank}: {ratio}");
        }
        // Beyond the first two ranks the method approximates.
        let tail: u32 = counts[500..].iter().sum();
        let expected = (zeta(1000) - zeta(500)) / zeta(1000) * f64::from(draws);
        assert!((0.8..1.2).contains(&(f64::from(tail) / expected)), "{tail}");
        assert_eq!(Zipf::new(1).draw(&mut random), 0);
    }
}
