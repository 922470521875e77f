/*
 * btree_lookup: looks keys up in a file that holds a B-tree, or lists a range of them, in one
 * request: the pages on the way are read here, not by the host one by one.
 *
 * The file consists of pages of 4096 bytes, everything little-endian:
 *   page 0    magic u64 "WBTREE01", root page u64, height u64 (1: the root is a leaf), entries u64
 *   others    kind u16 (0 leaf, 1 inner), count u16 (0 to 255), 0 u32, next u64,
 *             then `count` times: key u64, value u64
 * Keys ascend within a page. An inner page's values are the pages below: everything under entry i
 * has keys from its key up to, and without, the next entry's; the first entry's key counts as 0. A
 * leaf's `next` is the leaf with the keys that follow, 0 in the last one; in inner pages it is 0.
 *
 * Operations: read_stream, view. Offset and size of the request have no meaning.
 * Arguments:  0   0: look up; 1: list a range
 *             look up:  1.. the keys
 *             range:    1 the least key, 2 the largest key, 3 how many entries at most (default 0:
 *                       no limit)
 * Output:     look up: for each key: 1 u64 and its value, or 0 u64 and 0; range: keys and values,
 *             u64 each, ascending.
 * Fails with -EINVAL where the file is not such a tree.
 */
#include <warren_util.h>

#define PAGE 4096
#define MAGIC 0x3130454552544257ULL /* "WBTREE01" */
#define HEIGHT_MAX 16
#define ENTRIES_MAX 255
#define KIND_LEAF 0
#define KIND_INNER 1

struct tree {
    u64 root;
    u64 height;
    u64 pages;
};

struct page {
    u16 kind;
    u16 count;
    u32 zero;
    u64 next;
    struct {
        u64 key;
        u64 value;
    } entries[ENTRIES_MAX];
};

WARREN_STATIC_ASSERT(a_page_is_full, sizeof(struct page) == PAGE);

WARREN_INLINE s64 open_tree(const struct warren_request *request, struct tree *tree)
{
    const u8 *at;
    s64 got = warren_map_afresh(0, PAGE, &at);
    if (got < 0)
        return got;
    if (got < PAGE || warren_load64(at) != MAGIC)
        return -WARREN_EINVAL;
    tree->root = warren_load64(at + 8);
    tree->height = warren_load64(at + 16);
    tree->pages = request->snapshot_size / PAGE;
    return tree->height >= 1 && tree->height <= HEIGHT_MAX ? 0 : -WARREN_EINVAL;
}

/* Maps page `number`, which must be of this kind. */
WARREN_INLINE s64 map_page(const struct tree *tree, u64 number, u64 kind, const struct page **page)
{
    const u8 *at;
    if (number == 0 || number >= tree->pages)
        return -WARREN_EINVAL;
    s64 got = warren_map_afresh(number * PAGE, PAGE, &at);
    if (got < PAGE)
        return got < 0 ? got : -WARREN_EIO;
    *page = (const struct page *)at;
    return (*page)->kind == kind && (*page)->count <= ENTRIES_MAX ? 0 : -WARREN_EINVAL;
}

/* How many of the page's keys are less than `key`. */
WARREN_INLINE u64 lower_bound(const struct page *page, u64 key)
{
    u64 low = 0, high = page->count;
    while (low < high) {
        u64 middle = (low + high) / 2;
        if (page->entries[middle].key < key)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

/* Walks from the root to the leaf where `key` belongs. */
static s64 find_leaf(const struct tree *tree, u64 key, const struct page **leaf)
{
    u64 number = tree->root;
    for (u64 level = 1; level < tree->height; level++) {
        const struct page *page;
        s64 failed = map_page(tree, number, KIND_INNER, &page);
        if (failed)
            return failed;
        if (page->count == 0)
            return -WARREN_EINVAL;
        u64 index = lower_bound(page, key);
        if (index == page->count || page->entries[index].key != key)
            index = index ? index - 1 : 0;
        number = page->entries[index].value;
    }
    return map_page(tree, number, KIND_LEAF, leaf);
}

WARREN_INLINE s64 look_up(const struct tree *tree, u64 key)
{
    u64 answer[2] = {0, 0};
    const struct page *leaf;
    s64 failed = find_leaf(tree, key, &leaf);
    if (failed)
        return failed;
    u64 index = lower_bound(leaf, key);
    if (index < leaf->count && leaf->entries[index].key == key) {
        answer[0] = 1;
        answer[1] = leaf->entries[index].value;
    }
    return warren_emit(answer, sizeof(answer));
}

static s64 list_range(const struct tree *tree, u64 least, u64 largest, u64 limit)
{
    const struct page *leaf;
    s64 failed = find_leaf(tree, least, &leaf);
    /* A chain of leaves longer than the file goes round in a circle. */
    for (u64 leaves = 0; leaves < tree->pages && failed == 0; leaves++) {
        u64 begin = lower_bound(leaf, least), end = leaf->count;
        if (largest != ~0ULL)
            end = lower_bound(leaf, largest + 1);
        u64 taken = end > begin ? warren_min(end - begin, limit) : 0;
        if (taken)
            failed = warren_emit(&leaf->entries[begin], taken * 16);
        limit -= taken;
        if (failed || limit == 0 || end < leaf->count || leaf->next == 0)
            return failed;
        failed = map_page(tree, leaf->next, KIND_LEAF, &leaf);
    }
    return failed ? failed : -WARREN_EINVAL;
}

WARREN_KERNEL(request)
{
    struct tree tree;
    u64 mode = warren_argument_or(0, 2), least, largest;
    if (mode > 1)
        return -WARREN_EINVAL;
    s64 failed = open_tree(request, &tree);
    if (failed)
        return failed;
    if (mode == 1) {
        if (warren_argument(1, &least) != 0 || warren_argument(2, &largest) != 0)
            return -WARREN_EINVAL;
        u64 limit = warren_argument_or(3, 0);
        return least <= largest ? list_range(&tree, least, largest, limit ? limit : ~0ULL) : 0;
    }
    for (u32 index = 1; index < request->argument_count; index++) {
        u64 key;
        failed = warren_argument(index, &key);
        if (failed == 0)
            failed = look_up(&tree, key);
        if (failed)
            return failed;
    }
    return 0;
}
