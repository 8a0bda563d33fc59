//! `cargo xtask test`: every test there is, or all but those that take long.

mod lanes;

use std::thread;

use anyhow::{Result, anyhow};

use crate::{
    cargo::{self, Built},
    exec,
    kernels::Smoke,
    root, setup, verifier,
};

/// Tests that take long, each beside a shorter one of the same promise: in another mode or family, with fewer kills, with fewer packets, or by promtool alone.
const LONG: [&str; 89] = [
    "a_backend_without_a_receiver_is_refusing_in_ipv6",
    "a_backend_without_the_vip_is_refusing_in_ipv6",
    "a_closed_listener_is_refusing_in_ipv6",
    "a_dark_backend_of_dnat_is_down_and_its_clients_are_reset_in_ipv6",
    "a_dark_backend_on_the_link_is_down_and_its_clients_are_reset_in_ipv6",
    "a_dark_routed_backend_is_down_and_its_clients_are_reset_in_ipv6",
    "a_deadline_closes_what_is_left_at_a_pace_in_ipv6",
    "a_deadline_closes_what_is_left_at_a_pace_with_dnat_in_ipv6",
    "a_flood_from_a_limited_prefix_does_not_keep_others_out_in_ipv6",
    "a_flood_of_a_million_handshakes_loses_no_older_pin_and_serves_every_client",
    "a_flood_of_handshakes_that_fills_the_table_is_reclaimed",
    "a_flow_is_explained_in_dnat_in_ipv6",
    "a_flow_is_explained_in_l2",
    "a_full_backend_takes_no_new_connections_until_it_has_fewer",
    "a_migration_that_is_killed_loses_no_flow",
    "a_pod_learns_of_a_narrow_way_to_clients_in_ipv6",
    "a_pod_learns_of_a_narrow_way_to_clients_of_nat_in_ipv6",
    "a_pods_flow_is_explained_in_ipv6",
    "a_process_of_the_host_in_ipv6",
    "a_reset_of_ipip_has_the_tags_of_its_cause_in_ipv6",
    "a_resize_killed_at_any_step_loses_no_entry",
    "a_reused_port_leaves_a_draining_backend_dnat_in_ipv6",
    "a_reused_port_leaves_a_draining_backend_l2_in_ipv6",
    "a_source_has_so_many_flows_at_a_time_in_ipv6",
    "a_source_has_so_many_flows_at_a_time_with_dnat",
    "a_source_opens_its_burst_and_then_its_rate_in_ipv6",
    "a_start_killed_at_any_moment_leaves_something_to_start_from",
    "alerts_fire_when_flows_find_no_room",
    "alerts_fire_while_removed_backends_leave_no_room_for_new_ones",
    "an_alert_fires_when_what_should_never_happen_does",
    "an_alert_fires_while_a_backend_is_ejected",
    "an_alert_fires_while_a_name_does_not_resolve",
    "an_alert_fires_while_all_backends_are_full",
    "an_alert_fires_while_an_interface_takes_no_frames",
    "an_alert_fires_while_another_program_has_the_interface",
    "an_alert_fires_while_snat_ports_run_out",
    "an_alert_fires_while_sources_nearly_find_no_room",
    "an_interface_that_does_not_forward_is_named_until_it_does",
    "by_ipip_from_ipv4_clients_to_ipv6_backends",
    "by_removal_from_the_file_in_ipv6",
    "by_removal_from_the_file_with_nat_in_ipv6",
    "connections_outlive_a_balancer_and_its_return_in_ipv6",
    "connections_outlive_upgrade_and_downgrade_l2_ipv6",
    "connections_outlive_upgrade_and_downgrade_nat_ipv6",
    "dnat_keeps_clients_addresses_in_ipv6",
    "dnat_sends_replies_by_the_interface_of_the_clients_in_ipv6",
    "dnat_takes_off_the_tags_that_a_packet_came_with_in_ipv6",
    "dnat_tells_each_side_what_fits_in_ipv6",
    "every_ipv6_entry_is_found_again_in_a_larger_and_a_smaller_table_while_packets_come",
    "flows_are_told_of_in_nat_in_ipv6",
    "flows_that_the_old_program_records_after_the_hold_are_copied_too",
    "guards_outlive_an_upgrade_and_a_downgrade",
    "in_ipip_from_ipv4_clients_to_ipv6_backends",
    "in_l2_in_ipv6",
    "ipip_leaves_by_the_interface_of_the_backends_in_ipv6",
    "ipip_takes_off_the_tags_that_a_packet_came_with_in_ipv6",
    "ipv6_connections_outlive_a_larger_and_a_smaller_flow_table",
    "l2_leaves_by_the_interface_of_the_backends_in_ipv6",
    "l2_takes_off_the_tags_that_a_packet_came_with_in_ipv6",
    "lists_change_while_connections_live_in_ipv6",
    "lists_change_while_connections_live_with_nat",
    "no_ipv6_connection_breaks_in_a_short_storm",
    "no_ipv6_connection_of_dnat_breaks_in_a_short_storm",
    "no_ipv6_connection_on_the_link_breaks_but_those_of_a_killed_host",
    "no_translated_ipv6_connection_breaks_but_those_of_a_killed_host",
    "one_that_has_said_goodbye_is_waited_for_while_it_may_be_listening",
    "pods_behind_a_bridge_beside_remote_backends_of_dnat_in_ipv6",
    "pods_behind_veths_beside_remote_backends_of_ipip_in_ipv6",
    "pods_behind_veths_beside_remote_backends_of_l2_in_ipv6",
    "replies_are_measured_and_drawn",
    "the_clients_router_is_found_past_conntrack_in_ipv6",
    "the_demo_shows_its_main_job_in_dnat",
    "the_demo_shows_its_main_job_in_ipv6_by_ipip",
    "the_demo_shows_its_main_job_in_ipv6_by_nat",
    "the_demo_shows_its_main_job_in_l2",
    "the_demo_shows_its_main_job_in_nat",
    "the_same_port_connects_again_by_dnat_in_ipv6",
    "the_same_port_connects_again_by_l2_in_ipv6",
    "the_same_port_connects_again_by_nat_in_ipv6",
    "the_vip_leads_from_the_host_and_its_pods_to_no_pod_in_ipv6",
    "translated_connections_outlive_a_larger_and_a_smaller_flow_table_in_ipv6",
    "translated_ipv6_flows_outlive_a_killed_daemon",
    "translations_of_ipv6_flows_are_made_by_a_restart_and_move_with_them",
    "what_is_broken_behind_a_tunnel_in_ipv6_is_seen",
    "what_is_broken_on_an_l2_segment_in_ipv6_is_seen",
    "what_is_broken_where_addresses_are_translated_in_ipv6_is_seen",
    "what_is_closed_at_a_pace_goes_on_so_through_upgrade_and_downgrade",
    "what_is_translated_and_watched_is_steered_as_ever",
    "who_does_not_wait_for_the_idle_leaves_them_alone",
];

