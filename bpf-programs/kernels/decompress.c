/*
 * decompress: what was written through the kernel `compress`, which documents the frames.
 *
 * Operations: view; read_stream, where a frame belongs to the request in which it begins, and the
 *             output may be many times larger than the request.
 * Arguments:  none.
 * Output:     the data of the frames, one after the other.
 * Fails with -EINVAL where the file is not made of frames.
 */
#include <warren_util.h>

#define MAGIC 0x315a4c57U /* "WLZ1" */
#define HEADER 16
#define FRAME_MAX 65536
#define FORM_STORED 0
#define FORM_LZ4 1
#define MATCH_MIN 4

/* Adds the bytes that continue a length; 0 means that the block ends within. */
WARREN_INLINE const u8 *take_length(const u8 *at, const u8 *end, u64 *length)
{
    u8 byte;
    do {
        if (at == end)
            return 0;
        byte = *at++;
        *length += byte;
    } while (byte == 255);
    return at;
}

/* Copies eight bytes at a time where both sides have them to spare. */
WARREN_INLINE void copy(u8 *to, const u8 *from, u64 size, u64 spare)
{
    u64 index = 0;
    if (spare) {
        for (; index < size; index += 8)
            warren_store64(to + index, warren_load64(from + index));
        return;
    }
    for (; index < size; index++)
        to[index] = from[index];
}

/* Decompresses [at, end) into exactly [to, stop). 0, or -WARREN_EINVAL. */
static s64 decompress_block(const u8 *at, const u8 *end, u8 *to, u8 *stop)
{
    const u8 *begin = to;
    while (at < end) {
        u64 token = *at++, count = token >> 4, match = (token & 15) + MATCH_MIN;
        if (count == 15) {
            at = take_length(at, end, &count);
            if (!at)
                return -WARREN_EINVAL;
        }
        if (count > (u64)(end - at) || count > (u64)(stop - to))
            return -WARREN_EINVAL;
        copy(to, at, count, count + 8 <= (u64)(end - at) && count + 8 <= (u64)(stop - to));
        at += count;
        to += count;
        if (at == end)
            break;
        if (end - at < 2)
            return -WARREN_EINVAL;
        u64 distance = warren_load16(at);
        at += 2;
        if (match == 15 + MATCH_MIN) {
            at = take_length(at, end, &match);
            if (!at)
                return -WARREN_EINVAL;
        }
        if (distance == 0 || distance > (u64)(to - begin) || match > (u64)(stop - to))
            return -WARREN_EINVAL;
        /* A distance below eight repeats what is being written: byte by byte. */
        copy(to, to - distance, match, distance >= 8 && match + 8 <= (u64)(stop - to));
        to += match;
    }
    return to == stop ? 0 : -WARREN_EINVAL;
}

struct frame {
    u64 stored;
    u64 raw;
    u64 form;
};

/* Reads the header at `position`. 0, or a negative error. */
WARREN_INLINE s64 read_header(u64 position, struct frame *frame)
{
    const u8 *at;
    s64 got = warren_map_afresh(position, HEADER, &at);
    if (got < HEADER)
        return got < 0 ? got : -WARREN_EINVAL;
    frame->stored = warren_load32(at + 4);
    frame->raw = warren_load32(at + 8);
    frame->form = warren_load32(at + 12);
    u64 sound = frame->form == FORM_STORED ? frame->stored == frame->raw
                                           : frame->form == FORM_LZ4 && frame->stored < frame->raw;
    return warren_load32(at) == MAGIC && sound && frame->raw > 0 && frame->raw <= FRAME_MAX
               ? 0
               : -WARREN_EINVAL;
}

/* Emits the data of the frame whose stored bytes begin at `position`. */
static s64 emit_frame(u64 position, const struct frame *frame)
{
    const u8 *at;
    s64 got = warren_map_afresh(position, frame->stored, &at);
    if (got < (s64)frame->stored)
        return got < 0 ? got : -WARREN_EINVAL;
    if (frame->form == FORM_STORED)
        return warren_emit(at, frame->raw);
    u8 *to = warren_reserve(frame->raw);
    if (!to)
        return -WARREN_EFBIG;
    return decompress_block(at, at + frame->stored, to, to + frame->raw);
}

/* Skips zero bytes; the position of the first other one before `end`, or `end`. */
static s64 skip_zeros(u64 position, u64 end)
{
    while (position < end) {
        const u8 *at;
        /* Most often there is nothing to skip. */
        s64 got = warren_map_afresh(position, 1, &at);
        if (got == 1 && *at != 0)
            return position;
        got = warren_next_chunk(position, end, &at);
        if (got <= 0)
            return got < 0 ? got : -WARREN_EIO;
        const u8 *stop = at + got, *here = at;
        while (stop - here >= 8 && warren_load64(here) == 0)
            here += 8;
        while (here < stop && *here == 0)
            here++;
        position += here - at;
        if (here < stop)
            break;
    }
    return position;
}

WARREN_KERNEL(request)
{
    if (request->op != WARREN_READ_STREAM)
        return -WARREN_EOPNOTSUPP;
    u64 position = 0, end = warren_min(warren_request_end(request), request->snapshot_size);
    for (;;) {
        struct frame frame;
        s64 found = skip_zeros(position, end);
        if (found < 0)
            return found;
        position = found;
        if (position >= end)
            return 0;
        s64 failed = read_header(position, &frame);
        if (failed == 0 && position >= request->offset)
            failed = emit_frame(position + HEADER, &frame);
        if (failed)
            return failed;
        position += HEADER + frame.stored;
    }
}
