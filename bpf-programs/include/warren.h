/*
 * The Warren kernel ABI, version 1: what a BPF kernel sees of the file it is attached to.
 *
 * A kernel is one C function. It gets a request (an operation and a range of the file's snapshot),
 * reads the snapshot through the helpers below, and emits output. docs/kernel-abi.md is the
 * reference; every struct and number here is fixed for version 1.
 *
 *     #include <warren.h>
 *
 *     WARREN_KERNEL(request)
 *     {
 *         const void *at;
 *         s64 got = warren_map(request->offset, request->size, &at);
 *         return got < 0 ? got : warren_emit(at, got);
 *     }
 *
 * Two targets:
 *   clang -O2 -target bpf    the helpers are numbers, called through constant pointers;
 *                            with WARREN_HELPERS_BY_NAME they are extern functions that the
 *                            loader resolves by name;
 *   any C compiler           with WARREN_NATIVE, or whenever the target is not BPF, the helpers
 *                            are ordinary functions: link native/runtime.c.
 *
 * Nothing of a C library is used or needed.
 */
#ifndef WARREN_H
#define WARREN_H

#define WARREN_ABI_VERSION 1

#if !defined(__bpf__) && !defined(WARREN_NATIVE)
#define WARREN_NATIVE 1
#endif

typedef __UINT8_TYPE__ u8;
typedef __UINT16_TYPE__ u16;
typedef __UINT32_TYPE__ u32;
typedef __UINT64_TYPE__ u64;
typedef __INT16_TYPE__ s16;
typedef __INT32_TYPE__ s32;
typedef __INT64_TYPE__ s64;

/* Why the kernel runs: request->op. */
enum warren_op {
    WARREN_READ_STREAM = 0,  /* the output is what the reader gets */
    WARREN_WRITE_EVENT = 1,  /* data has been written; the output is appended to the file */
    WARREN_WRITE_STREAM = 2, /* the output is written in place of the data */
    WARREN_READ_EVENT = 3,   /* data has been read; the output is added to what the reader gets */
};

/*
 * What helpers answer, negated, when they cannot; kernels may return the same. Only what a careful
 * kernel runs into is answered: a pointer, a length or an address that is wrong ends the kernel.
 */
enum warren_error {
    WARREN_ENOENT = 2,
    WARREN_EIO = 5,
    WARREN_ENOMEM = 12,
    WARREN_EINVAL = 22,
    WARREN_EFBIG = 27,
    WARREN_ENOSPC = 28,
    WARREN_ERANGE = 34,
    WARREN_EOPNOTSUPP = 95,
};

/*
 * The request. r1 holds its address and r2 its size when the kernel starts. Later versions add
 * fields at the end only: a field is there if it lies within the size.
 */
struct warren_request {
    u32 version;        /* of the device, at least 1 */
    u32 op;             /* enum warren_op */
    u64 offset;         /* first byte of the request in the file */
    u64 size;           /* bytes of the request; reads lie within the snapshot */
    u64 snapshot_size;  /* bytes of the snapshot */
    u32 argument_count; /* arguments of the registration */
    u32 flags;          /* 0 in version 1 */
    u64 data;           /* address of the data written or just read; 0 for WARREN_READ_STREAM */
    u64 data_size;      /* its bytes */
    u64 heap;           /* address of scratch memory, not zeroed */
    u64 heap_size;      /* its bytes */
    u64 output_limit;   /* bytes the kernel may emit in all */
};

#define WARREN_STATIC_ASSERT(name, condition) \
    typedef char warren_assert_##name[(condition) ? 1 : -1] __attribute__((unused))

WARREN_STATIC_ASSERT(request_is_80_bytes, sizeof(struct warren_request) == 80);
WARREN_STATIC_ASSERT(offset_is_at_8, __builtin_offsetof(struct warren_request, offset) == 8);
WARREN_STATIC_ASSERT(count_is_at_32, __builtin_offsetof(struct warren_request, argument_count) == 32);
WARREN_STATIC_ASSERT(limit_is_at_72, __builtin_offsetof(struct warren_request, output_limit) == 72);

#if defined(WARREN_NATIVE) || defined(WARREN_HELPERS_BY_NAME)
#define WARREN_HELPER(number, result, name, ...) extern result name(__VA_ARGS__)
#else
#define WARREN_HELPER(number, result, name, ...) \
    static result (*const name)(__VA_ARGS__) __attribute__((unused)) = (result(*)(__VA_ARGS__))(number)
#endif

/* Copies the request, at most `size` bytes of it. Returns how many. */
WARREN_HELPER(32, u64, warren_request, struct warren_request *out, u64 size);

/*
 * Maps the snapshot's bytes from `offset` on, any byte, read-only, and stores where to `*at`.
 * Returns how many bytes are there in one piece: `size`, or what is left of the snapshot, or what
 * the whole window holds (at least 512 MiB); 0 at the end of the snapshot. Mappings stay until the
 * kernel ends or calls warren_unmap. -WARREN_ENOMEM: the window has no room beside what is mapped.
 */
WARREN_HELPER(33, s64, warren_map, u64 offset, u64 size, const void **at);

/* Copies bytes of the snapshot. Returns how many: fewer than `size` at its end only. */
WARREN_HELPER(34, s64, warren_read, u64 offset, void *to, u64 size);

/* Adds bytes to the output. 0. Beyond the output limit the run fails. */
WARREN_HELPER(35, s64, warren_emit, const void *from, u64 size);

/*
 * Adds `size` bytes to the output and returns where they are, for the kernel to fill; the next
 * reservation or emission follows them without a gap. 0 when the output limit leaves no room, and
 * for no bytes.
 */
WARREN_HELPER(36, void *, warren_reserve, u64 size);

/* Appends bytes to the file, into blocks set aside for this run. 0. Beyond those the run fails. */
WARREN_HELPER(37, s64, warren_append, const void *from, u64 size);

/* Stores argument `index` to `*value`. 0, or -WARREN_ENOENT when there are fewer. */
WARREN_HELPER(38, s64, warren_argument, u32 index, u64 *value);

/* Writes a line to the log of the mount; long texts are cut, many lines are dropped. */
WARREN_HELPER(39, s64, warren_log, const char *text, u64 size);

/* Takes the last `size` bytes of the output back. 0, or -WARREN_EINVAL when there are fewer. */
WARREN_HELPER(40, s64, warren_trim, u64 size);

/* Gives all mappings back; their addresses must not be used any more. Returns 0. */
WARREN_HELPER(41, s64, warren_unmap, void);

/*
 * The entry. Its return value: negative fails the request (the reader gets EIO), anything else is
 * reported with the statistics.
 */
#ifndef WARREN_ENTRY
#define WARREN_ENTRY kernel
#endif
#define WARREN_KERNEL(request)                                \
    s64 WARREN_ENTRY(const struct warren_request *request);   \
    s64 WARREN_ENTRY(const struct warren_request *request)

#endif
