//! From factors to the weights of a table.

/// The largest weight that a table is made with. The builder's time grows with the ratio of the largest to the smallest.
const MOST: u64 = 32_000;

/// Whole weights in these relations: the same table for the same relations, whatever they are multiples of. None is 0 but for 0.
pub fn weights(exact: &[u64]) -> Vec<u16> {
    let divisor = exact.iter().copied().fold(0, gcd).max(1);
    let largest = exact.iter().max().map_or(1, |largest| largest / divisor);
    exact
        .iter()
        .map(|&weight| {
            let weight = weight / divisor;
            let whole = if largest > MOST && weight > 0 {
                let rounded = (u128::from(weight) * u128::from(MOST) + u128::from(largest) / 2)
                    / u128::from(largest);
                (rounded as u64).max(1)
            } else {
                weight
            };
            whole as u16
        })
        .collect()
}

fn gcd(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { gcd(b, a % b) }
}

/// Each one's part of a thousand new flows.
pub fn per_mille(weights: &[u16]) -> Vec<u16> {
    let sum: u64 = weights.iter().copied().map(u64::from).sum();
    let part = |&weight: &u16| (u64::from(weight) * 1_000 + sum / 2) / sum.max(1);
    weights.iter().map(|weight| part(weight) as u16).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::maglev::{self, Member};
    use proptest::prelude::*;

    #[test]
    fn weights_are_as_small_as_they_can_be() {
        assert_eq!(weights(&[100, 200]), [1, 2]);
        assert_eq!(weights(&[0, 16, 4]), [0, 4, 1]);
        assert_eq!(weights(&[]), [0; 0]);
        assert_eq!(weights(&[0]), [0]);
        assert_eq!(weights(&[1, 1 << 40]), [1, 32_000]);
        assert_eq!(per_mille(&[1, 2, 0]), [333, 667, 0]);
        assert_eq!(per_mille(&[0]), [0]);
    }

    proptest! {
        #[test]
        fn relations_are_kept(exact in prop::collection::vec(1u64..1 << 40, 1..20)) {
            let weights = weights(&exact);
            let largest = *exact.iter().max().unwrap();
            let first = weights[exact.iter().position(|&weight| weight == largest).unwrap()];
            for (weight, exact) in weights.into_iter().zip(exact) {
                let expected = (f64::from(first) * exact as f64 / largest as f64).max(1.0);
                prop_assert!((f64::from(weight) - expected).abs() <= 1.0, "{} for {}", weight, expected);
            }
        }

        /// A service in which all factors are alike has the table that it has without any.
        #[test]
        fn multiples_make_the_same_table(ws in prop::collection::vec(1u16..100, 1..8), times in 1u16..300, seed: [u64; 4]) {
            let names: Vec<String> = (0..ws.len()).map(|n| format!("b{n}")).collect();
            let table = |weight: &dyn Fn(usize) -> u16| {
                let members: Vec<Member<'_>> = names
                    .iter()
                    .enumerate()
                    .map(|(n, name)| Member { name, weight: weight(n) })
                    .collect();
                maglev::build(&seed, "chat", &members, 1_009)
            };
            prop_assert_eq!(table(&|n| ws[n]), table(&|n| ws[n] * times));
        }
    }
}
