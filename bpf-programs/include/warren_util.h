/*
 * Small tools for fast kernels: wide loads at any address, search by 64-bit words, walking the
 * snapshot in mapped chunks, and writing output in place.
 *
 * There are no vectors, and confining a load or a store to the kernel's memory costs a little. So
 * the tools here load eight bytes at a time and compute on words.
 */
#ifndef WARREN_UTIL_H
#define WARREN_UTIL_H

#include <warren.h>

#define WARREN_INLINE static inline __attribute__((always_inline, unused))

/*
 * Words at any address. clang splits the loads of types it believes unaligned into bytes on BPF,
 * whose engine takes any address; other compilers must be told.
 */
#ifdef __bpf__
typedef u64 __attribute__((may_alias)) warren_word;
typedef u32 __attribute__((may_alias)) warren_half;
typedef u16 __attribute__((may_alias)) warren_quarter;
#else
typedef u64 __attribute__((may_alias, aligned(1))) warren_word;
typedef u32 __attribute__((may_alias, aligned(1))) warren_half;
typedef u16 __attribute__((may_alias, aligned(1))) warren_quarter;
#endif

WARREN_INLINE u64 warren_load64(const void *at) { return *(const warren_word *)at; }
WARREN_INLINE u32 warren_load32(const void *at) { return *(const warren_half *)at; }
WARREN_INLINE u16 warren_load16(const void *at) { return *(const warren_quarter *)at; }
WARREN_INLINE void warren_store64(void *at, u64 value) { *(warren_word *)at = value; }
WARREN_INLINE void warren_store32(void *at, u32 value) { *(warren_half *)at = value; }
WARREN_INLINE void warren_store16(void *at, u16 value) { *(warren_quarter *)at = value; }

/*
 * Hides from clang what it knows about a value. Without, it turns sign arithmetic into compares and
 * jumps, which are mispredicted on random data, and keeps the address of each table entry in a
 * register of its own. Other compilers do better with what they know.
 */
#ifdef __bpf__
#define WARREN_OPAQUE(value) __asm__("" : "+r"(value))
#else
#define WARREN_OPAQUE(value) ((void)0)
#endif

WARREN_INLINE u64 warren_min(u64 a, u64 b) { return a < b ? a : b; }

/* Argument `index`, or `otherwise` when there are fewer. */
WARREN_INLINE u64 warren_argument_or(u32 index, u64 otherwise)
{
    u64 value;
    return warren_argument(index, &value) == 0 ? value : otherwise;
}

/* The byte after the request's last one, within the snapshot. */
WARREN_INLINE u64 warren_request_end(const struct warren_request *request)
{
    u64 limit = request->snapshot_size;
    if (request->offset >= limit)
        return request->offset;
    return request->offset + warren_min(request->size, limit - request->offset);
}

/* --- bytes in words ----------------------------------------------------------------------- */

#define WARREN_LOW_BITS 0x0101010101010101ULL
#define WARREN_HIGH_BITS 0x8080808080808080ULL

/* The byte in every byte of a word. */
WARREN_INLINE u64 warren_spread(u8 byte) { return byte * WARREN_LOW_BITS; }

/*
 * Marks bytes of `word` that are zero in their high bits. The lowest mark is exact; above it there
 * may be false ones.
 */
WARREN_INLINE u64 warren_zero_marks(u64 word)
{
    return (word - WARREN_LOW_BITS) & ~word & WARREN_HIGH_BITS;
}

/* Index of the lowest marked byte. BPF cannot count bits: it counts the bytes below instead. */
WARREN_INLINE u64 warren_first_mark(u64 marks)
{
    marks >>= 7;
    return (((marks - 1) & ~marks & WARREN_LOW_BITS) * WARREN_LOW_BITS) >> 56;
}

/* The first byte of [at, end) that is the one spread in `pattern`, or `end`. */
WARREN_INLINE const u8 *warren_find(const u8 *at, const u8 *end, u64 pattern)
{
    while (end - at >= 32) {
        u64 a = warren_load64(at) ^ pattern, b = warren_load64(at + 8) ^ pattern;
        u64 c = warren_load64(at + 16) ^ pattern, d = warren_load64(at + 24) ^ pattern;
        u64 any = ((a - WARREN_LOW_BITS) & ~a) | ((b - WARREN_LOW_BITS) & ~b) |
                  ((c - WARREN_LOW_BITS) & ~c) | ((d - WARREN_LOW_BITS) & ~d);
        if (any & WARREN_HIGH_BITS)
            break;
        at += 32;
    }
    while (end - at >= 8) {
        u64 marks = warren_zero_marks(warren_load64(at) ^ pattern);
        if (marks)
            return at + warren_first_mark(marks);
        at += 8;
    }
    while (at < end && *at != (u8)pattern)
        at++;
    return at;
}

/* Fills words with zeros; `size` is a multiple of 32. */
WARREN_INLINE void warren_zero(void *at, u64 size)
{
    warren_word *to = at;
    for (u64 word = 0; word < size / 8; word += 4) {
        to[word] = 0;
        to[word + 1] = 0;
        to[word + 2] = 0;
        to[word + 3] = 0;
    }
}

/* --- the snapshot in chunks ---------------------------------------------------------------- */

/* Large enough to make calls cheap, small enough to be in the cache when it has been checked. */
#define WARREN_CHUNK (1ULL << 20)

/* warren_map, giving earlier mappings back when the window is full. */
WARREN_INLINE s64 warren_map_afresh(u64 offset, u64 size, const u8 **at)
{
    const void *where = 0;
    s64 got = warren_map(offset, size, &where);
    if (got == -WARREN_ENOMEM) {
        warren_unmap();
        got = warren_map(offset, size, &where);
    }
    *at = where;
    return got;
}

/* The next chunk of [position, end) as warren_map_afresh; 0 at the end. */
WARREN_INLINE s64 warren_next_chunk(u64 position, u64 end, const u8 **at)
{
    if (position >= end)
        return 0;
    return warren_map_afresh(position, warren_min(end - position, WARREN_CHUNK), at);
}

/* --- output in place ------------------------------------------------------------------------ */

/* Output that the kernel fills through `at`; warren_writer_end gives back what it did not use. */
struct warren_writer {
    u8 *at;
    u8 *end;
};

#define WARREN_WRITER_STEP 65536

WARREN_INLINE void warren_writer_end(struct warren_writer *writer)
{
    if (writer->end != writer->at)
        warren_trim(writer->end - writer->at);
    writer->end = writer->at;
}

/* Makes room for `size` bytes at writer->at. 0, or -WARREN_EFBIG. */
WARREN_INLINE s64 warren_writer_room(struct warren_writer *writer, u64 size)
{
    if ((u64)(writer->end - writer->at) >= size)
        return 0;
    warren_writer_end(writer);
    u64 step = size > WARREN_WRITER_STEP ? size : WARREN_WRITER_STEP;
    u8 *room = warren_reserve(step);
    if (!room) {
        step = size;
        room = warren_reserve(step);
    }
    if (!room)
        return -WARREN_EFBIG;
    writer->at = room;
    writer->end = room + step;
    return 0;
}

#endif
