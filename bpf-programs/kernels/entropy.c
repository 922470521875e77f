/*
 * entropy: how often each byte value occurs. The host computes Shannon's entropy from it.
 *
 * Operations: read_stream, view.
 * Arguments:  none.
 * Output:     256 u64 counts, little-endian, 2048 bytes; nothing for an empty request.
 *
 * Counting is loads and stores of counters, and those are what takes the time. Large requests
 * therefore count pairs of bytes, in 65536 counters, with half as many of them; adding those up
 * afterwards costs as much as counting some 100 KiB. Small requests count bytes.
 */
#include <warren_util.h>

#define BINS 256
#define PAIRS 65536
#define PAIRS_WORTH_BYTES (256 * 1024)

/* Neighbouring bytes are often the same: two tables, so that no counter waits for its last store. */
static u32 even[BINS], odd[BINS];
static u64 totals[BINS];

/* A counter of four bytes: what it is found by is moved to bit 2, not to bit 0. */
#define COUNT(table, offset, mask)                  \
    do {                                            \
        u8 *counter = (table) + ((offset) & (mask)); \
        ++*(u32 *)counter;                          \
    } while (0)

WARREN_INLINE void count_bytes(const u8 *at, u64 size)
{
    const u8 *end = at + size;
    u8 *first = (u8 *)even, *second = (u8 *)odd;
    WARREN_OPAQUE(first);
    WARREN_OPAQUE(second);
    for (; end - at >= 8; at += 8) {
        u64 word = warren_load64(at);
        COUNT(first, word << 2, 0x3fc);
        COUNT(second, word >> 6, 0x3fc);
        COUNT(first, word >> 14, 0x3fc);
        COUNT(second, word >> 22, 0x3fc);
        COUNT(first, word >> 30, 0x3fc);
        COUNT(second, word >> 38, 0x3fc);
        COUNT(first, word >> 46, 0x3fc);
        COUNT(second, word >> 54, 0x3fc);
    }
    for (; at < end; at++)
        even[*at]++;
}

/* `pairs` are PAIRS counters. The tail goes to the tables of bytes. */
WARREN_INLINE void count_pairs(u8 *pairs, const u8 *at, u64 size)
{
    const u8 *end = at + size;
    for (; end - at >= 16; at += 16) {
        u64 word = warren_load64(at), next = warren_load64(at + 8);
        COUNT(pairs, word << 2, 0x3fffc);
        COUNT(pairs, word >> 14, 0x3fffc);
        COUNT(pairs, word >> 30, 0x3fffc);
        COUNT(pairs, word >> 46, 0x3fffc);
        COUNT(pairs, next << 2, 0x3fffc);
        COUNT(pairs, next >> 14, 0x3fffc);
        COUNT(pairs, next >> 30, 0x3fffc);
        COUNT(pairs, next >> 46, 0x3fffc);
    }
    for (; at < end; at++)
        even[*at]++;
}

/* Adds the counters of bytes up and clears them. */
WARREN_INLINE void fold_bytes(void)
{
    for (u64 bin = 0; bin < BINS; bin++)
        totals[bin] += (u64)even[bin] + odd[bin];
    warren_zero(even, sizeof(even));
    warren_zero(odd, sizeof(odd));
}

/* Adds the counters of pairs up and clears them: rows have the upper byte in common. */
WARREN_INLINE void fold_pairs(u8 *pairs)
{
    for (u64 upper = 0; upper < BINS; upper++) {
        const u8 *at = pairs + upper * BINS * 4, *end = at + BINS * 4;
        u64 sum = 0, both = 0;
        for (; at < end; at += 32) {
            u64 a = warren_load64(at), b = warren_load64(at + 8);
            u64 c = warren_load64(at + 16), d = warren_load64(at + 24);
            both += a + b + c + d;
            sum += (a >> 32) + (b >> 32) + (c >> 32) + (d >> 32);
        }
        totals[upper] += both - (sum << 32) + sum;
    }
    /* Two columns at a time; neither sum reaches 2^32. */
    for (u64 lower = 0; lower < BINS; lower += 2) {
        const u8 *at = pairs + lower * 4, *end = at + PAIRS * 4;
        u64 both = 0;
        for (; at < end; at += BINS * 16)
            both += warren_load64(at) + warren_load64(at + BINS * 4) +
                    warren_load64(at + BINS * 8) + warren_load64(at + BINS * 12);
        totals[lower] += (u32)both;
        totals[lower + 1] += both >> 32;
    }
    warren_zero(pairs, PAIRS * 4);
}

/* Chunks between two folds: no counter overflows. */
#define CHUNKS_PER_FOLD 1024

WARREN_INLINE void fold(u8 *pairs)
{
    fold_bytes();
    if (pairs)
        fold_pairs(pairs);
}

WARREN_KERNEL(request)
{
    u64 position = request->offset, end = warren_request_end(request);
    u8 *pairs = 0;
    if (position >= end)
        return 0;
    warren_zero(even, sizeof(even));
    warren_zero(odd, sizeof(odd));
    warren_zero(totals, sizeof(totals));
    if (end - position >= PAIRS_WORTH_BYTES && request->heap_size >= PAIRS * 4) {
        pairs = (u8 *)request->heap;
        warren_zero(pairs, PAIRS * 4);
    }
    for (u64 chunk = 1; position < end; chunk++) {
        const u8 *at;
        s64 got = warren_next_chunk(position, end, &at);
        if (got <= 0)
            return got < 0 ? got : -WARREN_EIO;
        if (pairs)
            count_pairs(pairs, at, got);
        else
            count_bytes(at, got);
        position += got;
        if (chunk % CHUNKS_PER_FOLD == 0)
            fold(pairs);
    }
    fold(pairs);
    return warren_emit(totals, sizeof(totals));
}
