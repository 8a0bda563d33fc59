//! `tether`, as a program of this package: Cargo builds a package's own programs for its tests, and no others.

fn main() -> std::process::ExitCode {
    lb_userspace::cli::main()
}
