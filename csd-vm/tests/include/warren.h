/* The Warren ABI as the tests use it. */
#ifndef TEST_WARREN_H
#define TEST_WARREN_H

typedef unsigned char u8;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef long long s64;

struct warren_request {
    u32 version;
    u32 op;
    u64 offset;
    u64 size;
    u64 snapshot_size;
    u32 argument_count;
    u32 flags;
    u64 data;
    u64 data_size;
    u64 heap;
    u64 heap_size;
    u64 output_limit;
};

extern s64 warren_request(struct warren_request *out, u64 size);
extern s64 warren_map(u64 offset, u64 size, const void **at);
extern s64 warren_read(u64 offset, void *to, u64 size);
extern s64 warren_emit(const void *from, u64 size);
extern void *warren_reserve(u64 size);
extern s64 warren_append(const void *from, u64 size);
extern s64 warren_argument(u32 index, u64 *value);
extern s64 warren_log(const char *text, u64 size);
extern s64 warren_trim(u64 size);
extern s64 warren_unmap(void);

#endif
