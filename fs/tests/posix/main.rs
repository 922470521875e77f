//! What a volume does, operation by operation, without a mount.

mod acls;
mod attributes;
mod common;
mod contents;
mod names;
mod orphans;
mod persistence;
mod renames;
mod space;
mod xattrs;
