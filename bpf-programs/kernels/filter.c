/*
 * filter: unsigned 32-bit integers above a threshold.
 *
 * The request is taken as little-endian u32 from its first byte on; up to three bytes at its end
 * that make no integer are left out.
 *
 * Operations: read_stream, view.
 * Arguments:  0  threshold, default 1073741823 (half of the largest i32, as FluffleFS's average
 *                kernel); only values above it count
 *             1  0 (default): output the count; 1: output the values
 * Output:     the count, one u64; or the values in their order, u32 each.
 */
#include <warren_util.h>

#define DEFAULT_THRESHOLD 1073741823

/* 1 if value > threshold: the difference of two 32-bit values has the sign in its top bit. */
WARREN_INLINE u64 above(u64 value, u64 threshold)
{
    u64 difference = threshold - value;
    WARREN_OPAQUE(difference);
    return difference >> 63;
}

/*
 * Two values in a word at once: `value > threshold` if adding the complement of the threshold to it
 * carries out of its 32 bits. The sum of the lower 31 bits has the carry into the top bit there; of
 * that, the value's top bit and the complement's two must be set for another one.
 */
#define TWICE 0x0000000100000001ULL
#define LOWER (0x7fffffff * TWICE)

/* One word after the other: there are no registers for more. */
#define COUNT(word, carries)                                                     \
    do {                                                                         \
        u64 both = (word);                                                       \
        u64 sums = (both & lower) + complements;                                 \
        counts += ((sums carries both) >> 31) & twice;                           \
        WARREN_OPAQUE(counts);                                                   \
    } while (0)

#define COUNT_ALL(carries)                                                       \
    for (; end - at >= 64; at += 64) {                                           \
        COUNT(warren_load64(at), carries);                                       \
        COUNT(warren_load64(at + 8), carries);                                   \
        COUNT(warren_load64(at + 16), carries);                                  \
        COUNT(warren_load64(at + 24), carries);                                  \
        COUNT(warren_load64(at + 32), carries);                                  \
        COUNT(warren_load64(at + 40), carries);                                  \
        COUNT(warren_load64(at + 48), carries);                                  \
        COUNT(warren_load64(at + 56), carries);                                  \
    }

/* Of at most a chunk: neither half of the counts overflows. A call, for all registers to be free. */
static __attribute__((noinline)) u64 count_chunk(const u8 *at, u64 size, u64 threshold)
{
    const u8 *end = at + size;
    u64 complement = (u32)~threshold, counts = 0, rest = 0;
    u64 complements = (complement & 0x7fffffff) * TWICE, lower = LOWER, twice = TWICE;
    WARREN_OPAQUE(lower);
    WARREN_OPAQUE(twice);
    if (complement >> 31)
        COUNT_ALL(|)
    else
        COUNT_ALL(&)
    for (; end - at >= 4; at += 4)
        rest += above(warren_load32(at), threshold);
    return (u32)counts + (counts >> 32) + rest;
}

/* Stores every value and moves on over those that are above: no branch to mispredict. */
WARREN_INLINE u8 *select_values(const u8 *at, u64 size, u64 threshold, u8 *to)
{
    const u8 *end = at + size;
    for (; end - at >= 8; at += 8) {
        u64 both = warren_load64(at);
        warren_store32(to, both);
        to += above((u32)both, threshold) * 4;
        warren_store32(to, both >> 32);
        to += above(both >> 32, threshold) * 4;
    }
    for (; end - at >= 4; at += 4) {
        u32 value = warren_load32(at);
        warren_store32(to, value);
        to += above(value, threshold) * 4;
    }
    return to;
}

/* Bytes filtered between two looks at the room; divides WARREN_CHUNK. */
#define STEP 4096

WARREN_INLINE s64 emit_chunk(const u8 *at, u64 size, u64 threshold, struct warren_writer *writer)
{
    while (size > 0) {
        u64 step = warren_min(size, STEP);
        /* One value more than can be kept is stored. */
        s64 failed = warren_writer_room(writer, step + 4);
        if (failed)
            return failed;
        writer->at = select_values(at, step, threshold, writer->at);
        at += step;
        size -= step;
    }
    return 0;
}

WARREN_KERNEL(request)
{
    u64 threshold = (u32)warren_argument_or(0, DEFAULT_THRESHOLD);
    u64 values = warren_argument_or(1, 0);
    if (values > 1 || (warren_argument_or(0, 0) >> 32) != 0)
        return -WARREN_EINVAL;
    u64 position = request->offset;
    u64 end = position + (warren_request_end(request) - position) / 4 * 4;
    u64 count = 0;
    struct warren_writer writer = {0, 0};
    while (position < end) {
        const u8 *at;
        s64 got = warren_next_chunk(position, end, &at);
        if (got < 4)
            return got < 0 ? got : -WARREN_EIO;
        u64 whole = (u64)got / 4 * 4;
        if (values) {
            s64 failed = emit_chunk(at, whole, threshold, &writer);
            if (failed)
                return failed;
        } else {
            count += count_chunk(at, whole, threshold);
        }
        position += whole;
    }
    if (!values)
        return warren_emit(&count, sizeof(count));
    warren_writer_end(&writer);
    return 0;
}
