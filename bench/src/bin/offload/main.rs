//! The load generator of scripts/bench-offload: reads through kernels and without them, computes
//! natively, and prints what that took as JSON.
//!
//! `read`, `write`, `attach` and `requests` work on files of a mount, as any process does: they set
//! attributes and read and write. `memory` runs kernels on an emulated device in this process,
//! with the cage and without it, `image` on one whose storage is an image file. Needs the feature `offload`.

mod attach;
mod contend;
mod image;
mod kernels;
mod memory;
mod os;
mod read;
mod requests;

use std::io;
use std::path::PathBuf;

use clap::{Parser, Subcommand};

/// Measures what kernels cost.
#[derive(Parser)]
struct Arguments {
    #[command(subcommand)]
    work: Work,
}

#[derive(Subcommand)]
enum Work {
    /// Creates a file of pseudo-random bytes, durable at the end.
    Create {
        /// The file.
        file: PathBuf,
        /// Its bytes.
        bytes: u64,
    },
    /// Reads a file in strides, over and over.
    Read(read::Arguments),
    /// Overwrites random places of a file.
    Write(contend::Arguments),
    /// Sets and removes attributes.
    Attach(attach::Arguments),
    /// Makes small requests.
    Requests(requests::Arguments),
    /// Runs a kernel in this process.
    Memory(memory::Arguments),
    /// Runs a kernel in this process, on data of an image file that is in no cache.
    Image(image::Arguments),
}

fn main() -> io::Result<()> {
    let result = match Arguments::parse().work {
        Work::Create { file, bytes } => contend::create(&file, bytes)?,
        Work::Read(arguments) => read::run(&arguments)?,
        Work::Write(arguments) => contend::run(&arguments)?,
        Work::Attach(arguments) => attach::run(&arguments)?,
        Work::Requests(arguments) => requests::run(&arguments)?,
        Work::Memory(arguments) => memory::run(&arguments)?,
        Work::Image(arguments) => image::run(&arguments)?,
    };
    println!("{result}");
    Ok(())
}
