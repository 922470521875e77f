//! What a volume does, operation by operation, without a mount.

mod acls;
mod atomic;
mod attributes;
mod common;
mod concurrency;
mod contents;
mod names;
mod orphans;
mod persistence;
mod renames;
mod snapshots;
mod space;
mod xattrs;
