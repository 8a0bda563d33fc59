//! What is in the binary: the crates that it is built of, from `cargo metadata`, and the libraries of the toolchain, as a software bill of materials and
//! as a report of licences.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use serde::Deserialize;
use serde_json::{Value, json};

use super::runtime::{Library, libraries};
use crate::exec;

/// The crates that are shipped: the daemon, and the BPF programs inside it.
const ROOTS: [&str; 2] = ["lb-userspace", "lb-ebpf"];

/// Licences that what is shipped may have. All let it be used, changed and passed on with no more than a notice.
const ALLOWED: [&str; 12] = [
    "0BSD",
    "Apache-2.0",
    "Apache-2.0 WITH LLVM-exception",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "BSL-1.0",
    "CC0-1.0",
    "CDLA-Permissive-2.0",
    "ISC",
    "MIT",
    "Unicode-3.0",
    "Zlib",
];

#[derive(Deserialize)]
struct Metadata {
    packages: Vec<Package>,
    resolve: Resolve,
}

#[derive(Deserialize)]
struct Package {
    id: String,
    name: String,
    version: String,
    license: Option<String>,
    repository: Option<String>,
    manifest_path: PathBuf,
    source: Option<String>,
}

#[derive(Deserialize)]
struct Resolve {
    nodes: Vec<Node>,
}

#[derive(Deserialize)]
struct Node {
    id: String,
    deps: Vec<Dependency>,
}

#[derive(Deserialize)]
struct Dependency {
    pkg: String,
    dep_kinds: Vec<Kind>,
}

#[derive(Deserialize)]
struct Kind {
    kind: Option<String>,
}

/// The crates of what is shipped, and what they stand on.
pub(super) struct Bom {
    packages: BTreeMap<String, Package>,
    /// Each stands on the next.
    libraries: Vec<Library>,
    dependencies: BTreeMap<String, Vec<String>>,
    checksums: BTreeMap<(String, String), String>,
}

impl Bom {
    /// Reads them, as they are for `target`. Crates that only build others or test them are left out.
    ///
    /// # Errors
    /// If cargo does not tell, or the toolchain.
    pub(super) fn read(target: &str) -> Result<Self> {
        let mut metadata = exec::cargo();
        metadata.args([
            "metadata",
            "--format-version",
            "1",
            "--locked",
            "--filter-platform",
            target,
        ]);
        let metadata: Metadata = serde_json::from_str(&exec::output(&mut metadata)?)
            .context("the output of cargo metadata")?;
        let lock = fs::read_to_string(exec::workspace().join("Cargo.lock"))?;
        Self::of(metadata, &lock, libraries(target)?)
    }

    fn of(metadata: Metadata, lock: &str, libraries: Vec<Library>) -> Result<Self> {
        let mut all: BTreeMap<_, _> = metadata
            .packages
            .into_iter()
            .map(|package| (package.id.clone(), package))
            .collect();
        let graph: BTreeMap<_, _> = metadata
            .resolve
            .nodes
            .into_iter()
            .map(|node| (node.id, node.deps))
            .collect();
        let mut open: Vec<String> = all
            .values()
            .filter(|package| package.source.is_none() && ROOTS.contains(&package.name.as_str()))
            .map(|package| package.id.clone())
            .collect();
        if open.len() != ROOTS.len() {
            bail!("the workspace has no {}", ROOTS.join(" or no "));
        }
        let (mut packages, mut dependencies) = (BTreeMap::new(), BTreeMap::new());
        while let Some(id) = open.pop() {
            let Some(package) = all.remove(&id) else {
                continue;
            };
            let shipped =
                graph.get(&id).into_iter().flatten().filter(|dependency| {
                    dependency.dep_kinds.iter().any(|kind| kind.kind.is_none())
                });
            let below: Vec<String> = shipped.map(|dependency| dependency.pkg.clone()).collect();
            open.extend(below.iter().cloned());
            dependencies.insert(id.clone(), below);
            packages.insert(id, package);
        }
        Ok(Self {
            packages,
            libraries,
            dependencies,
            checksums: checksums(lock)?,
        })
    }

    /// The version that is released.
    pub(super) fn version(&self) -> &str {
        let root = self
            .packages
            .values()
            .find(|package| package.name == ROOTS[0]);
        root.map_or("0", |package| &package.version)
    }

