//! Page 0: what the file is, how large it is, and where its trees begin.
//!
//! ```text
//!  16 magic u64 | 24 version u32 | 28 page bytes u32 | 32 file id u64 | 40 commit number u64
//!  48 page count u64 | 56 tree count u32 | 64 trees: name length u8, name [47], root u64, zero u64
//! ```

use crate::error::{Error, Result};
use crate::page::{Kind, PAGE_BYTES, PageBuf, PageId, PageRead};

const MAGIC: u64 = u64::from_le_bytes(*b"vmcache\0");
const VERSION: u32 = 1;
const MAGIC_AT: usize = 16;
const VERSION_AT: usize = 24;
const PAGE_BYTES_AT: usize = 28;
const FILE_ID_AT: usize = 32;
const COMMIT_AT: usize = 40;
const PAGE_COUNT_AT: usize = 48;
const TREE_COUNT_AT: usize = 56;
const TREES_AT: usize = 64;
const TREE_BYTES: usize = 64;
/// Commits are counted to here at most, which no file lives to see.
pub(crate) const COMMIT_MAX: u64 = 1 << 62;
/// Longest name of a tree.
pub const TREE_NAME_BYTES_MAX: usize = 47;
/// Most trees in a file.
pub const TREES_MAX: usize = (PAGE_BYTES - TREES_AT) / TREE_BYTES;

/// The page.
pub(crate) const META: PageId = PageId(0);

/// Whether the beginning of a file is that of an index file of any version.
pub(crate) fn has_magic(file: &[u8]) -> bool {
    file.get(MAGIC_AT..MAGIC_AT + 8) == Some(&MAGIC.to_le_bytes())
}

/// What page 0 says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Meta {
    /// Random, the same in the journal.
    pub(crate) file_id: u64,
    /// Number of the commit that wrote this: the last one, if the method counts them.
    pub(crate) commit: u64,
    pub(crate) page_count: u64,
    pub(crate) trees: Vec<(String, PageId)>,
}

impl Meta {
    pub(crate) fn encode(&self) -> PageBuf {
        let mut page = PageBuf::zeroed();
        page.set_kind(Kind::Meta, 0);
        page.put_u64(MAGIC_AT, MAGIC);
        page.put_u32(VERSION_AT, VERSION);
        page.put_u32(PAGE_BYTES_AT, PAGE_BYTES as u32);
        page.put_u64(FILE_ID_AT, self.file_id);
        page.put_u64(COMMIT_AT, self.commit);
        page.put_u64(PAGE_COUNT_AT, self.page_count);
        page.put_u32(TREE_COUNT_AT, self.trees.len() as u32);
        for (index, (name, root)) in self.trees.iter().enumerate() {
            let at = TREES_AT + index * TREE_BYTES;
            page.bytes_mut()[at] = name.len() as u8;
            page.bytes_mut()[at + 1..at + 1 + name.len()].copy_from_slice(name.as_bytes());
            page.put_u64(at + 48, root.0);
        }
        page
    }

    /// # Errors
    /// [`Error::Format`] when the page is not a meta page of this version.
    pub(crate) fn decode(page: &PageBuf) -> Result<Meta> {
        if page.kind() != Kind::Meta as u8 || page.u64_at(MAGIC_AT) != MAGIC {
            return Err(Error::Format("page 0 is not a meta page"));
        }
        if page.u32_at(VERSION_AT) != VERSION || page.u32_at(PAGE_BYTES_AT) != PAGE_BYTES as u32 {
            return Err(Error::Format("the version or page size is not supported"));
        }
        if page.u64_at(COMMIT_AT) > COMMIT_MAX {
            return Err(Error::Format("the number of the last commit is impossible"));
        }
        let count = page.u32_at(TREE_COUNT_AT) as usize;
        if count > TREES_MAX {
            return Err(Error::Format("more trees than the meta page holds"));
        }
        Ok(Meta {
            file_id: page.u64_at(FILE_ID_AT),
            commit: page.u64_at(COMMIT_AT),
            page_count: page.u64_at(PAGE_COUNT_AT),
            trees: (0..count)
                .map(|index| decode_tree(page, index))
                .collect::<Result<_>>()?,
        })
    }
}

fn decode_tree(page: &PageBuf, index: usize) -> Result<(String, PageId)> {
    let at = TREES_AT + index * TREE_BYTES;
    let len = usize::from(page.bytes()[at]);
    let name = page.bytes()[at + 1..at + 48].get(..len);
    let name = name.and_then(|name| std::str::from_utf8(name).ok());
    let name = name.ok_or(Error::Format("a tree's name is not text"))?;
    Ok((name.to_owned(), PageId(page.u64_at(at + 48))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn meta_pages_decode_to_what_was_encoded() {
        let trees = (0..TREES_MAX)
            .map(|index| (format!("{index:047}"), PageId(index as u64)))
            .collect();
        let meta = Meta {
            file_id: 1,
            commit: 2,
            page_count: 3,
            trees,
        };
        assert_eq!(Meta::decode(&meta.encode()).unwrap(), meta);
        assert!(Meta::decode(&PageBuf::zeroed()).is_err());
        assert!(has_magic(meta.encode().bytes()) && !has_magic(PageBuf::zeroed().bytes()));
    }
}
