/*
 * compress: stores what is written in compressed frames. The kernel `decompress` reads them.
 *
 * A frame is a header of 16 bytes and up to 65536 bytes of data:
 *   magic u32 "WLZ1", stored u32 (bytes that follow), raw u32 (bytes they stand for, 1 to 65536),
 *   form u32 (0: stored as they are; 1: an LZ4 block)
 * The LZ4 block format is the one of its project: sequences of a token (literals << 4 | match - 4),
 * literals, a distance u16 and lengths continued by bytes of 255. Every write becomes one or more
 * frames that follow each other; a frame never spans two writes, and zero bytes may lie between the
 * frames of two writes.
 *
 * Operations: write_stream.
 * Arguments:  0  0 (default): frames may be larger than the data, for writers that append
 *                (O_APPEND, `>>`); 1: a write whose frames would be larger than its data fails with
 *                -EFBIG, for writers that put each write behind the one before (cp), where frames
 *                that are too large would be overwritten by the next
 * Output:     the frames.
 */
#include <warren_util.h>

#define MAGIC 0x315a4c57U /* "WLZ1" */
#define HEADER 16
#define FRAME_MAX 65536
#define FORM_STORED 0
#define FORM_LZ4 1

/* Rules of the block format: the last bytes are literals, and no match begins close to the end. */
#define LAST_LITERALS 5
#define MATCH_LIMIT 12
#define MATCH_MIN 4

/* Positions in the frame by the hash of the four bytes there. */
#define HASH_BITS 12
static u16 positions[1 << HASH_BITS];

WARREN_INLINE u64 hash(u32 bytes)
{
    return (u32)(bytes * 2654435761U) >> (32 - HASH_BITS);
}

/* Bytes of lengths a token of this length needs beside itself. */
WARREN_INLINE u8 *put_length(u8 *to, u64 length)
{
    for (; length >= 255; length -= 255)
        *to++ = 255;
    *to++ = length;
    return to;
}

/* Copies; neither side is touched beyond `size`. */
WARREN_INLINE void copy(u8 *to, const u8 *from, u64 size)
{
    u64 index = 0;
    for (; index + 8 <= size; index += 8)
        warren_store64(to + index, warren_load64(from + index));
    for (; index < size; index++)
        to[index] = from[index];
}

/* How many bytes from `at` on, before `end`, equal those from `from` on. */
WARREN_INLINE u64 common_length(const u8 *from, const u8 *at, const u8 *end)
{
    const u8 *begin = at;
    while (end - at >= 8) {
        u64 difference = warren_load64(at) ^ warren_load64(from);
        if (difference) {
            for (; (difference & 255) == 0; difference >>= 8)
                at++;
            return at - begin;
        }
        at += 8;
        from += 8;
    }
    while (at < end && *at == *from) {
        at++;
        from++;
    }
    return at - begin;
}

/* Most bytes that a token, its lengths and a distance take, beside the literals. */
#define SEQUENCE_MAX(literals, match) (1 + ((literals) / 255 + 1) + 2 + ((match) / 255 + 1))

/* Writes the token and the literals; a match of 0 means the last sequence. */
WARREN_INLINE u8 *put_literals(u8 *to, const u8 *literals, u64 count, u64 match)
{
    u64 upper = warren_min(count, 15);
    u64 lower = match ? warren_min(match - MATCH_MIN, 15) : 0;
    *to++ = upper << 4 | lower;
    if (upper == 15)
        to = put_length(to, count - 15);
    copy(to, literals, count);
    return to + count;
}

WARREN_INLINE u8 *put_match(u8 *to, u64 distance, u64 match)
{
    warren_store16(to, distance);
    to += 2;
    if (match - MATCH_MIN >= 15)
        to = put_length(to, match - MATCH_MIN - 15);
    return to;
}

/*
 * Compresses `size` bytes at `from` into `to`, which holds as many. Returns the bytes it took, or 0
 * when they do not become fewer. Greedy, one candidate per hash, and faster and faster through data
 * that does not match.
 */
static u64 compress_block(const u8 *from, u64 size, u8 *to)
{
    u8 *begin = to, *limit = to + size;
    u64 literals = 0, at = 1, misses = 0;
    warren_zero(positions, sizeof(positions));
    while (at + MATCH_LIMIT <= size) {
        u32 bytes = warren_load32(from + at);
        u64 slot = hash(bytes), candidate = positions[slot];
        positions[slot] = at;
        if (warren_load32(from + candidate) != bytes) {
            at += 1 + (misses++ >> 5);
            continue;
        }
        u64 match = MATCH_MIN + common_length(from + candidate + MATCH_MIN, from + at + MATCH_MIN,
                                              from + size - LAST_LITERALS);
        u64 count = at - literals;
        if (count + SEQUENCE_MAX(count, match) >= (u64)(limit - to))
            return 0;
        to = put_literals(to, from + literals, count, match);
        to = put_match(to, at - candidate, match);
        at += match;
        literals = at;
        misses = 0;
    }
    u64 count = size - literals;
    if (count + SEQUENCE_MAX(count, 0) >= (u64)(limit - to))
        return 0;
    return put_literals(to, from + literals, count, 0) - begin;
}

/* Emits one frame and returns its bytes, or a negative error. */
WARREN_INLINE s64 emit_frame(const u8 *from, u64 size)
{
    u8 *frame = warren_reserve(HEADER + size);
    if (!frame)
        return -WARREN_EFBIG;
    u64 stored = compress_block(from, size, frame + HEADER), form = FORM_LZ4;
    if (stored == 0) {
        copy(frame + HEADER, from, size);
        stored = size;
        form = FORM_STORED;
    }
    warren_store32(frame, MAGIC);
    warren_store32(frame + 4, stored);
    warren_store32(frame + 8, size);
    warren_store32(frame + 12, form);
    if (stored < size)
        warren_trim(size - stored);
    return HEADER + stored;
}

WARREN_KERNEL(request)
{
    u64 in_place = warren_argument_or(0, 0), emitted = 0;
    if (request->op != WARREN_WRITE_STREAM)
        return -WARREN_EOPNOTSUPP;
    if (in_place > 1)
        return -WARREN_EINVAL;
    const u8 *at = (const u8 *)request->data, *end = at + request->data_size;
    while (at < end) {
        u64 size = warren_min(end - at, FRAME_MAX);
        s64 frame = emit_frame(at, size);
        if (frame < 0)
            return frame;
        emitted += frame;
        at += size;
    }
    return in_place && emitted > request->data_size ? -WARREN_EFBIG : 0;
}
