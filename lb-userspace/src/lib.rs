//! Tether.
