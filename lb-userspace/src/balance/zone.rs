//! Zones: the balancer's own first, while enough of it can take new flows; what it cannot take spills over to the others.

/// Where a backend is, seen from the balancer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Zone {
    /// In no zone, or the balancer is in none: nothing is preferred.
    #[default]
    Unsaid,
    /// In the balancer's own.
    Local,
    /// In another.
    Other,
}

/// Weights of a service's backends, added up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Capacity {
    /// Of the primaries in the local zone, as configured.
    pub local: u64,
    /// Of those in the local zone that can take new flows.
    pub local_able: u64,
    /// Of those elsewhere that can.
    pub others_able: u64,
}

/// How new flows are divided between the local zone and all others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Split {
    /// By the weights of the backends, wherever they are.
    Even,
    /// All to the local zone.
    Local,
    /// Some to either: what the weights of backends here and there are multiplied by.
    Spill {
        /// Of the local ones.
        local: u64,
        /// Of the others.
        others: u64,
    },
}

/// Divides a service's new flows. With `enough` percent of its weight able, the local zone takes all; with less, as many percent of that as it has.
pub fn split(capacity: Capacity, enough: u32) -> Split {
    let Capacity {
        local,
        local_able,
        others_able,
    } = capacity;
    if local == 0 || local_able == 0 || others_able == 0 {
        return Split::Even;
    }
    let (able, needed) = (local_able * 100, local * u64::from(enough));
    if able >= needed {
        return Split::Local;
    }
    // The local zone's part of all new flows is able / needed. As weights: local_able * local to others_able * others.
    Split::Spill {
        local: 100 * others_able,
        others: needed - able,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn of(local: u64, local_able: u64, others_able: u64) -> Capacity {
        Capacity {
            local,
            local_able,
            others_able,
        }
    }

    #[test]
    fn the_local_zone_takes_all_while_enough_of_it_can() {
        for (capacity, split_of_it) in [
            (of(400, 400, 400), Split::Local),
            (of(400, 300, 400), Split::Local),
            (of(400, 280, 400), Split::Local),
            (of(400, 0, 400), Split::Even),
            (of(400, 100, 0), Split::Even),
            (of(0, 0, 400), Split::Even),
            // Backups stand in: more than was lost.
            (of(100, 200, 400), Split::Local),
        ] {
            assert_eq!(split(capacity, 70), split_of_it, "{capacity:?}");
        }
        assert_ne!(split(of(400, 279, 400), 70), Split::Local);
        assert_ne!(split(of(400, 399, 400), 100), Split::Local);
        assert_eq!(split(of(400, 4, 400), 1), Split::Local);
    }

    proptest! {
        #[test]
        fn what_spills_is_what_is_missing(
            local in 1u64..1_000_000, able in 1u64..1_000_000, others in 1u64..1_000_000, enough in 1u32..=100,
        ) {
            let able = able.min(local);
            if let Split::Spill { local: here, others: there } = split(of(local, able, others), enough) {
                let (here, there) = ((here * able) as f64, (there * others) as f64);
                let expected = able as f64 * 100.0 / (local as f64 * f64::from(enough));
                prop_assert!((here / (here + there) - expected).abs() < 1e-9);
                prop_assert!(expected < 1.0);
            }
        }
    }
}
