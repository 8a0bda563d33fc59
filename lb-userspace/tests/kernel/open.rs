//! Opening: maps created, adopted, refused.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::Path,
    process::Command,
    sync::atomic::Ordering,
    thread::sleep,
    time::{Duration, Instant},
};

use aya::maps::MapData;
use lb_common::{maps, net::IpVersion, vip::VipEntry};
use lb_userspace::dataplane::kernel::{
    Error, Kernel, Loaded, Seen, XdpMode,
    bpf::Link,
    cleanup,
    device::XdpState,
    foreseen_capacity,
    seed::{fleet_seed, set_fleet_seed},
};
use nix::mount::{MntFlags, MsFlags, mount, umount, umount2};

use crate::sandbox::{names, run, state};

fn map_ids(directory: &Path) -> Vec<u32> {
    maps::ALL
        .iter()
        .map(|name| {
            MapData::from_pin(directory.join("maps").join(name))
                .unwrap()
                .info()
                .unwrap()
                .id()
        })
        .collect()
}

#[test]
fn an_instance_is_created_complete_and_for_root_only() {
    run(|sandbox| {
        let kernel = sandbox.open(&[]);
        let mut all = maps::ALL.map(str::to_owned).to_vec();
        all.sort();
        assert_eq!(names(&sandbox.pins().join("maps")), all);
        assert_eq!(names(&sandbox.pins()), ["maps"]);
        let mode = fs::metadata(sandbox.pins()).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o700);

        assert!(!kernel.adopted());
        assert_eq!(
            kernel.maps().instance.get(0),
            kernel.instance(),
            "what the map says is what the program was given"
        );
        assert_eq!(kernel.instance().abi_version, maps::ABI_VERSION);
        assert_eq!(kernel.fleet_seed(), kernel.instance().fleet_seed);
        assert_eq!(kernel.maps().capacity, sandbox.options(&[]).capacity);
    });
}

#[test]
fn pins_that_somebody_removed_are_made_again_of_the_same_maps_and_links() {
    run(|sandbox| {
        sandbox.veth("va", "vb");
        let mut kernel = sandbox.open(&["va"]);
        let link = kernel.attach().unwrap()[0].link;
        assert!(!kernel.attach_again().unwrap().is_pinned_again);
        let before = map_ids(&sandbox.pins());
        let undoings: [fn(&Path); 4] = [
            |pins| fs::remove_file(pins.join("maps/FLOWS4")).unwrap(),
            // Another map has its place.
            |pins| {
                fs::remove_file(pins.join("maps/FLOWS4")).unwrap();
                fs::rename(pins.join("maps/FLOWS6"), pins.join("maps/FLOWS4")).unwrap();
            },
            |pins| fs::remove_dir_all(pins).unwrap(),
            // Another has its name.
            |pins| {
                fs::remove_dir_all(pins).unwrap();
                fs::create_dir(pins).unwrap();
            },
        ];
        for undo in undoings {
            undo(&sandbox.pins());
            assert!(kernel.attach_again().unwrap().is_pinned_again);
            assert_eq!(names(&sandbox.pins()), ["link-va", "maps"]);
            assert_eq!(map_ids(&sandbox.pins()), before);
            // It has been on its interface all the time.
            assert_eq!(pinned_link(&sandbox.pins()), link);
            assert!(matches!(state("va"), XdpState::Native(_)));
            assert!(!kernel.attach_again().unwrap().is_pinned_again);
            // It is this daemon's own, as it was.
            let error = Kernel::open(&sandbox.options(&["va"])).unwrap_err();
            assert!(matches!(error, Error::Busy { .. }), "{error}");
        }
        drop(kernel);
        assert!(sandbox.open(&["va"]).adopted());
    });
}

/// The id of the link that is pinned of `va`.
fn pinned_link(pins: &Path) -> u32 {
    let link = Link::from_pin(&pins.join("link-va")).unwrap();
    link.info().unwrap().id
}

fn mount_over() {
    let flags = MsFlags::empty();
    mount(Some("bpf"), "/sys/fs/bpf", Some("bpf"), flags, None::<&str>).unwrap();
}

