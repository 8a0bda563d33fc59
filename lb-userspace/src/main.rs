//! The `tether` binary.

fn main() {
    println!("{} bytes", lb_userspace::objects::TETHER.len());
}
