//! Damaged, truncated, foreign and forged images: each is refused, answers errors, or gives exactly
//! what had been written. No panic, no wrong data, no endless work.

mod bits;
mod common;
mod files;
mod forged;