    /// As CycloneDX 1.5, in JSON.
    ///
    /// # Errors
    /// If it cannot be written.
    pub(super) fn cyclonedx(&self) -> Result<String> {
        let reference =
            |package: &Package| format!("pkg:cargo/{}@{}", package.name, package.version);
        let component = |package: &Package| {
            let mut component = json!({
                "type": "library",
                "bom-ref": reference(package),
                "name": package.name,
                "version": package.version,
                "purl": reference(package),
                "licenses": [{"expression": spdx(package.license.as_deref().unwrap_or_default())}],
            });
            let key = (package.name.clone(), package.version.clone());
            if let Some(checksum) = self.checksums.get(&key) {
                component["hashes"] = json!([{"alg": "SHA-256", "content": checksum}]);
            }
            if let Some(repository) = &package.repository {
                component["externalReferences"] = json!([{"type": "vcs", "url": repository}]);
            }
            component
        };
        let library = |library: &Library| {
            json!({
                "type": "library",
                "bom-ref": library.reference(),
                "name": library.name,
                "version": library.version,
                "purl": library.reference(),
                "licenses": [{"expression": library.licence}],
                "copyright": library.copyright,
                "externalReferences": [{"type": "vcs", "url": library.repository}],
            })
        };
        let components = self.packages.values().map(component);
        let components = components.chain(self.libraries.iter().map(library));
        // Every crate stands on the first library; it is told of those that are shipped as such.
        let below = |package: &Package| {
            let is_root = package.source.is_none() && ROOTS.contains(&package.name.as_str());
            self.libraries.first().filter(|_| is_root)
        };
        let references = |package: &Package, ids: &[String]| -> BTreeSet<String> {
            ids.iter()
                .filter_map(|id| self.packages.get(id))
                .map(reference)
                .chain(below(package).map(Library::reference))
                .collect()
        };
        let of_crates = self.packages.iter().map(|(id, package)| {
            json!({"ref": reference(package), "dependsOn": references(package, &self.dependencies[id])})
        });
        let of_libraries = self.libraries.iter().enumerate().map(|(at, library)| {
            let next: Vec<_> = self.libraries[at + 1..]
                .first()
                .map(Library::reference)
                .into_iter()
                .collect();
            json!({"ref": library.reference(), "dependsOn": next})
        });
        let dependencies: Vec<Value> = of_crates.chain(of_libraries).collect();
        let text = serde_json::to_string_pretty(&json!({
            "bomFormat": "CycloneDX",
            "specVersion": "1.5",
            "version": 1,
            "metadata": {"component": {
                "type": "application",
                "bom-ref": "tether",
                "name": "tether",
                "version": self.version(),
                "licenses": [{"expression": "MIT OR Apache-2.0"}],
            }},
            "components": components.collect::<Vec<_>>(),
            "dependencies": dependencies,
        }))?;
        Ok(text + "\n")
    }

    /// All crates and libraries with their licences, and the texts of these.
    ///
    /// # Errors
    /// If one has a licence that is not [allowed](ALLOWED), or none.
    pub(super) fn licences(&self) -> Result<String> {
        self.check()?;
        let mut text = format!(
            "# What Tether {} is made of\n\nTether itself is MIT OR Apache-2.0; its BPF programs are MIT OR GPL-2.0-only.\n\n| crate or library | version | licence |\n|---|---|---|\n",
            self.version()
        );
        let foreign = || {
            self.packages
                .values()
                .filter(|package| package.source.is_some())
        };
        let mut texts: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for words in notices(exec::workspace())? {
            texts.entry(words).or_default().push("Tether".to_owned());
        }
        for package in foreign() {
            let licence = package.license.as_deref().unwrap_or_default();
            // Writing to a String cannot fail.
            let _ = writeln!(
                text,
                "| {} | {} | {licence} |",
                package.name, package.version
            );
            for words in notices(package.manifest_path.parent().unwrap_or(Path::new(".")))? {
                let names = texts.entry(words).or_default();
                names.push(format!("{} {}", package.name, package.version));
            }
        }
        let mit = fs::read_to_string(exec::workspace().join("LICENSE-MIT"))?;
        for library in &self.libraries {
            let (name, version) = (library.name, &library.version);
            let _ = writeln!(text, "| {name} | {version} | {} |", library.licence);
            let names = texts.entry(library.notice(&mit)?).or_default();
            names.push(format!("{name} {version}"));
        }
        for (words, names) in texts {
            let _ = write!(
                text,
                "\n## {}\n\n```\n{}\n```\n",
                names.join(", "),
                words.trim_end()
            );
        }
        Ok(text)
    }

