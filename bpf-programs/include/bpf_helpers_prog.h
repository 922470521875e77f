/*
 * The OpenCSD kernel ABI: helpers 1 to 9, with the names and signatures of OpenCSD's header of the
 * same name, so that its kernels compile with this one unchanged. docs/kernel-abi.md says what each
 * does here. `bool` and the layouts of filesystem requests are in bpf_helpers_flfs.h.
 *
 * Positions on the device are (zone, sector): sector is the offset in the zone, in sectors of
 * bpf_get_sector_size() bytes.
 */
#ifndef WARREN_BPF_HELPERS_PROG_H
#define WARREN_BPF_HELPERS_PROG_H

#include <stdint.h>

#if defined(WARREN_NATIVE) || defined(WARREN_HELPERS_BY_NAME) || !defined(__bpf__)
#define OPENCSD_HELPER(number, result, name, ...) extern result name(__VA_ARGS__)
#else
#define OPENCSD_HELPER(number, result, name, ...) \
    static result (*const name)(__VA_ARGS__) __attribute__((unused)) = (result(*)(__VA_ARGS__))(number)
#endif

/* Adds `size` bytes at `data` to the output. */
OPENCSD_HELPER(1, void, bpf_return_data, void *data, uint64_t size);

/*
 * Reads `size` bytes, from byte `offset` of the sector on, into `data`. Only what belongs to the
 * snapshot or the data of the request can be read, within one zone; zeros past the last byte.
 * Returns 0. Anything else ends the kernel: OpenCSD's kernels do not look at the answer.
 */
OPENCSD_HELPER(2, int, bpf_read, uint64_t zone, uint64_t sector, uint64_t offset, uint64_t size, void *data);

/*
 * Writes `size` bytes from `data` to byte `offset` of sector `*sector`, one of those set aside for
 * the request: where the write before it ended, or at the start of the next sector. Returns 0.
 * Anything else ends the kernel.
 */
OPENCSD_HELPER(3, int, bpf_write, uint64_t zone, uint64_t *sector, uint64_t offset, uint64_t size, void *data);

/* Bytes of a sector: 4096. */
OPENCSD_HELPER(4, uint64_t, bpf_get_sector_size, void);

/* Sectors of a zone that can hold data. */
OPENCSD_HELPER(5, uint64_t, bpf_get_zone_capacity, void);

/* Sectors from one zone's start to the next one's. */
OPENCSD_HELPER(6, uint64_t, bpf_get_zone_size, void);

/* Where the kernel's scratch memory is, and its bytes. */
OPENCSD_HELPER(7, void, bpf_get_mem_info, void **mem_ptr, uint64_t *mem_size);

/* Where the request is: struct flfs_call and what follows it. */
OPENCSD_HELPER(8, void, bpf_get_call_info, void **call);

/* Writes a line to the log of the mount. */
OPENCSD_HELPER(9, void, bpf_debug, const char *string);

#endif
