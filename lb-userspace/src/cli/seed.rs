//! `tether seed`: the fleet's seed, which decides what backend a new flow is given. Never on a command line, and shown only to who asks for it.

use std::{
    fs::OpenOptions,
    io::{self, IsTerminal as _, Read, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, anyhow, bail};
use clap::{Args, Subcommand};

use super::{BPFFS, Failure, load};
use crate::{
    dataplane::kernel::seed::{FleetSeed, fleet_seed, new_fleet_seed, set_fleet_seed},
    ids::KeyedHash,
};

#[derive(Debug, PartialEq, Eq, Subcommand)]
pub(super) enum Seed {
    /// Show the seed's fingerprint, by which two load balancers are compared
    Show {
        #[command(flatten)]
        place: Place,
        /// Print the seed itself, for `tether seed import` elsewhere. Who knows it can aim flows at one backend.
        #[arg(long)]
        secret: bool,
    },
    /// Write the seed to a new file that its owner alone can read
    Export {
        /// The file, which must not be there yet.
        file: PathBuf,
        #[command(flatten)]
        place: Place,
    },
    /// Take over the seed of another load balancer, from standard input
    ///
    /// In force from the daemon's next start. Refused while it runs: stop it, its flows go on.
    Import {
        #[command(flatten)]
        place: Place,
    },
    /// Make up a new seed
    ///
    /// In force from the daemon's next start. Refused while it runs: stop it, its flows go on.
    Rotate {
        #[command(flatten)]
        place: Place,
    },
}

/// Where the seed is.
#[derive(Args, Debug, PartialEq, Eq)]
pub(super) struct Place {
    /// The configuration that names the directory, or gives a seed itself.
    #[arg(long, value_name = "FILE", conflicts_with = "bpffs")]
    config: Option<PathBuf>,
    /// The pin directory.
    #[arg(long, value_name = "DIR", default_value = BPFFS)]
    bpffs: PathBuf,
}

/// A seed, and whose it is.
struct Found {
    seed: FleetSeed,
    from: String,
}

impl Place {
    /// The pin directory, and the seed that the configuration gives.
    fn read(&self) -> Result<(PathBuf, Option<Found>), Failure> {
        let Some(path) = &self.config else {
            return Ok((self.bpffs.clone(), None));
        };
        let config = load(path, |_| ())?;
        let given = config.fleet_seed.map(|seed| Found {
            seed,
            from: format!("fleet_seed in {}", path.display()),
        });
        Ok((config.bpffs, given))
    }

    /// The seed in force.
    fn seed(&self) -> Result<Found, Failure> {
        let (bpffs, given) = self.read()?;
        match given {
            Some(found) => Ok(found),
            None => Ok(Found {
                seed: fleet_seed(&bpffs)?,
                from: format!("kept in {}", bpffs.display()),
            }),
        }
    }

    /// Replaces the seed by one that is made, or read, once it is known that it may be.
    fn replace(&self, new: impl FnOnce() -> Result<FleetSeed, Failure>) -> Result<(), Failure> {
        let (bpffs, given) = self.read()?;
        if let Some(given) = given {
            return Err(anyhow!(
                "{} is in force, and not the seed that is kept with the maps; change it there, or remove it and try again",
                given.from
            )
            .into());
        }
        let old = fleet_seed(&bpffs)?;
        let new = new()?;
        set_fleet_seed(&bpffs, new)?;
        put_line!(
            "the seed in {} was {}, and is {}; start the daemon to have its tables built of it: recorded flows keep their backends, new flows go \
             where the new tables say, and every load balancer of the fleet needs the same seed",
            bpffs.display(),
            fingerprint(&old),
            fingerprint(&new)
        );
        Ok(())
    }
}

pub(super) fn run(seed: &Seed) -> Result<(), Failure> {
    match seed {
        Seed::Show { place, secret } => {
            let found = place.seed()?;
            if *secret {
                put_line!("{}", text_of(&found.seed));
            } else {
                put_line!("{}  {}", fingerprint(&found.seed), found.from);
            }
            Ok(())
        }
        Seed::Export { file, place } => {
            let found = place.seed()?;
            export(file, &found.seed)?;
            put_line!(
                "wrote the seed {} ({}) to {}",
                fingerprint(&found.seed),
                found.from,
                file.display()
            );
            Ok(())
        }
        Seed::Import { place } => place.replace(|| {
            if io::stdin().is_terminal() {
                eprintln!("the seed, as `tether seed export` wrote it, then a new line:");
            }
            Ok(import(io::stdin().lock())?)
        }),
        Seed::Rotate { place } => place.replace(|| Ok(new_fleet_seed()?)),
    }
}

/// Writes a seed to a file that is new, and nobody else's from its first moment on.
fn export(file: &Path, seed: &FleetSeed) -> anyhow::Result<()> {
    let write = || {
        let mut new = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(file)?;
        writeln!(new, "{}", text_of(seed))?;
        new.sync_all()
    };
    write().with_context(|| {
        format!(
            "{}: the seed could not be written; name a new file in a directory that can be written",
            file.display()
        )
    })
}

/// Reads a seed, of which nothing is repeated in an error.
fn import(from: impl Read) -> anyhow::Result<FleetSeed> {
    let mut text = String::new();
    // A seed is 64 digits; more than a line is something else.
    from.take(256)
        .read_to_string(&mut text)
        .context("the seed could not be read from standard input")?;
    seed_of(text.trim())
}

/// The seed as text: 64 hexadecimal digits.
fn text_of(seed: &FleetSeed) -> String {
    seed.map(|word| format!("{word:016x}")).concat()
}

fn seed_of(text: &str) -> anyhow::Result<FleetSeed> {
    const WRONG: &str =
        "standard input is no seed: 64 hexadecimal digits are, as `tether seed export` writes them";
    if text.len() != 64 || !text.bytes().all(|digit| digit.is_ascii_hexdigit()) {
        bail!(WRONG);
    }
    let mut seed = [0; 4];
    for (word, digits) in seed.iter_mut().zip(text.as_bytes().chunks(16)) {
        *word = u64::from_str_radix(std::str::from_utf8(digits)?, 16).context(WRONG)?;
    }
    if seed == [0; 4] {
        bail!("standard input is no seed but zeroes, which is what is left where one was lost");
    }
    Ok(seed)
}

/// What tells a seed from others and does not give it away: 32 bits of a hash that it keys.
fn fingerprint(seed: &FleetSeed) -> String {
    let hash = KeyedHash::of_fleet(seed, "fingerprint").finish();
    format!("{:08x}", hash as u32)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    const SEED: FleetSeed = [1, u64::MAX, 0x0123_4567_89ab_cdef, 4];

    #[test]
    fn what_is_exported_is_imported_and_is_for_its_owner_alone() {
        let file = std::env::temp_dir().join(format!("tether-seed-{}", std::process::id()));
        export(&file, &SEED).unwrap();
        let mode = file.metadata().unwrap().permissions().mode();
        let read = import(std::fs::File::open(&file).unwrap());
        let again = export(&file, &SEED);
        std::fs::remove_file(&file).unwrap();
        assert_eq!(mode & 0o777, 0o600);
        assert_eq!(read.unwrap(), SEED);
        let again = format!("{:#}", again.unwrap_err());
        assert!(again.contains("name a new file"), "{again}");
    }

    #[test]
    fn what_is_no_seed_is_refused_and_not_repeated() {
        let short = "0123".repeat(15);
        let zero = "0".repeat(64);
        let odd = format!("{}+{}", "1".repeat(31), "1".repeat(32));
        for text in ["", "secret", &short, &zero, &odd, &"12".repeat(40)] {
            let error = format!("{:#}", import(text.as_bytes()).unwrap_err());
            assert!(error.contains("no seed"), "{error}");
            assert!(text.is_empty() || !error.contains(text), "{error}");
        }
    }

    #[test]
    fn a_fingerprint_tells_seeds_apart_and_holds_none_of_one() {
        let prints: std::collections::HashSet<_> =
            (0..64).map(|word| fingerprint(&[word, 2, 3, 4])).collect();
        assert_eq!(prints.len(), 64);
        assert_eq!(fingerprint(&SEED), fingerprint(&SEED));
        assert!(!text_of(&SEED).contains(&fingerprint(&SEED)));
    }
}
