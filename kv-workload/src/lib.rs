//! Loads on a key-value store, after YCSB (Cooper et al., "Benchmarking Cloud Serving Systems with YCSB",
//! SoCC 2010): which keys, which operations, how often, and a runner that measures them.
//!
//! A store is whatever implements [`Store`]; [`IndexStore`] is an index file of vmcache. Records have a number; [`Records`] gives key and value of each,
//! so that every value read can be told right or wrong, and the records come sorted for a bulk load. The
//! same seed gives the same operations, as far as threads do not race.
//!
//! Leaves out what YCSB has for remote stores: fields, field lists, targets of throughput.

mod index;
mod mix;
mod random;
mod records;
mod run;
mod zipf;

pub use index::IndexStore;
pub use mix::{Kind, Workload};
pub use records::{KEY_BYTES, Records};
pub use run::{Latency, Plan, Problem, Report, Store, Until, run};