    /// That every licence is allowed.
    fn check(&self) -> Result<()> {
        let foreign = self
            .packages
            .values()
            .filter(|package| package.source.is_some());
        let crates = foreign.map(|package| {
            let licence = package.license.as_deref();
            (package.name.as_str(), &package.version, licence)
        });
        let libraries = self.libraries.iter();
        let libraries = libraries.map(|one| (one.name, &one.version, Some(one.licence)));
        let wrong: Vec<String> = crates
            .chain(libraries)
            .filter(|(_, _, licence)| !licence.is_some_and(is_allowed))
            .map(|(name, version, licence)| {
                format!("{name} {version}: {}", licence.unwrap_or("no licence"))
            })
            .collect();
        if !wrong.is_empty() {
            bail!(
                "these may not be shipped: {}; see ALLOWED in xtask/src/release/bom.rs",
                wrong.join("; ")
            );
        }
        Ok(())
    }
}

/// Checksums of crates by name and version, from Cargo.lock.
fn checksums(lock: &str) -> Result<BTreeMap<(String, String), String>> {
    #[derive(Deserialize)]
    struct Lock {
        package: Vec<Locked>,
    }
    #[derive(Deserialize)]
    struct Locked {
        name: String,
        version: String,
        checksum: Option<String>,
    }
    let lock: Lock = toml::from_str(lock).context("Cargo.lock")?;
    let of = |package: Locked| Some(((package.name, package.version), package.checksum?));
    Ok(lock.package.into_iter().filter_map(of).collect())
}

/// The old way of writing a choice, as SPDX has it.
fn spdx(expression: &str) -> String {
    expression.replace('/', " OR ")
}

/// Whether an SPDX expression can be fulfilled by licences that are allowed.
fn is_allowed(expression: &str) -> bool {
    let spaced = spdx(expression).replace('(', " ( ").replace(')', " ) ");
    let words: Vec<&str> = spaced.split_whitespace().collect();
    let mut rest = &words[..];
    any_of(&mut rest) == Some(true) && rest.is_empty()
}

fn any_of(rest: &mut &[&str]) -> Option<bool> {
    let mut allowed = all_of(rest)?;
    while let ["OR", after @ ..] = *rest {
        *rest = after;
        allowed |= all_of(rest)?;
    }
    Some(allowed)
}

fn all_of(rest: &mut &[&str]) -> Option<bool> {
    let mut allowed = one(rest)?;
    while let ["AND", after @ ..] = *rest {
        *rest = after;
        allowed &= one(rest)?;
    }
    Some(allowed)
}

fn one(rest: &mut &[&str]) -> Option<bool> {
    match *rest {
        ["(", after @ ..] => {
            *rest = after;
            let allowed = any_of(rest)?;
            *rest = rest.strip_prefix(&[")"])?;
            Some(allowed)
        }
        [name, "WITH", exception, after @ ..] => {
            *rest = after;
            Some(ALLOWED.contains(&format!("{name} WITH {exception}").as_str()))
        }
        [name, after @ ..] => {
            *rest = after;
            Some(ALLOWED.contains(name))
        }
        [] => None,
    }
}