/// Runs everything, the quickest to fail first; those that take long only if they are wanted.
///
/// # Errors
/// If this is not root, setup fails, or any test does.
pub(crate) fn run(long: bool) -> Result<()> {
    root::require("test")?;
    setup::ensure()?;
    verifier::run()?;
    model_check()?;

    let workspace = || {
        let mut command = exec::cargo();
        command.args(["test", "--workspace", "--exclude", "lb-ebpf"]);
        command
    };
    // Cargo would build all other programs once more to run none.
    let programs = cargo::programs()?;
    let tested = programs.iter().filter(|program| program.is_tested);
    let tested = tested.flat_map(|program| ["--bin", &program.name]);
    exec::run(workspace().arg("--lib").args(tested))?;
    exec::run(workspace().arg("--doc"))?;
    other_version()?;
    let smoke = Smoke::prepare()?;
    // Labs come last, being the slowest, and packet tests with them. In each of their programs one test runs at a time, since they measure time. Those of
    // guest need a kernel of `cargo xtask kernels`.
    let built = Built::by(workspace().args(["--no-run", "--exclude", "lab-guest", "--test", "*"]))?;
    let skipped = LONG.iter().filter(|_| !long);
    let arguments: Vec<&str> = ["--test-threads=1"]
        .into_iter()
        .chain(skipped.flat_map(|name| ["--skip", name]))
        .collect();
    // Labs mostly wait, and what they leave of the cores a guest can have.
    thread::scope(|scope| {
        let smoke = scope.spawn(|| smoke.run());
        let labs = lanes::run(&built, &arguments);
        let smoke = smoke
            .join()
            .map_err(|_| anyhow!("the smoke test on the oldest kernel panicked"))?;
        labs.and(smoke)
    })
}

/// Builds the daemon with another version of the layouts, which tests of upgrade and downgrade start; and has its layouts tested.
fn other_version() -> Result<()> {
    exec::run(exec::cargo().args([
        "test",
        "--package",
        "lb-common",
        "--features",
        "user,next-abi",
        "--lib",
    ]))?;
    // The same packages as the tests, so that dependencies are compiled once for both.
    exec::run(
        exec::cargo()
            .args(["build", "--workspace", "--exclude", "lb-ebpf"])
            .args(["--features", "lab/next-abi"])
            .args(["--bin", "tether-of-next-version"])
            .args(cargo::AS_FOR_TESTS),
    )
}