/// What `mount -t bpf bpf /sys/fs/bpf` does where there is one already.
#[test]
fn an_empty_bpffs_that_was_mounted_over_the_pins_changes_nothing_for_a_daemon_that_runs() {
    run(|sandbox| {
        sandbox.veth("va", "vb");
        let mut kernel = sandbox.open(&["va"]);
        kernel.local_replies().open().unwrap();
        let link = kernel.attach().unwrap()[0].link;
        let (pinned, maps) = (names(&sandbox.pins()), map_ids(&sandbox.pins()));
        mount_over();
        assert!(!sandbox.pins().exists());
        let renewal = kernel.attach_again().unwrap();
        assert!(
            renewal.is_pinned_again && renewal.replies.is_none(),
            "{renewal:?}"
        );
        assert!(
            matches!(renewal.interfaces[..], [(_, Seen::Still(XdpMode::Native))]),
            "{renewal:?}"
        );
        assert_eq!(pinned_link(&sandbox.pins()), link);
        assert_eq!(names(&sandbox.pins()), pinned);
        drop(kernel);

        let mut next = sandbox.open(&["va"]);
        assert!(next.adopted());
        assert_eq!(map_ids(&sandbox.pins()), maps);
        assert_eq!(next.attach().unwrap()[0].link, link);
        drop(next);

        // One that starts then knows of nothing, and is told why.
        mount_over();
        let error = sandbox.open(&["va"]).attach().unwrap_err();
        assert!(matches!(error, Error::Foreign { .. }), "{error}");
        let message = error.to_string();
        assert!(message.contains("unmount the upper one"), "{message}");
        assert!(matches!(state("va"), XdpState::Native(_)));
    });
}

#[test]
fn pins_that_were_hidden_for_a_time_are_this_daemons_still() {
    run(|sandbox| {
        sandbox.veth("va", "vb");
        let mut kernel = sandbox.open(&["va"]);
        let link = kernel.attach().unwrap()[0].link;
        let maps = map_ids(&sandbox.pins());
        mount_over();
        assert!(kernel.attach_again().unwrap().is_pinned_again);
        // The daemon has a file of it open.
        umount2("/sys/fs/bpf", MntFlags::MNT_DETACH).unwrap();
        let renewal = kernel.attach_again().unwrap();
        assert!(
            !renewal.is_pinned_again
                && matches!(renewal.interfaces[..], [(_, Seen::Still(XdpMode::Native))]),
            "{renewal:?}"
        );
        assert_eq!(names(&sandbox.pins()), ["link-va", "maps"]);
        assert_eq!(
            (pinned_link(&sandbox.pins()), map_ids(&sandbox.pins())),
            (link, maps)
        );
        let error = Kernel::open(&sandbox.options(&["va"])).unwrap_err();
        assert!(matches!(error, Error::Busy { .. }), "{error}");
    });
}

#[test]
fn the_capacity_that_is_foreseen_is_what_opening_gives() {
    run(|sandbox| {
        let mut options = sandbox.options(&[]);
        assert_eq!(foreseen_capacity(&options).unwrap(), None);
        drop(Kernel::open(&options).unwrap());
        options.capacity = options.capacity.guarding(true).measuring(true);
        let foreseen = foreseen_capacity(&options).unwrap();
        let kernel = Kernel::open(&options).unwrap();
        assert_eq!(foreseen, Some(kernel.maps().capacity));
    });
}

#[test]
fn a_second_start_adopts_maps_seeds_and_contents() {
    run(|sandbox| {
        let first = sandbox.open(&[]);
        let (ids, instance) = (map_ids(&sandbox.pins()), first.instance());
        first.maps().set_vip(IpVersion::V6, 1, 2, VipEntry(77));
        drop(first);

        let second = sandbox.open(&[]);
        assert!(second.adopted());
        assert_eq!(map_ids(&sandbox.pins()), ids);
        assert_eq!(second.instance(), instance);
        assert_eq!(second.maps().vip(IpVersion::V6, 1, 2), VipEntry(77));
    });
}

