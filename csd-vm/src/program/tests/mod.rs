//! Tests of linking, of the rules, and that no input is fatal.

mod fuzzing;
mod linking;
mod rules;
