//! Which kernel it is, by what it calls itself.

/// The oldest that will do, major and minor number.
pub const OLDEST: (u32, u32) = (6, 1);

/// Major and minor number of a release, as `uname -r` tells it; none if it begins with no such.
pub fn numbers_of(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release
        .split(|c: char| !c.is_ascii_digit())
        .map_while(|number| number.parse::<u32>().ok());
    Some((numbers.next()?, numbers.next()?))
}
