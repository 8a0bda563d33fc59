//! Notices that the configuration file, or a file of authorities or prefixes that it names, has changed, however that was done: written in place, replaced by an editor's rename, or reached by
//! symbolic links of which one now leads elsewhere, as Kubernetes swaps a ConfigMap.
//!
//! It looks, twice a second, at what the path leads to. That follows every link, works on every filesystem, needs no descriptor
//! that may have run out, and misses nothing when directories on the way are themselves replaced.

use std::{collections::BTreeMap, path::PathBuf, sync::Arc, time::Duration};

use tokio::sync::watch;

use crate::{admin::Reloader, config::Seen, shutdown};

/// From look to look. A change counts once two looks have seen the same, so that a file that is being written is left alone.
const EVERY: Duration = Duration::from_millis(500);

/// One path, looked at again and again.
#[derive(Clone, Copy, Debug)]
struct Watched {
    taken: Option<Seen>,
    last: Option<Seen>,
}

impl Watched {
    /// Nothing of it is known: what is there first is news.
    const UNKNOWN: Self = Self {
        taken: None,
        last: None,
    };

    /// What is there is known.
    const fn known(seen: Seen) -> Self {
        Self {
            taken: Some(seen),
            last: Some(seen),
        }
    }

    /// Takes in a look. True if it is settled, and news.
    fn look(&mut self, seen: Seen) -> bool {
        let settled = self.last.replace(seen) == Some(seen);
        let news = settled && self.taken != Some(seen);
        if news {
            self.taken = Some(seen);
        }
        news
    }
}

