/*
 * The helpers of the Warren ABI, and runs. The OpenCSD helpers are in opencsd.c.
 *
 * Invariant: `current` is the run that goes on in this thread, and null outside of runs.
 */
#define _GNU_SOURCE
#include "internal.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

_Thread_local struct warren_native *warren_native_current;
#define current warren_native_current

/* Memory that costs nothing until it is touched; null if there is none. */
static uint8_t *reserve_memory(uint64_t size)
{
    void *at = mmap(NULL, size ? size : 1, PROT_READ | PROT_WRITE,
                    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    return at == MAP_FAILED ? NULL : at;
}

struct warren_native *warren_native_new(uint64_t heap_size, uint64_t output_limit)
{
    struct warren_native *native = calloc(1, sizeof(*native));
    if (!native)
        return NULL;
    native->heap_size = heap_size;
    native->output_limit = output_limit;
    native->heap = reserve_memory(heap_size);
    native->output = reserve_memory(output_limit);
    native->appended = reserve_memory(output_limit);
    if (!native->heap || !native->output || !native->appended) {
        warren_native_free(native);
        return NULL;
    }
    return native;
}

static void give_back(uint8_t *at, uint64_t size)
{
    if (at)
        munmap(at, size ? size : 1);
}

void warren_native_free(struct warren_native *native)
{
    give_back(native->heap, native->heap_size);
    give_back(native->output, native->output_limit);
    give_back(native->appended, native->output_limit);
    free(native->call);
    free(native);
}

int64_t warren_native_run(struct warren_native *native, warren_native_entry entry, int returns_int,
                          const struct warren_native_input *input)
{
    native->input = *input;
    native->output_size = 0;
    native->appended_size = 0;
    free(native->call);
    native->call = NULL;
    struct warren_request *request = &native->request;
    memset(request, 0, sizeof(*request));
    request->version = WARREN_ABI_VERSION;
    request->op = input->op;
    request->offset = input->offset;
    request->size = input->size;
    request->snapshot_size = input->snapshot_size;
    request->argument_count = input->argument_count;
    request->data = (uintptr_t)input->data;
    request->data_size = input->data_size;
    request->heap = (uintptr_t)native->heap;
    request->heap_size = native->heap_size;
    request->output_limit = native->output_limit;
    current = native;
    int64_t value = entry(request);
    current = NULL;
    return returns_int ? (int32_t)value : value;
}

const uint8_t *warren_native_output(const struct warren_native *native, uint64_t *size)
{
    *size = native->output_size;
    return native->output;
}

const uint8_t *warren_native_appended(const struct warren_native *native, uint64_t *size)
{
    *size = native->appended_size;
    return native->appended;
}

/* Bytes of the snapshot from `offset` on, at most `size`. */
static u64 available(u64 offset, u64 size)
{
    u64 limit = current->input.snapshot_size;
    if (offset >= limit)
        return 0;
    return size < limit - offset ? size : limit - offset;
}

u64 warren_request(struct warren_request *out, u64 size)
{
    u64 bytes = size < sizeof(*out) ? size : sizeof(*out);
    memcpy(out, &current->request, bytes);
    return bytes;
}

s64 warren_map(u64 offset, u64 size, const void **at)
{
    u64 bytes = available(offset, size);
    if (bytes)
        *at = current->input.snapshot + offset;
    return bytes;
}

s64 warren_read(u64 offset, void *to, u64 size)
{
    u64 bytes = available(offset, size);
    if (bytes)
        memcpy(to, current->input.snapshot + offset, bytes);
    return bytes;
}

void *warren_reserve(u64 size)
{
    if (size == 0 || size > current->output_limit - current->output_size)
        return NULL;
    u8 *at = current->output + current->output_size;
    current->output_size += size;
    return at;
}

s64 warren_emit(const void *from, u64 size)
{
    if (size == 0)
        return 0;
    void *to = warren_reserve(size);
    if (!to)
        return -WARREN_EFBIG;
    memcpy(to, from, size);
    return 0;
}

s64 warren_append(const void *from, u64 size)
{
    if (size > current->output_limit - current->appended_size)
        return -WARREN_EFBIG;
    if (size)
        memcpy(current->appended + current->appended_size, from, size);
    current->appended_size += size;
    return 0;
}

s64 warren_argument(u32 index, u64 *value)
{
    if (index >= current->input.argument_count)
        return -WARREN_ENOENT;
    *value = current->input.arguments[index];
    return 0;
}

s64 warren_log(const char *text, u64 size)
{
    fprintf(stderr, "kernel: %.*s\n", (int)(size < 4096 ? size : 4096), text);
    return 0;
}

s64 warren_trim(u64 size)
{
    if (size > current->output_size)
        return -WARREN_EINVAL;
    current->output_size -= size;
    return 0;
}

s64 warren_unmap(void)
{
    return 0;
}
