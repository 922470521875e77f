//! The catalog: one ordered map that holds all metadata.

mod key;

pub use key::{Key, Kind};
