/*
 * bloom_probe: which blocks of a file may hold a key, by the Bloom filter at the head of each.
 *
 * The file consists of blocks of 4096 bytes, everything little-endian:
 *   magic u32 "WBLM", hashes u16 (1 to 16), count u16 (0 to 448), filter of 504 bytes (4032 bits,
 *   bit b is bit b % 8 of byte b / 8), 448 keys u64 of which the first `count` are used
 * Bit i of a key, for i below `hashes`, is ((h1 + i * h2) mod 2^32) * 4032 / 2^32, where h1 and h2
 * are the lower and upper half of mix(key), h2 with its lowest bit set, and
 *   mix(x) = let y = (x ^ x >> 32) * 0x9e3779b97f4a7c15 in y ^ y >> 29, all modulo 2^64.
 * Bytes at the end that make no block are left out.
 *
 * Operations: read_stream, view. A block belongs to the request in which it begins.
 * Arguments:  0   0: blocks whose filter has the key; 1: blocks that hold the key
 *             1.. the keys, 1 to 64
 * Output:     block by block, and for each the keys in their order: index of the key among the
 *             arguments u64 (0 is the first key), number of the block u64.
 * Fails with -EINVAL at a block that is none.
 */
#include <warren_util.h>

#define BLOCK 4096
#define MAGIC 0x4d4c4257U /* "WBLM" */
#define FILTER_AT 8
#define FILTER_BITS 4032
#define KEYS_AT 512
#define KEYS_MAX 448
#define HASHES_MAX 16
#define PROBES_MAX 64

static u64 probes[PROBES_MAX];
static u64 mixed[PROBES_MAX];

WARREN_INLINE u64 mix(u64 key)
{
    u64 product = (key ^ key >> 32) * 0x9e3779b97f4a7c15ULL;
    return product ^ product >> 29;
}

/* Whether the filter has all bits of the key. */
WARREN_INLINE u64 may_hold(const u8 *block, u64 hashes, u64 mixed_key)
{
    u64 hash = (u32)mixed_key, step = mixed_key >> 32 | 1;
    for (u64 index = 0; index < hashes; index++) {
        u64 bit = hash * FILTER_BITS >> 32;
        if (!(block[FILTER_AT + bit / 8] >> bit % 8 & 1))
            return 0;
        hash = (u32)(hash + step);
    }
    return 1;
}

WARREN_INLINE u64 holds(const u8 *block, u64 count, u64 key)
{
    for (u64 index = 0; index < count; index++)
        if (warren_load64(block + KEYS_AT + index * 8) == key)
            return 1;
    return 0;
}

/* Probes one block for all keys. 0, or a negative error. */
static s64 probe_block(const u8 *block, u64 number, u64 keys, u64 exact)
{
    u64 hashes = warren_load16(block + 4), count = warren_load16(block + 6);
    if (warren_load32(block) != MAGIC || hashes == 0 || hashes > HASHES_MAX || count > KEYS_MAX)
        return -WARREN_EINVAL;
    for (u64 key = 0; key < keys; key++) {
        if (!may_hold(block, hashes, mixed[key]))
            continue;
        if (exact && !holds(block, count, probes[key]))
            continue;
        u64 answer[2] = {key, number};
        s64 failed = warren_emit(answer, sizeof(answer));
        if (failed)
            return failed;
    }
    return 0;
}

WARREN_KERNEL(request)
{
    u64 exact = warren_argument_or(0, 2);
    u64 keys = request->argument_count < 1 ? 0 : request->argument_count - 1;
    if (exact > 1 || keys == 0 || keys > PROBES_MAX)
        return -WARREN_EINVAL;
    for (u64 key = 0; key < keys; key++) {
        probes[key] = warren_argument_or(1 + key, 0);
        mixed[key] = mix(probes[key]);
    }
    u64 number = (request->offset + BLOCK - 1) / BLOCK;
    u64 stop = (warren_request_end(request) + BLOCK - 1) / BLOCK;
    stop = warren_min(stop, request->snapshot_size / BLOCK);
    while (number < stop) {
        const u8 *at;
        u64 blocks = warren_min(stop - number, WARREN_CHUNK / BLOCK);
        s64 got = warren_map_afresh(number * BLOCK, blocks * BLOCK, &at);
        if (got < (s64)(blocks * BLOCK))
            return got < 0 ? got : -WARREN_EIO;
        for (; blocks > 0; blocks--, number++, at += BLOCK) {
            s64 failed = probe_block(at, number, keys, exact);
            if (failed)
                return failed;
        }
    }
    return 0;
}
