/*
 * passthrough: the data as it is. What reading through a kernel costs, and the shortest example.
 *
 * Operations: read_stream and view (the request's bytes), write_stream and read_event (the data).
 * Arguments:  none.
 * Output:     the bytes.
 */
#include <warren_util.h>

WARREN_KERNEL(request)
{
    if (request->op != WARREN_READ_STREAM)
        return warren_emit((const void *)request->data, request->data_size);
    u64 size = warren_request_end(request) - request->offset;
    if (size == 0)
        return 0;
    /* Read straight into the output: one copy, nothing mapped. */
    void *to = warren_reserve(size);
    if (!to)
        return -WARREN_EFBIG;
    s64 got = warren_read(request->offset, to, size);
    if (got < 0)
        return got;
    return (u64)got == size ? 0 : -WARREN_EIO;
}
