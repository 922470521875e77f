/*
 * entropy: how often each byte value occurs. The host computes Shannon's entropy from it.
 *
 * Operations: read_stream, view.
 * Arguments:  none.
 * Output:     256 u64 counts, little-endian, 2048 bytes; nothing for an empty request.
 */
#include <warren_util.h>

#define TABLES 8
#define BINS 256

/*
 * One table per byte of a word: neighbouring bytes are often the same, and a counter that has just
 * been stored must not be waited for.
 */
static u32 tables[TABLES][BINS];
static u64 totals[BINS];

/* Bins are four bytes: the byte is moved to bit 2, not to bit 0, and is the offset at once. */
#define COUNT(index, offset) ++*(u32 *)((u8 *)tables[index] + ((offset) & 0x3fc))

WARREN_INLINE void count_word(u64 word)
{
    COUNT(0, word << 2);
    COUNT(1, word >> 6);
    COUNT(2, word >> 14);
    COUNT(3, word >> 22);
    COUNT(4, word >> 30);
    COUNT(5, word >> 38);
    COUNT(6, word >> 46);
    COUNT(7, word >> 54);
}

WARREN_INLINE void count_chunk(const u8 *at, u64 size)
{
    const u8 *end = at + size;
    for (; end - at >= 16; at += 16) {
        u64 first = warren_load64(at), second = warren_load64(at + 8);
        count_word(first);
        count_word(second);
    }
    for (; at < end; at++)
        tables[0][*at]++;
}

/* Adds the tables up and clears them. A bin counts one chunk: far from 2^32. */
WARREN_INLINE void fold(void)
{
    for (u64 bin = 0; bin < BINS; bin++) {
        u64 sum = 0;
        for (u64 table = 0; table < TABLES; table++)
            sum += tables[table][bin];
        totals[bin] += sum;
    }
    warren_zero(tables, sizeof(tables));
}

/* Chunks between two folds; a table counts at most an eighth of their bytes and a tail. */
#define CHUNKS_PER_FOLD 1024

WARREN_KERNEL(request)
{
    u64 position = request->offset, end = warren_request_end(request);
    if (position >= end)
        return 0;
    warren_zero(tables, sizeof(tables));
    warren_zero(totals, sizeof(totals));
    for (u64 chunk = 1; position < end; chunk++) {
        const u8 *at;
        s64 got = warren_next_chunk(position, end, &at);
        if (got <= 0)
            return got < 0 ? got : -WARREN_EIO;
        count_chunk(at, got);
        position += got;
        if (chunk % CHUNKS_PER_FOLD == 0)
            fold();
    }
    fold();
    return warren_emit(totals, sizeof(totals));
}