/// The texts of a crate's licences.
fn notices(directory: &Path) -> Result<Vec<String>> {
    let mut found = BTreeMap::new();
    for entry in
        fs::read_dir(directory).with_context(|| format!("listing {}", directory.display()))?
    {
        let path = entry?.path();
        let name = path
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .to_uppercase();
        let is_notice = ["LICENSE", "LICENCE", "COPYING", "NOTICE", "UNLICENSE"]
            .iter()
            .any(|start| name.starts_with(start));
        if is_notice && path.is_file() {
            let text = fs::read(&path).with_context(|| format!("reading {}", path.display()))?;
            found.insert(name, String::from_utf8_lossy(&text).into_owned());
        }
    }
    Ok(found.into_values().collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn licences_are_allowed_by_what_can_be_chosen() {
        for good in [
            "MIT",
            "MIT/Apache-2.0",
            "GPL-2.0 OR MIT",
            "(MIT OR Apache-2.0) AND Unicode-3.0",
            "Apache-2.0 WITH LLVM-exception OR GPL-2.0",
        ] {
            assert!(is_allowed(good), "{good}");
        }
        for bad in [
            "",
            "GPL-2.0",
            "MIT AND GPL-3.0",
            "(MIT",
            "Apache-2.0 WITH Other-exception",
            "MIT Apache-2.0",
            "OR MIT",
        ] {
            assert!(!is_allowed(bad), "{bad}");
        }
    }

    #[test]
    fn everything_that_is_shipped_may_be() -> Result<()> {
        let bom = Bom::read("x86_64-unknown-linux-gnu")?;
        bom.check()?;
        let licences = bom.licences()?;
        // Its own, which have to go with it as much as anybody else's.
        for name in ["LICENSE-MIT", "LICENSE-APACHE", "LICENSE-GPL-2.0"] {
            let words = fs::read_to_string(exec::workspace().join(name))?;
            assert!(licences.contains(words.trim_end()), "{name} is left out");
        }
        let value: Value = serde_json::from_str(&bom.cyclonedx()?)?;
        let components = value["components"].as_array().context("components")?;
        let named = |name: &str| {
            components
                .iter()
                .find(|component| component["name"] == name)
        };
        let aya = named("aya").context("aya is shipped")?;
        assert_eq!(aya["hashes"][0]["content"].as_str().map(str::len), Some(64));
        assert!(named("aya-ebpf").is_some(), "the BPF programs are inside");
        assert!(named("proptest").is_none(), "tests are not shipped");
        let std = named("rust-std").context("the standard library is shipped")?;
        assert!(licences.contains(&format!(
            "\n## rust-std {}\n",
            std["version"].as_str().context("a version")?
        )));
        let depends = value["dependencies"].as_array().context("dependencies")?;
        let on_std = depends.iter().filter(|one| {
            let below = one["dependsOn"].as_array();
            below.is_some_and(|below| below.contains(&std["bom-ref"]))
        });
        assert_eq!(on_std.count(), ROOTS.len());
        assert!(
            value["dependencies"]
                .as_array()
                .is_some_and(|all| all.len() == components.len())
        );
        Ok(())
    }

    /// A place in a document, by its JSON pointer, and what is put there.
    type Slip = (&'static str, fn(&mut Value));

    /// The schemas are those that CycloneDX publishes: see cyclonedx/README.md.
    #[test]
    fn the_bill_of_materials_is_as_its_schema_says() -> Result<()> {
        let read = |text: &str| serde_json::from_str::<Value>(text);
        let schema = read(include_str!("cyclonedx/bom-1.5.schema.json"))?;
        // By the names that the first refers to them by.
        let registry = jsonschema::Registry::new()
            .add(
                "http://cyclonedx.org/schema/spdx.SNAPSHOT.schema.json",
                read(include_str!("cyclonedx/spdx.schema.json"))?,
            )
            .unwrap()
            .add(
                "http://cyclonedx.org/schema/jsf-0.82.SNAPSHOT.schema.json",
                read(include_str!("cyclonedx/jsf-0.82.schema.json"))?,
            )
            .unwrap()
            .prepare()
            .unwrap();
        let validator = jsonschema::options()
            .with_registry(&registry)
            .build(&schema)
            .unwrap();
        let wrong = |document: &Value| -> Vec<String> {
            validator
                .iter_errors(document)
                .map(|error| format!("{}: {error}", error.instance_path()))
                .collect()
        };
        let document = read(&Bom::read("x86_64-unknown-linux-gnu")?.cyclonedx()?)?;
        assert_eq!(wrong(&document), [""; 0]);

        // It would tell.
        let slips: [Slip; 4] = [
            ("", |all| drop(all["specVersion"].take())),
            ("/components/0/type", |kind| *kind = json!("crate")),
            ("/components/0", |one| one["licence"] = json!("MIT")),
            ("/dependencies/0/dependsOn", |all| {
                *all = json!(["twice", "twice"])
            }),
        ];
        for (place, slip) in slips {
            let mut other = document.clone();
            slip(other.pointer_mut(place).context(place)?);
            assert_ne!(wrong(&other), [""; 0], "{place}");
        }
        Ok(())
    }
}
