/*
 * crc32c: the checksum CRC-32C (Castagnoli), of the whole request or of each of its blocks.
 *
 * Operations: read_stream, view.
 * Arguments:  0  0 (default): one checksum; otherwise the bytes of a block, 4 to 1048576: one
 *                checksum for each block of the request, counted from its first byte; the last
 *                block may be shorter
 * Output:     the checksums, u32 each; of an empty request 0 for the whole, nothing for blocks.
 */
#include <warren_util.h>

/*
 * Eight tables for eight bytes at a time ("slicing by eight", Kounavis and Berry 2008): table k
 * holds the remainder of a byte that k bytes follow. A remainder is linear in the byte's bits, so
 * each table is given by the remainders of its eight single bits.
 */
#define ENTRY(byte, b0, b1, b2, b3, b4, b5, b6, b7)                                 \
    (((byte) & 1 ? b0 : 0) ^ ((byte) & 2 ? b1 : 0) ^ ((byte) & 4 ? b2 : 0) ^        \
     ((byte) & 8 ? b3 : 0) ^ ((byte) & 16 ? b4 : 0) ^ ((byte) & 32 ? b5 : 0) ^      \
     ((byte) & 64 ? b6 : 0) ^ ((byte) & 128 ? b7 : 0))
#define ENTRIES_4(byte, ...)                                                        \
    ENTRY(byte, __VA_ARGS__), ENTRY((byte) + 1, __VA_ARGS__),                       \
        ENTRY((byte) + 2, __VA_ARGS__), ENTRY((byte) + 3, __VA_ARGS__)
#define ENTRIES_16(byte, ...)                                                       \
    ENTRIES_4(byte, __VA_ARGS__), ENTRIES_4((byte) + 4, __VA_ARGS__),               \
        ENTRIES_4((byte) + 8, __VA_ARGS__), ENTRIES_4((byte) + 12, __VA_ARGS__)
#define ENTRIES_64(byte, ...)                                                       \
    ENTRIES_16(byte, __VA_ARGS__), ENTRIES_16((byte) + 16, __VA_ARGS__),            \
        ENTRIES_16((byte) + 32, __VA_ARGS__), ENTRIES_16((byte) + 48, __VA_ARGS__)
#define TABLE(...)                                                                  \
    {                                                                               \
        ENTRIES_64(0, __VA_ARGS__), ENTRIES_64(64, __VA_ARGS__),                    \
            ENTRIES_64(128, __VA_ARGS__), ENTRIES_64(192, __VA_ARGS__)              \
    }

static const u32 tables[8][256] = {
    TABLE(0xf26b8303, 0xe13b70f7, 0xc79a971f, 0x8ad958cf, 0x105ec76f, 0x20bd8ede, 0x417b1dbc, 0x82f63b78),
    TABLE(0x13a29877, 0x274530ee, 0x4e8a61dc, 0x9d14c3b8, 0x3fc5f181, 0x7f8be302, 0xff17c604, 0xfbc3faf9),
    TABLE(0xa541927e, 0x4f6f520d, 0x9edea41a, 0x38513ec5, 0x70a27d8a, 0xe144fb14, 0xc76580d9, 0x8b277743),
    TABLE(0xdd45aab8, 0xbf672381, 0x7b2231f3, 0xf64463e6, 0xe964b13d, 0xd725148b, 0xaba65fe7, 0x52a0c93f),
    TABLE(0x38116fac, 0x7022df58, 0xe045beb0, 0xc5670b91, 0x8f2261d3, 0x1ba8b557, 0x37516aae, 0x6ea2d55c),
    TABLE(0xef306b19, 0xdb8ca0c3, 0xb2f53777, 0x6006181f, 0xc00c303e, 0x85f4168d, 0x0e045beb, 0x1c08b7d6),
    TABLE(0x68032cc8, 0xd0065990, 0xa5e0c5d1, 0x4e2dfd53, 0x9c5bfaa6, 0x3d5b83bd, 0x7ab7077a, 0xf56e0ef4),
    TABLE(0x493c7d27, 0x9278fa4e, 0x211d826d, 0x423b04da, 0x847609b4, 0x0d006599, 0x1a00cb32, 0x34019664),
};

#define BLOCK_MIN 4

/* The entry of table `index` for the byte of `word` that starts at bit `shift`. */
#define REMAINDER(index, word, shift) tables[index][((word) >> (shift)) & 255]

/* Carries the inverted checksum over [at, end). */
static u32 extend(u32 crc, const u8 *at, const u8 *end)
{
    for (; end - at >= 8; at += 8) {
        u64 word = warren_load64(at) ^ crc;
        crc = REMAINDER(7, word, 0) ^ REMAINDER(6, word, 8) ^ REMAINDER(5, word, 16) ^
              REMAINDER(4, word, 24) ^ REMAINDER(3, word, 32) ^ REMAINDER(2, word, 40) ^
              REMAINDER(1, word, 48) ^ REMAINDER(0, word, 56);
    }
    for (; at < end; at++)
        crc = tables[0][(crc ^ *at) & 255] ^ (crc >> 8);
    return crc;
}

/* Emits the checksum of [position, end). 0, or a negative error. */
WARREN_INLINE s64 checksum(u64 position, u64 end)
{
    u32 crc = ~0U;
    while (position < end) {
        const u8 *at;
        s64 got = warren_next_chunk(position, end, &at);
        if (got <= 0)
            return got < 0 ? got : -WARREN_EIO;
        crc = extend(crc, at, at + got);
        position += got;
    }
    crc = ~crc;
    return warren_emit(&crc, sizeof(crc));
}

/* The checksums of the blocks of [position, end); as many blocks at a time as a chunk holds. */
WARREN_INLINE s64 block_checksums(u64 position, u64 end, u64 block)
{
    u64 step = WARREN_CHUNK / block * block;
    struct warren_writer writer = {0, 0};
    while (position < end) {
        const u8 *at;
        u64 want = warren_min(end - position, step);
        s64 got = warren_map_afresh(position, want, &at);
        if (got != (s64)want)
            return got < 0 ? got : -WARREN_EIO;
        position += want;
        for (const u8 *stop = at + want; at < stop;) {
            u64 size = warren_min(stop - at, block);
            s64 failed = warren_writer_room(&writer, 4);
            if (failed)
                return failed;
            warren_store32(writer.at, ~extend(~0U, at, at + size));
            writer.at += 4;
            at += size;
        }
    }
    warren_writer_end(&writer);
    return 0;
}

WARREN_KERNEL(request)
{
    u64 block = warren_argument_or(0, 0);
    u64 end = warren_request_end(request);
    if (block == 0)
        return checksum(request->offset, end);
    if (block < BLOCK_MIN || block > WARREN_CHUNK)
        return -WARREN_EINVAL;
    return block_checksums(request->offset, end, block);
}