/// Has the file loaded whenever it, or a file that it names, has changed, until `shutdown` turns true. What is refused is told by
/// the reloader, once for each change.
pub(super) async fn run(
    path: PathBuf,
    reloader: Arc<Reloader>,
    mut shutdown: watch::Receiver<bool>,
) {
    let mut looks = tokio::time::interval(EVERY);
    looks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    // The file may have changed since it was loaded.
    let mut file = Watched::UNKNOWN;
    let mut others = BTreeMap::<PathBuf, Watched>::new();
    loop {
        tokio::select! {
            () = shutdown::requested(&mut shutdown) => return,
            _ = looks.tick() => {}
        }
        let (looked, named) = (path.clone(), reloader.named().await);
        let look = move || {
            let named = named.into_iter();
            let seen = named.map(|(path, as_read)| (Seen::at(&path), as_read, path));
            (Seen::at(&looked), seen.collect::<Vec<_>>())
        };
        let Ok((seen, named)) = tokio::task::spawn_blocking(look).await else {
            continue;
        };
        if file.look(seen) {
            reloader.reload_if_changed().await;
        }
        others.retain(|path, _| named.iter().any(|(.., named)| named == path));
        let mut news = false;
        for (seen, as_read, path) in named {
            let watched = others.entry(path);
            news |= watched.or_insert(Watched::known(as_read)).look(seen);
        }
        if news {
            // The configuration's own text is the same.
            drop(reloader.reload().await);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::symlink, path::Path};

    use tokio::sync::mpsc;

    use super::*;
    use crate::{config, reconcile::Command};

    const CONFIG: &str = "interfaces = [\"eth0\"]\n[[service]]\nname = \"chat\"\nvip = \"10.0.0.1\"\nport = 80\nmode = \"l2\"\n";

    /// A watched file in a directory of its own, and what the reconciler is told.
    struct Bench {
        directory: PathBuf,
        told: mpsc::Receiver<Command>,
        _stop: watch::Sender<bool>,
    }

    impl Bench {
        /// `make` makes the file `tether.toml` of the directory.
        fn start(test: &str, make: impl FnOnce(&Path)) -> Self {
            let directory =
                std::env::temp_dir().join(format!("tether-watch-{}-{test}", std::process::id()));
            fs::create_dir_all(&directory).unwrap();
            make(&directory);
            let path = directory.join("tether.toml");
            let first = config::load(&path).unwrap().config;
            let (commands, told) = mpsc::channel(4);
            let (stop, shutdown) = watch::channel(false);
            let reloader = Arc::new(Reloader::new(&first, commands));
            tokio::spawn(run(path, reloader, shutdown));
            Self {
                directory,
                told,
                _stop: stop,
            }
        }

        /// The next that the reconciler is told: the name of the service, or why the file is refused.
        async fn next(&mut self) -> Result<String, String> {
            let next = tokio::time::timeout(Duration::from_secs(20), self.told.recv());
            match next.await.expect("a change is noticed").unwrap() {
                Command::Reload { config, reply } => {
                    reply.send(Ok(2)).unwrap();
                    Ok(config.services[0].name.clone())
                }
                Command::RejectedConfig { error } => Err(error),
                other => panic!("{other:?}"),
            }
        }

        fn write(&self, name: &str) {
            let text = CONFIG.replace("chat", name);
            fs::write(self.directory.join("tether.toml"), text).unwrap();
        }
    }

    impl Drop for Bench {
        fn drop(&mut self) {
            drop(fs::remove_dir_all(&self.directory));
        }
    }

    // Time passes when nothing else is to be done.
    #[tokio::test(start_paused = true)]
    async fn a_file_that_changes_is_loaded_and_one_that_does_not_is_not() {
        let make = |directory: &Path| fs::write(directory.join("tether.toml"), CONFIG).unwrap();
        let mut watched = Bench::start("plain", make);
        // Written anew with the same content, and from the start: no news. If it were, it would come before what follows.
        watched.write("chat");
        tokio::time::sleep(3 * EVERY).await;
        watched.write("talk");
        assert_eq!(watched.next().await.unwrap(), "talk");
        // Replaced as editors do.
        let aside = watched.directory.join("aside");
        fs::write(&aside, CONFIG.replace("chat", "news")).unwrap();
        fs::rename(&aside, watched.directory.join("tether.toml")).unwrap();
        assert_eq!(watched.next().await.unwrap(), "news");
        // A bad one is told, and gone is bad too; then the one that was in force is loaded, or what was told would stay.
        watched.write("no name");
        assert!(
            watched
                .next()
                .await
                .unwrap_err()
                .contains("tether.toml:3:8")
        );
        fs::remove_file(watched.directory.join("tether.toml")).unwrap();
        assert!(watched.next().await.unwrap_err().contains("cannot be read"));
        watched.write("news");
        assert_eq!(watched.next().await.unwrap(), "news");
    }

    // Time passes when nothing else is to be done.
    #[tokio::test(start_paused = true)]
    async fn authorities_that_change_are_read_again() {
        let certificate = |name: &str| rcgen::generate_simple_self_signed([name.to_owned()]);
        let pem = |name: &str| certificate(name).unwrap().cert.pem();
        let mut watched = Bench::start("authorities", |directory| {
            let ca = directory.join("ca.pem");
            fs::write(&ca, pem("one")).unwrap();
            let check = format!(
                "[service.health]\ntype = \"https\"\ntls.ca = {ca:?}\ntls.name = \"chat.example\"\n"
            );
            fs::write(directory.join("tether.toml"), format!("{CONFIG}{check}")).unwrap();
        });
        let ca = watched.directory.join("ca.pem");
        tokio::time::sleep(3 * EVERY).await;
        // As whoever renews certificates does.
        let aside = watched.directory.join("aside");
        fs::write(&aside, pem("other")).unwrap();
        fs::rename(&aside, &ca).unwrap();
        assert_eq!(watched.next().await.unwrap(), "chat");
        fs::write(&ca, "no certificate").unwrap();
        assert!(watched.next().await.unwrap_err().contains("ca.pem"));
        fs::write(&ca, pem("third")).unwrap();
        assert_eq!(watched.next().await.unwrap(), "chat");
    }

    // Time passes when nothing else is to be done.
    #[tokio::test(start_paused = true)]
    async fn lists_that_change_are_read_again() {
        let mut watched = Bench::start("lists", |directory| {
            let list = directory.join("deny.txt");
            fs::write(&list, "192.0.2.0/24\n").unwrap();
            let text = format!("{CONFIG}deny_file = {list:?}\n");
            fs::write(directory.join("tether.toml"), text).unwrap();
        });
        let list = watched.directory.join("deny.txt");
        tokio::time::sleep(3 * EVERY).await;
        fs::write(&list, "192.0.2.0/24\n198.51.100.0/24 # another\n").unwrap();
        assert_eq!(watched.next().await.unwrap(), "chat");
        fs::write(&list, "192.0.2.0/24\nsomething\n").unwrap();
        let wrong = watched.next().await.unwrap_err();
        assert!(wrong.contains("deny.txt:2:1: "), "{wrong}");
        fs::write(&list, "").unwrap();
        assert_eq!(watched.next().await.unwrap(), "chat");
    }

    // Time passes when nothing else is to be done.
    #[tokio::test(start_paused = true)]
    async fn a_list_that_kept_a_new_configuration_out_is_read_again() {
        let make = |directory: &Path| fs::write(directory.join("tether.toml"), CONFIG).unwrap();
        let mut watched = Bench::start("kept-out", make);
        let list = watched.directory.join("deny.txt");
        let text = format!("{}deny_file = {list:?}\n", CONFIG.replace("chat", "talk"));
        fs::write(watched.directory.join("tether.toml"), text).unwrap();
        assert!(watched.next().await.unwrap_err().contains("deny.txt"));
        // At once, though nobody has looked at it yet.
        fs::write(&list, "something\n").unwrap();
        let wrong = watched.next().await.unwrap_err();
        assert!(wrong.contains("deny.txt:1:1: "), "{wrong}");
        fs::write(&list, "192.0.2.0/24\n").unwrap();
        assert_eq!(watched.next().await.unwrap(), "talk");
    }

    // Time passes when nothing else is to be done.
    #[tokio::test(start_paused = true)]
    async fn a_list_that_is_too_long_for_the_maps_is_read_again() {
        let make = |directory: &Path| fs::write(directory.join("tether.toml"), CONFIG).unwrap();
        let mut watched = Bench::start("too-long", make);
        let list = watched.directory.join("deny.txt");
        fs::write(&list, "192.0.2.0/24\n198.51.100.0/24\n").unwrap();
        let text = format!("{}deny_file = {list:?}\n", CONFIG.replace("chat", "talk"));
        fs::write(watched.directory.join("tether.toml"), text).unwrap();
        // The text is valid, and it is the reconciler who finds no room.
        match watched.told.recv().await.unwrap() {
            Command::Reload { reply, .. } => reply.send(Err("too many prefixes".into())).unwrap(),
            other => panic!("{other:?}"),
        }
        assert_eq!(watched.next().await.unwrap_err(), "too many prefixes");
        fs::write(&list, "192.0.2.0/24\n").unwrap();
        assert_eq!(watched.next().await.unwrap(), "talk");
    }

    // Time passes when nothing else is to be done.
    #[tokio::test(start_paused = true)]
    async fn a_config_map_that_is_swapped_is_loaded() {
        // As kubelet lays it out: the file is a link into ..data, which is a link to a directory, which is what is swapped.
        let version = |directory: &Path, version: &str, name: &str| {
            let data = directory.join(version);
            fs::create_dir(&data).unwrap();
            fs::write(data.join("tether.toml"), CONFIG.replace("chat", name)).unwrap();
            symlink(version, directory.join("..data_tmp")).unwrap();
            fs::rename(directory.join("..data_tmp"), directory.join("..data")).unwrap();
        };
        let mut watched = Bench::start("map", |directory| {
            version(directory, "..1", "chat");
            symlink("..data/tether.toml", directory.join("tether.toml")).unwrap();
        });
        version(&watched.directory, "..2", "talk");
        fs::remove_dir_all(watched.directory.join("..1")).unwrap();
        assert_eq!(watched.next().await.unwrap(), "talk");
        version(&watched.directory, "..3", "news");
        assert_eq!(watched.next().await.unwrap(), "news");
    }
}
