//! Health checks.
pub mod track;
