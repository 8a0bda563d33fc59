//! Empty on purpose: a library target lets other crates build-depend on this package, so that cargo rebuilds them when it changes.
#![no_std]
