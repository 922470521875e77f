/*
 * The lines of a request, in blocks of whole lines.
 *
 * A line belongs to the request in which its first byte lies, and is read to its end even where
 * that is behind the request. So the outputs of consecutive requests, put together, are the output
 * of one request over all of them, whatever their sizes.
 */
#ifndef WARREN_LINES_H
#define WARREN_LINES_H

#include <warren_util.h>

#define WARREN_NEWLINE 0x0a0a0a0a0a0a0a0aULL

struct warren_lines {
    u64 position; /* of the next line */
    u64 end;      /* lines that begin here or later belong to another request */
    u64 snapshot_size;
};

/* Bytes mapped beyond the request, in the hope that its last line ends there. */
#define WARREN_LINES_BEYOND 4096

/* Finds the first line of the request. 0, or a negative error. */
WARREN_INLINE s64 warren_lines_begin(struct warren_lines *lines, const struct warren_request *request)
{
    lines->position = request->offset;
    lines->end = warren_request_end(request);
    lines->snapshot_size = request->snapshot_size;
    if (lines->position == 0)
        return 0;
    /* A line begins at the offset if the byte before it is a newline. */
    u64 position = lines->position - 1;
    for (;;) {
        const u8 *at;
        s64 got = warren_next_chunk(position, lines->end, &at);
        if (got <= 0) {
            lines->position = lines->end;
            return got;
        }
        const u8 *newline = warren_find(at, at + got, WARREN_NEWLINE);
        position += newline - at;
        if (newline != at + got) {
            lines->position = position + 1;
            return 0;
        }
    }
}

/* Bytes of the whole lines among the `got` bytes at `at`; 0: not one is known to end here. */
WARREN_INLINE u64 warren_lines_whole(const struct warren_lines *lines, const u8 *at, u64 got)
{
    u64 rest = lines->end - lines->position;
    if (got >= rest) {
        /* The last line is the one that holds the request's last byte. */
        const u8 *newline = warren_find(at + rest - 1, at + got, WARREN_NEWLINE);
        if (newline != at + got)
            return newline - at + 1;
    } else {
        u64 whole = got;
        while (whole > 0 && at[whole - 1] != '\n')
            whole--;
        if (whole > 0)
            return whole;
    }
    return lines->position + got >= lines->snapshot_size ? got : 0;
}

/*
 * Maps the next block of whole lines and stores where to `*at`. Returns its bytes; 0 when the
 * request has no more lines; a negative error, -WARREN_ENOMEM for a line longer than the window.
 */
WARREN_INLINE s64 warren_lines_next(struct warren_lines *lines, const u8 **at)
{
    if (lines->position >= lines->end)
        return 0;
    u64 want = warren_min(lines->end - lines->position + WARREN_LINES_BEYOND, WARREN_CHUNK);
    for (;;) {
        s64 got = warren_map_afresh(lines->position, want, at);
        if (got < 0)
            return got;
        if (got == 0)
            return -WARREN_EIO;
        u64 whole = warren_lines_whole(lines, *at, got);
        if (whole) {
            lines->position += whole;
            return whole;
        }
        if ((u64)got < want)
            return -WARREN_ENOMEM;
        want *= 2;
    }
}

#endif
