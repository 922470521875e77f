//! The tree checker: everything that the format promises, verified from the root down.
//!
//! The caller keeps changes out meanwhile.

use super::node::{self, Node};
use super::overflow::{self, Reference};
use super::{BTree, ENTRY_BYTES_MAX, INLINE_BYTES_MAX};
use crate::error::{Error, Result};
use crate::page::{PageBuf, PageId, PageRead};
use crate::space::Space;
use std::collections::HashSet;

/// What a tree consists of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TreeStats {
    /// Levels of nodes.
    pub height: u64,
    /// Keys.
    pub entries: u64,
    /// Pages of leaves.
    pub leaf_pages: u64,
    /// Pages of inner nodes.
    pub inner_pages: u64,
    /// Pages of long values.
    pub overflow_pages: u64,
    /// Bytes in use in leaves, of `leaf_pages` pages.
    pub leaf_bytes: u64,
}

struct Checker<'s> {
    space: &'s Space,
    seen: &'s mut HashSet<PageId>,
    stats: TreeStats,
}

impl BTree {
    /// Verifies the tree; `seen` collects its pages, which no other tree may have.
    pub(crate) fn check(&self, space: &Space, seen: &mut HashSet<PageId>) -> Result<TreeStats> {
        let mut checker = Checker {
            space,
            seen,
            stats: TreeStats::default(),
        };
        let image = checker.load(self.root)?;
        checker.stats.height = u64::from(image.level()) + 1;
        checker.node(self.root, &image, b"", None)?;
        Ok(checker.stats)
    }
}

impl Checker<'_> {
    fn load(&mut self, page: PageId) -> Result<PageBuf> {
        self.claim(page)?;
        let image = self.space.pool.shared(page)?.view().to_buf();
        node::check_image(&image).map_err(|what| Error::damaged(page, what))?;
        Ok(image)
    }

    fn claim(&mut self, page: PageId) -> Result<()> {
        if !self.space.pages.is_used(page) {
            return Err(Error::damaged(page, "it is part of a tree but marked free"));
        }
        if !self.seen.insert(page) {
            return Err(Error::damaged(page, "it is referred to twice"));
        }
        Ok(())
    }

    fn node(
        &mut self,
        page: PageId,
        image: &PageBuf,
        lower: &[u8],
        upper: Option<&[u8]>,
    ) -> Result<()> {
        let node = Node(image);
        let fail = |what| Err(Error::damaged(page, what));
        if node.lower() != lower || node.upper().as_deref() != upper {
            return fail("its fences are not the separators of its parent");
        }
        if upper.is_some_and(|upper| node.prefix_len() != node::common_prefix(lower, upper)) {
            return fail("its prefix is not what its fences have in common");
        }
        let keys: Vec<_> = (0..node.count()).map(|index| node.key(index)).collect();
        if !keys.is_sorted_by(|a, b| a < b) {
            return fail("its keys are not in order");
        }
        let outside = keys.iter().any(|key| {
            key.as_slice() < lower || upper.is_some_and(|upper| key.as_slice() >= upper)
        });
        if outside {
            return fail("a key lies outside its fences");
        }
        if keys
            .iter()
            .enumerate()
            .any(|(index, key)| node.search(key) != Ok(index))
        {
            return fail("a key's head is not the start of the key");
        }
        match node.is_leaf() {
            true => self.leaf(page, node),
            false => self.children(page, node, &keys),
        }
    }

    fn leaf(&mut self, page: PageId, node: Node<'_, PageBuf>) -> Result<()> {
        self.stats.leaf_pages += 1;
        self.stats.entries += node.count() as u64;
        self.stats.leaf_bytes += node.used() as u64;
        for index in 0..node.count() {
            if !node.is_overflow(index) {
                let key_len = node.prefix_len() + node.rest_len(index);
                if node.value_len(index) > INLINE_BYTES_MAX
                    || key_len + node.value_len(index) > ENTRY_BYTES_MAX
                {
                    return Err(Error::damaged(
                        page,
                        "an entry is longer than a node may hold",
                    ));
                }
                continue;
            }
            let reference =
                Reference::decode(&node.value(index)).map_err(|what| Error::damaged(page, what))?;
            let mut chain = Vec::new();
            overflow::walk(self.space, reference, |page, _| chain.push(page))?;
            self.stats.overflow_pages += chain.len() as u64;
            chain.into_iter().try_for_each(|page| self.claim(page))?;
        }
        Ok(())
    }

    fn children(&mut self, page: PageId, node: Node<'_, PageBuf>, keys: &[Vec<u8>]) -> Result<()> {
        self.stats.inner_pages += 1;
        let (lower, upper) = (node.lower(), node.upper());
        for index in 0..=node.count() {
            let child = node.child(index);
            let image = self.load(child)?;
            if image.level() + 1 != node.0.level() {
                return Err(Error::damaged(page, "a child is not one level below"));
            }
            let from = if index == 0 { &lower } else { &keys[index - 1] };
            let to = keys.get(index).or(upper.as_ref());
            self.node(child, &image, from, to.map(Vec::as_slice))?;
        }
        Ok(())
    }
}