#[test]
fn a_configured_fleet_seed_is_in_force_and_not_kept() {
    run(|sandbox| {
        let mut options = sandbox.options(&[]);
        options.fleet_seed = Some([1, 2, 3, 4]);
        let kernel = Kernel::open(&options).unwrap();
        assert_eq!(kernel.fleet_seed(), [1, 2, 3, 4]);
        let own = kernel.instance().fleet_seed;
        drop(kernel);
        assert_eq!(sandbox.open(&[]).fleet_seed(), own);
    });
}

#[test]
fn pinned_capacities_outlast_a_changed_configuration() {
    run(|sandbox| {
        let capacity = sandbox.open(&[]).maps().capacity;
        let mut options = sandbox.options(&[]);
        options.capacity.services *= 2;
        options.capacity.backends *= 2;
        options.capacity.table_slots *= 2;
        let kernel = Kernel::open(&options).unwrap();
        assert_eq!(kernel.maps().capacity, capacity);
        assert!(kernel.not_resized().is_none());
    });
}

#[test]
fn the_fleet_seed_is_replaced_while_no_daemon_runs_and_alone() {
    run(|sandbox| {
        let kernel = sandbox.open(&[]);
        let before = kernel.instance();
        assert_eq!(fleet_seed(&sandbox.pins()).unwrap(), before.fleet_seed);
        let error = set_fleet_seed(&sandbox.pins(), [1, 2, 3, 4]).unwrap_err();
        assert!(matches!(error, Error::Busy { .. }), "{error}");
        drop(kernel);

        set_fleet_seed(&sandbox.pins(), [1, 2, 3, 4]).unwrap();
        assert_eq!(fleet_seed(&sandbox.pins()).unwrap(), [1, 2, 3, 4]);
        let kernel = sandbox.open(&[]);
        assert_eq!(kernel.fleet_seed(), [1, 2, 3, 4]);
        let after = lb_common::maps::Instance {
            fleet_seed: [1, 2, 3, 4],
            ..before
        };
        assert_eq!(kernel.instance(), after);
        drop(kernel);

        cleanup(&sandbox.pins()).unwrap();
        for error in [
            fleet_seed(&sandbox.pins()).unwrap_err(),
            set_fleet_seed(&sandbox.pins(), [5; 4]).unwrap_err(),
        ] {
            assert!(matches!(error, Error::NoInstance { .. }), "{error}");
        }
        assert!(!sandbox.pins().exists());
    });
}

#[test]
fn a_second_daemon_is_refused() {
    run(|sandbox| {
        let first = sandbox.open(&[]);
        let pid = std::process::id();
        for error in [
            Kernel::open(&sandbox.options(&[])).unwrap_err(),
            cleanup(&sandbox.pins()).unwrap_err(),
        ] {
            assert!(matches!(error, Error::Busy { .. }), "{error}");
            let error = error.to_string();
            assert!(error.contains(&format!("(pid {pid})")), "{error}");
        }
        drop(first);
        sandbox.open(&[]);
    });
}

#[test]
fn a_half_made_set_of_maps_is_made_anew() {
    run(|sandbox| {
        drop(sandbox.prepare());
        // What a daemon leaves that is killed while it creates or removes: some maps in the staging directory.
        let (maps, staging) = (sandbox.pins().join("maps"), sandbox.pins().join("maps-new"));
        fs::rename(&maps, &staging).unwrap();
        fs::remove_file(staging.join(maps::TABLES)).unwrap();

        let opened = sandbox.prepare();
        assert!(!opened.adopted);
        assert_eq!(names(&sandbox.pins()), ["maps"]);
        assert_eq!(names(&maps).len(), maps::ALL.len());
    });
}

