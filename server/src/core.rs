//! Decisions, apart from everything that acts on them.

pub mod asked;
pub mod authorize;
pub mod carriers;
pub mod clones;
pub mod enrol;
pub mod facts;
pub mod guesses;
pub mod name_files;
pub mod nonces;
pub mod pending;
pub mod registry;
