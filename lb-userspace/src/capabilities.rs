//! The rights that the daemon cannot do without.

use std::{fs, path::Path};

/// They, and the numbers of their bits (capability.h).
const NEEDED: [(&str, u32); 3] = [("CAP_NET_ADMIN", 12), ("CAP_PERFMON", 38), ("CAP_BPF", 39)];
/// Stands for the last two.
const SYS_ADMIN: u32 = 21;

/// Those that are not among the effective ones of these bits.
pub(crate) fn missing(bits: u64) -> Vec<&'static str> {
    let has = |bit: u32| bits >> bit & 1 == 1;
    NEEDED
        .into_iter()
        .filter(|&(name, bit)| !has(bit) && (name == "CAP_NET_ADMIN" || !has(SYS_ADMIN)))
        .map(|(name, _)| name)
        .collect()
}

/// The effective ones of a process, by its directory in /proc; none if they cannot be read.
pub(crate) fn effective(process: &Path) -> Option<u64> {
    let text = fs::read_to_string(process.join("status")).ok()?;
    let bits = text.lines().find_map(|line| line.strip_prefix("CapEff:"))?;
    u64::from_str_radix(bits.trim(), 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_is_missed_by_itself_and_one_right_stands_for_two() {
        let without = |bits: &[u32]| {
            bits.iter()
                .fold(u64::MAX, |all, bit| all & !(1_u64 << *bit))
        };
        assert_eq!(missing(u64::MAX), [""; 0]);
        assert_eq!(missing(without(&[12])), ["CAP_NET_ADMIN"]);
        assert_eq!(missing(without(&[38, 39])), [""; 0]);
        assert_eq!(missing(without(&[38, SYS_ADMIN])), ["CAP_PERFMON"]);
        assert_eq!(missing(without(&[39, SYS_ADMIN])), ["CAP_BPF"]);
        assert_eq!(missing(0), ["CAP_NET_ADMIN", "CAP_PERFMON", "CAP_BPF"]);
    }

    #[test]
    fn those_of_this_process_can_be_read() {
        assert!(effective(Path::new("/proc/self")).is_some());
        assert_eq!(effective(Path::new("/proc/none")), None);
    }
}
