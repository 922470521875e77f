/*
 * sum_min_max: count, sum, least and largest of unsigned integers.
 *
 * The request is taken as little-endian integers from its first byte on; bytes at its end that make
 * no integer are left out.
 *
 * Operations: read_stream, view.
 * Arguments:  0  bytes of an integer: 4 (default) or 8
 *             1  0 (default): all; 1: count and sum only, which is faster
 * Output:     four u64: count, sum (modulo 2^64), least, largest. Where there is nothing to
 *             compare, or it was not asked for, least is 2^64 - 1 and largest is 0.
 */
#include <warren_util.h>

struct aggregate {
    u64 count;
    u64 sum;
    u64 least;
    u64 largest;
};

WARREN_INLINE void compare(struct aggregate *all, u64 value)
{
    if (value < all->least)
        all->least = value;
    if (value > all->largest)
        all->largest = value;
}

/*
 * Pairs of u32 as words: the sum of the upper halves is kept apart, that of the lower ones is what
 * the sum of the words has beside it.
 */
WARREN_INLINE u64 sum_halves(const u8 *at, const u8 *end)
{
    u64 words = 0, upper = 0;
    for (; end - at >= 64; at += 64) {
        u64 a = warren_load64(at), b = warren_load64(at + 8);
        u64 c = warren_load64(at + 16), d = warren_load64(at + 24);
        words += a;
        upper += a >> 32;
        words += b;
        upper += b >> 32;
        words += c;
        upper += c >> 32;
        words += d;
        upper += d >> 32;
        a = warren_load64(at + 32), b = warren_load64(at + 40);
        c = warren_load64(at + 48), d = warren_load64(at + 56);
        words += a;
        upper += a >> 32;
        words += b;
        upper += b >> 32;
        words += c;
        upper += c >> 32;
        words += d;
        upper += d >> 32;
    }
    u64 sum = words - (upper << 32) + upper;
    for (; end - at >= 4; at += 4)
        sum += warren_load32(at);
    return sum;
}

WARREN_INLINE u64 sum_words(const u8 *at, const u8 *end)
{
    u64 even = 0, odd = 0;
    for (; end - at >= 64; at += 64) {
        even += warren_load64(at);
        odd += warren_load64(at + 8);
        even += warren_load64(at + 16);
        odd += warren_load64(at + 24);
        even += warren_load64(at + 32);
        odd += warren_load64(at + 40);
        even += warren_load64(at + 48);
        odd += warren_load64(at + 56);
    }
    for (; end - at >= 8; at += 8)
        even += warren_load64(at);
    return even + odd;
}

WARREN_INLINE void aggregate_halves(struct aggregate *all, const u8 *at, const u8 *end)
{
    struct aggregate here = *all;
    for (; end - at >= 16; at += 16) {
        u64 a = warren_load64(at), b = warren_load64(at + 8);
        u64 lower = (u32)a, upper = a >> 32;
        here.sum += lower + upper;
        compare(&here, lower);
        compare(&here, upper);
        lower = (u32)b, upper = b >> 32;
        here.sum += lower + upper;
        compare(&here, lower);
        compare(&here, upper);
    }
    for (; end - at >= 4; at += 4) {
        here.sum += warren_load32(at);
        compare(&here, warren_load32(at));
    }
    *all = here;
}

WARREN_INLINE void aggregate_words(struct aggregate *all, const u8 *at, const u8 *end)
{
    struct aggregate here = *all;
    for (; end - at >= 16; at += 16) {
        u64 a = warren_load64(at), b = warren_load64(at + 8);
        here.sum += a + b;
        compare(&here, a);
        compare(&here, b);
    }
    for (; end - at >= 8; at += 8) {
        here.sum += warren_load64(at);
        compare(&here, warren_load64(at));
    }
    *all = here;
}

WARREN_KERNEL(request)
{
    u64 width = warren_argument_or(0, 4), only_sum = warren_argument_or(1, 0);
    if ((width != 4 && width != 8) || only_sum > 1)
        return -WARREN_EINVAL;
    u64 position = request->offset;
    u64 end = position + (warren_request_end(request) - position) / width * width;
    struct aggregate all = {(end - position) / width, 0, ~0ULL, 0};
    while (position < end) {
        const u8 *at;
        s64 got = warren_next_chunk(position, end, &at);
        if (got < (s64)width)
            return got < 0 ? got : -WARREN_EIO;
        u64 whole = (u64)got / width * width;
        if (only_sum)
            all.sum += width == 4 ? sum_halves(at, at + whole) : sum_words(at, at + whole);
        else if (width == 4)
            aggregate_halves(&all, at, at + whole);
        else
            aggregate_words(&all, at, at + whole);
        position += whole;
    }
    return warren_emit(&all, sizeof(all));
}