/// Lets loom try the interleavings of the flow table's protocol. It compiles with a flag of its own, and so into a directory of its
/// own.
fn model_check() -> Result<()> {
    exec::run(
        exec::cargo()
            .args([
                "test",
                "--package",
                "lb-common",
                "--release",
                "--test",
                "loom",
            ])
            .arg("--target-dir")
            .arg(cargo::target_directory()?.join("loom"))
            .env("RUSTFLAGS", "--cfg loom")
            .env_remove("CARGO_ENCODED_RUSTFLAGS"),
    )
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use super::*;

    fn sources(directory: &Path, text: &mut String) {
        for entry in fs::read_dir(directory).expect("a directory of tests") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                sources(&path, text);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                *text += &fs::read_to_string(&path).expect("a source");
            }
        }
    }

    fn functions(text: &str) -> Vec<&str> {
        text.split("fn ")
            .skip(1)
            .filter_map(|rest| rest.split_once('('))
            .map(|(name, _)| name)
            .collect()
    }

    /// Tests in a program whose manifest says that it has none would never run, and nobody would notice.
    #[test]
    fn programs_have_tests_if_their_manifests_say_so() {
        for program in cargo::programs().expect("what cargo says") {
            let file = &program.src_path;
            let folder = file.parent().expect("a folder");
            let mut text = String::new();
            // A program's own folder is its own, but for one that the package's library shares.
            if file.ends_with("main.rs") && !folder.join("lib.rs").exists() {
                sources(folder, &mut text);
            } else {
                text += &fs::read_to_string(file).expect("a source");
            }
            let has_tests = text.contains("#[test]");
            assert_eq!(has_tests, program.is_tested, "{}", program.name);
        }
    }

    /// What README.md's contract says before its table; and the table, with what comes after it.
    fn contract() -> (String, String) {
        let readme = fs::read_to_string(exec::workspace().join("README.md")).expect("README.md");
        let (_, contract) = readme
            .split_once("\n## The contract\n")
            .expect("a contract");
        let (contract, _) = contract.split_once("\n## ").expect("an end of it");
        let (before, promises) = contract.split_once("\n| promise |").expect("a table");
        (before.to_owned(), promises.to_owned())
    }

    /// A name that is no test's would leave out nothing, and one that is a part of another's would leave out that too: nobody would notice.
    #[test]
    fn what_takes_long_is_left_out_and_nothing_else() {
        let mut text = String::new();
        for directory in ["tests/tests", "lb-userspace/tests", "lb-common/tests"] {
            sources(&exec::workspace().join(directory), &mut text);
        }
        let functions = functions(&text);
        for name in LONG {
            let matched: Vec<_> = functions
                .iter()
                .filter(|function| function.contains(name))
                .collect();
            assert_eq!(matched, [&name], "what --skip {name} leaves out");
        }
    }

    /// What the contract rests on and CI leaves out is named where the contract says what CI runs.
    #[test]
    fn the_contract_says_what_takes_long() {
        let (before, promises) = contract();
        for name in LONG {
            let name = format!("`{name}`");
            assert_eq!(promises.contains(&name), before.contains(&name), "{name}");
        }
    }

    /// A test that gets another name, or goes, would leave a promise that nothing holds.
    #[test]
    fn the_contract_names_tests_that_there_are() {
        let (_, promises) = contract();
        for row in promises.lines().filter(|line| line.starts_with("| ")) {
            let mut named = 0;
            let links = row.split("](").zip(row.split("](").skip(1));
            for (said, file) in links {
                let (_, said) = said.rsplit_once('[').expect("what the link says");
                let (file, _) = file.split_once(')').expect("an end of the link");
                let path = exec::workspace().join(file);
                let source = fs::read_to_string(&path).unwrap_or_else(|_| panic!("no {file}"));
                let functions = functions(&source);
                // In turn what stands before a name and the name.
                let words: Vec<&str> = said.split('`').collect();
                for &[before, name] in words.as_chunks::<2>().0 {
                    let is_of = before.ends_with("of ");
                    let is_it = |function: &&str| match name.split_once('…') {
                        Some((start, end)) => {
                            function.starts_with(start) && function.ends_with(end)
                        }
                        None if is_of => function.contains(name),
                        None => *function == name,
                    };
                    let is_file = is_of && path.file_stem().is_some_and(|stem| stem == name);
                    assert!(
                        is_file || functions.iter().any(is_it),
                        "no {name} in {file}"
                    );
                }
                let is_source = path.extension().is_some_and(|extension| extension == "rs");
                named += usize::from(is_source);
            }
            assert!(named > 0, "no test holds it: {row}");
        }
    }
}
