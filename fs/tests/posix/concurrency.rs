//! Many threads at once: what is left is consistent, whatever order they came in.

use std::collections::BTreeMap;

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use warren_fs::types::Ino;
use warren_fs::volume::Volume;
use warren_fs::volume::types::FileKind;

use crate::common::*;

/// Counts the names of every inode below `directory` and checks what directories say of themselves.
fn check_tree(v: &Volume, directory: Ino, names: &mut BTreeMap<Ino, u32>) {
    let mut subdirectories = 0;
    for (name, ino) in list(v, directory) {
        let inode = attributes(v, ino);
        *names.entry(ino).or_default() += 1;
        if inode.kind == FileKind::Directory {
            subdirectories += 1;
            assert_eq!(v.lookup(ino, b"..").unwrap().ino, directory, "{name}");
            check_tree(v, ino, names);
        }
    }
    assert_eq!(attributes(v, directory).nlink, 2 + subdirectories);
}

fn act_at_random(v: &Volume, directories: &[Ino], seed: u64) {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    for _ in 0..400 {
        let mut place = || {
            let directory = directories[rng.random_range(0..directories.len())];
            (directory, format!("n{}", rng.random_range(0..12)))
        };
        let ((from, a), (to, b)) = (place(), place());
        let (a, b) = (a.as_bytes(), b.as_bytes());
        // Most of these fail because of what the other threads do; none may harm the tree.
        match rng.random_range(0..9) {
            0 | 1 => drop(v.mknod(&ROOT, from, a, S_IFREG | 0o644, 0)),
            2 => drop(v.mkdir(&ROOT, from, a, 0o755)),
            3 => drop(v.unlink(&ROOT, from, a)),
            4 => drop(v.rmdir(&ROOT, from, a)),
            5 => drop(v.rename(&ROOT, from, a, to, b, 0)),
            6 => drop(v.rename(&ROOT, from, a, to, b, libc::RENAME_EXCHANGE)),
            7 => {
                if let Ok(found) = v.lookup(from, a) {
                    drop(v.link(found.ino, to, b));
                    drop(v.write(found.ino, 0, &[seed as u8; 5000], false, None));
                }
            }
            _ => {
                if let Ok(found) = v.lookup(from, a)
                    && v.open_handle(&ROOT, found.ino, false).is_ok()
                {
                    drop(v.unlink(&ROOT, from, a));
                    v.release(found.ino);
                }
            }
        }
    }
}

#[test]
fn tree_stays_consistent_under_threads_that_change_it_at_random() {
    let v = fresh_volume();
    let a = directory(&v, "a");
    let b = directory_in(&v, a, "b");
    let directories = [Ino::ROOT, a, b, directory_in(&v, b, "c")];
    std::thread::scope(|scope| {
        for seed in 0..4 {
            let (v, directories) = (&v, &directories);
            scope.spawn(move || act_at_random(v, directories, seed));
        }
    });
    let check = |v: &Volume| {
        let mut names = BTreeMap::new();
        check_tree(v, Ino::ROOT, &mut names);
        for (&ino, &count) in &names {
            let inode = attributes(v, ino);
            if inode.kind != FileKind::Directory {
                assert_eq!(inode.nlink, count, "inode {ino}");
            }
        }
        assert_eq!(v.statfs().inodes_used, names.len() as u64 + 1);
    };
    check(&v);
    check(&remount(v));
}
