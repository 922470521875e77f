//! SQLite as a client of atomic writes: a workload whose every commit can be checked, and what it costs.
//!
//! The database holds counters and a ledger. A transaction adds one to some counters, writes a note next
//! to each, and notes its own number and the new sum in the ledger. So after a crash the database says
//! of itself whether it is the state after a whole transaction, and which.
//!
//! To be built with `LIBSQLITE3_FLAGS=-DSQLITE_ENABLE_BATCH_ATOMIC_WRITE`; it refuses to run without. Where
//! atomic writes are not to be used, SQLite's call of `ioctl` is replaced by one that knows none.

use std::ffi::{CStr, c_char, c_int};
use std::io::Write;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use clap::{Parser, Subcommand, ValueEnum};
use rusqlite::{Connection, OpenFlags, ffi};
use serde_json::json;

type Error = Box<dyn std::error::Error>;

/// SQLite on atomic writes: load and check.
#[derive(Parser)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Makes the database.
    Make {
        database: PathBuf,
        /// Counters.
        #[arg(long, default_value_t = 20_000)]
        rows: u64,
    },
    /// Runs transactions and reports them as JSON.
    Run {
        database: PathBuf,
        /// How commits are made.
        #[arg(long, value_enum)]
        mode: Mode,
        /// How many transactions; 0: until killed.
        #[arg(long, default_value_t = 1000)]
        transactions: u64,
        /// Counters that each changes.
        #[arg(long, default_value_t = 10)]
        changes: u64,
        #[arg(long, default_value_t = 1)]
        seed: u64,
        /// Says the number of every committed transaction.
        #[arg(long)]
        tell: bool,
    },
    /// Checks the database and says its last transaction.
    Check { database: PathBuf },
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Mode {
    /// Atomic writes of the filesystem, where it has them.
    Atomic,
    /// A rollback journal.
    Journal,
    /// A write-ahead log.
    Wal,
}

/// Answers of the filesystem: sessions committed.
static COMMITS: AtomicU64 = AtomicU64::new(0);
/// Times a rollback journal was opened.
static JOURNALS: AtomicU64 = AtomicU64::new(0);

const COMMIT_ATOMIC_WRITE: c_int = 0xf502;

extern "C" fn no_ioctl(_: c_int, _: c_int) -> c_int {
    -1
}

extern "C" fn counting_ioctl(fd: c_int, request: c_int, argument: *mut u32) -> c_int {
    // SAFETY: as SQLite calls ioctl itself; requests without an argument ignore it.
    let answer = unsafe { libc::ioctl(fd, request as u32 as libc::Ioctl, argument) };
    if request == COMMIT_ATOMIC_WRITE && answer == 0 {
        COMMITS.fetch_add(1, Ordering::Relaxed);
    }
    answer
}

extern "C" fn counting_open(path: *const c_char, flags: c_int, mode: c_int) -> c_int {
    // SAFETY: SQLite gives a C string.
    let name = unsafe { CStr::from_ptr(path) };
    if name.to_bytes().ends_with(b"-journal") {
        JOURNALS.fetch_add(1, Ordering::Relaxed);
    }
    // SAFETY: the string is one, and SQLite gives a mode with every call.
    unsafe { libc::open(path, flags, mode) }
}

/// Puts the functions above in the place of those that SQLite calls.
fn watch_system_calls(mode: Mode) -> Result<(), Error> {
    // SAFETY: null asks for the default VFS, which lives for ever. The functions have the parameters that
    // SQLite passes for these names, of which each ABI lets trailing ones be ignored.
    unsafe {
        let vfs = ffi::sqlite3_vfs_find(std::ptr::null());
        let set = (*vfs).xSetSystemCall.ok_or("no system calls to set")?;
        let ioctl = match mode {
            Mode::Atomic => counting_ioctl as *const (),
            Mode::Journal | Mode::Wal => no_ioctl as *const (),
        };
        let open = counting_open as *const ();
        for (name, call) in [(c"ioctl", ioctl), (c"open", open)] {
            let call = std::mem::transmute::<*const (), unsafe extern "C" fn()>(call);
            if set(vfs, name.as_ptr(), Some(call)) != ffi::SQLITE_OK {
                return Err("a system call of SQLite cannot be replaced".into());
            }
        }
    }
    Ok(())
}

fn open(database: &PathBuf, create: bool) -> Result<Connection, Error> {
    let mut flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    if create {
        flags |= OpenFlags::SQLITE_OPEN_CREATE;
    }
    let connection = Connection::open_with_flags(database, flags)?;
    connection.busy_timeout(Duration::from_secs(20))?;
    let used = "SELECT sqlite_compileoption_used('ENABLE_BATCH_ATOMIC_WRITE')";
    if !connection.query_row(used, [], |row| row.get::<_, bool>(0))? {
        return Err("built without SQLITE_ENABLE_BATCH_ATOMIC_WRITE".into());
    }
    connection.execute_batch("PRAGMA synchronous = FULL")?;
    Ok(connection)
}