/// This test's own executable, run again, is the daemon that is killed: at moments all over its start.
#[test]
fn a_start_killed_at_any_moment_leaves_something_to_start_from() {
    const TEST: &str = "open::a_start_killed_at_any_moment_leaves_something_to_start_from";
    const KILLS: u32 = 60;
    const VICTIM: &str = "TETHER_TEST_VICTIM";
    run(|sandbox| {
        if std::env::var_os(VICTIM).is_some() {
            // In the sandbox of the process that started this one, whose bpffs lies under the one just mounted.
            umount("/sys/fs/bpf").unwrap();
            loop {
                drop(sandbox.prepare());
                drop(sandbox.prepare());
                cleanup(&sandbox.pins()).unwrap();
            }
        }
        let round = {
            let start = Instant::now();
            drop(sandbox.prepare());
            drop(sandbox.prepare());
            cleanup(&sandbox.pins()).unwrap();
            start.elapsed()
        };
        let (mut adopted, mut created) = (0, 0);
        for step in 0..KILLS {
            // By this name and not by its path, which in a chroot leads elsewhere once the mount namespace is another.
            let mut victim = Command::new("/proc/self/exe")
                .args(["--exact", TEST])
                .env(VICTIM, "1")
                .stdout(std::process::Stdio::null())
                .spawn()
                .unwrap();
            let deadline = Instant::now() + Duration::from_secs(20);
            while !sandbox.pins().exists() {
                assert!(Instant::now() < deadline, "the victim creates nothing");
                sleep(Duration::from_millis(1));
            }
            // It has begun. Not a wait for something: the moment of the kill is to be anywhere in its round of creating, adopting
            // and removing.
            sleep(round * step / KILLS);
            victim.kill().unwrap();
            victim.wait().unwrap();

            let kernel = sandbox.prepare();
            if kernel.adopted {
                adopted += 1;
            } else {
                created += 1;
            }
            assert_eq!(names(&sandbox.pins()), ["maps"]);
            assert_eq!(kernel.maps.maps().instance.get(0), kernel.maps.instance());
            drop(kernel);
            cleanup(&sandbox.pins()).unwrap();
            assert!(!sandbox.pins().exists());
        }
        println!(
            "{round:?} a round: {adopted} starts adopted what a killed one left, {created} created anew"
        );
    });
}

#[test]
fn maps_of_another_version_are_refused_with_the_remedy() {
    run(|sandbox| {
        let kernel = sandbox.open(&[]);
        let mut instance = kernel.instance();
        instance.abi_version = 99;
        kernel.maps().instance.set(0, &instance);
        drop(kernel);

        // What is beside them describes others; then nothing does.
        let error = Kernel::open(&sandbox.options(&[])).unwrap_err();
        let why = format!("of version {}", maps::ABI_VERSION);
        assert!(error.to_string().contains(&why), "{error}");
        fs::remove_file(sandbox.pins().join("maps").join(maps::LAYOUTS)).unwrap();
        let error = Kernel::open(&sandbox.options(&[])).unwrap_err();
        assert!(
            matches!(
                error,
                Error::Version {
                    found: 99,
                    expected: maps::ABI_VERSION,
                    ..
                }
            ),
            "{error}"
        );
        assert!(error.to_string().contains("tether cleanup"), "{error}");
    });
}

#[test]
fn a_missing_map_among_pinned_ones_is_refused_and_named() {
    run(|sandbox| {
        drop(sandbox.prepare());
        fs::remove_file(sandbox.pins().join("maps").join(maps::COUNTERS)).unwrap();
        let error = Kernel::open(&sandbox.options(&[])).unwrap_err();
        assert!(matches!(error, Error::Damaged { .. }), "{error}");
        assert!(
            error.to_string().contains("maps/COUNTERS: it is missing"),
            "{error}"
        );
    });
}

