/*
 * line_index: where lines begin.
 *
 * Operations: write_event: appends an index of the data just written to the file, for logs that are
 *             written in appends; read_stream, view: outputs an index of the request.
 * Arguments:  none.
 * Output:     write_event: one index block: magic u64 "WLINEIX1", count u64, then `count` offsets
 *             u64; nothing for data without a line start. Reads: the offsets alone. An offset is
 *             that of a line's first byte in the file. Of data written those lines are listed whose
 *             first byte is 0 in the file or follows a newline of the data, even where it has yet
 *             to be written; of a request those whose first byte lies in it.
 */
#include <warren_util.h>

#define MAGIC 0x315849454e494c57ULL /* "WLINEIX1" */
#define NEWLINE 0x0a0a0a0a0a0a0a0aULL
#define HEADER 16

/* Outputs the offsets behind the newlines of [at, end); `position` is the file offset of `at`. */
static s64 index_chunk(const u8 *at, const u8 *end, u64 position, struct warren_writer *writer)
{
    const u8 *begin = at;
    for (;;) {
        at = warren_find(at, end, NEWLINE);
        if (at == end)
            return 0;
        at++;
        s64 failed = warren_writer_room(writer, 8);
        if (failed)
            return failed;
        warren_store64(writer->at, position + (at - begin));
        writer->at += 8;
    }
}

WARREN_INLINE s64 put_offset(u64 offset, struct warren_writer *writer)
{
    s64 failed = warren_writer_room(writer, 8);
    if (failed)
        return failed;
    warren_store64(writer->at, offset);
    writer->at += 8;
    return 0;
}

/* Lines of the request: those behind the newlines from the byte before it to its last but one. */
WARREN_INLINE s64 index_request(const struct warren_request *request, struct warren_writer *writer)
{
    u64 position = request->offset, end = warren_request_end(request);
    if (position >= end)
        return 0;
    if (position == 0) {
        s64 failed = put_offset(0, writer);
        if (failed)
            return failed;
    } else {
        position--;
    }
    while (position + 1 < end) {
        const u8 *at;
        s64 got = warren_next_chunk(position, end - 1, &at);
        if (got <= 0)
            return got < 0 ? got : -WARREN_EIO;
        s64 failed = index_chunk(at, at + got, position, writer);
        if (failed)
            return failed;
        position += got;
    }
    return 0;
}

/* How many newlines there are. */
WARREN_INLINE u64 count_newlines(const u8 *at, const u8 *end)
{
    u64 count = 0;
    for (;;) {
        at = warren_find(at, end, NEWLINE);
        if (at == end)
            return count;
        at++;
        count++;
    }
}

WARREN_INLINE s64 index_data(const struct warren_request *request, struct warren_writer *writer)
{
    const u8 *at = (const u8 *)request->data, *end = at + request->data_size;
    u64 first = request->offset == 0 && request->data_size > 0;
    u64 count = first + count_newlines(at, end);
    if (count == 0)
        return 0;
    s64 failed = warren_writer_room(writer, HEADER + count * 8);
    if (failed)
        return failed;
    warren_store64(writer->at, MAGIC);
    warren_store64(writer->at + 8, count);
    writer->at += HEADER;
    if (first) {
        failed = put_offset(0, writer);
        if (failed)
            return failed;
    }
    return index_chunk(at, end, request->offset, writer);
}

WARREN_KERNEL(request)
{
    struct warren_writer writer = {0, 0};
    s64 failed = -WARREN_EOPNOTSUPP;
    if (request->op == WARREN_WRITE_EVENT)
        failed = index_data(request, &writer);
    else if (request->op == WARREN_READ_STREAM)
        failed = index_request(request, &writer);
    if (failed)
        return failed;
    warren_writer_end(&writer);
    return 0;
}
