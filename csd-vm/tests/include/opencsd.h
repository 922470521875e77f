/* The helpers and structures that kernels written for FluffleFS use: same names, numbers and
 * layout as the headers those kernels are compiled with. */
#ifndef TEST_OPENCSD_H
#define TEST_OPENCSD_H

#include <stdint.h>

static void (*bpf_return_data)(void *data, uint64_t size) = (void *)1;
static int (*bpf_read)(uint64_t zone, uint64_t sector, uint64_t offset, uint64_t size,
                       void *data) = (void *)2;
static int (*bpf_write)(uint64_t zone, uint64_t *sector, uint64_t offset, uint64_t size,
                        void *data) = (void *)3;
static uint64_t (*bpf_get_sector_size)(void) = (void *)4;
static uint64_t (*bpf_get_zone_capacity)(void) = (void *)5;
static uint64_t (*bpf_get_zone_size)(void) = (void *)6;
static void (*bpf_get_mem_info)(void **mem, uint64_t *size) = (void *)7;
static void (*bpf_get_call_info)(void **call) = (void *)8;
static void (*bpf_debug)(const char *text) = (void *)9;

enum flfs_operations {
    FLFS_READ_STREAM = 0,
    FLFS_WRITE_EVENT = 1,
};

struct dimensions {
    uint64_t size;
    uint64_t offset;
};

enum flfs_types {
    FLFS_FILE = 0,
    FLFS_DIR = 1,
};

struct inode {
    uint64_t inode;
    uint64_t parent;
    enum flfs_types type;
    uint64_t size;
};

struct __attribute__((packed)) flfs_call {
    enum flfs_operations op;
    struct dimensions dims;
    struct inode ino;
};

struct __attribute__((packed)) flfs_write_call {
    uint64_t pre_pad;
    uint64_t post_pad;
    uint64_t start_ptr;
    uint64_t wp_ptr;
    uint64_t end_ptr;
};

static inline void find_data_lba(uint64_t **call, int write) {
    uint8_t *at = (uint8_t *)*call + sizeof(struct flfs_call);
    *call = (uint64_t *)(write ? at + sizeof(struct flfs_write_call) : at);
}

static inline void lba_to_position(uint64_t lba, uint64_t zone_size, uint64_t *zone,
                                   uint64_t *sector) {
    *zone = lba / zone_size;
    *sector = lba % zone_size;
}

#endif