fn make(database: &PathBuf, rows: u64) -> Result<(), Error> {
    let mut connection = open(database, true)?;
    let transaction = connection.transaction()?;
    transaction.execute_batch(
        "CREATE TABLE counters (id INTEGER PRIMARY KEY, n INTEGER NOT NULL, note TEXT NOT NULL);
         CREATE INDEX by_note ON counters (note);
         CREATE TABLE ledger (number INTEGER NOT NULL, sum INTEGER NOT NULL);
         INSERT INTO ledger VALUES (0, 0);",
    )?;
    {
        let mut insert = transaction.prepare("INSERT INTO counters VALUES (?1, 0, ?2)")?;
        for id in 0..rows {
            insert.execute((id, note(id)))?;
        }
    }
    transaction.commit()?;
    Ok(())
}

/// About as long as a line of text.
fn note(seed: u64) -> String {
    format!("{:016x}", mix(seed)).repeat(5)
}

fn mix(seed: u64) -> u64 {
    let mixed = (seed ^ seed >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ mixed >> 31
}

fn run(
    database: &PathBuf,
    mode: Mode,
    transactions: u64,
    changes: u64,
    seed: u64,
    tell: bool,
) -> Result<(), Error> {
    watch_system_calls(mode)?;
    let mut connection = open(database, false)?;
    let journal_mode = if mode == Mode::Wal { "WAL" } else { "DELETE" };
    let pragma = format!("PRAGMA journal_mode = {journal_mode}");
    connection.query_row(&pragma, [], |row| row.get::<_, String>(0))?;
    let count = "SELECT count(*) FROM counters";
    let rows: u64 = connection.query_row(count, [], |row| row.get(0))?;
    let (commits, journals) = (
        COMMITS.load(Ordering::Relaxed),
        JOURNALS.load(Ordering::Relaxed),
    );
    let mut latencies = Vec::new();
    let (begun, mut at) = (Instant::now(), 0);
    while transactions == 0 || at < transactions {
        let since = Instant::now();
        let transaction = connection.transaction()?;
        for change in 0..changes {
            let random = mix(seed << 40 ^ at << 10 ^ change);
            transaction
                .prepare_cached("UPDATE counters SET n = n + 1, note = ?2 WHERE id = ?1")?
                .execute((random % rows, note(random)))?;
        }
        let mut ledger = transaction.prepare_cached(
            "UPDATE ledger SET number = number + 1, sum = sum + ?1 RETURNING number",
        )?;
        let number: u64 = ledger.query_row([changes], |row| row.get(0))?;
        drop(ledger);
        transaction.commit()?;
        if tell {
            println!("{number}");
            std::io::stdout().flush()?;
        } else {
            latencies.push(since.elapsed());
        }
        at += 1;
    }
    let seconds = begun.elapsed().as_secs_f64();
    latencies.sort_unstable();
    let micros = |share: usize| {
        let at = latencies.len().saturating_sub(1) * share / 100;
        latencies.get(at).map_or(0, Duration::as_micros)
    };
    let report = json!({
        "transactions": transactions,
        "seconds": seconds,
        "median_us": micros(50) as u64,
        "p99_us": micros(99) as u64,
        "atomic_commits": COMMITS.load(Ordering::Relaxed) - commits,
        "journals_opened": JOURNALS.load(Ordering::Relaxed) - journals,
        "sqlite": rusqlite::version(),
    });
    println!("{report}");
    Ok(())
}

fn check(database: &PathBuf) -> Result<(), Error> {
    let connection = open(database, false)?;
    let text = |sql: &str| connection.query_row(sql, [], |row| row.get::<_, String>(0));
    let number = |sql: &str| connection.query_row(sql, [], |row| row.get::<_, u64>(0));
    let verdict: String = text("PRAGMA integrity_check")?;
    if verdict != "ok" {
        return Err(format!("integrity_check: {verdict}").into());
    }
    let (sum, noted) = (
        number("SELECT sum(n) FROM counters")?,
        number("SELECT sum FROM ledger")?,
    );
    if sum != noted {
        return Err(format!("the counters add up to {sum}, the ledger says {noted}").into());
    }
    println!("{}", number("SELECT number FROM ledger")?);
    Ok(())
}

fn main() -> Result<(), Error> {
    match Arguments::parse().command {
        Command::Make { database, rows } => make(&database, rows),
        Command::Run {
            database,
            mode,
            transactions,
            changes,
            seed,
            tell,
        } => run(&database, mode, transactions, changes, seed, tell),
        Command::Check { database } => check(&database),
    }
}
