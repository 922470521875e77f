//! The filesystem held against a reference: generated operations (`agree`), power cuts (`crash`),
//! failing and lying devices (`faults`). No mount is needed.
//!
//! `WARREN_SEED` and `WARREN_OPS` choose another seed and length; a failure prints its seed and the
//! smallest sequence found that fails.

mod agree;
mod crash;
mod faults;
mod reference;