#[test]
fn a_map_of_another_shape_is_refused_and_named() {
    run(|sandbox| {
        drop(sandbox.prepare());
        let maps = sandbox.pins().join("maps");
        // Facts that are shorter than the table they are parallel to.
        let mut capacity = sandbox.options(&[]).capacity;
        capacity.flow4_buckets /= 2;
        let instance = lb_common::maps::Instance {
            abi_version: maps::ABI_VERSION,
            reserved: 0,
            flow_seed: lb_common::hash::Seed::new([1, 2, 3]),
            fleet_seed: [0; 4],
        };
        let other = Loaded::private(capacity, instance).unwrap();
        let short = other
            .map_fd(maps::FACTS4)
            .unwrap()
            .try_clone_to_owned()
            .unwrap();
        fs::remove_file(maps.join(maps::FACTS4)).unwrap();
        MapData::from_fd(short)
            .unwrap()
            .pin(maps.join(maps::FACTS4))
            .unwrap();

        let error = Kernel::open(&sandbox.options(&[])).unwrap_err();
        assert!(matches!(error, Error::Damaged { .. }), "{error}");
        assert!(error.to_string().contains("FACTS4"), "{error}");
    });
}

#[test]
fn without_a_bpffs_the_remedy_is_told() {
    run(|sandbox| {
        umount("/sys/fs/bpf").unwrap();
        // What is below may be the host's bpffs: go where certainly none is.
        let mut options = sandbox.options(&[]);
        options.bpffs = "/sys/fs/tether".into();
        let error = Kernel::open(&options).unwrap_err();
        assert!(matches!(error, Error::NoBpffs { .. }), "{error}");
        assert!(
            error.to_string().contains("mount -t bpf bpf /sys/fs/bpf"),
            "{error}"
        );
    });
}

/// Linux itself tells a thread that asks for it of a release before 3.0; and a map that is too large no release makes.
#[test]
fn a_start_on_a_kernel_that_is_too_old_says_so() {
    run(|sandbox| {
        let mut options = sandbox.options(&[]);
        options.capacity.table_slots = u32::MAX;
        let error = Kernel::open(&options).unwrap_err();
        assert!(matches!(error, Error::Create { .. }), "{error}");

        // That is this thread alone, which ends with the test.
        // SAFETY: no pointers are passed.
        let before = unsafe { libc::personality(libc::UNAME26 as libc::c_ulong) };
        assert_ne!(before, -1);
        let error = Kernel::open(&options).unwrap_err();
        assert!(matches!(error, Error::OldKernel { .. }), "{error}");
        let message = error.to_string();
        for part in ["this is Linux 2.6.", "tether needs 6.1: ", maps::TABLES] {
            assert!(message.contains(part), "no {part:?}: {message}");
        }
        assert_eq!(names(&sandbox.pins()), [""; 0]);
    });
}

#[test]
fn without_capabilities_they_are_named() {
    run(|sandbox| {
        // A directory that this user may use, so that the first refusal is that of bpf(2).
        let (nobody, nogroup) = (
            nix::unistd::Uid::from_raw(65_534),
            nix::unistd::Gid::from_raw(65_534),
        );
        nix::unistd::chown("/sys/fs/bpf", Some(nobody), Some(nogroup)).unwrap();
        let options = sandbox.options(&[]);
        let error = {
            // The raw calls change this thread alone; glibc's would change the whole process.
            // SAFETY: no pointers are passed.
            let status = unsafe {
                libc::syscall(libc::SYS_setresgid, 65_534, 65_534, 65_534)
                    | libc::syscall(libc::SYS_setresuid, 65_534, 65_534, 65_534)
            };
            assert_eq!(status, 0);
            Kernel::open(&options).unwrap_err()
        };
        assert!(error.to_string().contains("CAP_BPF"), "{error}");
    });
}

#[test]
fn maps_are_the_kernels_own_memory() {
    run(|sandbox| {
        let kernel = sandbox.open(&[]);
        let maps = kernel.maps();
        maps.instance.word(0, 7).store(0x1234, Ordering::SeqCst);
        // Read back by the system call, as anybody else sees it.
        let pinned = MapData::from_pin(sandbox.pins().join("maps").join(maps::INSTANCE)).unwrap();
        let array =
            aya::maps::Array::<_, [u64; 8]>::try_from(aya::maps::Map::Array(pinned)).unwrap();
        assert_eq!(array.get(&0, 0).unwrap()[7], 0x1234);
    });
}

#[test]
fn a_grace_period_ends() {
    run(|sandbox| {
        let grace = sandbox.open(&[]).grace();
        grace();
        grace();
    });
}
