/*
 * Runs kernels compiled as plain C: the helpers of both ABIs over a snapshot in memory.
 *
 * For tests and measurements of kernels one trusts. It checks offsets and limits as the device
 * does, and answers -EFBIG or -1 where the device ends the kernel. It does not check pointers: a
 * kernel that goes astray takes the process with it.
 */
#ifndef WARREN_NATIVE_RUNTIME_H
#define WARREN_NATIVE_RUNTIME_H

#include <stddef.h>
#include <stdint.h>

struct warren_request;

/* An entry: WARREN_KERNEL(..) or, cast, the main(void) of an OpenCSD kernel. */
typedef int64_t (*warren_native_entry)(const struct warren_request *request);

/* What a run gets. */
struct warren_native_input {
    uint32_t op;
    uint32_t argument_count;
    uint64_t offset;
    uint64_t size;
    const uint8_t *snapshot;
    uint64_t snapshot_size;
    const uint8_t *data; /* of writes and read events, else null */
    uint64_t data_size;
    const uint64_t *arguments;
};

/* Memory that runs use one after the other. */
struct warren_native;

/* Null when there is no memory. Sizes in bytes; pages are taken from the system when touched. */
struct warren_native *warren_native_new(uint64_t heap_size, uint64_t output_limit);
void warren_native_free(struct warren_native *native);

/*
 * Runs the kernel on this thread; runs do not nest. Returns what the kernel returned, that of a
 * `main` sign-extended if `returns_int`.
 */
int64_t warren_native_run(struct warren_native *native, warren_native_entry entry, int returns_int,
                          const struct warren_native_input *input);

/* Of the last run, until the next one. */
const uint8_t *warren_native_output(const struct warren_native *native, uint64_t *size);
const uint8_t *warren_native_appended(const struct warren_native *native, uint64_t *size);

#endif
